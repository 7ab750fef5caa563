"""Kronecker and Hadamard updates, against plain numpy."""

import jax
import numpy as np
import pytest

from fewshot import methods
from fewshot.errors import FewshotError
from fewshot.methods.kronecker import _divisors

RNG = np.random.default_rng(0)


def normal(*shape):
  return RNG.standard_normal(shape).astype(np.float32)


def start(method, w):
  theta, state = method.init(jax.random.key(0), None, {'kernel': w}, None)
  return theta['kernel'], state


def update(method, t, w):
  return np.asarray(method.weights({'kernel': t}, {}, {'kernel': w})['kernel']) - w


def randomised(t):
  return {k: normal(*v.shape) for k, v in t.items()}


@pytest.mark.parametrize('both', [False, True])
def test_lokr_is_a_kronecker_product(both):
  method = methods.lokr('kernel', rank=1, alpha=3.0, factor=4, decompose_both=both)
  w = normal(8, 24)
  t, _ = start(method, w)
  shapes = {'c_a': (4, 1), 'c_b': (1, 4)} if both else {'c': (4, 4)}
  assert {k: v.shape for k, v in t.items()} == shapes | {'d_a': (2, 1), 'd_b': (1, 6)}
  assert not update(method, t, w).any()
  t = randomised(t)
  c = t['c_a'] @ t['c_b'] if both else t['c']
  np.testing.assert_allclose(update(method, t, w), 3 * np.kron(c, t['d_a'] @ t['d_b']), atol=1e-4)


def test_lokr_of_a_convolution_is_one_at_each_tap():
  method = methods.lokr('kernel', rank=4, alpha=4.0)
  w = normal(3, 3, 4, 6)
  t = randomised(start(method, w)[0])
  assert t['d'].shape == (3, 3, 2, 3)  # At rank 4 nothing is saved by two factors.
  got = update(method, t, w)
  for i in np.ndindex(3, 3):
    np.testing.assert_allclose(got[i], np.kron(t['c'], t['d'][i]), atol=1e-4)


@pytest.mark.parametrize(
  ('n', 'factor', 'pair'),
  [
    (256, -1, (16, 16)),
    (128, -1, (8, 16)),
    (127, -1, (1, 127)),
    (128, 4, (4, 32)),
    (24, 7, (4, 6)),
  ],
)
def test_divisors_are_those_of_lycoris(n, factor, pair):
  assert _divisors(n, factor) == pair


def test_loha_is_a_hadamard_product_of_rank_r_squared():
  method, w = methods.loha('kernel', rank=2, alpha=2.0), normal(12, 10)
  t = start(method, w)[0]
  assert not update(method, t, w).any()
  t = randomised(t)
  want = (t['a1'] @ t['b1']) * (t['a2'] @ t['b2'])
  np.testing.assert_allclose(update(method, t, w), want, atol=1e-4)
  assert np.linalg.matrix_rank(want, tol=1e-4) == 4


def test_miss_adds_its_shard_to_every_r_rows():
  params, d = {'site': {'kernel': np.zeros((7, 5), np.float32)}}, normal(3, 5)
  got = methods.merge(methods.miss('site', rank=3), {'site': {'d': d}}, {}, params)
  np.testing.assert_array_equal(got['site']['kernel'], np.concatenate([d, d, d[:1]]))


def test_miss_fills_up_an_input_that_its_rank_does_not_divide(tiny, perturb):
  method = methods.miss('.*/query', rank=5)
  theta, state = method.init(jax.random.key(0), tiny.forward, tiny.params, tiny.calib)
  theta = perturb(theta)
  merged = methods.merge(method, theta, state, tiny.params)
  got = methods.adapt(method, tiny.forward, theta, state)(tiny.params, tiny.batch)
  want, base = (tiny.forward(p, tiny.batch)['features'] for p in (merged, tiny.params))
  np.testing.assert_allclose(got['features'], want, atol=1e-4)
  assert np.abs(want - base).max() > 1e-3


@pytest.mark.parametrize('spelling', ["lokr(where='bias')", "loha(where='bias')"])
def test_a_vector_has_no_factors(spelling):
  with pytest.raises(FewshotError, match=r'shape \[3\]; end the pattern'):
    methods.parse(spelling).init(jax.random.key(0), None, {'bias': normal(3)}, None)


def test_arguments_are_checked(tiny):
  for spelling in ('lokr(rank=0)', 'lokr(factor=0)', 'loha(rank=0)', 'miss(rank=0)'):
    with pytest.raises(FewshotError, match='at least 1'):
      methods.parse(spelling)
  with pytest.raises(FewshotError, match='rank=33 is more than the 32 features'):
    methods.miss(rank=33).init(jax.random.key(0), tiny.forward, tiny.params, tiny.calib)
