"""Where low-rank updates start: from weights, from data, from gradients.

A start is a function of what is `Given` at a site; it returns A [d, r] and B [r, k] of the update
W' = W + scale A B.  Where A B is not zero there, `lora` takes the start's own product off again,
so that the function starts as it was and the frozen weight is left alone.
"""

import collections
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.methods.activations import Site, inputs, wide
from fewshot.methods.base import Calib, Forward, Params
from fewshot.methods.paths import Where

__all__: list[str] = []
Array = jax.Array


class Given(NamedTuple):
  """What a start may look at."""

  key: Array
  shape: tuple[int, int]  # Of the linear map: d inputs, k outputs.
  rank: int
  scale: float
  dtype: Any
  kernel: Array | None  # W [d, k], where the module has one.
  seen: Any  # Rows of inputs [N, d], or the loss's gradient by W [d, k].


class Init(NamedTuple):
  """A start; what it sees beside the weight; whether A B is other than zero."""

  start: Callable[[Given], tuple[Array, Array]]
  sees: str = ''  # inputs, gradient or nothing.
  moves: bool = False


def given(key: Array, site: Site, out: int, rank: int, scale: float, seen: Any) -> Given:
  """What is known of a site, as matrices at the dtype of theta."""
  d, dtype = site.x.shape[-1], wide(site)
  kernel = site.own['kernel'].reshape(d, out).astype(dtype) if 'kernel' in site.own else None
  seen = None if seen is None else seen.reshape(-1, seen.shape[-1]).astype(dtype)
  return Given(key, (d, out), rank, scale, dtype, kernel, seen)


def observer(sees: str) -> Callable[[Forward, Params, Calib, Where], dict[str, Any]] | None:
  """What `in_activations` is to observe for a start."""
  if sees == 'inputs':
    return lambda forward, params, calib, where: inputs(forward, params, calib.batch, where)
  return gradients if sees == 'gradient' else None


def gradients(forward: Forward, params: Params, calib: Calib, where: Where) -> dict[str, Any]:
  """The gradient of the mean loss by each kernel [d, k], by module; None where there is none."""
  del where
  flat = paths.flatten(calib.gradient(forward, params))
  kernels = {p.removesuffix('/kernel'): g for p, g in flat.items() if p.endswith('/kernel')}
  flatter = {p: g.reshape(g.shape[0], -1) for p, g in kernels.items()}
  return collections.defaultdict(lambda: None, flatter)


def gaussian(g: Given) -> tuple[Array, Array]:
  """LoRA (Hu et al. 2021, arXiv:2106.09685): A ~ N(0, 1/d), B = 0."""
  a = jax.random.normal(g.key, (g.shape[0], g.rank), g.dtype)
  return a / jnp.sqrt(g.shape[0]).astype(g.dtype), _zero(g)


def orthogonal(g: Given) -> tuple[Array, Array]:
  """A of orthonormal columns, B = 0 (Zhu et al. 2024, arXiv:2402.16842, where A stays so)."""
  check_rank(g, g.shape[0])
  return jnp.linalg.qr(jax.random.normal(g.key, (g.shape[0], g.rank), g.dtype))[0], _zero(g)


def pissa(g: Given) -> tuple[Array, Array]:
  """PiSSA (Meng et al. 2024, arXiv:2404.02948): the r largest singular triples of W.

  W = U S V^T,   A = U_r (S_r / scale)^1/2,   B = (S_r / scale)^1/2 V_r^T
  """
  u, s, vt = svd(g, kernel_of(g))
  return _balanced(g, u[:, : g.rank], s[: g.rank], vt[: g.rank])


def milora(g: Given) -> tuple[Array, Array]:
  """MiLoRA (Wang et al. 2024, arXiv:2406.09044): PiSSA with the r smallest singular triples."""
  u, s, vt = svd(g, kernel_of(g))
  return _balanced(g, u[:, -g.rank :], s[-g.rank :], vt[-g.rank :])


def olora(g: Given) -> tuple[Array, Array]:
  """OLoRA (Büyükakyüz 2024, arXiv:2406.01775): W^T = Q R,  B = Q_r^T,  A = R_r^T."""
  check_rank(g, min(g.shape))
  q, r = jnp.linalg.qr(kernel_of(g).T)
  return r[: g.rank].T, q[:, : g.rank].T


def eva(g: Given) -> tuple[Array, Array]:
  """EVA (Paischer et al. 2024, arXiv:2410.07170): A = the inputs' principal directions, B = 0.

  Rows that are zero are padding: they count neither for the mean nor for the directions.
  """
  check_rank(g, g.shape[0])
  return _variances(g.seen)[1][:, : g.rank], _zero(g)


def corda_instruction(g: Given) -> tuple[Array, Array]:
  """CorDA (Yang et al. 2024, arXiv:2406.05223), instruction-previewed: the r largest components.

      C = X^T X + 0.01 mean(diag),   C W = U S V^T,   A = C^-1 U_r (S_r / scale)^1/2,   B = ...

  X are inputs of the task at hand; C is scaled to a mean diagonal of 1, which leaves A B alone.
  """
  return _corda(g, slice(g.rank))


def corda_knowledge(g: Given) -> tuple[Array, Array]:
  """CorDA, knowledge-preserved: the r smallest components, X being inputs of what is to stay."""
  return _corda(g, slice(-g.rank, None))


def lora_ga(g: Given) -> tuple[Array, Array]:
  """LoRA-GA (Wang et al. 2024, arXiv:2407.05000): the first step is that of full fine-tuning.

      dL/dW = U S V^T,   A = c U[:, :r],   B = c V[:, r:2r]^T,   c = k^1/4 / 16^1/2

  The gradient is that of `calib.loss`, see `Calib.gradient`.
  """
  check_rank(g, min(g.shape) // 2)
  if g.seen is None:
    kernel_of(g)
  u, _, vt = svd(g, g.seen)
  c = g.shape[1] ** 0.25 / 16**0.5
  return c * u[:, : g.rank], c * vt[g.rank : 2 * g.rank]


INITS = {
  'gaussian': Init(gaussian),
  'orthogonal': Init(orthogonal),
  'pissa': Init(pissa, moves=True),
  'milora': Init(milora, moves=True),
  'olora': Init(olora, moves=True),
  'eva': Init(eva, 'inputs'),
  'corda_instruction': Init(corda_instruction, 'inputs', moves=True),
  'corda_knowledge': Init(corda_knowledge, 'inputs', moves=True),
  'lora_ga': Init(lora_ga, 'gradient', moves=True),
}


def normal(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
  """N(0, 1/d) for matrices [..., d, r]."""
  return jax.random.normal(key, shape, dtype) / math.sqrt(shape[-2])


def pivots(w: Array, count: int) -> Array:
  """The `count` columns of w [d, k] that pivoted Gram-Schmidt takes first."""

  def step(i: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
    left, chosen = carry
    norms = jnp.sum(left**2, 0)
    j = jnp.argmax(norms)
    v = left[:, j] / jnp.sqrt(jnp.maximum(norms[j], jnp.finfo(w.dtype).tiny))
    return left - jnp.outer(v, v @ left), chosen.at[i].set(j.astype(jnp.int32))

  return jax.lax.fori_loop(0, count, step, (w, jnp.zeros(count, jnp.int32)))[1]


def explained_ranks(
  forward: Forward, params: Params, calib: Calib, where: Where, rank: int, rho: float
) -> dict[str, int]:
  """EVA's ranks: the directions that explain most of their site's variance, over all sites.

  There are `rank` a site on average and at most `rho * rank` at one; runs outside jit.
  """
  seen = inputs(forward, params, calib.batch, where)
  most = round(rank * rho)
  spectra = {p: np.asarray(_variances(x.astype(jnp.float32))[0]) for p, x in seen.items()}
  shares = [(-v, p) for p, s in spectra.items() for v in s[:most] / s.sum()]
  taken = collections.Counter(p for _, p in sorted(shares)[: rank * len(seen)])
  return {p: taken[p] for p in seen}


def _variances(x: Any) -> tuple[Array, Array]:
  """The variances [D] of rows [N, D] along their principal directions [D, D], largest first."""
  real = jnp.any(x != 0, 1, keepdims=True).astype(x.dtype)
  mean = (x * real).sum(0) / jnp.maximum(real.sum(), 1)
  centred = (x - mean) * real
  s, u = jnp.linalg.eigh(centred.T @ centred)
  return jnp.maximum(s[::-1], 0), u[:, ::-1]


def _corda(g: Given, part: slice) -> tuple[Array, Array]:
  c = g.seen.T @ g.seen
  c = c / jnp.trace(c) * g.shape[0] + 0.01 * jnp.eye(g.shape[0], dtype=g.dtype)
  u, s, vt = svd(g, c @ kernel_of(g))
  return _balanced(g, jnp.linalg.solve(c, u[:, part]), s[part], vt[part])


def _balanced(g: Given, u: Array, s: Array, vt: Array) -> tuple[Array, Array]:
  """The factors of u diag(s) vt / scale, each with a root of s."""
  root = jnp.sqrt(s / g.scale)
  return u * root, root[:, None] * vt


def svd(g: Given, w: Any) -> tuple[Array, Array, Array]:
  check_rank(g, min(g.shape))
  u, s, vt = jnp.linalg.svd(w, full_matrices=False)
  return u, s, vt


def _zero(g: Given) -> Array:
  return jnp.zeros((g.rank, g.shape[1]), g.dtype)


def kernel_of(g: Given) -> Array:
  if g.kernel is None:
    raise FewshotError('this start reads the kernel of a linear map, and the module has none')
  return g.kernel


def check_rank(g: Given, limit: int) -> None:
  if g.rank > limit:
    d, k = g.shape
    raise FewshotError(f'rank {g.rank} is too high: this start finds {limit} at a [{d}, {k}] map')
