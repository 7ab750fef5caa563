"""Scales and shifts: where they act, and what they merge into."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from fewshot import methods, models
from fewshot.errors import FewshotError

RNG = np.random.default_rng(0)
KEY = jax.random.key(3)
X = {'x': RNG.standard_normal((3, 8)).astype(np.float32)}


class Plain(nn.Module):
  """A layer without a bias, its norm, and a sum that holds no parameters."""

  @nn.compact
  def __call__(self, x):
    x = nn.LayerNorm(name='norm')(nn.Dense(8, use_bias=False, name='layer')(x))
    return Sum(name='sum')(x)


class Sum(nn.Module):
  @nn.compact
  def __call__(self, x):
    return x + x


FORWARD = models.from_linen(Plain(), output='features')
PARAMS = {
  'layer': {'kernel': RNG.standard_normal((8, 8)).astype('f')},
  'norm': {k: RNG.standard_normal(8).astype('f') for k in ('scale', 'bias')},
}


def norm(x):
  return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def start(method):
  return method.init(KEY, FORWARD, PARAMS, methods.Calib(X))


def noise(tree):
  return jax.tree.map(lambda x: x + RNG.standard_normal(x.shape).astype('f'), tree)


def test_ssf_scales_everywhere_and_shifts_where_there_is_a_bias():
  theta, state = start(methods.ssf('layer|norm'))
  assert {p: sorted(t) for p, t in theta.items()} == {'layer': ['gamma'], 'norm': ['beta', 'gamma']}
  theta = jax.tree.map(np.asarray, noise(theta))
  y = norm(X['x'] @ PARAMS['layer']['kernel'] * theta['layer']['gamma'])
  y = y * PARAMS['norm']['scale'] + PARAMS['norm']['bias']
  want = 2 * (y * theta['norm']['gamma'] + theta['norm']['beta'])
  got = methods.adapt(methods.ssf('layer|norm'), FORWARD, theta, state)(PARAMS, X)['features']
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_a_shift_of_a_norm_merges_into_its_scale_and_bias():
  theta, state = start(methods.ssf('norm'))
  t = noise(theta)['norm']
  merged = methods.merge(methods.ssf('norm'), {'norm': t}, state, PARAMS)
  old = PARAMS['norm']
  np.testing.assert_allclose(merged['norm']['scale'], old['scale'] * t['gamma'], rtol=1e-6)
  np.testing.assert_allclose(
    merged['norm']['bias'], old['bias'] * t['gamma'] + t['beta'], rtol=1e-5
  )
  assert merged['layer']['kernel'] is PARAMS['layer']['kernel']


def test_ssf_can_start_at_random():
  theta, _ = start(methods.ssf('norm', std=0.02))
  for name, mean in (('gamma', 1.0), ('beta', 0.0)):
    spread = np.asarray(theta['norm'][name]) - mean
    assert 0.005 < np.abs(spread).mean() < 0.05


def test_film_shifts_any_site_but_merges_only_where_there_is_a_bias():
  for where, match in (('sum', "'sum' has no weight form"), ('layer', 'has no bias to merge')):
    method = methods.film(where)
    theta, state = start(method)
    new = noise(theta)
    got = methods.adapt(method, FORWARD, new, state)(PARAMS, X)['features']
    assert np.abs(got - FORWARD(PARAMS, X)['features']).max() > 0.1
    with pytest.raises(FewshotError, match=match):
      methods.merge(method, new, state, PARAMS)


def test_gain_scales_columns_of_kernels():
  theta, state = start(methods.gain('layer/kernel'))
  g = np.arange(8, dtype='f')
  new = methods.gain('layer/kernel').weights({'layer/kernel': g}, state, PARAMS)
  np.testing.assert_allclose(new['layer']['kernel'], PARAMS['layer']['kernel'] * g, rtol=1e-6)
  assert theta['layer/kernel'].tolist() == [1] * 8


def test_a_gain_of_ia3_is_the_gain_of_the_kernel():
  """Without a bias the two coincide."""
  ia3, gain = methods.ia3('layer', 'none'), methods.gain('layer/kernel')
  g = np.arange(8, dtype='f')
  one = methods.merge(ia3, {'layer': {'l_out': g}}, {}, PARAMS)
  two = methods.merge(gain, {'layer/kernel': g}, {}, PARAMS)
  np.testing.assert_array_equal(one['layer']['kernel'], two['layer']['kernel'])


def test_abnn_draws_a_gain_for_each_channel_and_pass():
  method = methods.abnn('norm', std=0.5)
  theta, state = start(method)
  theta = jax.tree.map(np.asarray, noise(theta))
  run = lambda key: np.asarray(  # noqa: E731
    methods.adapt(method, FORWARD, theta, state)(PARAMS, X, key)['features']
  )
  t, plain = theta['norm'], norm(X['x'] @ PARAMS['layer']['kernel']) * PARAMS['norm']['scale']
  bias = PARAMS['norm']['bias'] + t['shift']
  np.testing.assert_allclose(run(None), 2 * (plain * t['gamma'] + bias), atol=1e-4)
  one = (run(jax.random.key(1)) / 2 - bias) / (plain * t['gamma'])
  np.testing.assert_allclose(one - one[:1], 0, atol=1e-3)  # The same for all rows of a pass.
  assert 0.1 < np.abs(one[0] - 1).mean() < 1.5
  assert np.abs(run(jax.random.key(2)) - run(jax.random.key(1))).max() > 0.1
