"""Relatives of LoRA that train each site by itself."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from fewshot.errors import FewshotError
from fewshot.methods import lora_inits, paths
from fewshot.methods.activations import Site, wide
from fewshot.methods.base import Forward, Method, Params, State, Theta, at_least_one, method
from fewshot.methods.lora_inits import Given, normal
from fewshot.methods.lowrank import low_rank, plain, scale, sizes
from fewshot.methods.paths import Where
from fewshot.methods.weights import in_weights, widen

__all__ = [
  'dora',
  'dsee',
  'lora_mini',
  'lora_sb',
  'lora_sp',
  'lora_xs',
  'pego',
  'pmss',
  'selective_lora',
]
Array = jax.Array
SITES, KERNELS = r'.*/(query|value)', r'.*/(query|value)/kernel'


@method
def dora(where: Where = KERNELS, rank: int = 8, alpha: float = 16.0) -> Method:
  """DoRA (Liu et al. 2024, arXiv:2402.09353): LoRA turns each column of W, m is its length.

      W' = m V / |V|_c,   V = W + (alpha / r) A B,   m = |W|_c [k] at the start

  |V|_c are the norms of columns, constants to the gradient (section 4.3); biases stay as they are.
  Of a convolution the last axis are the columns.  Acts on weights, since it needs V itself.

  >>> dora(rank=4).mergeable
  True
  """
  at_least_one('dora', rank=rank)

  def init(key: Array, w: Array) -> dict[str, Array]:
    v = _matrix(w, 'dora')
    a = normal(key, (v.shape[0], rank), v.dtype)
    return {'a': a, 'b': jnp.zeros((rank, v.shape[1]), v.dtype), 'm': jnp.linalg.norm(v, axis=0)}

  def weight(t: dict[str, Array], w: Array) -> Array:
    v = _matrix(w, 'dora') + scale(alpha, rank) * t['a'] @ t['b']
    length = jax.lax.stop_gradient(jnp.linalg.norm(v, axis=0))
    length = jnp.where(length > 0, length, 1)  # A column of zeros stays one.
    return (v * (t['m'] / length)).reshape(w.shape)

  return in_weights(where, init, weight)


@method
def lora_xs(
  where: Where = SITES, rank: int = 8, alpha: float = 16.0, sigma: float = 1e-5
) -> Method:
  """LoRA-XS (Bałazy et al. 2024, arXiv:2405.17604): only R [r, r] between singular vectors trains.

      y = x W + (alpha / r) x A R B,   W = U S V^T,   A = U_r S_r,   B = V_r^T

  R ~ N(0, sigma^2), so that it starts within about sigma of the pretrained function.

  >>> lora_xs(rank=4).mergeable
  True
  """
  at_least_one('lora_xs', rank=rank)

  def init(key: Array, site: Site) -> dict[str, Array]:
    g = _given('lora_xs', key, site, rank)
    u, s, vt = lora_inits.svd(g, lora_inits.kernel_of(g))
    r = sigma * jax.random.normal(key, (rank, rank), g.dtype)
    return {'a': (u * s)[:, :rank], 'r': r, 'b': vt[:rank]}

  def factors(t: dict[str, Array]) -> tuple[Array, Array]:
    return t['a'], scale(alpha, rank) * t['r'] @ t['b']

  return low_rank(where, init, factors, frozen=('a', 'b'))


@method
def lora_sb(where: Where = SITES, rank: int = 8, lr: float = 1e-4) -> Method:
  """LoRA-SB (Ponkshe et al. 2024, arXiv:2411.19557): LoRA-XS between a gradient's directions.

      y = x W + x A R B,   -lr sign(dL/dW) = U S V^T,   A = U_r,   R = S_r,   B = V_r^T

  A and B are frozen.  It starts where one step of Adam at the rate `lr` takes W, cut to rank r.
  The gradient is that of `calib.loss`, see `Calib.gradient`.

  >>> lora_sb(rank=4).mergeable
  True
  """
  at_least_one('lora_sb', rank=rank)

  def init(key: Array, site: Site, seen: Array | None) -> dict[str, Array]:
    g = _given('lora_sb', key, site, rank, seen)
    lora_inits.kernel_of(g)
    u, s, vt = lora_inits.svd(g, -lr * jnp.sign(g.seen))
    return {'a': u[:, :rank], 'r': jnp.diag(s[:rank]), 'b': vt[:rank]}

  def factors(t: dict[str, Array]) -> tuple[Array, Array]:
    return t['a'], t['r'] @ t['b']

  observe = lora_inits.observer('gradient')
  return low_rank(where, init, factors, frozen=('a', 'b'), observe=observe)


@method
def lora_mini(where: Where = SITES, rank: int = 8, alpha: float = 16.0, width: int = 64) -> Method:
  """LoRA-Mini (Singh et al. 2024, arXiv:2411.15804): the outer two of four factors are frozen.

      y = x W + (alpha / r) x A_out A B B_out,   A [w, r],   B [r, w] = 0 at the start

  A_out [d, w] and B_out [w, k] are random; A and B train.  The default of w is ours.

  >>> lora_mini(rank=4).mergeable
  True
  """
  at_least_one('lora_mini', rank=rank, width=width)

  def init(key: Array, site: Site) -> dict[str, Array]:
    d, k = sizes(site, 'lora_mini')
    shapes = {'a_out': (d, width), 'a': (width, rank), 'b_out': (width, k)}
    keys = jax.random.split(key, len(shapes))
    t = {n: normal(i, s, wide(site)) for i, (n, s) in zip(keys, shapes.items(), strict=True)}
    return t | {'b': jnp.zeros((rank, width), wide(site))}

  def factors(t: dict[str, Array]) -> tuple[Array, Array]:
    return t['a_out'] @ t['a'], scale(alpha, rank) * t['b'] @ t['b_out']

  return low_rank(where, init, factors, frozen=('a_out', 'b_out'))


@method
def lora_sp(
  where: Where = SITES, rank: int = 8, alpha: float = 16.0, fraction: float = 0.5
) -> Method:
  """LoRA-SP (Wu et al. 2024, arXiv:2403.08822): a random half of LoRA's entries trains.

      y = x W + (alpha / r) x A B,   A = A0 but for a at random places,   B = 0 but for b

  The other entries keep their start.  The places are drawn once, uniformly over each factor: single
  entries, where the paper leaves open what a parameter is.

  >>> lora_sp(rank=4).mergeable
  True
  """
  at_least_one('lora_sp', rank=rank)
  if not 0 < fraction <= 1:
    raise FewshotError(f'lora_sp(fraction={fraction}) is the trained share, above 0 and at most 1')

  def init(key: Array, site: Site) -> dict[str, Array]:
    d, k = sizes(site, 'lora_sp')
    key, *keys = jax.random.split(key, 3)
    start = {
      'a': normal(key, (d, rank), wide(site)),
      'b': jnp.zeros((rank, k), wide(site)),
    }
    at = {n: _places(i, x.size, fraction) for i, (n, x) in zip(keys, start.items(), strict=True)}
    taken = {n: x.reshape(-1)[at[n]] for n, x in start.items()}
    return (
      taken | {f'{n}_rest': x for n, x in start.items()} | {f'{n}_at': i for n, i in at.items()}
    )

  def whole(t: dict[str, Array], n: str) -> Array:
    rest = t[f'{n}_rest']
    return jnp.ravel(rest).at[t[f'{n}_at']].set(t[n]).reshape(rest.shape)

  def factors(t: dict[str, Array]) -> tuple[Array, Array]:
    return whole(t, 'a'), scale(alpha, rank) * whole(t, 'b')

  return low_rank(where, init, factors, frozen=('a_rest', 'b_rest', 'a_at', 'b_at'))


@method
def selective_lora(
  where: Where = SITES,
  rank: int = 8,
  alpha: float = 16.0,
  tau: float = 0.1,
  sparsity: float = 0.25,
) -> Method:
  """Selective LoRA (Bafghi et al. 2025, arXiv:2501.15377): a score switches each LoRA on or off.

      y = x W + [s >= tau] (alpha / r) x A B,   loss + sparsity * mean |s|,   s = 1 at the start

  The switch passes its gradient straight on to s.  The defaults are ours.

  >>> selective_lora(rank=4).mergeable
  True
  """
  at_least_one('selective_lora', rank=rank)

  def init(key: Array, site: Site) -> dict[str, Array]:
    return plain('selective_lora', key, site, rank) | {'score': jnp.ones(1, wide(site))}

  def factors(t: dict[str, Array]) -> tuple[Array, Array]:
    s = t['score']
    on = s + jax.lax.stop_gradient((s >= tau).astype(s.dtype) - s)
    return t['a'], on * scale(alpha, rank) * t['b']

  def penalty(forward: Forward, theta: Theta, *rest: Any) -> Array:
    del forward, rest
    return sparsity * jnp.mean(jnp.stack([jnp.abs(t['score']) for t in theta.values()]))

  return low_rank(where, init, factors)._replace(penalty=penalty)


@method
def pego(where: Where = SITES, rank: int = 4, num: int = 4, weight: float = 1e-3) -> Method:
  """PEGO (Hu et al. 2024, arXiv:2407.15085): a group of LoRAs, orthogonal to W and to each other.

      y = x W + sum_i x A_i B_i,   loss + weight * (sum_i |W^T D_i|_1 + sum_i<j |D_i^T D_j|_1)

  with D_i = A_i B_i, A [n, d, r], B [n, r, k] = 0 at the start, and |.|_1 the sum of absolute
  entries, as in the authors' code.

  >>> pego(rank=2).mergeable
  True
  """
  at_least_one('pego', rank=rank, num=num)

  def init(key: Array, site: Site) -> dict[str, Array]:
    g = _given('pego', key, site, rank)
    lora_inits.kernel_of(g)  # The penalty reads it.
    (d, k), dtype = g.shape, g.dtype
    return {
      'a': normal(key, (num, d, rank), dtype),
      'b': jnp.zeros((num, rank, k), dtype),
    }

  def factors(t: dict[str, Array]) -> tuple[Array, Array]:
    a, b = jnp.moveaxis(t['a'], 0, 1), t['b']
    return a.reshape(a.shape[0], -1), b.reshape(-1, b.shape[-1])

  def penalty(forward: Forward, theta: Theta, state: State, params: Params, *rest: Any) -> Array:
    del forward, state, rest
    leaves = widen(paths.flatten(params))
    each = [_overlaps(leaves[f'{p}/kernel'], t['a'] @ t['b']) for p, t in theta.items()]
    return weight * jnp.sum(jnp.stack(each))

  return low_rank(where, init, factors)._replace(penalty=penalty)


@method
def pmss(where: Where = SITES, rank: int = 16, alpha: float = 16.0) -> Method:
  """PMSS (Wang et al. 2024, arXiv:2409.16722): a small matrix between rows and columns of W.

      y = x W + (alpha / r) x C U R,   U [r, r] = 0 at the start

  C are r columns and R r rows of W, frozen, chosen by pivoting (our reading of the paper's search):
  each is the one that the span of those before leaves the most of.

  >>> pmss(rank=4).mergeable
  True
  """
  at_least_one('pmss', rank=rank)

  def init(key: Array, site: Site) -> dict[str, Array]:
    g = _given('pmss', key, site, rank)
    w = lora_inits.kernel_of(g)
    lora_inits.check_rank(g, min(g.shape))
    columns, rows = lora_inits.pivots(w, rank), lora_inits.pivots(w.T, rank)
    return {'c': w[:, columns], 'u': jnp.zeros((rank, rank), g.dtype), 'r': w[rows]}

  def factors(t: dict[str, Array]) -> tuple[Array, Array]:
    return t['c'], scale(alpha, rank) * t['u'] @ t['r']

  return low_rank(where, init, factors, frozen=('c', 'r'))


@method
def dsee(
  where: Where = KERNELS,
  rank: int = 16,
  alpha: float = 16.0,
  entries: int = 64,
  prune: float = 0.0,
) -> Method:
  """DSEE (Chen et al. 2021, arXiv:2111.00160): low-rank and sparse updates of a pruned weight.

      W' = W * S1 + (alpha / r) A B + S2,   A ~ N(0, 1/d),   B = S2 = 0 at the start

  S1 drops the `prune` smallest of |W| (0: none, and it starts as pretrained).  S2 has `entries`
  trained entries, where W is farthest from its best rank-r approximation; the paper finds them by
  a robust decomposition of W instead of a plain one.

  >>> dsee(rank=4).mergeable
  True
  """
  at_least_one('dsee', rank=rank, entries=entries)
  if not 0 <= prune < 1:
    raise FewshotError(f'dsee(prune={prune}) is the dropped share, at least 0 and below 1')

  def init(key: Array, w: Array) -> dict[str, Array]:
    v = _matrix(w, 'dsee')
    at = _residual(v, rank, entries)
    a, b = normal(key, (v.shape[0], rank), v.dtype), jnp.zeros((rank, v.shape[1]), v.dtype)
    below = jnp.quantile(jnp.abs(v), prune) if prune else jnp.full((), -1, v.dtype)
    return {'a': a, 'b': b, 's': jnp.zeros(entries, v.dtype), 'at': at, 'below': below}

  def weight(t: dict[str, Array], w: Array) -> Array:
    v = _matrix(w, 'dsee')
    v = jnp.where(jnp.abs(v) > t['below'], v, 0) + scale(alpha, rank) * t['a'] @ t['b']
    return v.reshape(-1).at[t['at']].add(t['s']).reshape(w.shape)

  return in_weights(where, init, weight, frozen=('at', 'below'))


def _overlaps(w: Array, d: Array) -> Array:
  """PEGO's sum over one site: w [d, k], the group's updates d [n, d, k]."""
  kept = jnp.abs(w.T @ d).sum()
  return kept + sum(jnp.abs(x.T @ y).sum() for x, y in itertools.combinations(d, 2))


def _places(key: Array, size: int, fraction: float) -> Array:
  count = max(1, int(fraction * size))
  return jnp.sort(jax.random.permutation(key, size)[:count]).astype(jnp.int32)


def _given(name: str, key: Array, site: Site, rank: int, seen: Any = None) -> Given:
  return lora_inits.given(key, site, sizes(site, name)[1], rank, 1.0, seen)


def _residual(w: Array, rank: int, count: int) -> Array:
  """Where w [d, k] is farthest from its best approximation of a rank, as flat indices."""
  if rank > min(w.shape) or count > w.size:
    raise FewshotError(f'dsee(rank={rank}, entries={count}) is more than {list(w.shape)} has')
  u, s, vt = jnp.linalg.svd(w, full_matrices=False)
  rest = jnp.abs(w - (u[:, :rank] * s[:rank]) @ vt[:rank])
  return jax.lax.top_k(rest.reshape(-1), count)[1].astype(jnp.int32)


def _matrix(w: Array, name: str) -> Array:
  """A kernel as [inputs, outputs], float32 or wider."""
  if w.ndim < 2:
    raise FewshotError(f'{name} takes kernels, not a leaf of shape {list(w.shape)}; see where=')
  return widen(w.reshape(-1, w.shape[-1]))
