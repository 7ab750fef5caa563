"""Neighbours by hand, filled by memory(), and features of length 1."""

import jax
import numpy as np
import pytest

from fewshot import fits, methods, models, objectives
from fewshot.errors import FewshotError
from fewshot.fits.base import Data, Loss

KEY = jax.random.key(0)
# Unit vectors after division; the angle to (1, 0) grows.
X = np.array([[5, 0], [4, 3], [3, 4], [0, 2], [-1, 0]], np.float32)
Y = np.array([1, 0, 0, 2, 1], np.int32)
FORWARD = models.from_function(lambda w, x: x @ w)
PARAMS = np.eye(2, dtype=np.float32)


def scores(k: int, x, labels=Y, method='neighbours(k={})', train=X):
  made = methods.parse(method.format(k))
  batch = {'x': train, 'labels': labels}
  theta, state = made.init(KEY, FORWARD, PARAMS, methods.Calib(batch, 3))
  loss = Loss(FORWARD, made, PARAMS, objectives.classification())
  theta, state = fits.memory()(loss, theta, state, Data(batch), KEY)
  forward = methods.adapt(made, FORWARD, theta, state)
  return forward(PARAMS, {'x': np.asarray(x, np.float32)})['logits']


def test_votes_by_hand():
  """To (7, 0) the cosines are 1, 0.8, 0.6, 0, -1."""
  near = scores(1, [[7, 0]])
  np.testing.assert_allclose(near, [[0, 1.5, 0]], atol=1e-6)
  three = scores(3, [[7, 0]])
  np.testing.assert_allclose(three, [[2 + 1.4 / 6, 1 + 1 / 6, 0]], atol=1e-6)
  every = scores(5, [[7, 0]])
  np.testing.assert_allclose(every, [[2 + 1.4 / 10, 2 + 0 / 10, 1]], atol=1e-6)


def test_more_votes_win_and_as_many_go_to_the_nearer():
  assert scores(3, [[7, 0]]).argmax() == 0  # Two at 0.8 and 0.6 against one at 1.
  assert scores(2, [[7, 0]]).argmax() == 1  # One each: at 1 and at 0.8.


def test_votes_win_however_far_they_are():
  """Two opposite neighbours against one that is the same: 2 (1 - 1/6) > 1 + 1/6."""
  x = np.array([[1, 0], [-1, 0], [-1, 0]], np.float32)
  got = scores(3, [[1, 0]], np.array([0, 1, 1], np.int32), train=x)
  np.testing.assert_allclose(got, [[7 / 6, 10 / 6, 0]], atol=1e-6)


def test_runs_side_by_side_remember_their_own_examples():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(3, 5, 2)).astype(np.float32), rng.integers(0, 3, (3, 5)).astype(np.int32)
  test = rng.normal(size=(4, 2))
  many = jax.vmap(lambda x, y: scores(2, test, y, train=x))(x, y)
  for i in range(3):
    np.testing.assert_allclose(many[i], scores(2, test, y[i], train=x[i]), atol=1e-6)


def test_in_a_chain_the_features_are_the_adapted_ones():
  want = scores(3, [[7, 0], [0, 1]])
  got = scores(3, [[7, 0], [0, 1]], method="chain(tune('.*'), neighbours(k={}))")
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_where_there_are_fewer_all_vote():
  np.testing.assert_allclose(scores(9, [[7, 0]]), [[2 + 1.4 / 18, 2, 1]], atol=1e-6)
  with pytest.raises(FewshotError, match='k is at least 1'):
    methods.neighbours(0)


def test_memory_refuses_other_heads():
  with pytest.raises(FewshotError, match=r'memory\(\) fills the examples of one .* has 0'):
    scores(1, [[1, 0]], method='nearest_mean()')


def test_unit_features_are_of_length_1_for_what_comes_after():
  chained = methods.parse('chain(unit_features(), linear())')
  theta, state = chained.init(KEY, FORWARD, PARAMS, methods.Calib({'x': X}, 2))
  kernel = np.array([[1, 2], [3, 4]], np.float32)
  theta = (theta[0], {'head': {'kernel': kernel, 'bias': np.zeros(2, np.float32)}})
  out = methods.adapt(chained, FORWARD, theta, state)(PARAMS, {'x': X})
  unit = X / np.linalg.norm(X, axis=1, keepdims=True)
  np.testing.assert_allclose(out['features'], unit, atol=1e-6)
  np.testing.assert_allclose(out['logits'], unit @ kernel, atol=1e-5)
  zero = methods.adapt(chained, FORWARD, theta, state)(PARAMS, {'x': 0 * X})
  assert not np.any(zero['features'])
