"""Sharding: where the frozen weights of a model lie on a mesh of devices.

A mesh has one or both of two axes.  'fsdp' splits every large leaf along its largest axis, whatever
it is, and the batch beside it (ZeRO-3, Rajbhandari et al. 2019, arXiv:1910.02054).  'tensor' splits
the linear maps of a block so that one sum joins its parts (Shoeybi et al. 2019, arXiv:1909.08053):
query, key, value, up and gate by their outputs, out and down by their inputs, tables of tokens by
the vocabulary.  What a program communicates is then XLA's business.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.methods.base import Batch, Forward, Outputs, Params

FSDP, TENSOR = 'fsdp', 'tensor'
SMALLEST = 2**16  # A leaf of fewer elements lies on every device: to split it saves nothing.
Rule = tuple[str, PartitionSpec]  # A pattern of whole paths, and the mesh axis of each array axis.
AnyMesh = Mesh | AbstractMesh

# Where 'tensor' splits a matrix; a leaf of another number of axes, as a convolution's, is none.
RULES: tuple[Rule, ...] = (
  (r'(.*/)?(query|key|value|up|gate|lm_head)/kernel', PartitionSpec(None, TENSOR)),
  (r'(.*/)?(out|down)/kernel', PartitionSpec(TENSOR, None)),
  (r'(.*/)?embed/embedding', PartitionSpec(TENSOR, None)),
)


def mesh(devices: Sequence[Any] | None = None, axes: Mapping[str, int] | None = None) -> Mesh:
  """The devices (all by default) as a mesh; by default all of them are 'fsdp'.

  >>> dict(mesh(jax.devices()[:1], {'fsdp': 1, 'tensor': 1}).shape)
  {'fsdp': 1, 'tensor': 1}
  """
  devices = jax.devices() if devices is None else list(devices)
  axes = {FSDP: len(devices)} if axes is None else dict(axes)
  unknown = sorted(set(axes) - {FSDP, TENSOR})
  if unknown:
    raise FewshotError(f'a mesh has the axes fsdp and tensor, and {unknown[0]!r} is neither')
  if math.prod(axes.values()) != len(devices):
    shown = ' x '.join(f'{n} {name}' for name, n in axes.items())
    raise FewshotError(f'a mesh of {shown} is not of the {len(devices)} devices there are')
  kinds = (AxisType.Auto,) * len(axes)
  return jax.make_mesh(tuple(axes.values()), tuple(axes), kinds, devices=devices)


def specs(
  params: Params, mesh: AnyMesh, rules: Sequence[Rule] = (), smallest: int = SMALLEST
) -> Any:
  """The tree of `PartitionSpec`s of params, by your own rules first, then by the usual ones.

  Args:
    params: arrays or their shapes.
    rules: (pattern, spec); the first whose pattern matches a whole path decides alone, and
      `PartitionSpec()` keeps a leaf whole.
    smallest: leaves of fewer elements lie on every device, but for those of `rules`.

  Raises:
    FewshotError: a rule matches nothing, or names an axis that the mesh lacks or that does not
      divide the array's.

  >>> params = {'mlp': {'up': {'kernel': jax.ShapeDtypeStruct((256, 1024), 'float32')}}}
  >>> tuple(specs(params, AbstractMesh((8, 2), ('fsdp', 'tensor')))['mlp']['up']['kernel'])
  (None, ('tensor', 'fsdp'))
  """
  leaves = paths.flatten(params)
  for pattern, _ in rules:
    paths.select(leaves, pattern)
  return jax.tree_util.tree_map_with_path(
    lambda p, x: spec(paths.keystr(p), x.shape, mesh, rules, smallest), params
  )


def spec(
  path: str, shape: Sequence[int], mesh: AnyMesh, rules: Sequence[Rule] = (),
  smallest: int = SMALLEST,
) -> PartitionSpec:  # fmt: skip
  """The `PartitionSpec` of one leaf, see `specs`."""
  for pattern, given in rules:
    if paths.at(pattern).holds(path):
      _check(path, shape, mesh, given)
      return given
  if math.prod(shape) < smallest:
    return PartitionSpec()
  axes: list[tuple[str, ...]] = [()] * len(shape)
  for pattern, given in RULES:
    if re.fullmatch(pattern, path) and len(shape) == len(given):
      axes = [(name,) if name in mesh.shape else () for name in given]
  axes = [a if n % _size(mesh, a) == 0 else () for a, n in zip(axes, shape, strict=True)]
  if FSDP in mesh.shape:
    fits = [n % _size(mesh, (*a, FSDP)) == 0 for a, n in zip(axes, shape, strict=True)]
    largest = max((n, -i) for i, n in enumerate(shape) if fits[i]) if any(fits) else None
    if largest:
      axes[-largest[1]] = (*axes[-largest[1]], FSDP)
  return PartitionSpec(*(a[0] if len(a) == 1 else a or None for a in axes))


def place(mesh: Mesh, rules: Sequence[Rule] = ()) -> Callable[[str, tuple[int, ...]], Any]:
  """The `place` of `models.load`: every leaf is put in its parts as it is read."""
  return lambda path, shape: NamedSharding(mesh, spec(path, shape, mesh, rules))


def split_batch(forward: Forward, mesh: Mesh) -> Forward:
  """The same forward with its batch split over 'fsdp', where that divides the batch.

  Weights are then gathered for each use, where otherwise activations would be exchanged.
  """
  ways = mesh.shape.get(FSDP, 1)

  def split(x: Any) -> Any:
    if not x.ndim or x.shape[0] % ways:
      return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(FSDP)))

  def shared(params: Params, batch: Batch, key: jax.Array | None = None) -> Outputs:
    return forward(params, {k: jax.tree.map(split, v) for k, v in batch.items()}, key)

  return shared


def _size(mesh: AnyMesh, axes: Sequence[str]) -> int:
  return math.prod(mesh.shape[name] for name in axes)


def _check(path: str, shape: Sequence[int], mesh: AnyMesh, given: PartitionSpec) -> None:
  """Refuses a user's spec that the leaf or the mesh cannot have."""
  if len(given) > len(shape):
    raise FewshotError(f'{given} has {len(given)} axes, and {path} is {list(shape)}')
  for n, names in zip(shape, given, strict=False):
    names = () if names is None else (names,) if isinstance(names, str) else names
    if missing := [name for name in names if name not in mesh.shape]:
      have = ', '.join(mesh.shape)
      raise FewshotError(f'{given} names the axis {missing[0]!r}; the mesh has {have}')
    if n % _size(mesh, names):
      raise FewshotError(
        f'{given} splits {path} {list(shape)} in {_size(mesh, names)}, which does not divide {n}'
      )
