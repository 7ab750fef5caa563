"""Updates in another basis: a random subspace of all weights, the gradients' own axes."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.methods.base import (
  Batch,
  Calib,
  Forward,
  Method,
  Params,
  State,
  Theta,
  at_least_one,
  method,
)
from fewshot.methods.moving_rules import check_share, moves, steepest
from fewshot.methods.paths import Where
from fewshot.methods.scoring.base import problem, total
from fewshot.methods.weights import SHARED, check_kernel, trained, widen

__all__ = ['intrinsic_dimension', 'sparsegrad']
Array = jax.Array


@method
def intrinsic_dimension(dim: int = 200, where: Where = '.*', form: str = 'did') -> Method:
  """Intrinsic dimension (Aghajanyan et al. 2020, arXiv:2012.13255): one small vector moves all W.

      W' = W + P z,              z = 0 [dim]           form 'did' (Li et al., arXiv:1804.08838)
      W_i' = W_i + s_i (P z)_i,  z = 0 [dim - m],  s = 1 [m]          form 'said', m tensors W_i

  P [D, dim] is random with columns of length 1: the Fastfood transform (Le et al., 2013) H G Q H B
  of signs B, Hadamard matrices H, a permutation Q and normal gains G.  It is drawn again from a
  key in each pass, so that state is this key and memory is O(D).  Since |P z| is about |z|, a step
  size that moves D weights well is small for z.

  >>> intrinsic_dimension(dim=100).mergeable
  True
  """
  if form not in ('did', 'said'):
    raise FewshotError(f"intrinsic_dimension(form={form!r}) is not known; known: 'did', 'said'")
  at_least_one('intrinsic_dimension', dim=dim)

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    del forward, calib
    found = trained(params, where)
    dtype = jnp.result_type(jnp.float32, *(w.dtype for w in found.values()))
    scales = len(found) if form == 'said' else 0
    if dim <= scales:
      raise FewshotError(f'dim={dim} must exceed the {scales} tensors, of which each has a scale')
    theta = {p: {'scale': jnp.ones((), dtype)} if scales else {} for p in found}
    theta[SHARED] = {'z': jnp.zeros(dim - scales, dtype)}
    return theta, {SHARED: {'key': jax.random.key_data(key)}}

  def weights(theta: Theta, state: State, params: Params) -> Params:
    flat, key = paths.flatten(params), jax.random.wrap_key_data(state[SHARED]['key'])
    moved = sorted(p for p in theta if p != SHARED)
    sizes = [flat[p].size for p in moved]
    steps = jnp.split(_fastfood(key, theta[SHARED]['z'], sum(sizes)), np.cumsum(sizes)[:-1])
    new = {}
    for p, step in zip(moved, steps, strict=True):
      step = step.reshape(flat[p].shape) * theta[p].get('scale', 1)
      new[p] = (flat[p] + step).astype(flat[p].dtype)
    return paths.replace(params, new)

  return Method(init, weights)


@method
def sparsegrad(
  fraction: float = 0.01, where: Where = r'(.*/)?mlp/(up|down)/kernel', batch: int = 16
) -> Method:
  """SparseGrad (Chekalina et al. 2024, arXiv:2410.07383): few entries, where gradients are sparse.

      W' = W + U D V^T,   D = 0 at the start
      D[i] moves where |U^T G V|[i] is among the `fraction` largest of its kernel at this step

  G is the gradient by W.  U and V are the bases of the HOSVD of the gradients at the start: of all
  kernels of one name and shape in all blocks, by minibatches of `batch` training examples (the
  authors take them from the first steps of training).  Adam's moments see the masked gradient; the
  authors leave those of what does not move as they are.  D is dense.

  >>> sparsegrad(0.05).mergeable
  True
  """
  check_share('sparsegrad', fraction=fraction)
  at_least_one('sparsegrad', batch=batch)

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    del key
    found = widen(trained(params, where))
    for w in found.values():
      check_kernel('sparsegrad', w)
    bases = _bases(forward, params, calib, list(found), batch)
    return {p: jnp.zeros_like(w) for p, w in found.items()}, {'bases': bases}

  def weights(theta: Theta, state: State, params: Params) -> Params:
    flat, new = paths.flatten(params), {}
    for p, d in theta.items():
      u, v = (state['bases'][_kind(p, d)][name] for name in 'uv')
      change = jnp.linalg.multi_dot([u, d.reshape(len(u), -1), v.T], precision='highest')
      new[p] = (flat[p] + change.reshape(d.shape)).astype(flat[p].dtype)
    return paths.replace(params, new)

  return moves(Method(init, weights), steepest(fraction))


def _kind(path: str, w: Array) -> str:
  """What kernels of one name and shape have in common.

  >>> _kind('encoder/block_3/mlp/up/kernel', jnp.zeros((8, 16)))
  'encoder/block/mlp/up/kernel 8 16'
  """
  name = re.sub(r'(block|stage)_\d+', r'\1', path)
  return ' '.join(map(str, (name, *w.shape)))


def _bases(
  forward: Forward, params: Params, calib: Calib, names: list[str], size: int
) -> dict[str, dict[str, Array]]:
  """By kind u [d, d] and v [k, k]: the axes of sum G G^T and of sum G^T G, the largest first."""
  task = problem(forward, params, calib)
  own = {p: task.leaves[p] for p in names}

  def part(rows: Batch, real: Array) -> dict[str, dict[str, Array]]:
    def mean(at: dict[str, Array]) -> Array:
      return (task.loss(task.leaves | at, rows) * real).sum() / real.sum()

    sums: dict[str, dict[str, Array]] = {}
    for p, g in jax.grad(mean)(own).items():
      g, kind = g.reshape(-1, g.shape[-1]), _kind(p, g)
      both = {'u': g @ g.T, 'v': g.T @ g}
      sums[kind] = jax.tree.map(jnp.add, sums[kind], both) if kind in sums else both
    return sums

  return jax.tree.map(lambda m: jnp.linalg.eigh(m)[1][:, ::-1], total(part, task.batch, size))


def _fastfood(key: Array, z: Array, size: int) -> Array:
  """P z [size] for the random matrix P of `key`, whose columns have length 1 (about, by padding).

      P = H G Q H B / sqrt(size sum G^2),   of the first power of two from size and len(z) on

  >>> _fastfood(jax.random.key(0), jnp.ones(3), 10).shape
  (10,)
  """
  bits = (max(size, z.size) - 1).bit_length()
  n = 1 << bits
  signs, order, gains = jax.random.split(key, 3)
  # Drawn at one precision whatever that of z, so that P is the same.
  g = jax.random.normal(gains, (n,), jnp.float32).astype(z.dtype)
  b = jnp.where(jax.random.bits(signs, z.shape, jnp.uint32) & 1, 1, -1)
  x = jnp.pad(b * z, (0, n - z.size))
  return _hadamard(g * _hadamard(x)[_shuffled(order, bits)])[:size] / jnp.sqrt(size * (g * g).sum())


def _hadamard(x: Array, radix: int = 6) -> Array:
  """The Walsh-Hadamard transform of x [2^k], O(n log n): H is a Kronecker product of small ones.

  >>> _hadamard(jnp.array([1.0, 0.0, 2.0, 0.0])).tolist()
  [3.0, 3.0, -1.0, -1.0]
  """
  bits, shape = x.size.bit_length() - 1, x.shape
  sizes = [min(radix, bits - i) for i in range(0, bits, radix)]
  x = x.reshape([1 << b for b in sizes])
  for b in sizes:  # Each product moves the next axis to the front.
    x = jnp.tensordot(x, jnp.asarray(_matrix(b), x.dtype), ((0,), (0,)), precision='highest')
  return x.reshape(shape)


def _shuffled(key: Array, bits: int, rounds: int = 4) -> Array:
  """A random order of 0 .. 2^bits - 1.

  By steps that can be undone on numbers of so many bits (an odd factor, a shift folded in), since
  a sort of as many numbers as there are weights takes longer than all the rest.

  >>> sorted(_shuffled(jax.random.key(0), 3).tolist())
  [0, 1, 2, 3, 4, 5, 6, 7]
  """
  mask = np.uint32((1 << bits) - 1)
  i = jnp.arange(1 << bits, dtype=jnp.uint32)
  for factor, offset in jax.random.bits(key, (rounds, 2), jnp.uint32):
    i = (i * (factor | np.uint32(1)) + offset) & mask
    i = i ^ (i >> np.uint32(math.ceil(bits / 2)))
  return i.astype(jnp.int32)


@functools.cache
def _matrix(bits: int) -> np.ndarray:
  """The Hadamard matrix of 2^bits rows."""
  return functools.reduce(np.kron, [np.array([[1, 1], [1, -1]])] * bits, np.ones((1, 1)))
