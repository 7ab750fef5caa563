"""What defines each relative of LoRA, against plain numpy on one small linear map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import methods, models, objectives
from fewshot.errors import FewshotError
from fewshot.methods import lora_variants

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
W = RNG.standard_normal((6, 5)).astype(np.float32)
V = RNG.standard_normal((6, 5)).astype(np.float32)
X = {'x': RNG.standard_normal((10, 6)).astype(np.float32), 'labels': np.arange(10) % 5}
PARAMS = {'one': {'kernel': W, 'bias': np.ones(5, np.float32)}, 'two': {'kernel': V}}


def setup():
  from flax import linen as nn

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(5, name='one')(x) + nn.Dense(5, use_bias=False, name='two')(x)

  calib = methods.Calib(X, 5, objectives.classification().loss)
  return models.from_linen(Net(), output='logits'), calib


def begin(method):
  forward, calib = setup()
  theta, state = method.init(KEY, forward, PARAMS, calib)
  return jax.tree.map(np.asarray, theta), jax.tree.map(np.asarray, state)


def merged(method, theta, state):
  new = methods.merge(method, theta, state, PARAMS)
  return np.asarray(new['one']['kernel'])


def noise(*shape):
  return RNG.standard_normal(shape).astype(np.float32)


def svd(w):
  return np.linalg.svd(w, full_matrices=False)


def test_dora_keeps_the_columns_lengths_apart_from_their_directions():
  method = methods.dora('one/kernel', rank=2, alpha=4.0)
  theta, state = begin(method)
  t = theta['one/kernel']
  np.testing.assert_allclose(t['m'], np.linalg.norm(W, axis=0), rtol=1e-6)
  t['b'], t['m'] = noise(2, 5), np.arange(1, 6, dtype=np.float32)
  new, moved = merged(method, theta, state), W + 2 * t['a'] @ t['b']
  np.testing.assert_allclose(np.linalg.norm(new, axis=0), t['m'], rtol=1e-5)
  np.testing.assert_allclose(new, t['m'] * moved / np.linalg.norm(moved, axis=0), rtol=1e-4)


def test_doras_norm_is_a_constant_to_the_gradient():
  method = methods.dora('one/kernel', rank=2, alpha=2.0)
  theta, state = begin(method)
  t, g = theta['one/kernel'], noise(6, 5)
  t['b'] = noise(2, 5)
  value = lambda theta: (g * methods.merge(method, theta, state, PARAMS)['one']['kernel']).sum()  # noqa: E731
  got = jax.grad(value)(theta)['one/kernel']['b']
  turned = t['m'] / np.linalg.norm(W + t['a'] @ t['b'], axis=0)
  np.testing.assert_allclose(got, t['a'].T @ (g * turned), rtol=1e-3, atol=1e-4)


def test_lora_xs_trains_a_matrix_between_singular_vectors():
  method = methods.lora_xs('one', rank=2, alpha=2.0)
  theta, state = begin(method)
  assert list(theta['one']) == ['r'] and 0 < np.abs(theta['one']['r']).max() < 1e-4
  theta['one']['r'] = r = noise(2, 2)
  u, s, vt = svd(W)
  want = (u[:, :2] * s[:2]) @ r @ vt[:2]
  got = merged(method, theta, state) - W
  signs = np.sign((u[:, :2] * state['one']['a']).sum(0))  # Singular vectors have no sign.
  want = (u[:, :2] * s[:2] * signs) @ r @ (signs[:, None] * vt[:2])
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_lora_sb_starts_where_a_step_of_full_fine_tuning_leads():
  method = methods.lora_sb('one', rank=2, lr=0.1)
  theta, state = begin(method)
  forward, calib = setup()
  step = -0.1 * np.sign(calib.gradient(forward, PARAMS)['one']['kernel'])
  u, s, vt = svd(step)
  got = merged(method, theta, state) - W
  np.testing.assert_allclose(got, (u[:, :2] * s[:2]) @ vt[:2], atol=1e-5)
  np.testing.assert_allclose(state['one']['a'].T @ state['one']['a'], np.eye(2), atol=1e-5)


def test_lora_mini_trains_the_inner_two_of_four():
  method = methods.lora_mini('one', rank=2, alpha=2.0, width=3)
  theta, state = begin(method)
  assert {k: v.shape for k, v in theta['one'].items()} == {'a': (3, 2), 'b': (2, 3)}
  theta['one']['b'] = noise(2, 3)
  t = theta['one'] | state['one']
  want = t['a_out'] @ t['a'] @ t['b'] @ t['b_out']
  np.testing.assert_allclose(merged(method, theta, state) - W, want, atol=1e-5)


def test_lora_sp_freezes_a_random_half():
  method = methods.lora_sp('one', rank=2, alpha=2.0)
  theta, state = begin(method)
  t = theta['one'] | state['one']
  assert t['a'].shape == (6,) and t['b'].shape == (5,) and len(set(t['a_at'].tolist())) == 6
  np.testing.assert_array_equal(t['a'], t['a_rest'].reshape(-1)[t['a_at']])
  theta['one']['a'], theta['one']['b'] = noise(6), noise(5)
  a, b = t['a_rest'].reshape(-1).copy(), np.zeros(10, np.float32)
  a[t['a_at']], b[t['b_at']] = theta['one']['a'], theta['one']['b']
  want = a.reshape(6, 2) @ b.reshape(2, 5)
  np.testing.assert_allclose(merged(method, theta, state) - W, want, atol=1e-5)


def test_selective_lora_switches_by_its_score_and_the_score_learns():
  method = methods.selective_lora('one|two', rank=2, alpha=2.0, tau=0.1, sparsity=0.5)
  theta, state = begin(method)
  theta['one']['b'], delta = noise(2, 5), noise(6, 5)
  full = merged(method, theta, state) - W
  np.testing.assert_allclose(full, theta['one']['a'] @ theta['one']['b'], atol=1e-5)
  value = lambda theta: (delta * methods.merge(method, theta, state, PARAMS)['one']['kernel']).sum()  # noqa: E731
  theta['one']['score'] = np.full(1, 0.05, np.float32)
  np.testing.assert_array_equal(merged(method, theta, state), W)  # Off, it is bitwise W.
  got = jax.grad(value)(theta)['one']['score']  # And yet it learns, as if it were on.
  np.testing.assert_allclose(got, (delta * full).sum(), rtol=1e-4)
  penalty = method.penalty(None, theta, state, PARAMS, X, {}, KEY)
  np.testing.assert_allclose(penalty, 0.5 * (0.05 + 1) / 2, rtol=1e-6)


def test_pego_sums_a_group_and_penalises_overlaps():
  method = methods.pego('one', rank=2, num=3, weight=0.1)
  theta, state = begin(method)
  a, theta['one']['b'] = theta['one']['a'], noise(3, 2, 5)
  each = [a[i] @ theta['one']['b'][i] for i in range(3)]
  np.testing.assert_allclose(merged(method, theta, state) - W, sum(each), atol=1e-5)
  overlaps = [np.abs(W.T @ d).sum() for d in each]
  overlaps += [np.abs(each[i].T @ each[j]).sum() for i, j in ((0, 1), (0, 2), (1, 2))]
  got = method.penalty(None, theta, state, PARAMS, X, {}, KEY)
  np.testing.assert_allclose(got, 0.1 * sum(overlaps), rtol=1e-4)


def test_pego_has_no_penalty_where_the_group_is_orthogonal():
  method = methods.pego('one', rank=1, num=2)
  theta, state = begin(method)
  basis = np.linalg.qr(np.concatenate([W[:, :3], noise(6, 3)], 1))[0]
  narrow = {'one': PARAMS['one'] | {'kernel': np.pad(W[:, :3], ((0, 0), (0, 2)))}}
  theta['one'] = {'a': basis[:, 3:5].T[..., None], 'b': noise(2, 1, 5)}
  assert method.penalty(None, theta, state, narrow, X, {}, KEY) < 1e-6


def test_pmss_spans_rows_and_columns_of_the_weight():
  method = methods.pmss('one', rank=3, alpha=3.0)
  theta, state = begin(method)
  c, r = state['one']['c'], state['one']['r']
  assert all((c[:, [i]] == W).all(0).any() and (r[i] == W).all(1).any() for i in range(3))
  theta['one']['u'] = u = noise(3, 3)
  np.testing.assert_allclose(merged(method, theta, state) - W, c @ u @ r, atol=1e-4)


def test_dsee_adds_a_sparse_part_and_prunes():
  method = methods.dsee('one/kernel', rank=2, alpha=2.0, entries=4, prune=0.5)
  theta, state = begin(method)
  t, s = theta['one/kernel'], state['one/kernel']
  u, sv, vt = svd(W)
  rest = np.abs(W - (u[:, :2] * sv[:2]) @ vt[:2]).reshape(-1)
  assert set(s['at'].tolist()) == set(np.argsort(rest)[-4:].tolist())
  kept = np.where(np.abs(W) > np.median(np.abs(W)), W, 0)
  np.testing.assert_array_equal(merged(method, theta, state), kept)
  assert (kept == 0).sum() == W.size // 2
  t['b'], t['s'] = noise(2, 5), noise(4)
  sparse = (merged(method, theta, state) - kept - t['a'] @ t['b']).reshape(-1)
  np.testing.assert_allclose(sparse[s['at']], t['s'], atol=1e-5)
  assert np.abs(np.delete(sparse, s['at'])).max() < 1e-5


@pytest.mark.parametrize(
  'spelling, match',
  [
    *((f'{name}(rank=0)', f'{name}.rank=0. is too small') for name in lora_variants.__all__),
    ('pego(num=0)', 'num is at least 1'),
    ('lora_sp(fraction=0.0)', 'trained share'),
    ('dsee(prune=1.0)', 'dropped share'),
  ],
)
def test_what_makes_no_sense_is_refused(spelling, match):
  with pytest.raises(FewshotError, match=match):
    methods.parse(spelling)


@pytest.mark.parametrize(
  'spelling, match',
  [
    ("dora('one/bias')", r'dora takes kernels, not a leaf of shape \[5\]'),
    ("dsee('one/kernel', rank=2, entries=31)", r'is more than \[6, 5\] has'),
    ("pmss('one', rank=6)", 'rank 6 is too high'),
    ("lora_xs('one', rank=6)", 'rank 6 is too high'),
  ],
)
def test_what_does_not_fit_the_weight_is_refused(spelling, match):
  with pytest.raises(FewshotError, match=match):
    begin(methods.parse(spelling))


def test_dora_leaves_a_column_of_zeros_finite():
  params = {'kernel': jnp.ones((4, 3)).at[:, 1].set(0)}
  method = methods.dora(where='kernel', rank=2)
  theta, state = method.init(jax.random.key(0), None, params, None)
  value = lambda t: method.weights(t, state, params)['kernel'].sum()  # noqa: E731
  np.testing.assert_allclose(method.weights(theta, state, params)['kernel'], params['kernel'])
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.grad(value)(theta)))
