"""Orthogonal methods against dense matrices in plain numpy."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from fewshot import methods, models
from fewshot.errors import FewshotError

RNG = np.random.default_rng(0)
KEY = jax.random.key(3)
X = {'x': RNG.standard_normal((3, 8)).astype(np.float32)}


class Layer(nn.Module):
  """x W + b, [3, 8] -> [3, 6]."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(6, name='layer')(x)


FORWARD = models.from_linen(Layer(), output='features')
KERNEL, BIAS = (RNG.standard_normal(s).astype(np.float32) for s in ((8, 6), 6))
PARAMS = {'layer': {'kernel': KERNEL, 'bias': BIAS}}


def trained(method):
  """theta after some training, and its kernel and bias once merged."""
  theta, state = method.init(KEY, FORWARD, PARAMS, methods.Calib(X))
  rng = np.random.default_rng(1)
  theta = jax.tree.map(lambda x: x + 0.3 * rng.standard_normal(x.shape).astype('f'), theta)
  merged = methods.merge(method, theta, state, PARAMS)['layer']
  applied = methods.adapt(method, FORWARD, theta, state)(PARAMS, X)['features']
  np.testing.assert_allclose(X['x'] @ merged['kernel'] + merged['bias'], applied, atol=2e-5)
  (t,) = theta.values()
  return jax.tree.map(np.asarray, t), *(np.asarray(merged[k]) for k in ('kernel', 'bias'))


def skew(q, b):
  m = np.zeros((b, b))
  m[np.triu_indices(b, 1)] = q
  return m - m.T


def cayley(q):
  return (np.eye(len(q)) - q) @ np.linalg.inv(np.eye(len(q)) + q)


def block_diagonal(blocks):
  b = len(blocks[0])
  out = np.zeros((b * len(blocks), b * len(blocks)))
  for i, r in enumerate(blocks):
    out[i * b : i * b + b, i * b : i * b + b] = r
  return out


def test_oft_rotates_blocks_of_inputs():
  t, kernel, bias = trained(methods.oft('layer', block_size=4, neumann=0))
  r = block_diagonal([cayley(skew(q, 4)) for q in t['q']])
  np.testing.assert_allclose(r @ r.T, np.eye(8), atol=1e-6)
  np.testing.assert_allclose(kernel, r @ KERNEL, atol=1e-5)
  np.testing.assert_array_equal(bias, BIAS)


def test_oft_by_five_terms_is_the_series_cut_short():
  t, kernel, _ = trained(methods.oft('layer', block_size=4))
  blocks = []
  for q in t['q']:
    q = skew(q, 4)
    blocks.append(np.eye(4) + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q)
  np.testing.assert_allclose(kernel, block_diagonal(blocks) @ KERNEL, atol=1e-5)


def test_oft_with_many_terms_is_orthogonal():
  t, kernel, _ = trained(methods.oft('layer', block_size=2, neumann=60))
  np.testing.assert_allclose(kernel.T @ kernel, KERNEL.T @ KERNEL, atol=1e-4)
  r = block_diagonal([cayley(-skew(q, 2)) for q in t['q']])  # The series is of the inverse.
  np.testing.assert_allclose(kernel, r @ KERNEL, atol=1e-5)


def test_gsoft_shuffles_between_two_block_rotations():
  t, kernel, _ = trained(methods.gsoft('layer', block_size=4))
  left, right = (block_diagonal([cayley(skew(q, 4)) for q in t[k]]) for k in ('l', 'r'))
  p = np.eye(8)[[0, 4, 1, 5, 2, 6, 3, 7]]
  q = p.T @ left @ p @ right
  np.testing.assert_allclose(kernel, q @ KERNEL, atol=1e-5)
  assert np.abs(q[:4, 4:]).max() > 1e-2  # Unlike a block rotation, it mixes blocks.


def test_hra_reflects():
  t, kernel, _ = trained(methods.hra('layer', rank=4))
  want = KERNEL
  for u in t['u'].T:
    want = want - 2 * np.outer(u, u @ want) / (u @ u)
  np.testing.assert_allclose(kernel, want, atol=1e-5)
  np.testing.assert_allclose(kernel.T @ kernel, KERNEL.T @ KERNEL, atol=1e-4)


def test_hra_is_penalised_for_parallel_reflections():
  method = methods.hra('layer', rank=2, regularization=3.0)
  start, state = method.init(KEY, FORWARD, PARAMS, methods.Calib(X))
  value = lambda u: float(method.penalty(FORWARD, {'layer': {'u': u}}, state, PARAMS, X, {}, KEY))  # noqa: E731
  np.testing.assert_allclose(value(start['layer']['u']), 3 * 2, rtol=1e-5)  # Equal vectors.
  np.testing.assert_allclose(value(2 * np.eye(8, 2, dtype='f')), 0, atol=1e-6)


@pytest.mark.parametrize('factors', [1, 2, 3])
def test_boft_is_a_product_of_permuted_block_rotations(factors):
  """The permutations as HF PEFT lists them, and all outputs scaled but for the bias."""
  t, kernel, bias = trained(methods.boft('layer/kernel', block_size=2, factors=factors))
  perms = [[0, 1, 2, 3, 4, 5, 6, 7], [0, 2, 1, 3, 4, 6, 5, 7], [0, 2, 4, 6, 1, 3, 5, 7]]
  r = np.eye(8)
  for a, perm in zip(t['a'], perms, strict=False):
    p = np.eye(8)[perm]
    r = p @ block_diagonal([cayley((x - x.T) / 2) for x in a]) @ p.T @ r
  np.testing.assert_allclose(kernel, r @ KERNEL * t['s'], atol=1e-5)
  np.testing.assert_allclose(r @ r.T, np.eye(8), atol=1e-6)
  assert np.count_nonzero(np.abs(r) > 1e-9) == 8 * 2**factors  # It reaches further each time.
  np.testing.assert_array_equal(bias, BIAS)


@pytest.mark.parametrize('variant', [1, 2, 4])
def test_road_turns_pairs_of_outputs(variant):
  t, kernel, bias = trained(methods.road('layer', variant, group_size=2))
  columns = lambda v: {  # noqa: E731
    1: lambda: (np.repeat(v, 2), np.repeat(v, 2)),
    2: lambda: (v, v),
    4: lambda: (v.reshape(3, 2, 2)[:, 0].ravel(), v.reshape(3, 2, 2)[:, 1].ravel()),
  }[variant]()
  (c, s), (a, b) = columns(t['theta']), columns(t['alpha'])
  r = np.zeros((6, 6))
  for i in (0, 2, 4):
    r[i, i], r[i, i + 1] = a[i] * np.cos(c[i]), -b[i] * np.sin(s[i])
    r[i + 1, i + 1] = a[i + 1] * np.cos(c[i + 1])
    r[i + 1, i] = b[i + 1] * np.sin(s[i + 1])
  np.testing.assert_allclose(kernel, KERNEL @ r.T, atol=1e-5)
  np.testing.assert_allclose(bias, r @ BIAS, atol=1e-5)
  if variant == 1:
    turned = r @ r.T
    np.testing.assert_allclose(turned, np.diag(np.diag(turned)), atol=1e-6)


def test_road_pairs_across_half_a_group():
  method = methods.road('layer', group_size=6)
  _, kernel, _ = trained(method)
  r = np.linalg.lstsq(KERNEL, kernel, rcond=None)[0]
  pairs = {(i, j) for i, j in np.argwhere(np.abs(r) > 1e-4) if i != j}
  assert pairs == {(0, 3), (3, 0), (1, 4), (4, 1), (2, 5), (5, 2)}


@pytest.mark.parametrize(
  ('spelling', 'match'),
  [
    ("oft('layer', block_size=3)", r'oft\(block_size=3\) does not cut 8 channels'),
    ("oft('layer', neumann=2)", r'0 \(exact\) or at least 4'),
    ("gsoft('layer', block_size=32)", 'take a divisor of 8'),
    ("hra('layer', rank=3)", 'rank is 2, 4, 6'),
    ("boft('layer/kernel', block_size=3)", 'even for a butterfly'),
    ("boft('layer/kernel', block_size=8)", 'turns multiples of 16 channels'),
    ("boft('layer/bias')", r'a selected parameter is \[6\]'),
    ("road('layer', 3)", 'there are 1, 2, 4'),
    ("road('layer', group_size=3)", 'its size is even'),
    ("road('layer', group_size=4)", 'does not divide the 6 outputs'),
  ],
)
def test_mistakes_are_one_line(spelling, match):
  with pytest.raises(FewshotError, match=match):
    methods.parse(spelling).init(KEY, FORWARD, PARAMS, methods.Calib(X))


def test_sites_without_channels_are_refused(tiny):
  with pytest.raises(FewshotError, match="'encoder/block_0/attn/core' has no kernel"):
    methods.hra('.*/core').init(KEY, tiny.forward, tiny.params, tiny.calib)
