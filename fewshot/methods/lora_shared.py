"""Low-rank updates that all sites share, or whose pieces share parts."""

from typing import Any

import jax
import jax.numpy as jnp

from fewshot.errors import FewshotError
from fewshot.methods.activations import Site, in_activations, wide
from fewshot.methods.base import Method, at_least_one, method
from fewshot.methods.paths import Where

__all__ = ['block_lora', 'comp_lora', 'randlora', 'vblora', 'vera']
Array = jax.Array
Entries = dict[str, Array]
KAIMING = jax.nn.initializers.variance_scaling(2.0, 'fan_in', 'uniform')


@method
def vera(where: Where = r'.*/(query|value)', rank: int = 256, d_initial: float = 0.1) -> Method:
  """VeRA (Kopiczko et al. 2023, arXiv:2310.11454): scales of random matrices that all sites share.

      y = x W + ((x A * d) B) * b,   d = d_initial [r],   b = 0 [k]

  A [d, r] and B [r, k] are frozen, drawn once for the widest of the sites by Kaiming's uniform
  rule; a narrower site uses their first rows and columns.

  >>> vera(rank=4).mergeable
  True
  """
  at_least_one('vera', rank=rank)

  def shared(key: Array, sites: dict[str, Site]) -> Entries:
    d, k = (max(n) for n in zip(*map(dims, sites.values()), strict=True))
    dtype, (ka, kb) = wide(next(iter(sites.values()))), jax.random.split(key)
    return {'a': KAIMING(ka, (d, rank), dtype), 'b': KAIMING(kb, (rank, k), dtype)}

  def init(key: Array, site: Site) -> Entries:
    dtype = wide(site)
    zeros = jnp.zeros(dims(site)[1], dtype)
    return {'lambda_d': jnp.full(rank, d_initial, dtype), 'lambda_b': zeros}

  def call(t: Entries, f: Any, x: Array) -> Array:
    z = x @ t['a'][: x.shape[-1]] * t['lambda_d']
    return f(x) + z @ t['b'][:, : t['lambda_b'].size] * t['lambda_b']

  def weight(t: Entries, w: Entries) -> Entries:
    d, k = w['kernel'].shape
    return {'kernel': w['kernel'] + t['a'][:d] * t['lambda_d'] @ (t['b'][:, :k] * t['lambda_b'])}

  return in_activations(where, init, call, weight, ('a', 'b'), shared=shared)


@method
def randlora(where: Where = r'.*/(query|value)', rank: int = 32, alpha: float = 640.0) -> Method:
  """RandLoRA (Albert et al. 2025, arXiv:2502.00987): a full-rank sum of scaled random products.

      y = x W + (alpha / r) sum_j x diag(gamma_j) A diag(lambda_j) B_j,   j = 1..n = ceil(d / r)

  That is for a map from d to k >= d features; for k < d the factors change their places.  A [d, r]
  and the B_j [r, k] are random, frozen and shared by all sites; lambda [r, n] starts at 0 and
  gamma [n, d] at 1 / max(n, d).  A smaller r trains more.

  >>> randlora(rank=4).mergeable
  True
  """
  at_least_one('randlora', rank=rank)
  scale = alpha / rank

  def shared(key: Array, sites: dict[str, Site]) -> Entries:
    small, large = sorted(max(n) for n in zip(*map(dims, sites.values()), strict=True))
    dtype, (ka, kb) = wide(next(iter(sites.values()))), jax.random.split(key)
    shapes = {'a': (rank, 1, small), 'b': (large, -(-small // rank), rank)}
    draw = lambda k, shape: jax.random.uniform(k, shape, dtype, -1, 1)  # noqa: E731
    a, b = draw(ka, shapes['a']), draw(kb, shapes['b'])
    return {'a': a / a.std(ddof=1), 'b': b / b.std(ddof=1)}

  def init(key: Array, site: Site) -> Entries:
    small, dtype = min(dims(site)), wide(site)
    n = -(-small // rank)
    gamma = jnp.full((n, small), 1 / max(n, small), dtype)
    return {'lambda': jnp.zeros((rank, n), dtype), 'gamma': gamma}

  def factors(t: Entries, d: int, k: int) -> tuple[Array, Array]:
    n, small = t['gamma'].shape
    a = t['lambda'][..., None] * t['a'][..., :small] * t['gamma']  # [r, n, small]
    a, b = a.reshape(-1, small), t['b'][: max(d, k), :n].reshape(max(d, k), -1)
    return (a.T, scale * b.T) if d == small else (b, scale * a)

  def call(t: Entries, f: Any, x: Array) -> Array:
    y = f(x)
    down, up = factors(t, x.shape[-1], y.shape[-1])
    return y + x @ down @ up

  def weight(t: Entries, w: Entries) -> Entries:
    down, up = factors(t, *w['kernel'].shape)
    return {'kernel': w['kernel'] + down @ up}

  return in_activations(where, init, call, weight, ('a', 'b'), shared=shared)


@method
def vblora(
  where: Where = r'.*/(query|value)',
  rank: int = 4,
  num_vectors: int = 256,
  vector_length: int = 256,
  topk: int = 2,
) -> Method:
  """VB-LoRA (Li et al. 2024, arXiv:2405.15179): factors put together from one bank of vectors.

      y = x W + x A B,   a piece of A or B = sum_{i in top k of l} softmax(l)_i bank_i

  The bank [h, b] starts uniform within 0.02, the logits l [h] of each piece of length b normal
  with standard deviation 0.1; both train.  b divides the widths of all sites.  The start is the
  pretrained function up to a small random update: no factor is zero.

  >>> vblora(rank=2, vector_length=8).mergeable
  True
  """
  at_least_one('vblora', rank=rank, vector_length=vector_length)
  if not 1 <= topk <= num_vectors:
    raise FewshotError(f'vblora(topk={topk}) takes 1 to num_vectors={num_vectors} vectors a piece')

  def shared(key: Array, sites: dict[str, Site]) -> Entries:
    dtype = wide(next(iter(sites.values())))
    return {'bank': jax.random.uniform(key, (num_vectors, vector_length), dtype, -0.02, 0.02)}

  def init(key: Array, site: Site) -> Entries:
    if any(n % vector_length for n in dims(site)):
      raise FewshotError(
        f'vector_length={vector_length} does not divide the widths {dims(site)} of {site.path!r}; '
        'choose one that does'
      )
    names = zip(('logits_a', 'logits_b'), dims(site), jax.random.split(key), strict=True)
    shape = lambda n: (rank, n // vector_length, num_vectors)  # noqa: E731
    return {s: 0.1 * jax.random.normal(k, shape(n), wide(site)) for s, n, k in names}

  def call(t: Entries, f: Any, x: Array) -> Array:
    return f(x) + x @ _mixed(t, 'logits_a', topk).T @ _mixed(t, 'logits_b', topk)

  def weight(t: Entries, w: Entries) -> Entries:
    return {'kernel': w['kernel'] + _mixed(t, 'logits_a', topk).T @ _mixed(t, 'logits_b', topk)}

  return in_activations(where, init, call, weight, shared=shared)


@method
def block_lora(
  where: Where = r'.*/(query|value)', rank: int = 8, blocks: int = 4, alpha: float = 16.0
) -> Method:
  """Block-LoRA (Zhou et al. 2025, arXiv:2501.16720): the blocks of LoRA's rank share one A.

      y = x W + (alpha / r) x A_s (B_1 + ... + B_n),   A_s [d, r / n] ~ N(0, 1/d),   B_i = 0

  What would be n products x A_i B_i is one, of a sum of matrices.

  >>> block_lora(rank=4, blocks=2).mergeable
  True
  """
  if blocks < 1 or rank < 1 or rank % blocks:
    raise FewshotError(f'block_lora(rank={rank}) does not split into blocks={blocks} of one size')
  scale = alpha / rank

  def init(key: Array, site: Site) -> Entries:
    (d, k), dtype = dims(site), wide(site)
    a = jax.random.normal(key, (d, rank // blocks), dtype) / jnp.sqrt(d).astype(dtype)
    return {'a': a, 'b': jnp.zeros((blocks, rank // blocks, k), dtype)}

  def call(t: Entries, f: Any, x: Array) -> Array:
    return f(x) + scale * (x @ t['a'] @ t['b'].sum(0))

  def weight(t: Entries, w: Entries) -> Entries:
    return {'kernel': w['kernel'] + scale * (t['a'] @ t['b'].sum(0))}

  return in_activations(where, init, call, weight)


@method
def comp_lora(
  where: Where = r'.*/(query|value)', rank: int = 8, alpha: float = 16.0, directions: int = 8
) -> Method:
  """Comp-LoRA (Wang et al. 2025, arXiv:2501.15040): LoRA beside the weight's strongest directions.

      W' = W + (alpha / r) (I - U U^T) A B (I - V V^T),   A ~ N(0, 1/d),   B = 0

  U [d, s] and V [k, s] are the first s = `directions` singular vectors of W, kept in state: what
  W does along them stays, U^T W' = U^T W and W' V = W V.

  >>> comp_lora(rank=4).mergeable
  True
  """
  at_least_one('comp_lora', rank=rank)
  scale = alpha / rank

  def init(key: Array, site: Site) -> Entries:
    (d, k), dtype = dims(site), wide(site)
    if not 0 <= directions < min(d, k):
      raise FewshotError(f'directions={directions} leave nothing of {site.path!r} [{d}, {k}] free')
    u, _, v = jnp.linalg.svd(site.own['kernel'].astype(dtype), full_matrices=False)
    a = jax.random.normal(key, (d, rank), dtype) / jnp.sqrt(d).astype(dtype)
    return {'a': a, 'b': jnp.zeros((rank, k), dtype), 'u': u[:, :directions], 'v': v[:directions].T}

  def beside(x: Array, basis: Array) -> Array:
    return x - x @ basis @ basis.T

  def call(t: Entries, f: Any, x: Array) -> Array:
    return f(x) + scale * beside(beside(x, t['u']) @ t['a'] @ t['b'], t['v'])

  def weight(t: Entries, w: Entries) -> Entries:
    a, b = beside(t['a'].T, t['u']).T, beside(t['b'], t['v'])
    return {'kernel': w['kernel'] + scale * (a @ b)}

  return in_activations(where, init, call, weight, ('u', 'v'))


def dims(site: Site) -> tuple[int, int]:
  """The widths (d, k) of a linear map; any other site is refused."""
  shape = site.own['kernel'].shape if 'kernel' in site.own else ()
  if len(shape) != 2:
    raise FewshotError(
      f'{site.path!r} is no linear map with a kernel [d, k] (its kernel: {list(shape) or "none"}); '
      'choose such modules by where='
    )
  return shape[0], shape[1]


def _mixed(t: Entries, name: str, topk: int) -> Array:
  """A factor [r, width]: mixtures of vectors of the bank by their best logits, side by side."""
  top, i = jax.lax.top_k(t[name], topk)  # [r, pieces, k]
  pieces = (jax.nn.softmax(top)[..., None] * t['bank'][i]).sum(-2)
  return pieces.reshape(len(pieces), -1)
