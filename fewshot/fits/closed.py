"""Fits in closed form: no step, one pass over the train examples."""

from typing import Any

import jax
import jax.numpy as jnp

from fewshot.errors import FewshotError, brief
from fewshot.fits.base import Data, Fit, Loss
from fewshot.methods import paths
from fewshot.methods.base import State, Theta
from fewshot.methods.spelling import spelled

Array = jax.Array


@spelled
def prototypes() -> Fit:
  """Class means of the features (Snell et al. 2017, arXiv:1703.05175), for `nearest_mean()`.

      mu_c = mean of f(x_i) / |f(x_i)| over the train examples with y_i = c

  Features are brought to unit length first, so that each example counts the same.

  >>> prototypes().steps
  0
  """

  def start(loss: Loss, theta: Theta, state: State, data: Data, key: Array) -> tuple[Theta, State]:
    del key
    slots = [p for p in paths.flatten(state) if p.split('/')[-2:] == ['head', 'means']]
    if len(slots) != 1:
      raise FewshotError(
        f'prototypes() fills the means of one nearest_mean() head; this method has {len(slots)}, '
        f'among {brief(list(paths.flatten(state))) or "no state at all"}'
      )
    _, outputs = loss(theta, state, data.train)
    means = paths.flatten(state)[slots[0]]
    f = outputs['features'].astype(means.dtype)
    f = f / jnp.maximum(jnp.linalg.norm(f, axis=-1, keepdims=True), 1e-12)
    member = jax.nn.one_hot(data.train['labels'], means.shape[0], dtype=f.dtype)  # [N, C]
    mu = member.T @ f / jnp.maximum(member.sum(0)[:, None], 1)
    return theta, paths.replace(state, {slots[0]: mu})

  def step(loss: Loss, carry: Any, data: Data, key: Array, t: Array) -> Any:
    raise AssertionError('prototypes() takes no step')

  return Fit(0, start, step, lambda carry: carry)
