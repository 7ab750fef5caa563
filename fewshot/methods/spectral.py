"""Updates in a weight's spectrum: singular values, triangular factors, Fourier and cosine bases.

All act on one weight at a time, read as a matrix [d, k]: of a convolution's kernel, d runs over
rows, columns and input channels, and k over output channels.
"""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fewshot.errors import FewshotError
from fewshot.methods.base import Method, Theta, method
from fewshot.methods.paths import Where
from fewshot.methods.weights import in_weights

__all__ = ['c3a', 'fourierft', 'loca', 'loldu', 'svf', 'svfit', 'svft']
Array = jax.Array
Entries = dict[str, Array]
QUERY_VALUE = r'.*/(query|value)/kernel'


@method
def svf(where: Where = QUERY_VALUE) -> Method:
  """SVF (Sun et al. 2022, arXiv:2206.06122): every singular value is rescaled.

      W = U diag(s) V^T,   W' = U diag(s * z) V^T,   z = 1 at the start

  Only z [min(d, k)] trains, as in Transformer-squared (arXiv:2501.06252).

  >>> svf().mergeable
  True
  """

  def init(key: Array, w: Array) -> Entries:
    del key
    u, s, vt = jnp.linalg.svd(_matrix(w), full_matrices=False)
    return {'z': jnp.ones_like(s), 's': s, 'u': u, 'vt': vt}

  def weight(t: Entries, w: Array) -> Array:
    return _plus(w, (t['u'] * (t['s'] * (t['z'] - 1))) @ t['vt'])

  return in_weights(where, init, weight, frozen=('s', 'u', 'vt'))


@method
def svfit(where: Where = QUERY_VALUE, rank: int | None = None) -> Method:
  """SVFit (Sun et al. 2024, arXiv:2409.05926): the largest singular values train.

      W = U_r diag(s_r) V_r^T + rest,   W' = U_r diag(s') V_r^T + rest,   s' = s_r at the start

  `rank` None takes all min(d, k) of them, as the paper does on RoBERTa.

  >>> svfit(rank=16).mergeable
  True
  """
  if rank is not None:
    _at_least('svfit', 'rank', rank, 1)

  def init(key: Array, w: Array) -> Entries:
    del key
    u, s, vt = jnp.linalg.svd(_matrix(w), full_matrices=False)
    r = _rank('svfit', rank, s.shape[0])
    return {'s': s[:r], 'start': s[:r], 'u': u[:, :r], 'vt': vt[:r]}

  def weight(t: Entries, w: Array) -> Array:
    return _plus(w, (t['u'] * (t['s'] - t['start'])) @ t['vt'])

  return in_weights(where, init, weight, frozen=('start', 'u', 'vt'))


@method
def svft(
  where: Where = QUERY_VALUE,
  pattern: Literal['banded', 'random', 'top_k'] = 'banded',
  off_diag: int = 2,
) -> Method:
  """SVFT (Lingam et al. 2024, arXiv:2405.19597): a sparse matrix between the singular vectors.

      W = U diag(s) V^T,   W' = W + U M V^T,   M [n, n] sparse and 0 at the start, n = min(d, k)

  M has n (2q + 1) - q (q + 1) entries, q = off_diag: those within q of the diagonal (`banded`; with
  q = 0 the paper's plain variant), as many at random, or those of the largest |u_i . v_j| (`top_k`,
  for square W).

  >>> svft(off_diag=0).mergeable
  True
  """
  if pattern not in ('banded', 'random', 'top_k'):
    raise FewshotError(f'svft(pattern={pattern!r}); there are banded, random, top_k')
  _at_least('svft', 'off_diag', off_diag, 0)

  def init(key: Array, w: Array) -> Entries:
    u, s, vt = jnp.linalg.svd(_matrix(w), full_matrices=False)
    rows, cols = _sparse(pattern, key, u, vt, _rank('svft', off_diag, s.shape[0] - 1))
    return {'m': jnp.zeros(rows.shape, s.dtype), 'rows': rows, 'cols': cols, 'u': u, 'vt': vt}

  def weight(t: Entries, w: Array) -> Array:
    n = t['vt'].shape[0]
    m = jnp.zeros((n, n), t['m'].dtype).at[t['rows'], t['cols']].set(t['m'])
    return _plus(w, t['u'] @ m @ t['vt'])

  return in_weights(where, init, weight, frozen=('rows', 'cols', 'u', 'vt'))


def _sparse(pattern: str, key: Array, u: Array, vt: Array, q: int) -> tuple[Array, Array]:
  """Rows and columns of the entries of SVFT's M that train."""
  n = vt.shape[0]
  count = n * (2 * q + 1) - q * (q + 1)
  if pattern == 'banded':
    i = np.arange(n)
    rows, cols = np.nonzero(abs(i[:, None] - i) <= q)
    return jnp.asarray(rows), jnp.asarray(cols)
  if pattern == 'random':
    flat = jax.random.choice(key, n * n, (count,), replace=False)
  elif u.shape[0] != vt.shape[1]:
    raise FewshotError(
      f"svft(pattern='top_k') compares left and right singular vectors, and a selected weight is "
      f'[{u.shape[0]}, {vt.shape[1]}], not square; use banded or random'
    )
  else:
    flat = jax.lax.top_k(jnp.abs(u.T @ vt.T).reshape(-1), count)[1]
  return flat // n, flat % n


@method
def loldu(where: Where = QUERY_VALUE, rank: int | None = None, scale: float = 1.0) -> Method:
  """LoLDU (Shi et al. 2024, arXiv:2410.13618): the diagonal between frozen triangular factors.

      W^T = P L D U,   W' = W + (P L_r (a diag(z) - a_0 D_r) U_r)^T

  L, U are unit triangular, P permutes rows, and z [r] and the scalar a train, from D_r and
  a_0 = `scale`.  `rank` None keeps all min(d, k) of the diagonal.

  >>> loldu(rank=64).mergeable
  True
  """
  if rank is not None:
    _at_least('loldu', 'rank', rank, 1)

  def init(key: Array, w: Array) -> Entries:
    del key
    lower, upper = jax.scipy.linalg.lu(_matrix(w).T, permute_l=True)
    r = _rank('loldu', rank, upper.shape[0])
    d = jnp.diagonal(upper)
    d = jnp.where(d == 0, 1, d)[
      :r
    ]  # A row of U without a pivot stays as it is: LDU is still exact.
    a = jnp.asarray(scale, d.dtype)
    frozen = {'lower': lower[:, :r], 'upper': upper[:r] / d[:, None], 'start': a * d}
    return {'diagonal': d, 'scale': a} | frozen

  def weight(t: Entries, w: Array) -> Array:
    return _plus(w, (t['upper'].T * (t['scale'] * t['diagonal'] - t['start'])) @ t['lower'].T)

  return in_weights(where, init, weight, frozen=('lower', 'upper', 'start'))


@method
def fourierft(
  where: Where = QUERY_VALUE, n_frequency: int = 1000, scaling: float = 150.0, std: float = 0.0
) -> Method:
  """FourierFT (Gao et al. 2024, arXiv:2405.03003): a few random Fourier coefficients of the update.

      W' = W + scaling Re(ifft2(S)),   S [d, k] is c at n_frequency random places, and 0 elsewhere

  c ~ N(0, std^2): zero by default, so that training starts from the model; the paper has std 1.

  >>> fourierft(n_frequency=100).mergeable
  True
  """
  _at_least('fourierft', 'n_frequency', n_frequency, 1)

  def init(key: Array, w: Array) -> Entries:
    m = _matrix(w)
    n = _rank('fourierft', n_frequency, m.size)
    flat = jax.random.choice(jax.random.fold_in(key, 0), m.size, (n,), replace=False)
    c = std * jax.random.normal(jax.random.fold_in(key, 1), (n,), m.dtype)
    return {'spectrum': c, 'rows': flat // m.shape[1], 'cols': flat % m.shape[1]}

  def weight(t: Entries, w: Array) -> Array:
    c = t['spectrum']
    s = jnp.zeros((w.size // w.shape[-1], w.shape[-1]), c.dtype).at[t['rows'], t['cols']].set(c)
    return _plus(w, scaling * jnp.fft.ifft2(s).real)

  return in_weights(where, init, weight, frozen=('rows', 'cols'))


@method
def c3a(where: Where = QUERY_VALUE, block_size: int | None = None) -> Method:
  """C3A (Chen et al. 2024, arXiv:2407.19342): the update is a grid of circulant blocks.

      W' = W + dW,   dW[n b + i, m b + j] = c[m, n, (i - j) mod b] / d,   c [k / b, d / b, b]

  c is 0 at the start.  `block_size` b divides d and k; None takes their greatest common divisor.

  >>> c3a(block_size=64).mergeable
  True
  """
  if block_size is not None:
    _at_least('c3a', 'block_size', block_size, 1)

  def init(key: Array, w: Array) -> Entries:
    del key
    m = _matrix(w)
    d, k = m.shape
    b = block_size or math.gcd(d, k)
    if d % b or k % b:
      raise FewshotError(
        f'c3a(block_size={b}) does not divide a weight of [{d}, {k}]; {math.gcd(d, k)} does'
      )
    return {'c': jnp.zeros((k // b, d // b, b), m.dtype)}

  def weight(t: Entries, w: Array) -> Array:
    i = np.arange(t['c'].shape[-1])
    blocks = t['c'][:, :, (i[:, None] - i) % len(i)]  # [k / b, d / b, b, b]
    d = w.size // w.shape[-1]
    return _plus(w, blocks.transpose(1, 2, 0, 3).reshape(d, -1) / d)

  return in_weights(where, init, weight)


@method
def loca(
  where: Where = QUERY_VALUE,
  n_frequency: int = 1000,
  scaling: float = 1.0,
  location_steps: int = 100,
  location_rate: float = 0.02,
) -> Method:
  """LoCA (Du et al. 2025, arXiv:2502.06820): cosine coefficients whose places are learned as well.

      W' = W + scaling C^T S D,   S [d, k] sums a_i at round(l_i * (d - 1, k - 1))

  C and D are orthonormal DCT matrices; a [n] = 0 and l [2, n] ~ U(0, 1) at the start.  A place's
  gradient is the central difference of dL/dS times a_i, within 1.  For the first `location_steps`
  steps (the paper: a tenth of all) ten steps of a alternate with twenty of l, which moves at
  `location_rate` times the learning rate; after them the places stay.

  >>> loca(n_frequency=100).mergeable
  True
  """
  _at_least('loca', 'n_frequency', n_frequency, 1)
  _at_least('loca', 'location_steps', location_steps, 0)

  def init(key: Array, w: Array) -> Entries:
    m = _matrix(w)
    n = _rank('loca', n_frequency, m.size)
    places = jax.random.uniform(key, (2, n), m.dtype)
    return {'spectrum': jnp.zeros(n, m.dtype), 'locations': places}

  def weight(t: Entries, w: Array) -> Array:
    shape = (w.size // w.shape[-1], w.shape[-1])
    ends = jnp.asarray(shape, t['locations'].dtype)[:, None] - 1
    s = _place(t['spectrum'], jnp.clip(t['locations'], 0, 1) * ends, shape)
    return _plus(w, scaling * jax.scipy.fft.idctn(s, norm='ortho'))

  return in_weights(where, init, weight)._replace(
    optimizer=functools.partial(_alternating, location_steps, location_rate)
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _place(a: Array, places: Array, shape: tuple[int, int]) -> Array:
  """The matrix with a_i added at the rounded places [2, n]."""
  rows, cols = jnp.round(places).astype(jnp.int32)
  return jnp.zeros(shape, a.dtype).at[rows, cols].add(a)


def _place_forward(a: Array, places: Array, shape: tuple[int, int]) -> tuple[Array, Any]:
  return _place(a, places, shape), (a, places)


def _place_backward(shape: tuple[int, int], seen: Any, g: Array) -> tuple[Array, Array]:
  a, places = seen
  rows, cols = jnp.round(places).astype(jnp.int32)
  up, down = jnp.minimum(rows + 1, shape[0] - 1), jnp.maximum(rows - 1, 0)
  right, left = jnp.minimum(cols + 1, shape[1] - 1), jnp.maximum(cols - 1, 0)
  slopes = jnp.stack([g[up, cols] - g[down, cols], g[rows, right] - g[rows, left]])
  return g[rows, cols], jnp.clip(a * slopes / 2, -1, 1)


_place.defvjp(_place_forward, _place_backward)


def _alternating(
  location_steps: int, location_rate: float, tx: optax.GradientTransformation
) -> optax.GradientTransformation:
  """LoCA's schedule: of every 30 steps 10 move the coefficients and 20 their places."""
  inner = optax.with_extra_args_support(tx)

  def update(grads: Theta, opt: Any, theta: Theta, *, step: Any, **extra: Any) -> tuple[Theta, Any]:
    moving = (jnp.asarray(step) < location_steps) & (jnp.asarray(step) % 30 >= 10)
    on = {'spectrum': ~moving, 'locations': moving}
    rate = {'spectrum': 1.0, 'locations': location_rate}
    masked = lambda tree, by: {  # noqa: E731
      p: {k: jnp.where(on[k], by[k] * x, 0) for k, x in t.items()} for p, t in tree.items()
    }
    # The moments see zeros meanwhile, so that the learning rate's schedule goes on.
    updates, opt = inner.update(
      masked(grads, dict.fromkeys(on, 1.0)), opt, theta, step=step, **extra
    )
    return masked(updates, rate), opt

  return optax.GradientTransformationExtraArgs(inner.init, update)


def _matrix(w: Array) -> Array:
  """A weight as a matrix [d, k] of at least float32."""
  if w.ndim < 2:
    raise FewshotError(
      f'this method updates matrices, and a selected parameter has the shape {list(w.shape)}; '
      'choose kernels by where='
    )
  return jnp.asarray(w, jnp.promote_types(w.dtype, jnp.float32)).reshape(-1, w.shape[-1])


def _plus(w: Array, delta: Array) -> Array:
  return w + delta.reshape(w.shape)


def _at_least(name: str, argument: str, value: int, least: int) -> None:
  if value < least:
    raise FewshotError(f'{name}({argument}={value}); {argument} is at least {least}')


def _rank(name: str, wanted: int | None, most: int) -> int:
  """How many entries a method takes of the `most` that a weight has."""
  if wanted is not None and wanted > most:
    raise FewshotError(f'{name} asks for {wanted} of a weight that has {most}; take at most {most}')
  return most if wanted is None else wanted
