"""The layers that backbones share, against the same computed plainly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from fewshot.models import layers


def random(*shape: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def plain(q, k, v, mask, bias, scale):
  """Attention head by head: q [B, Q, H, D]; mask and bias [B, H, Q, K]."""
  y = np.zeros_like(q)
  group = q.shape[2] // k.shape[2]
  for b in range(q.shape[0]):
    for h in range(q.shape[2]):
      scores = scale * q[b, :, h] @ k[b, :, h // group].T + bias[b, h]
      scores = np.where(mask[b, h], scores, -np.inf)
      weights = np.exp(scores - scores.max(-1, keepdims=True))
      y[b, :, h] = weights / weights.sum(-1, keepdims=True) @ v[b, :, h // group]
  return y


@pytest.mark.parametrize('groups', [1, 2, 4])
@pytest.mark.parametrize('scale', [None, 0.7])
def test_core_with_groups_a_mask_for_each_query_and_a_bias(groups, scale):
  q, k, v = random(2, 3, 4, 8), random(2, 5, groups, 8, seed=1), random(2, 5, groups, 8, seed=2)
  bias = random(1, 4, 3, 5, seed=3)
  mask = np.random.default_rng(4).random((2, 1, 3, 5)) < 0.6
  mask[..., 0] = True
  got = layers.Core(scale).apply({}, *map(jnp.asarray, (q, k, v)), mask, jnp.asarray(bias))
  whole = (2, 4, 3, 5)
  want = plain(
    q, k, v, np.broadcast_to(mask, whole), np.broadcast_to(bias, whole), scale or 8**-0.5
  )
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_core_with_one_mask_for_all_queries():
  q, k, v = (jnp.asarray(random(2, 4, 2, 8, seed=i)) for i in range(3))
  mask = np.array([[True, True, False, True], [True, False, False, False]])
  core = layers.Core()
  want = core.apply({}, q, k, v, np.broadcast_to(mask[:, None, None], (2, 1, 4, 4)))
  np.testing.assert_array_equal(core.apply({}, q, k, v, mask), want)


def test_shapes_are_checked_in_tests():
  q, k = jnp.asarray(random(2, 4, 2, 8)), jnp.asarray(random(2, 4, 2, 6))
  with pytest.raises(TypeCheckError):
    layers.Core().apply({}, q, k, k, np.ones((2, 4), bool))


@pytest.mark.parametrize('interleaved', [False, True])
def test_rotary_scores_depend_on_the_distance_alone(interleaved):
  q, k = jnp.asarray(random(1, 1, 2, 8)), jnp.asarray(random(1, 1, 2, 8, seed=1))

  def score(i: int, j: int) -> np.ndarray:
    def at(x, p):
      return layers.rotate(x, np.array([[p]]), 100.0 ** -np.linspace(0, 0.75, 4), interleaved)

    return np.asarray((at(q, i) * at(k, j)).sum(-1))

  np.testing.assert_allclose(score(7, 4), score(3, 0), atol=1e-5)
  assert np.abs(score(7, 4) - score(7, 5)).max() > 1e-2
  np.testing.assert_allclose(score(0, 0), np.asarray((q * k).sum(-1)), atol=1e-6)


def test_the_two_rotary_layouts_are_permutations_of_each_other():
  x, positions = jnp.asarray(random(1, 5, 2, 8)), np.arange(5)[None]
  w = np.array([1, 0.3, 0.1, 0.03])
  order = np.arange(8).reshape(4, 2).T.reshape(-1)  # 0 2 4 6 1 3 5 7
  halves = layers.rotate(x[..., order], positions, w)
  pairs = layers.rotate(x, positions, w, interleaved=True)
  np.testing.assert_allclose(pairs[..., order], halves)


def test_a_gated_mlp():
  x, mlp = jnp.asarray(random(3, 4)), layers.Mlp(6, 'silu', gated=True, use_bias=False)
  params = mlp.init(jax.random.key(0), x)['params']
  up, gate, down = (np.asarray(params[n]['kernel']) for n in ('up', 'gate', 'down'))
  g = np.asarray(x) @ gate
  want = (g / (1 + np.exp(-g)) * (np.asarray(x) @ up)) @ down
  np.testing.assert_allclose(mlp.apply({'params': params}, x), want, atol=1e-5)


def test_gelu_is_exact_and_its_gradient_too():
  x = jnp.linspace(-6, 6, 101)

  def want(x):
    return jax.nn.gelu(x, approximate=False)

  np.testing.assert_allclose(layers.ACTIVATIONS['gelu'](x), want(x), atol=1e-6)
  got = jax.vmap(jax.grad(layers.ACTIVATIONS['gelu']))(x)
  np.testing.assert_allclose(got, jax.vmap(jax.grad(want))(x), atol=1e-6)


def test_mean_pool_leaves_padding_out_and_survives_an_empty_row():
  x = jnp.asarray(random(2, 3, 4))
  mask = np.array([[True, True, False], [False, False, False]])
  got = layers.mean_pool(x, mask)
  np.testing.assert_allclose(got[0], np.asarray(x)[0, :2].mean(0), atol=1e-6)
  np.testing.assert_array_equal(got[1], np.zeros(4))


def test_buckets_of_distances():
  """As mesh-tensorflow counts them: 32 buckets, up to a distance of 128."""
  d = jnp.array([0, 1, 7, 8, 15, 16, 31, 32, 63, 64, 90, 91, 127, 128, 500])
  before = [0, 1, 7, 8, 9, 10, 11, 12, 13, 14, 14, 15, 15, 15, 15]
  assert layers.bucket(-d, 32, 128, both=True).tolist() == before
  assert layers.bucket(d, 32, 128, both=True).tolist() == [b + 16 * (b > 0) for b in before]
  causal = [0, 1, 7, 8, 15, 16, 21, 21, 26, 26, 29, 29, 31, 31, 31]
  assert layers.bucket(-d, 32, 128, both=False).tolist() == causal
  assert layers.bucket(d, 32, 128, both=False).tolist() == [0] * len(d)


def test_rmsnorm_with_a_wide_gain_keeps_the_dtype_of_its_input():
  x = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
  scale = np.linspace(0.5, 2, 8).astype(np.float32)
  want = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-3) * scale
  norm = layers.RMSNorm(1e-3)
  np.testing.assert_allclose(
    norm.apply({'params': {'scale': scale}}, jnp.asarray(x)), want, rtol=1e-5
  )
  half = norm.apply({'params': {'scale': scale}}, jnp.asarray(x, jnp.bfloat16))
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(half, np.float32), want, rtol=2e-2)
