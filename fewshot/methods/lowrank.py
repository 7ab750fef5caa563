"""Low-rank updates of linear maps."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fewshot.errors import FewshotError, nearest
from fewshot.methods import lora_inits, paths
from fewshot.methods.activations import Site, in_activations, output, wide
from fewshot.methods.base import Calib, Forward, Method, Params, Theta, at_least_one, method
from fewshot.methods.paths import Where

__all__ = ['lora', 'lora_plus', 'lora_pro']
Array = jax.Array


@method
def lora(
  where: Where = r'.*/(query|value)',
  rank: int = 8,
  alpha: float = 16.0,
  scaling: str = 'alpha/r',
  dropout: float = 0.0,
  ranks: tuple = (),
  freeze: str = '',
  init: str = 'gaussian',
  rho: float = 1.0,
) -> Method:
  """LoRA (Hu et al. 2021, arXiv:2106.09685), never forming the merged weight while it trains.

      y = x W + s x A B,   s = alpha / r,   A ~ N(0, 1/d) [d, r],   B = 0 [r, k]

  Args:
    scaling: 'alpha/r', or 'alpha/sqrt(r)' (rsLoRA, arXiv:2312.03732).
    dropout: of the x that A reads, in training.
    ranks:   ((pattern, rank), ...): other ranks at some sites, the first match counts.
    freeze:  'a' trains B alone, over a random A (arXiv:2402.16842; LoRA-FA, arXiv:2308.03303);
             'b' trains A alone.
    init:    where A and B start; see `lora_inits`.  Where A B is not zero then, its start is taken
             off: y = x W + s (x A B - x A0 B0).
    rho:     of init='eva': above 1, ranks are redistributed between the sites by the variance
             that directions explain, to at most rho * rank at one; `rank` is their mean.

  >>> lora(rank=4, init='pissa').mergeable
  True
  """
  _check(rank, alpha, scaling, dropout, ranks, freeze, init, rho)
  begin, rank_at = lora_inits.INITS[init], _ranks(rank, ranks)

  def start(key: Array, site: Site, seen: Any = None) -> dict[str, Array]:
    fan, r = fan_out(site), rank_at(site.path)
    s = scale(alpha, r, scaling)
    a, b = begin.start(lora_inits.given(key, site, math.prod(fan), r, s, seen))
    t = {'a': a, 'b': b.reshape(r, *fan)}
    return t | {'a0': a, 'b0': s * t['b']} if begin.moves else t

  def factors(t: dict[str, Array]) -> tuple[Array, Array]:
    return t['a'], scale(alpha, t['a'].shape[-1], scaling) * t['b']

  def plan(forward: Forward, params: Params, calib: Calib) -> Method:
    found = lora_inits.explained_ranks(forward, params, calib, where, rank, rho)
    kept, by_rank = _grouped(where, found)
    return lora(kept, rank, alpha, scaling, dropout, by_rank, freeze, init)

  frozen = (('a0', 'b0') if begin.moves else ()) + tuple(freeze)
  observe = lora_inits.observer(begin.sees)
  m = low_rank(where, start, factors, frozen, dropout=dropout, observe=observe)
  return m._replace(plan=plan) if rho > 1 else m


@method
def lora_plus(
  where: Where = r'.*/(query|value)',
  rank: int = 8,
  alpha: float = 16.0,
  ratio: float = 16.0,
  init: str = 'gaussian',
) -> Method:
  """LoRA+ (Hayou et al. 2024, arXiv:2402.12354): B learns `ratio` times as fast as A.

      y = x W + (alpha / r) x A B,   eta_B = ratio * eta_A

  >>> lora_plus(rank=4).mergeable
  True
  """
  if ratio <= 0:
    raise FewshotError(f'lora_plus(ratio={ratio}) stops B or turns it round; ratio is above 0')

  def optimizer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(tx, optax.masked(optax.scale(ratio), _is_b))

  return lora(where, rank, alpha, init=init)._replace(optimizer=optimizer)


@method
def lora_pro(
  where: Where = r'.*/(query|value)',
  rank: int = 8,
  alpha: float = 16.0,
  scaling: str = 'alpha/sqrt(r)',
) -> Method:
  """LoRA-Pro (Wang et al. 2024, arXiv:2407.18242): A and B move W as near as they can to its
  own gradient.

      g_A = (1/s^2) g_a (B B^T)^-1 + A X,   g_B = (1/s^2) (A^T A)^-1 g_b (I - P_B) - X B

  with g_a, g_b the gradients, P_B the projection on the rows of B, and X the solution of
  X B B^T + A^T A X = -(1/s^2) A^T g_a (B B^T)^-1, which keeps them nearest to g_a and g_b.  The
  paper's Adam keeps moments of the size of W; here the optimizer runs on g_A and g_B themselves,
  as the paper's SGD does.

  >>> lora_pro(rank=4).mergeable
  True
  """
  inner = lora(where, rank, alpha, scaling)

  def optimizer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    tx = optax.with_extra_args_support(tx)

    def update(grads: Theta, opt: Any, theta: Theta, **extra: Any) -> Any:
      s = scale(alpha, rank, scaling)
      return tx.update({p: adjusted(g, theta[p], s) for p, g in grads.items()}, opt, theta, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)

  return inner._replace(optimizer=optimizer)


def adjusted(g: dict[str, Array], t: dict[str, Array], s: float) -> dict[str, Array]:
  """LoRA-Pro's gradients of A [d, r] and B [r, ...] from the plain ones, s being the scale."""
  a, b, ga, gb = t['a'], t['b'], g['a'], g['b']
  b, gb, r = b.reshape(b.shape[0], -1), gb.reshape(b.shape[0], -1), b.shape[0]
  tiny = 1e-8 * jnp.eye(r, dtype=b.dtype)  # B starts at zero.
  aa, bb = a.T @ a + tiny, b @ b.T + tiny
  ga = jnp.linalg.solve(bb, ga.T).T / s**2
  gb = jnp.linalg.solve(aa, gb - gb @ b.T @ jnp.linalg.solve(bb, b)) / s**2
  x = sylvester(aa, bb, -a.T @ ga)
  return {'a': ga + a @ x, 'b': (gb - x @ b).reshape(t['b'].shape)}


def sylvester(m: Array, n: Array, c: Array) -> Array:
  """X of m X + X n = c, for m and n symmetric and positive definite."""
  (p, u), (q, v) = jnp.linalg.eigh(m), jnp.linalg.eigh(n)
  return u @ ((u.T @ c @ v) / (p[:, None] + q)) @ v.T


def low_rank(
  where: Where,
  init: Callable[..., dict[str, Array]],
  factors: Callable[[dict[str, Array]], tuple[Array, Array]],
  frozen: tuple[str, ...] = (),
  *,
  dropout: float = 0.0,
  observe: Callable[..., dict[str, Any]] | None = None,
) -> Method:
  """A method from the two factors of its update: `factors(t) -> A [d, r], B [r, ...]`.

      y = f(x) + x A B - x A0 B0

  Entries a0 and b0 of t, where there are any, are the factors at the start; they are frozen.
  """

  def call(t: dict[str, Array], f: Any, x: Array) -> Array:
    a, b = factors(t)
    y = f(x) + jnp.tensordot(_dropped(x, dropout, t.get('key')) @ a, b, 1)
    return y - jnp.tensordot(x @ t['a0'], t['b0'], 1) if 'a0' in t else y

  def weight(t: dict[str, Array], w: dict[str, Array]) -> dict[str, Array]:
    kernel = w['kernel'] + jnp.tensordot(*factors(t), 1)
    return {'kernel': kernel - jnp.tensordot(t['a0'], t['b0'], 1) if 'a0' in t else kernel}

  return in_activations(where, init, call, weight, frozen, observe=observe, draws=dropout > 0)


def fan_out(site: Site, name: str = 'lora') -> tuple[int, ...]:
  """The output shape of a map over the last axis; any other site is refused."""
  if 'kernel' in site.own and site.x.ndim == 4 == site.own['kernel'].ndim:
    raise FewshotError(f'{name} updates linear maps; {site.path!r} is a convolution: conv_lora')
  lead, y = site.x.ndim - 1, output(site).shape
  tokens = not jnp.issubdtype(site.x.dtype, jnp.inexact)
  if tokens or site.inputs > 1 or y[:lead] != site.x.shape[:-1]:
    x = f'{site.x.dtype}{list(site.x.shape)}'
    raise FewshotError(
      f'{name} updates linear maps; {site.path!r} maps {site.inputs}x {x} to {list(y)}'
    )
  return tuple(y[lead:])


def sizes(site: Site, name: str) -> tuple[int, int]:
  """The inputs and outputs of a linear map; one with several output axes is refused."""
  fan = fan_out(site, name)
  if len(fan) > 1:
    raise FewshotError(f'{name} takes maps to one axis; {site.path!r} maps to {list(fan)}')
  return site.x.shape[-1], fan[0]


def plain(name: str, key: Array, site: Site, rank: int) -> dict[str, Array]:
  """LoRA's own start."""
  d, k = sizes(site, name)
  return {'a': lora_inits.normal(key, (d, rank), wide(site)), 'b': jnp.zeros((rank, k), wide(site))}


def scale(alpha: float, rank: int, scaling: str = 'alpha/r') -> float:
  """The factor of the update."""
  return alpha / (rank if scaling == 'alpha/r' else math.sqrt(rank))


def _dropped(x: Array, rate: float, key: Array | None) -> Array:
  if key is None:
    return x
  kept = jax.random.bernoulli(key, 1 - rate, x.shape)
  return jnp.where(kept, x / (1 - rate), 0)


def _is_b(theta: Theta) -> Any:
  return {p: {k: k == 'b' for k in t} for p, t in theta.items()}


def _ranks(rank: int, ranks: tuple) -> Callable[[str], int]:
  chosen = [(paths.selection(pattern), r) for pattern, r in ranks]
  return lambda path: next((r for s, r in chosen if s.holds(path)), rank)


def _grouped(where: Where, ranks: dict[str, int]) -> tuple[Where, tuple]:
  """`where` without the sites of rank 0, and the others' ranks as patterns."""
  either = lambda r: '|'.join(re.escape(p) for p, n in ranks.items() if n == r)  # noqa: E731
  kept = paths.selection(where) & ~paths.at(either(0)) if 0 in ranks.values() else where
  return kept, tuple((either(r), r) for r in sorted(set(ranks.values()) - {0}))


def _check(
  rank: int, alpha: float, scaling: str, dropout: float, ranks: tuple, freeze: str, init: str,
  rho: float,
) -> None:  # fmt: skip
  at_least_one('lora', rank=rank)
  if scaling not in ('alpha/r', 'alpha/sqrt(r)'):
    raise FewshotError(f"lora(scaling={scaling!r}) is neither 'alpha/r' nor 'alpha/sqrt(r)'")
  if not 0 <= dropout < 1:
    raise FewshotError(f'lora(dropout={dropout}) is no rate; it is at least 0 and below 1')
  pair = lambda x: isinstance(x, (tuple, list)) and [type(v) for v in x] == [str, int]  # noqa: E731
  if not all(pair(x) and x[1] > 0 for x in ranks):
    raise FewshotError(f'lora(ranks={ranks}) is not of the form ((pattern, rank), ...), ranks >= 1')
  if init not in lora_inits.INITS:
    raise FewshotError(f'lora(init={init!r}) is unknown; {nearest(init, lora_inits.INITS)}')
  if freeze not in ('', 'a', 'b'):
    raise FewshotError(f"lora(freeze={freeze!r}) names no factor; it is 'a', 'b' or empty")
  if freeze == 'b' and not lora_inits.INITS[init].moves:
    raise FewshotError(f"lora(freeze='b', init={init!r}) freezes B at zero; take init='pissa'")
  if rho < 1 or (rho > 1 and (init != 'eva' or ranks)):
    raise FewshotError(f"lora(rho={rho}) is at least 1, and above 1 for init='eva' without ranks")
  if not alpha or not math.isfinite(alpha):
    raise FewshotError(f'lora(alpha={alpha}) gives no update, or none that is finite')
  if init != 'gaussian' and alpha < 0:
    raise FewshotError(f'lora(alpha={alpha}, init={init!r}) takes a root of alpha; it is above 0')
