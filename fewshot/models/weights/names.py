"""From the tensors of a checkpoint to our params, by a family's table of names.

A source (a Hugging Face folder, a GGUF file, ...) gives `{name: Tensor}`, read lazily; a family's
table says which tensor each of our modules takes; `assemble` puts one into the other.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fewshot.errors import FewshotError, brief
from fewshot.methods import paths


class Tensor(NamedTuple):
  """A stored tensor: `read()` brings it into memory."""

  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]


class Part(NamedTuple):
  """A table's entry where the stored tensor is not just ours: `of(x)` of the tensor `name`."""

  name: str
  of: Callable[[np.ndarray], np.ndarray]


Names = Mapping[str, str | Part]  # Our module, or one leaf of it -> the checkpoint's.
Place = Callable[[str, tuple[int, ...]], Any]  # (path, shape) -> a sharding or a device.

MOST = 64  # Times as many numbers as a leaf may be stored in the tensor that it is a part of.
# How PyTorch calls a module's leaves, the usual name first.
LEAVES = {
  'kernel': ('weight',),
  'scale': ('weight', 'gamma'),
  'bias': ('bias', 'beta'),
  'embedding': ('weight',),
  'mean': ('running_mean',),
  'var': ('running_var',),
}


def per_block(names: Names, depth: int) -> dict[str, str | Part]:
  """The table with {i} running over the blocks.

  >>> per_block({'embed': 'wte', 'block_{i}/ln1': 'h.{i}.ln_1'}, 2)
  {'embed': 'wte', 'block_0/ln1': 'h.0.ln_1', 'block_1/ln1': 'h.1.ln_1'}
  """
  table: dict[str, str | Part] = {}
  for ours, theirs in names.items():
    for i in range(depth if '{i}' in ours else 1):
      part = _part(theirs)
      filled = Part(part.name.replace('{i}', str(i)), part.of)
      table[ours.replace('{i}', str(i))] = filled.name if isinstance(theirs, str) else filled
  return table


def third(i: int, axis: int = 0) -> Callable[[np.ndarray], np.ndarray]:
  """The i-th of three equal parts: query, key or value of a fused projection.

  >>> third(1)(np.arange(6)).tolist()
  [2, 3]
  """
  return lambda x: np.split(x, 3, axis)[i]


def assemble(
  tensors: Mapping[str, Tensor],
  like: Any,
  names: Names,
  *,
  where: str,
  prefixes: Sequence[str] = (),
  unused: Sequence[str] = (),
  dtype: Any = None,
  place: Place | None = None,
) -> Any:
  """Params with the structure and shapes of `like`, each leaf read, turned and placed by itself.

  Args:
    tensors: what the source holds.
    like: our params as shapes, from `jax.eval_shape` of the family's `init`.
    names: our module or leaf -> the stored module or tensor.  Stored linear maps [out, in] and
      convolutions [out, in, h, w] are turned to ours, [in, out] and [h, w, in, out].
    where: the source in words, for errors.
    prefixes: the first that a stored name has is dropped.
    unused: patterns of stored names that this family does not compute with.
    dtype: each float leaf is cast to it as it is read; None keeps what is stored.
    place: (path, shape) -> the sharding or device a leaf goes to.

  Raises:
    FewshotError: tensors are missing or left over (both are listed), there twice, of another shape,
      or whole numbers where ours are floating.
  """
  plain: dict[str, Tensor] = {}
  twice: set[str] = set()
  for name, tensor in tensors.items():
    short = _strip(name, prefixes)
    twice |= {short} & plain.keys()
    plain[short] = tensor
  leaves = paths.flatten(like)
  table = {path: _resolve(path, names, plain) for path in leaves}
  taken = {part.name for part in table.values()}
  missing = sorted(name for name in taken if name not in plain)
  left = sorted(n for n in plain.keys() - taken if not any(re.fullmatch(p, n) for p in unused))
  if missing or left:
    raise FewshotError(
      f'the weights in {where} do not fit this family: missing '
      f'{brief(missing) or "nothing"}; left over {brief(left) or "nothing"}'
    )
  if both := twice & taken:
    raise FewshotError(f'{where} holds {brief(sorted(both))} both with a prefix and without')
  new = {}
  for path, leaf in leaves.items():
    _check_numbers(path, plain[table[path].name].shape, leaf.shape)
    x = _turn(path, _read(path, table[path], plain), leaf, dtype)
    # Aligned host memory becomes the leaf as it is; a sharding gets each device its own part.
    new[path] = jax.device_put(x, place(path, x.shape) if place else None)
  return paths.replace(like, new)


def _check_numbers(path: str, stored: tuple[int, ...], ours: tuple[int, ...]) -> None:
  """Refuses before it is read what has far more numbers than the leaf: a part is taken of some."""
  if math.prod(stored) > MOST * max(math.prod(ours), MOST):
    raise FewshotError(
      f'{path} is {stored} in the weights but {ours} by the config; they do not belong together'
    )


def _resolve(path: str, names: Names, plain: Mapping[str, Tensor]) -> Part:
  """The stored tensor of one of our leaves."""
  module, _, leaf = path.rpartition('/')
  if path in names:
    return _part(names[path])
  if module not in names:
    raise FewshotError(f'the table of names lacks {path!r}; it has {brief(list(names))}')
  part = _part(names[module])
  spelled = [f'{part.name}.{theirs}' for theirs in LEAVES[leaf]]
  return Part(next((n for n in spelled if n in plain), spelled[0]), part.of)


def _part(entry: str | Part) -> Part:
  return entry if isinstance(entry, Part) else Part(entry, lambda x: x)


def _read(path: str, part: Part, plain: Mapping[str, Tensor]) -> np.ndarray:
  """A leaf's tensor; a part of one of another shape may not exist."""
  tensor = plain[part.name]
  try:
    return part.of(tensor.read())
  except FewshotError:
    raise
  except (ValueError, LookupError, TypeError, ArithmeticError, MemoryError) as e:
    raise FewshotError(
      f'{path} cannot be made of {part.name}, which is {tensor.shape} in the weights: {e}'
    ) from None


def _turn(path: str, x: np.ndarray, leaf: Any, dtype: Any) -> np.ndarray:
  """A stored tensor in our layout and dtype."""
  if path.endswith('kernel') and x.ndim == 2:
    x = x.T
  if path.endswith('kernel') and x.ndim == 4:
    x = x.transpose(2, 3, 1, 0)
  if x.shape == (1,) * (x.ndim - len(leaf.shape)) + leaf.shape and not path.endswith('kernel'):
    x = x.reshape(leaf.shape)  # Leading ones, as of a stored position table.
  if x.shape != leaf.shape:
    raise FewshotError(
      f'{path} is {x.shape} in the weights but {leaf.shape} by the config; they do not belong '
      'together'
    )
  if jnp.issubdtype(leaf.dtype, jnp.inexact) and not jnp.issubdtype(x.dtype, jnp.inexact):
    raise FewshotError(
      f'{path} is stored as {x.dtype} without a scale; only packings with _scale and _zero_point '
      'are read'
    )
  return np.asarray(x, dtype if jnp.issubdtype(x.dtype, jnp.inexact) else None, order='C')


def _strip(name: str, prefixes: Sequence[str]) -> str:
  return next((name[len(p) :] for p in prefixes if name.startswith(p)), name)
