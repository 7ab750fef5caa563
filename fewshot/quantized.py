"""Frozen weights in int8, by qwix: 0.28 of float32's memory, and float only where they are read.

A quantised kernel is a `qwix.QArray` in its place in params: the leaves `.../kernel/qvalue` (int8)
and `.../kernel/scale` (of the dtype that it had).  Nothing trains them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fewshot.errors import FewshotError, brief, nearest
from fewshot.methods import paths, spell
from fewshot.methods.activations import path_of
from fewshot.methods.base import Array, Batch, Forward, Outputs, Params
from fewshot.methods.paths import Where
from fewshot.models.base import Model, hash_params

KERNELS = r'(.*/)?(encoder|decoder)/.*/kernel'
DTYPES = ('int8',)
TILE = 32  # Weights a scale, at least; on MiniLM half the error of one scale a channel.


def quantize(model: Model, where: Where = KERNELS, dtype: str = 'int8') -> Model:
  """The model with the kernels at `where` in int8, one scale for every 32 weights of a channel.

      W [d, k] ~ Q * s,   s [d / t, k] = max |W| / 127.5 over t inputs,   Q = round(W / s)

  with t the least divisor of d from 32 on.  Its forward makes each kernel float where its module is
  called, and again in the backward pass, so that there is no float copy of all of them; on a CPU
  only in programs that are compiled with `remat.compiler_options()`.  It takes floats in their
  place too, as `dequantize` gives them.  A forward without Linen modules reads kernels as JAX
  arrays where it combines them with such, and XLA may keep what it reads.

  Methods on activations, inputs and heads apply, and so do those on leaves that are not quantised
  (Dettmers et al. 2023, arXiv:2305.14314, train LoRA so).  `methods.count` counts the scales too.

  Args:
    where: leaves of params, each a kernel [..., d, k].
    dtype: one of `DTYPES`.

  Raises:
    FewshotError: qwix is not installed, the model is quantised already, `where` selects nothing
      or what is no kernel, or the dtype is unknown.

  >>> from fewshot.models import bert
  >>> c = bert.Config(vocab=9, dim=8, depth=1, heads=2, width=16, positions=4, types=1)
  >>> model = Model('tiny', bert.forward(c), bert.init(c, jax.random.key(0)))
  >>> small = quantize(model)  # doctest: +SKIP
  >>> small.params['encoder']['block_0']['mlp']['up']['kernel'].qvalue.dtype  # doctest: +SKIP
  dtype('int8')
  """
  if dtype not in DTYPES:
    raise FewshotError(f'weights are not quantised to {dtype!r}; {nearest(str(dtype), DTYPES)}')
  if 'quantized' in model.hashes:
    raise FewshotError(f'{model.name} is quantised already: {model.hashes["quantized"]}')
  qwix = _qwix()
  found = paths.select(paths.flatten(model.params), where)
  odd = [p for p, w in found.items() if w.ndim < 2 or not jnp.issubdtype(w.dtype, jnp.floating)]
  if odd:
    raise FewshotError(
      f"only kernels [..., d, k] are quantised, not {brief(odd)}; end the pattern with '/kernel'"
    )

  def pack(w: Array) -> Any:
    tiles = {w.ndim - 2: _tile(w.shape[-2])}
    return qwix.quantize(jnp.asarray(w), dtype, channelwise_axes=[w.ndim - 1], tiled_axes=tiles)

  rule = where if isinstance(where, str) else spell(where)
  hashes = dict(model.hashes) or {'weights': hash_params(model.params)}
  return model._replace(
    forward=_at_sites(model.forward),
    params=paths.replace(model.params, {p: pack(w) for p, w in found.items()}),
    hashes=hashes | {'quantized': f'{dtype} {rule}'},
  )


def dequantize(params: Params) -> Params:
  """Params with floats in the place of quantised kernels, for merges; other leaves as they are.

  >>> dequantize({'bias': 1.0})
  {'bias': 1.0}
  """
  return jax.tree.map(lambda x: _floating(x) if _packed(x) else x, params, is_leaf=_packed)


def nbytes(params: Params) -> int:
  """The bytes of all leaves.

  >>> nbytes({'kernel': np.zeros((4, 2), np.int8), 'scale': np.zeros((1, 2), np.float32)})
  16
  """
  return sum(int(np.prod(x.shape)) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(params))


class _Kernel:
  """A quantised kernel that is a float array to whoever computes with it."""

  def __init__(self, packed: Any) -> None:
    self.packed = self.held = packed
    self.shape, self.ndim, self.dtype = packed.shape, packed.ndim, packed.dtype

  def __jax_array__(self) -> Array:
    return _floating(self.held)

  def __getattr__(self, name: str) -> Any:
    return getattr(_floating(self.held), name)


def _at_sites(forward: Forward) -> Forward:
  """The forward on params with quantised kernels, which are float within their modules alone."""

  def at_sites(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
    kernels = jax.tree.map(lambda x: _Kernel(x) if _packed(x) else x, params, is_leaf=_packed)
    own: dict[str, list[_Kernel]] = {}
    for path, x in paths.flatten(kernels).items():
      if isinstance(x, _Kernel):
        own.setdefault(path.rpartition('/')[0], []).append(x)

    def intercept(next_fn: Any, args: Any, kwargs: Any, context: Any) -> Any:
      mine = own.get(path_of(context), [])
      if not mine or context.method_name == 'setup':
        return next_fn(*args, **kwargs)
      # Not before the input is there: else XLA makes all kernels float first, or outside of a loop.
      held, first = jax.lax.optimization_barrier(([k.packed for k in mine], args[:1]))
      for k, h in zip(mine, held, strict=True):
        k.held = h
      # And not kept for the backward pass, where the input's gradient reads the kernel.
      try:
        return jax.checkpoint(lambda: next_fn(*first, *args[1:], **kwargs))()
      finally:
        for k in mine:
          k.held = k.packed

    with nn.intercept_methods(intercept):
      return forward(kernels, batch, key)

  return at_sites


def _tile(d: int) -> int:
  """How many inputs share a scale."""
  return next((t for t in range(TILE, d) if d % t == 0), d)


def _packed(x: Any) -> bool:
  return hasattr(x, 'qvalue')


def _floating(packed: Any) -> Array:
  return _qwix().dequantize(packed)


def _qwix() -> Any:
  try:
    import qwix
  except ImportError:
    raise FewshotError(
      'int8 weights need qwix, which is not installed; pip install "fewshot[int8]"'
    ) from None
  return qwix
