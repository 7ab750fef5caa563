"""Rotations and reflections of weights."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fewshot.errors import FewshotError
from fewshot.methods.activations import Site, in_activations, output, wide
from fewshot.methods.base import Method, State, Theta, method
from fewshot.methods.paths import Where
from fewshot.methods.weights import in_weights

__all__ = ['boft', 'gsoft', 'hra', 'oft', 'road']
Array = jax.Array
Entries = dict[str, Array]
QUERY_VALUE = r'.*/(query|value)'


@method
def oft(where: Where = QUERY_VALUE, block_size: int = 32, neumann: int = 5) -> Method:
  """OFT (Qiu et al. 2023, arXiv:2306.07280): blocks of input channels are rotated.

      y = f(x R),   R = diag(R_1 .. R_n),   Q_i skew of the trained q_i [b (b - 1) / 2]
      R_i = I + 2 Q_i + 2 Q_i^2 + ... + Q_i^(neumann - 1)

  That is the Cayley transform (I + Q)(I - Q)^-1 cut short (OFTv2, arXiv:2506.19847), orthogonal up
  to |Q|^neumann; `neumann=0` has it exactly, as (I - Q)(I + Q)^-1.  q is 0 at the start.

  >>> oft(block_size=8).mergeable
  True
  """
  if neumann and neumann < 4:
    raise FewshotError(f'oft(neumann={neumann}); it is 0 (exact) or at least 4 terms')

  def init(key: Array, d: int, dtype: Any) -> Entries:
    del key
    return {'q': jnp.zeros(_packed('oft', d, block_size), dtype)}

  def turn(t: Entries, x: Array) -> Array:
    q = _skew(t['q'], block_size)
    return _blocks(x, _neumann(q, neumann) if neumann else _cayley(q))

  return _turned(where, init, turn)


@method
def gsoft(where: Where = QUERY_VALUE, block_size: int = 32) -> Method:
  """GSOFT (Gorbunov et al. 2024, arXiv:2406.10019): two block rotations with a shuffle between.

      y = f(x P^T L P R),   L and R block diagonal by Cayley's (I - Q)(I + Q)^-1, P a shuffle

  P puts the i-th channels of all blocks side by side, so that with block_size^2 >= d every output
  sees every input.  L = R = I at the start.

  >>> gsoft(block_size=8).mergeable
  True
  """

  def init(key: Array, d: int, dtype: Any) -> Entries:
    del key
    zeros = jnp.zeros(_packed('gsoft', d, block_size), dtype)
    return {'l': zeros, 'r': zeros}

  def turn(t: Entries, x: Array) -> Array:
    left, right = (_cayley(_skew(t[k], block_size)) for k in ('l', 'r'))
    x = _shuffle(_blocks(_shuffle(x, block_size), left), x.shape[-1] // block_size)
    return _blocks(x, right)

  return _turned(where, init, turn)


@method
def hra(where: Where = QUERY_VALUE, rank: int = 8, regularization: float = 0.0) -> Method:
  """HRA (Yuan et al. 2024, arXiv:2405.17484): a chain of Householder reflections of the input.

      y = f(x H_r ... H_1),   H_i = I - 2 u_i u_i^T / |u_i|^2,   u [d, r]

  Neighbours u_1 = u_2, u_3 = u_4, ... are equal at the start, so that their reflections cancel.
  The penalty is regularization * sum |I - U^T U|^2 over the unit vectors of each site.

  >>> hra(rank=4).mergeable
  True
  """
  if rank < 2 or rank % 2:
    raise FewshotError(f'hra(rank={rank}); reflections start in pairs, so rank is 2, 4, 6, ...')

  def init(key: Array, d: int, dtype: Any) -> Entries:
    bound = (rank // 2) ** -0.5
    half = jax.random.uniform(key, (d, rank // 2), dtype, -bound, bound)
    return {'u': jnp.repeat(half, 2, axis=1)}

  def turn(t: Entries, x: Array) -> Array:
    u = _unit(t['u']).astype(x.dtype)
    for i in reversed(range(rank)):
      x = x - 2 * (x @ u[:, i : i + 1]) * u[:, i]
    return x

  def penalty(forward: Any, theta: Theta, state: State, *rest: Any) -> Array:
    del forward, state, rest
    grams = [_unit(t['u']).T @ _unit(t['u']) for t in theta.values()]
    return regularization * jnp.sum(jnp.stack([jnp.square(g - jnp.eye(rank)).sum() for g in grams]))

  return _turned(where, init, turn)._replace(penalty=penalty)


@method
def boft(
  where: Where = r'.*/(query|value)/kernel', block_size: int = 8, factors: int = 2
) -> Method:
  """BOFT (Liu et al. 2023, arXiv:2311.06243): a butterfly of block rotations, and output scales.

      W' = R W diag(s),   R = B_m ... B_1,   B_i = P_i diag(R_i1 .. R_in) P_i^T

  R_ij is Cayley's (I - Q)(I + Q)^-1 of Q = (A - A^T) / 2, A [m, n, b, b] = 0, s [k] = 1 at the
  start; P_i brings half blocks that are 2^(i-1) apart together.  `factors` is m; 1 is OFT.

  >>> boft(block_size=4).mergeable
  True
  """
  if factors < 1 or block_size < 2 or (factors > 1 and block_size % 2):
    raise FewshotError(
      f'boft(block_size={block_size}, factors={factors}); factors is at least 1, and block_size at '
      'least 2, and even for a butterfly'
    )

  def init(key: Array, w: Array) -> Entries:
    del key
    d, span = w.shape[-2] if w.ndim > 1 else 1, block_size * 2 ** (factors - 1)
    if d % span:
      raise FewshotError(
        f'boft(block_size={block_size}, factors={factors}) turns multiples of {span} channels, and '
        f'a selected parameter is {list(w.shape)}; take smaller ones, or choose kernels by where='
      )
    blocks = (factors, d // block_size, block_size, block_size)
    return {'a': jnp.zeros(blocks, w.dtype), 's': jnp.ones(w.shape[-1], w.dtype)}

  def weight(t: Entries, w: Array) -> Array:
    turned = jnp.moveaxis(w, -2, 0)  # Input channels first.
    for i, r in enumerate(_cayley((t['a'] - t['a'].mT) / 2)):
      order = _butterfly(w.shape[-2], block_size, i)
      x = turned[np.argsort(order)].reshape(-1, block_size, w.size // w.shape[-2])
      turned = jnp.einsum('nkc,ncx->nkx', r, x).reshape(turned.shape)[order]
    return jnp.moveaxis(turned, 0, -2) * t['s']

  return in_weights(where, init, weight)


@method
def road(where: Where = QUERY_VALUE, variant: Literal[1, 2, 4] = 1, group_size: int = 64) -> Method:
  """RoAd (Liao & Monz 2024, arXiv:2409.00119): pairs of output channels are rotated and scaled.

      (y_i, y_j) -> (a_i cos(t_i) y_i - a_i' sin(t_i') y_j, a_j cos(t_j) y_j + a_j' sin(t_j') y_i)

  Within a group, channel i is paired with j = i + group_size / 2.  `variant` 1 shares a and t in a
  pair, 2 has them for each channel, 4 others for the sines.  a = 1 and t = 0 at the start.

  >>> road(variant=2).mergeable
  True
  """
  if variant not in (1, 2, 4):
    raise FewshotError(f'road(variant={variant}); there are 1, 2, 4')
  if group_size < 2 or group_size % 2:
    raise FewshotError(f'road(group_size={group_size}); a group is paired, so its size is even')

  def init(key: Array, site: Site) -> Entries:
    del key
    k = _width('road', site)[1]
    if k % group_size:
      raise FewshotError(
        f'road(group_size={group_size}) does not divide the {k} outputs of {site.path!r}; '
        'take a divisor'
      )
    size = k * variant // 2
    return {'theta': jnp.zeros(size, wide(site)), 'alpha': jnp.ones(size, wide(site))}

  def turn(t: Entries, y: Array) -> Array:
    (cos, sin), (a, b) = (_columns(t[k], variant, group_size) for k in ('theta', 'alpha'))
    x = y.reshape(*y.shape[:-1], -1, 2, group_size // 2)
    other = jnp.stack([-x[..., 1, :], x[..., 0, :]], -2).reshape(y.shape)
    return y * (a * jnp.cos(cos)) + other * (b * jnp.sin(sin))

  def call(t: Entries, f: Any, x: Array) -> Array:
    return turn(t, f(x))

  def weight(t: Entries, w: Entries) -> Entries:
    return {k: turn(t, v) for k, v in w.items()}

  return in_activations(where, init, call, weight)


def _columns(v: Array, variant: int, group: int) -> tuple[Array, Array]:
  """RoAd's entries for the cosines and for the sines, one an output channel."""
  if variant == 4:
    both = v.reshape(-1, 2, group)
    return both[:, 0].reshape(-1), both[:, 1].reshape(-1)
  if variant == 1:
    v = jnp.repeat(v.reshape(-1, group // 2), 2, axis=0).reshape(-1)
  return v, v


def _turned(
  where: Where,
  init: Callable[[Array, int, Any], Entries],
  turn: Callable[[Entries, Array], Array],
) -> Method:
  """y = f(turn(x)), for a linear `turn` of the input channels: W' = R W with R = turn(I)."""

  def start(key: Array, site: Site) -> Entries:
    return init(key, _width('a rotation', site)[0], wide(site))

  def call(t: Entries, f: Any, x: Array) -> Array:
    return f(turn(t, x))

  def weight(t: Entries, w: Entries) -> Entries:
    kernel = w['kernel']
    eye = jnp.eye(kernel.shape[-2], dtype=jnp.promote_types(kernel.dtype, jnp.float32))
    return {'kernel': jnp.einsum('ij,...jk->...ik', turn(t, eye), kernel)}

  return in_activations(where, start, call, weight)


def _width(name: str, site: Site) -> tuple[int, int]:
  """Input and output channels of a linear map or convolution; any other site is refused."""
  kernel, x, y = site.own.get('kernel'), site.x.shape, output(site).shape
  if site.inputs > 1 or kernel is None or kernel.ndim < 2 or kernel.shape[-2:] != (x[-1], y[-1]):
    has = 'no kernel' if kernel is None else f'a kernel of {list(kernel.shape)}'
    raise FewshotError(
      f'{name} turns the channels of linear maps and convolutions; {site.path!r} has {has} for '
      f'{list(x)} -> {list(y)}; choose others by where='
    )
  return x[-1], y[-1]


def _packed(name: str, d: int, b: int) -> tuple[int, int]:
  """The shape of the trained upper triangles: d / b blocks of b (b - 1) / 2."""
  if b < 2 or d % b:
    raise FewshotError(
      f'{name}(block_size={b}) does not cut {d} channels into blocks; take a divisor of {d}'
    )
  return d // b, b * (b - 1) // 2


def _skew(q: Array, b: int) -> Array:
  """Upper triangles [n, b (b - 1) / 2], row by row, as skew-symmetric matrices [n, b, b]."""
  rows, cols = np.triu_indices(b, 1)
  q = q.astype(jnp.promote_types(q.dtype, jnp.float32))
  upper = jnp.zeros((q.shape[0], b, b), q.dtype).at[:, rows, cols].set(q)
  return upper - upper.mT


def _cayley(q: Array) -> Array:
  """(I - Q)(I + Q)^-1; the factors commute."""
  eye = jnp.eye(q.shape[-1], dtype=q.dtype)
  return jnp.linalg.solve(eye + q, jnp.broadcast_to(eye, q.shape) - q)


def _neumann(q: Array, terms: int) -> Array:
  """I + 2 Q + ... + 2 Q^(terms - 2) + Q^(terms - 1)."""
  r, power = jnp.eye(q.shape[-1], dtype=q.dtype) + 2 * q, q
  for n in range(2, terms):
    power = power @ q
    r = r + (2 if n < terms - 1 else 1) * power
  return r


def _blocks(x: Array, r: Array) -> Array:
  """x [..., d] times the block diagonal of r [n, b, b]."""
  parts = x.reshape(*x.shape[:-1], *r.shape[:2])
  return jnp.einsum('...nk,nkc->...nc', parts, r.astype(x.dtype)).reshape(x.shape)


def _shuffle(x: Array, b: int) -> Array:
  """The first channels of all blocks of b, then the second ones, ...: inverse with d / b."""
  return x.reshape(*x.shape[:-1], -1, b).swapaxes(-1, -2).reshape(x.shape)


def _butterfly(d: int, b: int, i: int) -> np.ndarray:
  """BOFT's i-th permutation: in groups of 2^i blocks, even half blocks before odd ones."""
  halves = np.arange(d).reshape(-1, 2**i, 2, b // 2) if i else np.arange(d)
  return halves.swapaxes(1, 2).reshape(-1) if i else halves


def _unit(u: Array) -> Array:
  u = u.astype(jnp.promote_types(u.dtype, jnp.float32))
  return u / jnp.linalg.norm(u, axis=0)
