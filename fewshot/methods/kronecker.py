"""Updates of full rank from small factors: Kronecker and Hadamard products, repeated shards."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fewshot.errors import FewshotError
from fewshot.methods.activations import Site, in_activations, wide
from fewshot.methods.base import Method, at_least_one, method
from fewshot.methods.conv import KAIMING
from fewshot.methods.lora_shared import dims
from fewshot.methods.paths import Where
from fewshot.methods.weights import check_kernel, in_weights

__all__ = ['loha', 'lokr', 'miss']
Array = jax.Array
Entries = dict[str, Array]


@method
def lokr(
  where: Where = r'.*/(query|value)/kernel',
  rank: int = 8,
  alpha: float = 8.0,
  factor: int = -1,
  decompose_both: bool = False,
) -> Method:
  """LoKr (Yeh et al. 2023, arXiv:2309.14859): the update is a Kronecker product.

      W' = W + (alpha / r) C (x) D,   C = 0 [m, n],   D = A B [d / m, k / n]

  m and n are the largest divisors of d and k up to their roots, or up to `factor`.  D is a full
  matrix where r is at least half its longer side; with `decompose_both`, C is a product of rank r
  by the same rule.  For a convolution D is [h, w, d / m, k / n].

  >>> lokr(rank=4).mergeable
  True
  """
  if rank < 1 or (factor < 1 and factor != -1):
    raise FewshotError(f'lokr(rank={rank}, factor={factor}): both are at least 1, or factor is -1')

  def init(key: Array, w: Array) -> Entries:
    check_kernel('lokr', w)
    (m, d), (n, k) = (_divisors(width, factor) for width in w.shape[-2:])
    dtype, kc, kd = jnp.promote_types(w.dtype, jnp.float32), *jax.random.split(key)
    c = _factors(kc, 'c', (m, n), rank, decompose_both and rank < max(m, n) / 2, dtype)
    zero = 'c_b' if 'c_b' in c else 'c'
    split = rank < max(d, k) / 2
    return c | {zero: 0 * c[zero]} | _factors(kd, 'd', (*w.shape[:-2], d, k), rank, split, dtype)

  def weight(t: Entries, w: Array) -> Array:
    lead = w.shape[:-2]
    (_, d), (_, k) = (_divisors(width, factor) for width in w.shape[-2:])
    c = t['c_a'] @ t['c_b'] if 'c_a' in t else t['c']
    small = (t['d_a'] @ t['d_b'] if 'd_a' in t else t['d']).reshape(*lead, d, k)
    delta = jnp.einsum('mn,...dk->...mdnk', c, small).reshape(w.shape)
    return w + alpha / rank * delta

  return in_weights(where, init, weight)


@method
def loha(where: Where = r'.*/(query|value)/kernel', rank: int = 8, alpha: float = 8.0) -> Method:
  """LoHa (Hyeon-Woo et al. 2021, arXiv:2108.06098): the Hadamard product of two low-rank matrices.

      W' = W + (alpha / r) (A1 B1) * (A2 B2),   A2 = 0

  Its rank is up to r^2.  A kernel [h, w, d, k] counts as a matrix [h w d, k].

  >>> loha(rank=4).mergeable
  True
  """
  at_least_one('loha', rank=rank)

  def init(key: Array, w: Array) -> Entries:
    check_kernel('loha', w)
    rows, k, dtype = w.size // w.shape[-1], w.shape[-1], jnp.promote_types(w.dtype, jnp.float32)
    a1, b1, b2 = jax.random.split(key, 3)
    return {
      'a1': KAIMING(a1, (rows, rank), dtype),
      'b1': KAIMING(b1, (rank, k), dtype),
      'a2': jnp.zeros((rows, rank), dtype),
      'b2': KAIMING(b2, (rank, k), dtype),
    }

  def weight(t: Entries, w: Array) -> Array:
    delta = (t['a1'] @ t['b1']) * (t['a2'] @ t['b2'])
    return w + alpha / rank * delta.reshape(w.shape)

  return in_weights(where, init, weight)


@method
def miss(where: Where = r'.*/(query|value)', rank: int = 64) -> Method:
  """MiSS (Kang and Yin 2024, arXiv:2409.15371), once Bone: one shard added to all shards of W.

      y = x W + (x_1 + x_2 + ...) D,   D = 0 [r, k]

  The x_i are the pieces of r features that x falls into, the last one filled up with zeros; so
  D is added to every r rows of W.

  >>> miss(rank=4).mergeable
  True
  """
  at_least_one('miss', rank=rank)

  def init(key: Array, site: Site) -> Entries:
    d, k = dims(site)
    if rank > d:
      raise FewshotError(f'rank={rank} is more than the {d} features that {site.path!r} reads')
    return {'d': jnp.zeros((rank, k), wide(site))}

  def call(t: Entries, f: Any, x: Array) -> Array:
    pieces = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % rank)])
    return f(x) + pieces.reshape(*x.shape[:-1], -1, rank).sum(-2) @ t['d']

  def weight(t: Entries, w: Entries) -> Entries:
    return {'kernel': w['kernel'] + t['d'][jnp.arange(len(w['kernel'])) % rank]}

  return in_activations(where, init, call, weight)


def _divisors(n: int, factor: int = -1) -> tuple[int, int]:
  """n as a product (m, n / m), m <= n / m: m is `factor` or the largest divisor up to it.

  A factor that divides n is taken even where it is above the root; -1 asks for the root.

  >>> _divisors(128), _divisors(128, 4), _divisors(12, 5), _divisors(7)
  ((8, 16), (4, 32), (3, 4), (1, 7))
  """
  if factor > 0 and n % factor == 0:
    return factor, n // factor
  limit = math.isqrt(n) if factor == -1 else min(factor, math.isqrt(n))
  m = max(i for i in range(1, limit + 1) if n % i == 0)
  return m, n // m


def _factors(
  key: Array, name: str, shape: tuple[int, ...], rank: int, split: bool, dtype: Any
) -> Entries:
  """A matrix of `shape`, or two factors of it; Kaiming's uniform rule."""
  if not split:
    return {name: KAIMING(key, shape, dtype)}
  ka, kb = jax.random.split(key)
  a = KAIMING(ka, (math.prod(shape[:-1]), rank), dtype)
  return {f'{name}_a': a, f'{name}_b': KAIMING(kb, (rank, shape[-1]), dtype)}
