"""Meta-training and evaluation of learners on episodes."""

import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fewshot import stopping
from fewshot.episodes import Pool, Rows, Sampler, gather, labels_of
from fewshot.errors import FewshotError, counts
from fewshot.learners import base, learning
from fewshot.learners.base import Learner, Outer, Setup, assemble
from fewshot.learners.evaluating import (
  centre,
  embedded,
  evaluate,
  evaluator,
  scored,
  setup_of,
  slow_in_loops,
  summary,
)
from fewshot.methods.base import Params
from fewshot.methods.spelling import spell
from fewshot.models.base import Model
from fewshot.states import States

__all__ = [
  'Trained',
  'assemble',
  'batches',
  'centre',
  'embedded',
  'evaluate',
  'evaluator',
  'scored',
  'summary',
  'train',
]
Array = jax.Array
Carry = dict[str, Any]  # outer, opt, step, curve.
Progress = Callable[[int, float], None]  # (steps done, loss)


class Trained(NamedTuple):
  """What meta-training gives."""

  outer: Outer
  curve: np.ndarray  # [steps, 2]: loss and accuracy on the queries; NaN where not done yet.
  step: int  # Steps done.


def train(
  learner: Learner,
  model: Model,
  sampler: Sampler,
  *,
  steps: int,
  meta_batch: int = 1,
  lr: float | optax.Schedule = 1e-3,
  optimizer: optax.GradientTransformation | None = None,
  outer: Outer | None = None,
  seed: int = 0,
  devices: int = 1,
  folder: str | Path | None = None,
  save_every: int = 0,
  minutes: float = 0.0,
  progress: Progress | None = None,
) -> Trained:
  """Minimises the learner's loss over episodes; each step takes the mean over `meta_batch` of them.

  A model whose forward uses batch statistics trains with them; its running ones follow.

  Args:
    lr: of Adam; a number or an optax schedule.  `optimizer` takes Adam's place and rate.
    outer: where to begin, as an earlier training gave it; None starts from the model.
    devices: how many to split the meta-batch over.
    folder: where to keep what resumes; a training that is there goes on, with the same result bit
      for bit as without the break.  Saved every `save_every` steps (0: at the end alone).
    minutes: stops after so long, saved; 0 does not.  So does a signal, see `stopping`.

  Raises:
    FewshotError: nothing to learn, sizes that do not divide, or another training in the folder.
  """
  counts(steps=steps, meta_batch=meta_batch, devices=devices)
  end = time.monotonic() + 60 * minutes if minutes else None
  _check(learner, meta_batch, devices)
  setup = setup_of(learner, model, sampler.way)
  tx = optimizer or optax.adam(lr)
  carry = _begin(setup, model, sampler, tx, steps, outer, seed)
  about: dict[str, Any] = {
    'steps': steps,
    'meta_batch': meta_batch,
    'seed': seed,
    'way': sampler.way,
  }
  about |= {'pool': sampler.pool.name, 'model': model.name}
  about |= {'lr': float(lr)} if isinstance(lr, int | float) and optimizer is None else {}
  saved = States(folder, {'learner': spell(learner), **about}) if folder else None
  with contextlib.closing(saved) if saved else contextlib.nullcontext():  # On Ctrl-C too.
    if found := saved.restore(carry) if saved else None:
      carry = jax.tree.map(jnp.asarray, found[1])  # It is donated.
    advance = _program(setup, model, sampler, tx, meta_batch, devices, seed)
    for t in range(int(carry['step']), steps):
      carry = advance(carry, t)
      late = _is_late(end, carry) or stopping.asked()
      if progress and (t + 1) % max(1, steps // 100) == 0:
        progress(t + 1, float(carry['curve'][t, 0]))
      if saved and (late or t + 1 == steps or (save_every and (t + 1) % save_every == 0)):
        saved.save(t + 1, carry)
      if late:
        break
  return Trained(carry['outer'], np.asarray(carry['curve']), int(carry['step']))


def batches(pool: Pool, size: int) -> Sampler:
  """Minibatches of single images with their class of the whole pool, as `baseline` trains on.

  >>> images = np.zeros((4, 2, 2, 1), np.uint8)
  >>> pool = Pool('toy', images, np.array([0, 3]), np.array([3, 1]), ('a', 'b'))
  >>> batches(pool, size=8)(jax.random.key(0)).query['labels'].shape
  (8,)
  """
  counts(size=size)
  labels = jnp.asarray(labels_of(pool))

  def sample_rows(key: Array) -> Rows:
    rows = jax.random.randint(key, (size,), 0, len(labels), jnp.int32)
    none, one = jnp.zeros(1, jnp.int32), jnp.zeros(1)
    classes = jnp.arange(len(pool.classes), dtype=jnp.int32)
    return Rows(none, rows, none, labels[rows], one, jnp.ones(size), classes)

  return Sampler(pool, sample_rows, len(pool.classes))


def _is_late(end: float | None, carry: Carry) -> bool:
  """Whether the time is over by the clock of the device, which runs behind its orders."""
  if end is None:
    return False
  jax.block_until_ready(carry['step'])
  return time.monotonic() > end


def _check(learner: Learner, meta_batch: int, devices: int) -> None:
  if not learner.outer:
    raise FewshotError(f'{spell(learner)} learns nothing across episodes; evaluate it as it is')
  there = jax.local_device_count()
  if devices > there or meta_batch % devices:
    raise FewshotError(
      f'devices={devices}: there are {there}, and a meta_batch of {meta_batch} must divide evenly'
    )


def _begin(
  setup: Setup, model: Model, sampler: Sampler, tx: Any, steps: int, outer: Outer | None, seed: int
) -> Carry:
  key = jax.random.fold_in(jax.random.key(seed), 0)
  support = gather(sampler.pool.images, sampler.sample_rows(key)).support
  fresh = learning.start(setup, key, model.params, support)
  fresh |= {k: v for k, v in (outer or {}).items() if k in fresh}
  fresh = jax.tree.map(lambda x: jnp.array(x, copy=True), fresh)  # The carry is donated.
  opt = tx.init({k: fresh[k] for k in setup.learner.outer})
  return {'outer': fresh, 'opt': opt, 'step': jnp.int32(0), 'curve': jnp.full((steps, 2), jnp.nan)}


def _program(
  setup: Setup, model: Model, sampler: Sampler, tx: Any, meta_batch: int, devices: int, seed: int
) -> Callable[[Carry, int], Carry]:
  """(carry, t) -> carry: gradients of groups of tasks, then their mean applied."""
  gradient = functools.partial(_gradient, setup, sampler)
  apply = functools.partial(_apply, setup.learner, tx)
  images, first = jnp.asarray(sampler.pool.images), jax.random.fold_in(jax.random.key(seed), 1)
  straight = setup.learner.adapts and slow_in_loops(setup, model, sampler)

  @jax.jit
  def keys_of(t: Array) -> Array:
    return jax.random.split(jax.random.fold_in(first, t), (devices, meta_batch // devices))

  @functools.partial(jax.jit, donate_argnums=2)
  def fused(params: Params, images: Array, carry: Carry, t: Array) -> Carry:
    return apply(carry, [gradient(params, images, carry['outer'], keys_of(t)[0])])

  if not straight and devices == 1:
    return lambda carry, t: fused(model.params, images, carry, jnp.int32(t))

  group = 1 if straight else meta_batch // devices
  if devices > 1:
    mean = lambda *args: jax.lax.pmean(gradient(*args), 'devices')  # noqa: E731
    axes = (None, None, None, 0)
    grads = jax.pmap(mean, 'devices', in_axes=axes, out_axes=None,
                     devices=jax.local_devices()[:devices])  # fmt: skip
  else:
    grads = jax.jit(lambda p, x, outer, keys: gradient(p, x, outer, keys[0]))
  update = jax.jit(apply, donate_argnums=0)

  def advance(carry: Carry, t: int) -> Carry:
    keys = keys_of(jnp.int32(t))
    parts = [keys[:, i : i + group] for i in range(0, keys.shape[1], group)]
    return update(carry, [grads(model.params, images, carry['outer'], k) for k in parts])

  return advance


def _gradient(
  setup: Setup, sampler: Sampler, params: Params, images: Array, outer: Outer, keys: Array
) -> dict[str, Any]:
  """Means over the tasks of `keys`: gradients, loss, accuracy, updated statistics."""
  loss = setup.learner.loss or learning.episodic

  def one(trained: Outer, key: Array) -> tuple[Array, Any]:
    draw, noise = jax.random.split(key)
    episode = gather(images, sampler.sample_rows(draw))
    value, outputs = loss(setup, params, outer | trained, episode, noise)
    new = outputs.get('state', {})
    statistics = {p: new.get(p, x) for p, x in outer['statistics'].items()}
    return value, (base.accuracy(outputs['logits'], episode.query), statistics)

  def mean(trained: Outer) -> tuple[Array, Any]:
    value, rest = jax.vmap(one, (None, 0))(trained, keys)
    return value.mean(), jax.tree.map(lambda x: x.mean(0), rest)

  def single(trained: Outer) -> tuple[Array, Any]:
    return one(trained, keys[0])  # vmap of one would still make kernels of a task.

  trained = {k: outer[k] for k in setup.learner.outer}
  value = jax.value_and_grad(single if keys.shape[0] == 1 else mean, has_aux=True)
  (loss_, (accuracy, statistics)), grads = value(trained)
  return {'grads': grads, 'scores': jnp.stack([loss_, accuracy]), 'statistics': statistics}


def _apply(learner: Learner, tx: Any, carry: Carry, parts: list[dict[str, Any]]) -> Carry:
  mean = jax.tree.map(lambda *xs: sum(xs) / len(xs), *parts)
  outer, t = carry['outer'], carry['step']
  trained = {k: outer[k] for k in learner.outer}
  updates, opt = tx.update(mean['grads'], carry['opt'], trained)
  new = outer | optax.apply_updates(trained, updates) | {'statistics': mean['statistics']}
  curve = carry['curve'].at[t].set(mean['scores'].astype(jnp.float32))
  return {'outer': new, 'opt': opt, 'step': t + 1, 'curve': curve}
