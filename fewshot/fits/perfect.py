"""Training, then the prototypes by which PERFECT classifies."""

from typing import Any

import jax
import jax.numpy as jnp

from fewshot.errors import FewshotError
from fewshot.fits.base import Data, Fit, Loss
from fewshot.fits.sgd import sgd
from fewshot.methods import paths
from fewshot.methods.base import State, Theta
from fewshot.methods.spelling import spelled

Array = jax.Array


@spelled
def perfect(
  steps: int = 40,
  lr: float = 1e-4,
  head_lr: float = 1e-1,
  batch: int = 16,
  weight_decay: float = 0.0,
  schedule: str = 'linear',
  warmup: int = 0,
  clip: float = 1.0,
  eval_every: int = 0,
) -> Fit:
  """`sgd`, then PERFECT's prototypes (Karimi Mahabadi et al. 2022, arXiv:2204.01172).

      mu_cm = mean of h_m(x_i) over the train examples with y_i = c,   h_m the state at slot m

  They fill the head `label_embeddings(prototypes=True)`, at the theta that `sgd` of the same
  arguments results in.  The rates are the authors': 1e-4, and 0.1 of the label embeddings.

  >>> perfect(steps=6).steps
  6
  """
  inner = sgd(
    steps, lr, head_lr, batch, weight_decay, schedule, warmup=warmup, clip=clip,
    eval_every=eval_every,
  )  # fmt: skip

  def start(loss: Loss, theta: Theta, state: State, data: Data, key: Array) -> Any:
    _place(state)
    return inner.start(loss, theta, state, data, key)

  def step(loss: Loss, carry: Any, data: Data, key: Array, t: Array) -> Any:
    carry = inner.step(loss, carry, data, key, t)
    return jax.lax.cond(
      t + 1 == steps, lambda: _filled(loss, carry, *inner.finish(carry), data), lambda: carry
    )

  return inner._replace(start=start, step=step)


def _place(state: State) -> str:
  """Where the means are."""
  found = [p for p in paths.flatten(state) if p.split('/')[-2:] == ['head', 'slot_means']]
  if len(found) != 1:
    raise FewshotError(
      f'perfect() fills the prototypes of one head, and this method has {len(found)} that take '
      'some; write label_embeddings(prototypes=True)'
    )
  return found[0]


def _filled(loss: Loss, carry: Any, theta: Theta, state: State, data: Data) -> Any:
  """The carry of `sgd`, whose result has the means of all train examples at this theta."""
  place = _place(state)
  means = paths.flatten(state)[place]
  _, outputs = loss(theta, state, data.train)
  member = jax.nn.one_hot(data.train['labels'], len(means), dtype=means.dtype)  # [N, C]
  if 'weights' in data.train:
    member = member * data.train['weights'][:, None]
  mu = jnp.einsum('nc,nmd->cmd', member, outputs['slot_hidden'].astype(means.dtype))
  mu = mu / jnp.maximum(member.sum(0), 1e-12)[:, None, None]
  filled = {'state': paths.replace(state, {place: mu})}
  return carry | filled | ({'best': carry['best'] | filled} if 'best' in carry else {})
