"""Objectives on numbers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import objectives
from fewshot.errors import FewshotError

LOG = np.log
OUTPUTS = {'logits': jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))}
BATCH = {'labels': jnp.array([0, 1])}


def test_cross_entropy():
  loss = objectives.classification().loss(OUTPUTS, BATCH)
  np.testing.assert_allclose(loss, [-LOG(0.5), -LOG(0.1)], rtol=1e-6)


def test_label_smoothing():
  """q = (0.8, 0.1, 0.1) and (0.1, 0.8, 0.1) at s = 0.3."""
  loss = objectives.classification(smoothing=0.3).loss(OUTPUTS, BATCH)
  first = -(0.8 * LOG(0.5) + 0.2 * LOG(0.25))
  second = -(0.9 * LOG(0.1) + 0.1 * LOG(0.8))
  np.testing.assert_allclose(loss, [first, second], rtol=1e-6)


def test_score_is_accuracy():
  score = objectives.classification().score(OUTPUTS, BATCH)
  assert score.tolist() == [1.0, 0.0] and score.dtype == jnp.float32


def test_means_are_weighted_where_there_are_weights():
  o = objectives.classification()
  assert float(o.mean_score(OUTPUTS, BATCH)) == 0.5
  weighted = BATCH | {'weights': jnp.array([1, 3])}
  assert float(o.mean_score(OUTPUTS, weighted)) == 0.25
  want = (-LOG(0.5) - 3 * LOG(0.1)) / 4
  np.testing.assert_allclose(o.mean(OUTPUTS, weighted), want, rtol=1e-6)
  nothing = BATCH | {'weights': jnp.zeros(2)}
  assert float(o.mean(OUTPUTS, nothing)) == 0.0


def test_gradient_is_softmax_minus_onehot():
  z = jnp.array([[1.0, -2.0, 0.5]])
  value = lambda z: objectives.classification().mean({'logits': z}, {'labels': jnp.array([2])})  # noqa: E731
  want = jax.nn.softmax(z) - jnp.array([[0, 0, 1.0]])
  np.testing.assert_allclose(jax.grad(value)(z), want, atol=1e-6)


def test_half_precision_logits_are_computed_in_float32():
  outputs = {'logits': jnp.array([[300.0, 0.0]], jnp.bfloat16)}
  loss = objectives.classification().loss(outputs, {'labels': jnp.array([1])})
  assert loss.dtype == jnp.float32 and float(loss[0]) == 300.0


def test_a_forward_without_logits_is_told_to_take_a_head():
  outputs = {'features': jnp.zeros((1, 2)), 'mask': jnp.ones((1, 2))}
  with pytest.raises(FewshotError, match=r'gives no logits .it has features, mask.; add a head'):
    objectives.classification().mean(outputs, {'labels': jnp.zeros(1, int)})
