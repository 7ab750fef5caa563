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
    slot = _slot('prototypes() fills the means of one nearest_mean() head', 'means', state)
    means = paths.flatten(state)[slot]
    f = _unit_features(loss, theta, state, data, means.dtype)
    member = jax.nn.one_hot(data.train['labels'], means.shape[0], dtype=f.dtype)  # [N, C]
    mu = member.T @ f / jnp.maximum(member.sum(0)[:, None], 1)
    return theta, paths.replace(state, {slot: mu})

  return Fit(0, start, _no_step, lambda carry: carry)


@spelled
def memory() -> Fit:
  """The train examples themselves (Cover & Hart 1967), for `neighbours()`: unit features, labels.

  >>> memory().steps
  0
  """

  def start(loss: Loss, theta: Theta, state: State, data: Data, key: Array) -> tuple[Theta, State]:
    del key
    slot = _slot('memory() fills the examples of one neighbours() head', 'votes', state)
    votes = paths.flatten(state)[slot]
    f = _unit_features(loss, theta, state, data, votes.dtype)
    if len(f) != len(votes):
      raise FewshotError(
        f'memory() has {len(f)} examples, and neighbours() began with {len(votes)}'
      )
    votes = jax.nn.one_hot(data.train['labels'], votes.shape[1], dtype=votes.dtype)
    head = slot.removesuffix('votes')
    return theta, paths.replace(state, {slot: votes, f'{head}features': f})

  return Fit(0, start, _no_step, lambda carry: carry)


def _slot(fills: str, name: str, state: State) -> str:
  """The path of the one leaf head/`name` of the state."""
  slots = [p for p in paths.flatten(state) if p.split('/')[-2:] == ['head', name]]
  if len(slots) != 1:
    raise FewshotError(
      f'{fills}; this method has {len(slots)}, '
      f'among {brief(list(paths.flatten(state))) or "no state at all"}'
    )
  return slots[0]


def _unit_features(loss: Loss, theta: Theta, state: State, data: Data, dtype: Any) -> Array:
  """Those of all train examples [N, d], by the adapted model."""
  _, outputs = loss(theta, state, data.train)
  f = outputs['features'].astype(dtype)
  return f / jnp.maximum(jnp.linalg.norm(f, axis=-1, keepdims=True), 1e-12)


def _no_step(loss: Loss, carry: Any, data: Data, key: Array, t: Array) -> Any:
  raise AssertionError('a fit in closed form takes no step')
