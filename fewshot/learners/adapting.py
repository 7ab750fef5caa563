"""The inner loop: a method fitted to the support of one episode, differentiable as a whole.

`begin`, `step` and `end` are the parts, so that an engine may dispatch the steps one by one;
`respond` is all of it as one function.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fewshot.errors import FewshotError
from fewshot.fits import Data, Fit, Loss
from fewshot.learners.base import (
  Features,
  Outer,
  Setup,
  among,
  assemble,
  cross_entropy,
  embed,
  score,
  variables,
  weight_of,
)
from fewshot.methods.base import Batch, Calib, Forward, Outputs, Params, State, Theta, adapt
from fewshot.methods.spelling import remake
from fewshot.objectives import Objective

Array = jax.Array
UNROLLED = 10  # Inner steps up to here are unrolled; more are a loop.


class Inner(NamedTuple):
  """One episode to fit."""

  fit: Fit
  loss: Loss
  theta: Theta
  state: State
  data: Data
  params: Params
  key: Array


def inner(
  setup: Setup, params: Params, outer: Outer, support: Batch, key: Array, chosen: dict[str, Any]
) -> Inner:
  """The fit of this episode with its loss, its start and its data."""
  learner = setup.learner
  assert learner.method is not None and learner.fit is not None
  key = jax.random.key(0) if key is None else key
  params = assemble(params, outer)
  if 'theta0' in learner.outer:
    _need(outer, 'theta0')
    theta, state = outer['theta0'], outer['state']
  else:
    theta, state = begin_method(setup, params, support, jax.random.fold_in(key, 0))
  fit = remake(learner.fit, **variables(learner, outer), **chosen)
  forward = still(setup.forward)
  forward = _with_views(forward) if learner.augment else forward
  loss = Loss(forward, learner.method, params, _objective(setup, support))
  return Inner(fit, loss, theta, state, Data(support), params, jax.random.fold_in(key, 1))


def begin_method(setup: Setup, params: Params, support: Batch, key: Array) -> tuple[Theta, State]:
  """Where the method starts on an episode."""
  assert setup.learner.method is not None
  calib = Calib(support, setup.way, _objective(setup, support).loss)
  return setup.learner.method.init(key, still(setup.forward), params, calib)


def begin(i: Inner) -> Any:
  """The carry of the fit before its first step."""
  return i.fit.start(i.loss, i.theta, i.state, i.data, i.key)


def step(i: Inner, carry: Any, t: Array) -> Any:
  """One step of the fit."""
  return i.fit.step(i.loss, carry, i.data, i.key, t)


def end(setup: Setup, i: Inner, carry: Any, support: Batch, query: Batch) -> Outputs:
  """The query's logits under what was fitted, and 'score', the loss on the support."""
  learner, (theta, state) = setup.learner, i.fit.finish(carry)
  adapted = adapt(i.loss.method, setup.forward, theta, state)
  if learner.predict is None:
    outputs = adapted(i.params, {'x': query['x']})
    logits = among(_logits(outputs, setup.way), support['labels'], weight_of(support))
  else:
    f, outputs = embed(adapted, i.params, support, query)
    logits = score(learner, {}, f, setup.way)
  out = {k: v for k, v in outputs.items() if k == 'state'} | {'logits': logits}
  if learner.choices:
    out['score'] = i.loss(theta, state, i.data.train, jax.random.fold_in(i.key, 2))[0]
  return out


def respond(
  setup: Setup, params: Params, outer: Outer, support: Batch, query: Batch, key: Array | None
) -> Outputs:
  """The outputs of an episode's query; of several choices, those of the best on the support."""
  key = jax.random.key(0) if key is None else key
  each = []
  for chosen in options(setup):
    i = inner(setup, params, outer, support, key, chosen)
    each.append(end(setup, i, run(i), support, query))
  return best(each)


def options(setup: Setup) -> list[dict[str, Any]]:
  """The arguments of the fit that are tried, as arrays: one program serves them all."""
  choices = setup.learner.choices or {}
  if not choices:
    return [{}]
  arrays = {k: jnp.asarray(v) for k, v in choices.items()}
  return [{k: v[r] for k, v in arrays.items()} for r in range(len(next(iter(arrays.values()))))]


def best(each: list[Outputs]) -> Outputs:
  """The outputs with the lowest score."""
  if len(each) == 1:
    return each[0]
  scores = jnp.stack([o['score'] for o in each])
  winner = jnp.argmin(jnp.where(jnp.isfinite(scores), scores, jnp.inf))
  return jax.tree.map(lambda *xs: jnp.stack(xs)[winner], *each)


def still(forward: Forward) -> Forward:
  """The forward without the statistics it updates: to a fit, 'state' is the method's."""

  def quiet(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
    return {k: v for k, v in forward(params, batch, key).items() if k != 'state'}

  return quiet


def run(i: Inner) -> Any:
  """The carry of the fit after its last step."""
  carry = begin(i)
  if i.fit.steps <= UNROLLED:  # Gradients of convolutions in a loop are slow on a CPU.
    for t in range(i.fit.steps):
      carry = step(i, carry, jnp.int32(t))
    return carry
  return jax.lax.scan(lambda c, t: (step(i, c, t), None), carry, jnp.arange(i.fit.steps))[0]


def _objective(setup: Setup, support: Batch) -> Objective:
  """Cross-entropy of the support, of the method's head or of the support against itself."""
  learner = setup.learner

  def loss(outputs: Outputs, batch: Batch) -> Array:
    if learner.predict is None:
      z = among(_logits(outputs, setup.way), support['labels'], weight_of(support))
      return cross_entropy(z, batch['labels'])
    f, n = outputs['features'], batch['labels'].shape[0]
    f, w = f.astype(jnp.promote_types(f.dtype, jnp.float32)), weight_of(batch)
    # The last n rows are altered copies of the first where there are any, or the same rows.
    seen = Features(f[:n], batch['labels'], w, f[-n:], w)
    return cross_entropy(score(learner, {}, seen, setup.way), batch['labels'])

  return Objective(loss, lambda outputs, batch: -loss(outputs, batch))


def _with_views(forward: Forward) -> Forward:
  """The forward of a batch and, where there is a key, of an altered copy behind it."""

  def doubled(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
    if key is None:
      return forward(params, batch)
    return forward(params, {'x': jnp.concatenate([batch['x'], altered(key, batch['x'])])})

  return doubled


def altered(key: Array, x: Array) -> Array:
  """Images [S, H, W, C] shifted by up to an eighth and brightened or darkened; vectors with noise.

  The translation and colour of DiffAugment (arXiv:2006.10738), which P>M>F makes its pseudo-query
  with; its cutout is left out.
  """
  k1, k2, k3 = jax.random.split(key, 3)
  if x.ndim != 4:
    return x + 0.1 * jnp.std(x, 0) * jax.random.normal(k1, x.shape, jnp.float32).astype(x.dtype)
  s, h, w, _ = x.shape
  down = jax.random.randint(k1, (s,), -(h // 8), h // 8 + 1)
  right = jax.random.randint(k2, (s,), -(w // 8), w // 8 + 1)
  moved = jax.vmap(lambda image, i, j: jnp.roll(image, (i, j), (0, 1)))(x, down, right)
  top = 255 if x.dtype == jnp.uint8 else 1
  light = 0.2 * top * jax.random.uniform(k3, (s, 1, 1, 1), minval=-1.0)
  return jnp.clip(moved.astype(jnp.float32) + light, 0, top).astype(x.dtype)


def _logits(outputs: Outputs, way: int) -> Array:
  if 'logits' not in outputs:
    raise FewshotError(
      'the method of this learner gives no logits; chain a head behind it: chain(..., linear())'
    )
  if outputs['logits'].shape[-1] < way:
    raise FewshotError(
      f'the head of this learner tells {outputs["logits"].shape[-1]} classes apart, and episodes '
      f'have {way}; train it with as many'
    )
  return outputs['logits']


def _need(outer: Outer, name: str) -> None:
  if name not in outer:
    raise FewshotError(f'this learner starts from a learned {name}; meta-train it first')
