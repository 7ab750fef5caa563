"""untrained() leaves everything as it starts, also what would train."""

import jax
import numpy as np

from fewshot import fits, methods, objectives
from fewshot.fits.base import Data, Loss


def test_theta_and_state_stay(tiny):
  method = methods.parse('chain(vera(rank=2), nearest_mean())')  # It has both.
  theta, state = method.init(jax.random.key(0), tiny.forward, tiny.params, tiny.calib)
  loss = Loss(tiny.forward, method, tiny.params, objectives.classification())
  after = fits.parse('untrained()')(loss, theta, state, Data(tiny.batch), jax.random.key(1))
  assert jax.tree.leaves(theta) and jax.tree.leaves(state)
  assert jax.tree.structure(after) == jax.tree.structure((theta, state))
  jax.tree.map(np.testing.assert_array_equal, after, (theta, state))
