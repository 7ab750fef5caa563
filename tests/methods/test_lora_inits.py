"""Starts of low-rank updates, against plain numpy on one matrix."""

import jax
import numpy as np
import pytest

from fewshot.errors import FewshotError
from fewshot.methods.lora_inits import INITS, Given, pivots

RNG = np.random.default_rng(0)
D, K, RANK, SCALE = 12, 9, 3, 2.0
W = RNG.standard_normal((D, K)).astype(np.float32)
X = (RNG.standard_normal((40, D)) * np.linspace(0.2, 2, D) + 1).astype(np.float32)


def start(name, seen=None, rank=RANK, kernel=W):
  given = Given(jax.random.key(0), (D, K), rank, SCALE, np.float32, kernel, seen)
  return tuple(np.asarray(x) for x in INITS[name].start(given))


def truncated(w, part):
  u, s, vt = np.linalg.svd(w, full_matrices=False)
  return (u[:, part] * s[part]) @ vt[part]


@pytest.mark.parametrize('name', INITS)
def test_shapes_and_whether_the_product_is_zero(name):
  seen = {'inputs': X, 'gradient': W, '': None}[INITS[name].sees]
  a, b = start(name, seen)
  assert a.shape == (D, RANK) and b.shape == (RANK, K) and a.dtype == b.dtype == np.float32
  assert (np.abs(a @ b).max() > 1e-3) == INITS[name].moves


@pytest.mark.parametrize('name, part', [('pissa', slice(0, 3)), ('milora', slice(-3, None))])
def test_singular_starts_are_a_part_of_the_weight(name, part):
  a, b = start(name)
  np.testing.assert_allclose(SCALE * a @ b, truncated(W, part), atol=1e-5)
  np.testing.assert_allclose((a**2).sum(0), (b**2).sum(1), rtol=1e-4)


def test_olora_takes_a_part_of_the_qr_factors():
  a, b = start('olora')
  np.testing.assert_allclose(b @ b.T, np.eye(RANK), atol=1e-5)
  np.testing.assert_allclose(a, W @ b.T, atol=1e-5)  # R_r = Q_r^T W^T.


def test_orthogonal_columns():
  a, _ = start('orthogonal')
  np.testing.assert_allclose(a.T @ a, np.eye(RANK), atol=1e-5)


def test_eva_finds_the_principal_directions_and_skips_padding():
  u, _, _ = np.linalg.svd((X - X.mean(0)).T, full_matrices=False)
  a, b = start('eva', np.concatenate([X, np.zeros((25, D), np.float32)]))
  np.testing.assert_allclose(np.abs(np.diag(u[:, :RANK].T @ a)), 1, atol=1e-3)
  assert not b.any()


@pytest.mark.parametrize('name', ['corda_instruction', 'corda_knowledge'])
def test_corda_is_oriented_by_the_inputs(name):
  c = X.T @ X
  c = c + 0.01 * np.diag(c).mean() * np.eye(D)
  u, s, vt = np.linalg.svd(c @ W, full_matrices=False)
  part = slice(0, RANK) if name == 'corda_instruction' else slice(-RANK, None)
  want = np.linalg.solve(c, (u[:, part] * s[part]) @ vt[part])
  a, b = start(name, X)
  np.testing.assert_allclose(SCALE * a @ b, want, atol=2e-3)


def test_all_of_cordas_components_are_the_weight():
  a, b = start('corda_instruction', X, rank=K)
  np.testing.assert_allclose(SCALE * a @ b, W, atol=2e-3)


def test_lora_ga_points_the_first_step_along_the_gradient():
  """What A B moves by, G B^T B + A A^T G, is the best rank-2r part of the gradient G."""
  g = RNG.standard_normal((D, K)).astype(np.float32)
  a, b = start('lora_ga', g)
  moved = g @ b.T @ b + a @ a.T @ g
  np.testing.assert_allclose(moved * 16 / K**0.5, truncated(g, slice(0, 2 * RANK)), atol=1e-4)


@pytest.mark.parametrize('name, rank', [('pissa', 10), ('olora', 10), ('eva', 13), ('lora_ga', 5)])
def test_a_rank_beyond_the_matrix_is_refused(name, rank):
  with pytest.raises(FewshotError, match=rf'rank {rank} is too high: .* at a \[12, 9\] map'):
    start(name, {'eva': X, 'lora_ga': W}.get(name), rank)


@pytest.mark.parametrize('name', ['pissa', 'lora_ga'])
def test_a_module_without_a_kernel_is_refused(name):
  with pytest.raises(FewshotError, match='the module has none'):
    start(name, kernel=None)


def test_pivots_take_what_the_span_so_far_leaves_the_most_of():
  w = np.array([[3, 2.9, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]], np.float32)
  assert pivots(w, 3).tolist() == [0, 2, 3]
