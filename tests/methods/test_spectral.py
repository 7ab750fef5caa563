"""Spectral methods against plain numpy on one small weight."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fewshot import methods
from fewshot.errors import FewshotError
from fewshot.methods.spectral import _place

RNG = np.random.default_rng(0)
KEY = jax.random.key(3)
W = RNG.standard_normal((6, 4)).astype(np.float32)
SQUARE = RNG.standard_normal((6, 6)).astype(np.float32)
CONV = RNG.standard_normal((3, 3, 2, 5)).astype(np.float32)


def start(method, w=W):
  """theta and state of the one weight, and the function from theta to the new weight."""
  params = {'w': w}
  theta, state = method.init(KEY, None, params, None)
  at = lambda t: np.asarray(method.weights({'w': t}, state, params)['w'])  # noqa: E731
  return theta['w'], state.get('w', {}), at


def noise(t, seed=1):
  rng = np.random.default_rng(seed)
  return {k: np.asarray(v) + rng.standard_normal(v.shape).astype(np.float32) for k, v in t.items()}


@pytest.mark.parametrize('w', [W.T, CONV], ids=['wide', 'conv'])
@pytest.mark.parametrize(
  'spelling',
  [
    "svf('w')",
    "svfit('w', rank=2)",
    "svft('w', off_diag=1)",
    "svft('w', pattern='random')",
    "loldu('w')",
    "loldu('w', rank=2, scale=0.1)",
    "fourierft('w', n_frequency=5)",
    "c3a('w')",
    "loca('w', n_frequency=5)",
  ],
)
def test_any_matrix_is_the_weight_itself_at_the_start(spelling, w):
  t, _, at = start(methods.parse(spelling), w)
  np.testing.assert_allclose(at(t), w, atol=2e-6)
  assert at(noise(t)).shape == w.shape
  assert np.abs(at(noise(t)) - w).max() > 1e-3


def test_svf_rescales_singular_values_and_keeps_their_vectors():
  _, _, at = start(methods.svf('w'))
  z = np.array([3.0, 2.0, 1.5, 1.0], 'f')
  u, s, vt = np.linalg.svd(W, full_matrices=False)
  np.testing.assert_allclose(at({'z': z}), (u * (s * z)) @ vt, atol=1e-5)
  np.testing.assert_allclose(np.linalg.svd(at({'z': z}))[1], s * z, rtol=1e-5)


def test_svfit_trains_the_largest_singular_values_alone():
  t, _, at = start(methods.svfit('w', rank=2))
  s = np.linalg.svd(W)[1]
  np.testing.assert_allclose(t['s'], s[:2], rtol=1e-5)
  new = at({'s': t['s'] + np.array([2.0, 1.0], 'f')})
  np.testing.assert_allclose(np.linalg.svd(new)[1], s + np.array([2, 1, 0, 0]), rtol=1e-5)


@pytest.mark.parametrize('pattern', ['banded', 'random', 'top_k'])
def test_svft_puts_m_between_the_singular_vectors(pattern):
  t, state, at = start(methods.svft('w', pattern, off_diag=1), SQUARE)
  u, _, vt = np.linalg.svd(SQUARE, full_matrices=False)
  signs = np.sign(np.sum(u * np.asarray(state['u']), 0))  # Each pair is unique up to its sign.
  m = u.T @ (at(noise(t)) - SQUARE) @ vt.T * signs[:, None] * signs
  want = np.zeros((6, 6))
  want[state['rows'], state['cols']] = noise(t)['m']
  np.testing.assert_allclose(m, want, atol=1e-5)
  assert np.count_nonzero(want) == 6 * 3 - 2
  if pattern == 'banded':
    i, j = np.nonzero(want)
    assert abs(i - j).max() == 1
  if pattern == 'top_k':
    scores, taken = abs(u.T @ vt.T), want != 0
    assert scores[taken].min() > scores[~taken].max()


def test_svft_of_rectangles_knows_no_alignment():
  with pytest.raises(FewshotError, match=r'a selected weight is \[6, 4\], not square'):
    start(methods.svft('w', 'top_k', 1))


def test_loldu_scales_the_diagonal_between_triangles():
  t, state, at = start(methods.loldu('w'), SQUARE)
  order = np.argmax(np.abs(state['lower']) == 1, axis=0)
  assert sorted(order) == list(range(6))  # A permutation of rows makes it unit triangular.
  lower, upper = np.asarray(state['lower'])[order], np.asarray(state['upper'])
  np.testing.assert_allclose(np.triu(lower), np.eye(6), atol=1e-6)
  np.testing.assert_allclose(np.tril(upper), np.eye(6), atol=1e-6)
  np.testing.assert_allclose((lower * t['diagonal']) @ upper, SQUARE.T[order], atol=1e-5)
  new = {'diagonal': np.arange(6, dtype='f'), 'scale': np.float32(0.5)}
  want = (np.asarray(state['lower']) * np.arange(6) * 0.5) @ upper
  np.testing.assert_allclose(at(new), want.T, atol=1e-5)


def test_loldu_of_a_singular_weight_is_exact():
  singular = np.zeros((3, 3), 'f')
  singular[0, 1] = singular[2, 2] = 1
  t, _, at = start(methods.loldu('w'), singular)
  np.testing.assert_array_equal(at(t), singular)


def test_fourierft_is_the_real_inverse_transform():
  t, state, at = start(methods.fourierft('w', n_frequency=5, scaling=3.0))
  x, y = np.arange(6), np.arange(4)
  want = np.zeros((6, 4))
  for a, i, j in zip(noise(t)['spectrum'], state['rows'], state['cols'], strict=True):
    want += a * np.cos(2 * np.pi * (x[:, None] * int(i) / 6 + y * int(j) / 4)) / 24
  np.testing.assert_allclose(at(noise(t)) - W, 3 * want, atol=1e-5)
  assert len({(int(i), int(j)) for i, j in zip(state['rows'], state['cols'], strict=True)}) == 5


def test_fourierft_can_start_from_random_coefficients():
  t, _, _ = start(methods.fourierft('w', n_frequency=24, std=2.0))
  assert 1 < np.std(t['spectrum']) < 3


def test_c3a_convolves_blocks_circularly():
  """As a sum over shifts, written out."""
  t, _, at = start(methods.c3a('w', block_size=2))
  c, x = noise(t)['c'], RNG.standard_normal(6)
  y = np.zeros(4)
  for m in range(2):
    for n in range(3):
      for i in range(2):
        for j in range(2):
          y[2 * m + j] += x[2 * n + i] * c[m, n, (i - j) % 2] / 6
  np.testing.assert_allclose(x @ (at(noise(t)) - W), y, atol=1e-5)
  with pytest.raises(FewshotError, match=r'does not divide a weight of \[6, 4\]; 2 does'):
    start(methods.c3a('w', block_size=3))


def test_a_whole_block_of_c3a_is_diagonal_in_fourier_space():
  t, _, at = start(methods.c3a('w'), SQUARE)
  f = np.fft.fft(np.eye(6))
  d = f @ (at(noise(t)) - SQUARE) @ np.linalg.inv(f)
  np.testing.assert_allclose(d - np.diag(np.diag(d)), 0, atol=1e-5)


def dct(n):
  """The orthonormal DCT-II matrix."""
  i = np.arange(n)
  c = np.sqrt(2 / n) * np.cos(np.pi * (i + 0.5) * i[:, None] / n)
  c[0] /= np.sqrt(2)
  return c


def test_loca_is_a_sum_of_cosines_at_its_places():
  _, _, at = start(methods.loca('w', n_frequency=2, scaling=2.0))
  t = {'spectrum': np.array([3.0, -1.0], 'f'), 'locations': np.array([[0.4, 1.0], [0.0, 0.7]], 'f')}
  s = np.zeros((6, 4))
  s[2, 0], s[5, 2] = 3, -1
  np.testing.assert_allclose(at(t) - W, 2 * dct(6).T @ s @ dct(4), atol=1e-5)


def test_locas_places_have_central_differences_as_gradients():
  g = RNG.standard_normal((6, 4)).astype(np.float32)
  a, places = jnp.array([0.3, -0.2]), jnp.array([[2.2, 5.0], [0.0, 1.6]])
  loss = lambda a, p: (_place(a, p, (6, 4)) * g).sum()  # noqa: E731
  da, dp = jax.grad(loss, (0, 1))(a, places)
  np.testing.assert_allclose(da, [g[2, 0], g[5, 2]], rtol=1e-5)
  want = [[g[3, 0] - g[1, 0], g[5, 2] - g[4, 2]], [g[2, 1] - g[2, 0], g[5, 3] - g[5, 1]]]
  np.testing.assert_allclose(dp, np.array([0.15, -0.1]) * want, rtol=1e-5)
  assert np.abs(jax.grad(loss, 1)(100 * a, places)).max() == 1


def test_loca_alternates_between_coefficients_and_places():
  tx = methods.loca('w', location_steps=40, location_rate=0.5).optimizer(optax.sgd(1.0))
  theta = {'w': {'spectrum': jnp.ones(2), 'locations': jnp.ones((2, 2))}}
  opt = tx.init(theta)
  for step, moves in [(0, 'spectrum'), (9, 'spectrum'), (10, 'locations'), (29, 'locations'),
                      (30, 'spectrum'), (40, 'spectrum'), (55, 'spectrum')]:  # fmt: skip
    updates, _ = tx.update(theta, opt, theta, step=step, method_state={})
    size = {k: float(jnp.abs(x).max()) for k, x in updates['w'].items()}
    rest = 'locations' if moves == 'spectrum' else 'spectrum'
    assert size == {moves: 1.0 if moves == 'spectrum' else 0.5, rest: 0.0}, step


@pytest.mark.parametrize(
  ('spelling', 'match'),
  [
    ("svfit('w', rank=0)", 'rank is at least 1'),
    ("svfit('w', rank=9)", 'svfit asks for 9 of a weight that has 4; take at most 4'),
    ("svft('w', 'diagonal')", 'there are banded, random, top_k'),
    ("svft('w', off_diag=4)", 'svft asks for 4 of a weight that has 3'),
    ("fourierft('w', n_frequency=25)", 'asks for 25 of a weight that has 24'),
    ("loca('w', location_steps=-1)", 'location_steps is at least 0'),
    ("svf('b')", r'updates matrices, and a selected parameter has the shape \[2\]'),
  ],
)
def test_mistakes_are_one_line(spelling, match):
  with pytest.raises(FewshotError, match=match):
    methods.parse(spelling).init(KEY, None, {'w': W, 'b': np.ones(2, 'f')}, None)
