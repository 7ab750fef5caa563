"""Low-rank updates with shared parts, against plain numpy."""

import jax
import numpy as np
import pytest

from fewshot import methods
from fewshot.errors import FewshotError
from fewshot.methods import paths

RNG = np.random.default_rng(0)


def normal(*shape):
  return RNG.standard_normal(shape).astype(np.float32)


SHAPES = {'wide': (4, 6), 'tall': (6, 4), 'square': (5, 5)}
PARAMS = {s: {'kernel': normal(*shape)} for s, shape in SHAPES.items()}


def updates(method, theta, state):
  """W' - W of each site."""
  merged = methods.merge(method, theta, state, PARAMS)
  return {s: np.asarray(merged[s]['kernel']) - PARAMS[s]['kernel'] for s in SHAPES}


def test_vera_slices_the_shared_matrices():
  a, b = normal(6, 3), normal(3, 6)
  theta = {
    s: {'lambda_d': normal(3), 'lambda_b': normal(w['kernel'].shape[1])} for s, w in PARAMS.items()
  }
  got = updates(methods.vera('.*', rank=3), theta | {'*': {}}, {'*': {'a': a, 'b': b}})
  for s, w in PARAMS.items():
    d, k = w['kernel'].shape
    want = a[:d] @ np.diag(theta[s]['lambda_d']) @ b[:, :k] @ np.diag(theta[s]['lambda_b'])
    np.testing.assert_allclose(got[s], want, atol=1e-5)


def test_vera_shares_frozen_matrices_of_the_widest_site(tiny):
  method = methods.vera('.*/(query|mlp/up|mlp/down)', rank=3)
  theta, state = method.init(jax.random.key(0), tiny.forward, tiny.params, tiny.calib)
  assert {k: v.shape for k, v in state['*'].items()} == {'a': (64, 3), 'b': (3, 64)}
  assert not theta['*'] and len(theta) == 7
  bound = np.sqrt(6 / 64)
  assert 0.8 * bound < np.abs(state['*']['a']).max() <= bound


def test_randlora_sums_scaled_products_and_has_full_rank():
  rank, alpha = 2, 3.0
  a, b = normal(rank, 1, 5), normal(6, 3, rank)
  theta = {}
  for s, w in PARAMS.items():
    small = min(w['kernel'].shape)
    theta[s] = {
      'lambda': normal(rank, -(-small // rank)),
      'gamma': normal(-(-small // rank), small),
    }
  method = methods.randlora('.*', rank=rank, alpha=alpha)
  got = updates(method, theta | {'*': {}}, {'*': {'a': a, 'b': b}})
  for s, w in PARAMS.items():
    small, large = sorted(w['kernel'].shape)
    lam, gamma = theta[s]['lambda'], theta[s]['gamma']
    n, want = len(gamma), np.zeros((small, large))
    for q in range(rank * n):  # Products are numbered by base in one factor, by rank in the other.
      (i, j), (j2, i2) = divmod(q, n), divmod(q, rank)
      want += np.outer(lam[i, j] * gamma[j] * a[i, 0, :small], b[:large, j2, i2])
    want = alpha / rank * (want if w['kernel'].shape == (small, large) else want.T)
    np.testing.assert_allclose(got[s], want, atol=1e-4)
    assert np.linalg.matrix_rank(got[s]) == small


def test_vblora_mixes_the_two_best_vectors():
  params = {'site': {'kernel': np.zeros((4, 6), np.float32)}}
  bank, logits_a, logits_b = normal(5, 2), normal(1, 2, 5), normal(1, 3, 5)

  def factor(logits):
    pieces = []
    for row in logits[0]:
      best = np.argsort(row)[-2:]
      p = np.exp(row[best]) / np.exp(row[best]).sum()
      pieces.append(p @ bank[best])
    return np.concatenate(pieces)

  method = methods.vblora('.*', rank=1, num_vectors=5, vector_length=2)
  theta = {'*': {'bank': bank}, 'site': {'logits_a': logits_a, 'logits_b': logits_b}}
  got = methods.merge(method, theta, {}, params)['site']['kernel']
  np.testing.assert_allclose(got, np.outer(factor(logits_a), factor(logits_b)), atol=1e-5)


def test_block_lora_is_lora_of_the_sum_of_the_blocks():
  a, b = normal(5, 2), normal(3, 2, 5)
  method = methods.block_lora('.*', rank=6, blocks=3, alpha=6.0)
  params = {'square': PARAMS['square']}
  got = methods.merge(method, {'square': {'a': a, 'b': b}}, {}, params)['square']['kernel']
  blocks = np.concatenate([a, a, a], 1) @ np.concatenate(list(b), 0)  # LoRA of rank 6, A_i = A_s.
  np.testing.assert_allclose(got - params['square']['kernel'], blocks, atol=1e-5)


def test_comp_lora_leaves_the_strongest_directions(tiny, perturb):
  method = methods.comp_lora('.*/query', rank=2, directions=4)
  theta, state = method.init(jax.random.key(0), tiny.forward, tiny.params, tiny.calib)
  merged = paths.flatten(methods.merge(method, perturb(theta), state, tiny.params))
  for p, w in paths.flatten(tiny.params).items():
    if p.endswith('query/kernel'):
      u, _, vt = np.linalg.svd(w)
      delta = np.asarray(merged[p]) - w
      assert np.abs(delta).max() > 1e-2
      assert np.abs(u[:, :4].T @ delta).max() < 1e-5 > np.abs(delta @ vt[:4].T).max()
      assert np.linalg.matrix_rank(delta, tol=1e-4) == 2


def test_only_linear_maps_are_taken():
  with pytest.raises(FewshotError, match=r'rank is at least 1'):
    methods.vera(rank=0)
  with pytest.raises(FewshotError, match=r'does not split into blocks=3'):
    methods.block_lora(rank=8, blocks=3)
  with pytest.raises(FewshotError, match=r'takes 1 to num_vectors=2'):
    methods.vblora(num_vectors=2, topk=3)


@pytest.mark.parametrize(
  ('spelling', 'message'),
  [
    ("vera(where='.*/attn')", r"'encoder/block_0/attn' is no linear map with a kernel"),
    ('vblora(vector_length=7)', r'vector_length=7 does not divide the widths \(32, 32\)'),
    ('comp_lora(directions=32)', r'directions=32 leave nothing of'),
  ],
)
def test_sites_that_do_not_fit_are_refused(tiny, spelling, message):
  with pytest.raises(FewshotError, match=message):
    methods.parse(spelling).init(jax.random.key(0), tiny.forward, tiny.params, tiny.calib)
