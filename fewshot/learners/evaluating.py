"""Evaluation of learners on test episodes, the same ones for every learner."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fewshot import train
from fewshot.episodes import Pool, Sampler, gather
from fewshot.errors import FewshotError
from fewshot.learners import adapting, base, learning
from fewshot.learners.base import Features, Learner, Outer, Setup, assemble
from fewshot.methods.base import Batch, Outputs, Params
from fewshot.models.base import Model

Array = jax.Array
Evaluate = Callable[[Outer, Array, dict[str, Any]], np.ndarray]  # (outer, keys, chosen) -> [E]


def evaluate(
  learner: Learner,
  model: Model,
  outer: Outer,
  sampler: Sampler,
  keys: Array,
  *,
  batch: int = 16,
  chosen: dict[str, Any] | None = None,
) -> np.ndarray:
  """[E]: the query accuracy of each test episode, one for each of `keys` (see `episodes.ledger`).

  Where the learner compares features, each image is embedded once and episodes are gathered from
  those; a forward that uses batch statistics is run on each episode instead.  `batch` episodes are
  computed at a time; `chosen` has arguments of the fit in place of the learner's choices.
  """
  if keys.ndim != 1:
    raise FewshotError(
      f'evaluate takes a key for each episode, [E], not of shape {keys.shape}; see episodes.ledger'
    )
  return evaluator(learner, model, sampler, batch=batch)(outer, keys, chosen or {})


def evaluator(learner: Learner, model: Model, sampler: Sampler, *, batch: int = 16) -> Evaluate:
  """`evaluate` as a function of (outer, keys, chosen) that compiles once."""
  setup = setup_of(learner, model, sampler.way)
  shapes = _shapes(setup, model, sampler)
  if not learner.adapts and 'state' not in shapes:
    return _by_features(setup, model, sampler, batch)
  if learner.adapts and slow_in_loops(setup, model, sampler):
    return _one_by_one(setup, model, sampler)

  return _each(setup, model, sampler, batch)


def embedded(model: Model, outer: Outer, sampler: Sampler) -> tuple[Model, Sampler]:
  """The model that gives features as they are, and the sampler of features in place of images.

  Each image of the pool goes through the backbone once, for all learners that compare features.

  >>> from fewshot.episodes import make_pool, sampler
  >>> pool = make_pool('toy', np.zeros((6, 2, 2, 1), np.uint8), [0, 0, 0, 1, 1, 1], 'ab')
  >>> forward = lambda p, b, key=None: {'features': b['x'].reshape(-1, 4) + p}
  >>> model, sample = embedded(Model('flat', forward, np.ones(4)), {}, sampler(pool, 2, 1, 2))
  >>> sample(jax.random.key(0)).query['x'].shape
  (4, 4)
  """
  pool = sampler.pool
  rows = np.arange(len(pool.images))
  setup = setup_of(Learner(), model, sampler.way)
  table = embedder(setup)(assemble(model.params, outer), pool.images, rows)

  def forward(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
    del params, key
    return {'features': batch['x']}

  identity = Model(model.name, forward, {})
  return identity, sampler._replace(pool=pool._replace(images=table))


def centre(model: Model, outer: Outer, pool: Pool) -> Outer:
  """`outer` with the mean feature of a pool as the 'mean' of its fit, for `simpleshot`."""
  setup = setup_of(Learner(), model, 2)
  rows = np.arange(len(pool.images))
  features = embedder(setup)(assemble(model.params, outer), pool.images, rows)
  return outer | {'fit': outer.get('fit', {}) | {'mean': features.mean(0)}}


def summary(accuracies: np.ndarray) -> dict[str, Any]:
  """The mean accuracy with the half-width of its 95 % interval over episodes.

      1.96 std / sqrt(n)

  >>> summary(np.array([0.5, 1.0, 0.75]))['value']
  0.75
  """
  x = np.asarray(accuracies, np.float64)
  if x.ndim != 1 or not len(x):
    raise FewshotError(f'accuracies have the shape {list(x.shape)}; give one for each episode')
  spread = 1.96 * x.std(ddof=1) / len(x) ** 0.5 if len(x) > 1 else None
  spread = None if spread is None else float(spread)
  return {'value': float(x.mean()), 'spread': spread, 'kind': 'episode-ci95', 'n': len(x)}


def scored(accuracies: np.ndarray) -> dict[str, Any]:
  """What a record says of test episodes: the mean with its interval, and each of them.

  >>> scored(np.array([0.5, 1.0]))['episodes']
  [0.5, 1.0]
  """
  found = summary(accuracies)
  rounded = {k: _rounded(v, 6) if isinstance(v, float) else v for k, v in found.items()}
  return {
    'scores': {'accuracy': rounded},
    'episodes': [_rounded(float(a), 4) for a in accuracies],
  }


def _rounded(value: float, digits: int) -> float | None:
  return round(value, digits) if math.isfinite(value) else None


def setup_of(learner: Learner, model: Model, way: int) -> Setup:
  """The static part of learning in episodes; batches say 'x', whatever the model reads."""
  name = next(iter(model.example)) if model.example else 'x'

  def forward(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
    return model.forward(params, {name: batch['x']}, key)

  return Setup(learner, forward, way)


def slow_in_loops(setup: Setup, model: Model, sampler: Sampler) -> bool:
  """Whether tasks and steps are dispatched one by one: convolutions on a CPU.

  There a convolution with a kernel for each task, as vmap makes it, is several times slower than
  one task after the other, and its gradient in a loop an order of magnitude.
  """
  return train.steps_are_straight(setup.forward, model.params, {'x': _example(sampler)})


def _shapes(setup: Setup, model: Model, sampler: Sampler) -> Outputs:
  return jax.eval_shape(lambda p, x: setup.forward(p, {'x': x}), model.params, _example(sampler))


def _example(sampler: Sampler) -> Any:
  """The shape of two inputs."""
  images = sampler.pool.images
  return jax.ShapeDtypeStruct((2, *images.shape[1:]), images.dtype)


def _chosen(setup: Setup, chosen: dict[str, Any]) -> Setup:
  """The setup with these arguments of the fit instead of the learner's choices."""
  if not chosen:
    return setup
  one = {k: jnp.asarray(v)[None] for k, v in chosen.items()}
  return setup._replace(learner=setup.learner._replace(choices=one))


def _by_features(setup: Setup, model: Model, sampler: Sampler, batch: int) -> Evaluate:
  """Embeds the images that the episodes need, each once; episodes are rows of the features."""
  learner, pool = setup.learner, sampler.pool

  def one(fit: dict[str, Any], table: Array, rows: Any) -> Array:
    e = gather(table, rows)
    weights = (e.support['weights'], e.query['weights'])
    f = Features(e.support['x'], e.support['labels'], weights[0], e.query['x'], weights[1])
    return base.accuracy(base.score(learner, fit, f, setup.way), e.query)

  @jax.jit
  def every(fit: dict[str, Any], table: Array, rows: Any) -> Array:
    return jax.lax.map(functools.partial(one, fit, table), rows, batch_size=batch)

  draw = jax.jit(jax.vmap(sampler.sample_rows))
  embed = embedder(setup)

  def run(outer: Outer, keys: Array, chosen: dict[str, Any]) -> np.ndarray:
    del chosen
    rows = draw(keys)
    used, where = np.unique(np.concatenate([rows.support, rows.query], 1), return_inverse=True)
    where = where.reshape(len(keys), -1).astype(np.int32)
    table = embed(assemble(model.params, outer), pool.images, used)
    s = rows.support.shape[1]
    rows = rows._replace(support=jnp.asarray(where[:, :s]), query=jnp.asarray(where[:, s:]))
    return np.asarray(every(base.variables(learner, outer), table, rows))

  return run


def embedder(setup: Setup, size: int = 256) -> Callable[[Params, Any, np.ndarray], Array]:
  """(params, images, rows) -> features [len(rows), d], `size` images at a time."""

  @jax.jit
  def forward(params: Params, x: Array) -> Array:
    f = setup.forward(params, {'x': x})['features']
    return f.astype(jnp.promote_types(f.dtype, jnp.float32))

  def embed(params: Params, images: Any, rows: np.ndarray) -> Array:
    n = min(size, len(rows))
    padded = np.concatenate([rows, np.repeat(rows[:1], -len(rows) % n)])
    parts = [forward(params, images[padded[i : i + n]]) for i in range(0, len(padded), n)]
    return jnp.concatenate(parts)[: len(rows)]

  return embed


def _each(setup: Setup, model: Model, sampler: Sampler, batch: int) -> Evaluate:
  """Learns every episode from its images, `batch` of them at a time."""

  def one(params: Params, images: Array, outer: Outer, chosen: Any, key: Array) -> Array:
    episode = gather(images, sampler.sample_rows(key))
    outputs = learning.respond(_chosen(setup, chosen), params, outer, episode, noise_of(key))
    return base.accuracy(outputs['logits'], episode.query)

  @jax.jit
  def every(params: Params, images: Array, outer: Outer, chosen: Any, keys: Array) -> Array:
    each = functools.partial(one, params, images, outer, chosen)
    return jax.lax.map(each, keys, batch_size=batch)

  images = jnp.asarray(sampler.pool.images)
  return lambda outer, keys, chosen: np.asarray(every(model.params, images, outer, chosen, keys))


def _one_by_one(setup: Setup, model: Model, sampler: Sampler) -> Evaluate:
  """Episode after episode and, where there are many, step after step."""
  fit, images = setup.learner.fit, jnp.asarray(sampler.pool.images)
  assert fit is not None
  params = model.params

  def problem(params: Params, outer: Outer, episode: Any, key: Array, chosen: Any) -> Any:
    return adapting.inner(setup, params, outer, episode.support, noise_of(key), chosen)

  @jax.jit
  def draw(images: Array, key: Array) -> Any:
    return gather(images, sampler.sample_rows(key))

  @jax.jit
  def begin(*args: Any) -> Any:
    return adapting.begin(problem(*args))

  @functools.partial(jax.jit, donate_argnums=0)
  def step(carry: Any, t: Array, *args: Any) -> Any:
    return adapting.step(problem(*args), carry, t)

  @jax.jit
  def end(carry: Any, params: Params, outer: Outer, episode: Any, *rest: Any) -> Outputs:
    i = problem(params, outer, episode, *rest)
    return adapting.end(setup, i, carry, episode.support, episode.query)

  def one(outer: Outer, key: Array, chosen: dict[str, Any]) -> Array:
    episode, each = draw(images, key), []
    for choice in [chosen] if chosen else adapting.options(setup):
      args = (params, outer, episode, key, choice)
      carry = jax.tree.map(jnp.copy, begin(*args))  # Donated: it may hold a leaf twice.
      for t in range(fit.steps):
        carry = step(carry, jnp.int32(t), *args)
      each.append(end(carry, *args))
    return base.accuracy(adapting.best(each)['logits'], episode.query)

  return lambda outer, keys, chosen: np.array([one(outer, key, chosen) for key in keys])


def noise_of(key: Array) -> Array:
  """The key of what is random in learning a test episode."""
  return jax.random.fold_in(key, 1)
