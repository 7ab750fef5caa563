"""The fit of what needs none: prompting without examples, and learning in context."""

from typing import Any

import jax

from fewshot.fits.base import Data, Fit, Loss
from fewshot.methods.base import State, Theta
from fewshot.methods.spelling import spelled

Array = jax.Array


@spelled
def untrained() -> Fit:
  """No training (Brown et al. 2020, arXiv:2005.14165): theta and state stay as they start.

  For zero-shot prompts, `verbalizer(...)`, and for `demonstrations(...)`, which the start reads.

  >>> untrained().steps
  0
  """

  def start(
    loss: Loss, theta: Theta, state: State, data: Data, key: Array
  ) -> tuple[Theta, State, Array]:
    del loss, data
    return theta, state, jax.random.key_data(key)  # Runs are an axis where nothing else is theirs.

  def step(loss: Loss, carry: Any, data: Data, key: Array, t: Array) -> Any:
    raise AssertionError('untrained() takes no step')

  return Fit(0, start, step, lambda carry: carry[:2])
