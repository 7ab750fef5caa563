"""SetFit: features of one class brought together by pairs, then a head in closed form."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from fewshot.errors import FewshotError, counts
from fewshot.fits.base import Data, Fit, Loss
from fewshot.fits.logistic import check_penalty, head_of, with_head
from fewshot.fits.sgd import Recipe, begin, descend
from fewshot.methods import paths
from fewshot.methods.base import Batch, Outputs, State, Theta
from fewshot.methods.heads import unit
from fewshot.methods.spelling import spelled
from fewshot.objectives import Objective

Array = jax.Array


@spelled
def setfit(
  steps: int = 80,
  lr: float = 2e-5,
  batch: int = 16,
  weight_decay: float = 0.01,
  warmup_proportion: float = 0.1,
  clip: float = 1.0,
  l2: float = 1.0,
) -> Fit:
  """SetFit (Tunstall et al. 2022, arXiv:2209.11055): contrastive pairs, then `logistic(l2)`.

      loss = mean over pairs (i, j) of (cos(f_i, f_j) - [y_i = y_j])^2

  Each step draws `batch` pairs, in turn one of the same class and one of two classes, of every
  example as often as of the others.  R iterations of N examples, 2 R N pairs, are steps =
  2 R N / batch: the paper's R = 20 on 32 examples is the default of 80.  AdamW's rate rises over
  `warmup_proportion` of the steps and falls to zero, as the authors' package has it.  The last
  step sets the `linear()` head; what trains before is the rest of theta.  The package's sentence
  encoders end in unit features: put `unit_features()` before `linear()` for theirs.

  >>> from fewshot.methods import spell
  >>> spell(setfit(steps=2 * 20 * 96 // 16))
  'setfit(steps=240)'
  """
  counts(steps=steps, batch=batch)
  check_penalty('setfit', l2)
  for name, value in {'lr': lr, 'weight_decay': weight_decay, 'clip': clip}.items():
    if isinstance(value, (int, float)) and value < 0:  # A sweep's values are traced.
      raise FewshotError(f'setfit({name}={value}) is negative; it is at least 0')
  if not 0 <= warmup_proportion <= 1:
    raise FewshotError(f'setfit(warmup_proportion={warmup_proportion}) is a part of 1')
  warmup = math.ceil(steps * warmup_proportion)
  recipe = Recipe(
    steps, lr, 0.0, 2 * batch, weight_decay, 'linear', warmup, clip, 0, 1, 'adamw'
  )  # fmt: skip
  start, step = functools.partial(_start, recipe), functools.partial(_step, recipe, l2)
  finish, varies = lambda c: (c['theta'], c['state']), ('lr', 'weight_decay', 'l2')
  return Fit(steps, start, step, finish, varies, functools.partial(_rows, batch))


def pairs(labels: Array, batch: int, key: Array, t: Array) -> Array:
  """Step t's examples [2 batch]: those at 2i and 2i + 1 are a pair, of one class where i is even.

  The first of a pair goes through reshuffled epochs; the second is drawn among the others of its
  class, or is itself where there are none, and among the other classes.
  """
  n = labels.shape[0]

  def one(i: Array) -> Array:
    epoch, place = jnp.divmod(i // 2, n)
    order = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 0), epoch), n)
    first = order[place]
    wanted = (labels == labels[first]) == (i % 2 == 0)
    itself = jnp.arange(n) == first
    drawn = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, 1), i), (n,))
    return jnp.stack([first, jnp.argmax(2 * wanted - itself + drawn)])

  return jax.vmap(one)(t * batch + jnp.arange(batch)).reshape(-1)


def _rows(batch: int, labels: Array, key: Array, t: Array) -> Array:
  return pairs(jnp.asarray(labels), batch, jax.random.fold_in(key, 2), t)[None]


def pair_loss(outputs: Outputs, batch: Batch) -> Array:
  """(cos(f_i, f_j) - [y_i = y_j])^2 of each pair, twice: [2 batch], in the order of `pairs`."""
  f, labels = unit(outputs['features'].astype(jnp.float32)), batch['labels']
  cosines = (f[0::2] * f[1::2]).sum(-1)
  return jnp.repeat(jnp.square(cosines - (labels[0::2] == labels[1::2])), 2)


def _start(
  r: Recipe, loss: Loss, theta: Theta, state: State, data: Data, key: Array
) -> dict[str, Any]:
  head = head_of('setfit', theta)
  if all(p.startswith(f'{head}/') for p in paths.flatten(theta)):
    raise FewshotError(
      'setfit() trains the features, and this method is but a head; write chain(full(), linear()), '
      'or fit the head alone by logistic()'
    )
  return begin(r, loss, theta, state, data, key)


def _step(
  r: Recipe, l2: Any, loss: Loss, carry: Any, data: Data, key: Array, t: Array
) -> dict[str, Any]:
  devices = 1 if loss.axis is None else jax.lax.axis_size(loss.axis)
  if r.batch // 2 % devices:
    raise FewshotError(f'setfit(batch={r.batch // 2}) splits no pair: not over {devices} devices')
  rows = _rows(r.batch // 2, data.train['labels'], key, t)
  contrast = loss._replace(objective=Objective(pair_loss, pair_loss))
  new = descend(r, contrast, carry, data, rows, key, t)
  fitted = lambda: with_head(loss, new['theta'], new['state'], data, l2)  # noqa: E731
  return new | {'theta': jax.lax.cond(t + 1 == r.steps, fitted, lambda: new['theta'])}
