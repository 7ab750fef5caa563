"""Hugging Face folders: config.json and safetensors, one file or several, float or int8."""

import functools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from fewshot.errors import FewshotError, brief
from fewshot.models.weights.files import broken, empty, json_of, read_array, regular
from fewshot.models.weights.names import Tensor

INDEX = 'model.safetensors.index.json'
JSON = 64 << 20  # Bytes at most.
ENTRIES = 1 << 20  # Of a JSON: vocabularies have some hundred thousand.
HEADER = 16 << 20  # Bytes of a safetensors header: a hundred thousand tensors.
DTYPES: dict[str, Any] = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': jnp.bfloat16,
  'I64': np.int64,
  'I32': np.int32,
  'I16': np.int16,
  'I8': np.int8,
  'U64': np.uint64,
  'U32': np.uint32,
  'U16': np.uint16,
  'U8': np.uint8,
  'BOOL': np.bool_,
}


def read_json(path: Path) -> dict[str, Any]:
  """A JSON object from a file; a missing or broken one is named."""
  if not os.path.exists(path):
    raise FewshotError(f'{path.name} is missing from {path.parent.name}/')
  try:
    value = json_of(regular(path, JSON).read_bytes(), ENTRIES)
  except FewshotError:
    raise
  except (ValueError, OSError) as e:
    raise FewshotError(f'{path.name} in {path.parent.name}/ is not readable JSON: {e}') from None
  if not isinstance(value, dict):
    raise FewshotError(f'{path.name} in {path.parent.name}/ holds no JSON object')
  return value


def files(folder: Path) -> list[Path]:
  """A folder's model*.safetensors: those of its index, where it has one, else all.

  Raises `FewshotError` where a file of the index is missing.
  """
  if not (folder / INDEX).exists():
    return sorted(folder.glob('model*.safetensors'))  # Adapters and the like stay aside.
  shards = read_json(folder / INDEX).get('weight_map')
  if not isinstance(shards, dict) or not all(_is_name(name) for name in shards.values()):
    raise FewshotError(f'{INDEX} in {folder.name}/ has no weight_map of file names')
  found = [folder / name for name in sorted(set(shards.values()))]
  if missing := [file.name for file in found if not os.path.exists(file)]:
    raise FewshotError(f'{folder.name}/ lacks {", ".join(missing)}, which {INDEX} names')
  return found


def tensors(folder: Path) -> dict[str, Tensor]:
  """The tensors of a folder's safetensors files.

  A tensor NAME stored in eight bits beside NAME_scale and NAME_zero_point is one float32 tensor,

      w = (q - zero_point) * scale

  Raises `FewshotError` where there is no file, or one is broken.
  """
  found: dict[str, Tensor] = {}
  for path in files(folder):
    part = of_file(path)
    if twice := found.keys() & part.keys():
      raise FewshotError(f'{folder.name}/ holds {brief(sorted(twice))} in more than one file')
    found |= part
  return _dequantized(found)


def of_file(path: Path) -> dict[str, Tensor]:
  """The tensors of one safetensors file, each read when it is called for.

  Raises `FewshotError` for one that is missing or broken.
  """
  regular(path)
  try:
    with open(path, 'rb') as file:
      size = int.from_bytes(file.read(8), 'little')
    if size > HEADER:
      raise ValueError(f'its header says it has {size} bytes')
    with safetensors.safe_open(path, framework='numpy'):
      pass  # It checks that the header is sound and fills the file.
    with open(path, 'rb') as file:
      file.seek(8)
      header = json_of(file.read(size), ENTRIES)
  except (safetensors.SafetensorError, ValueError, OSError, MemoryError) as e:
    raise broken(path, str(e)) from None
  header.pop('__metadata__', None)
  found = {}
  for name, entry in header.items():
    if entry['dtype'] not in DTYPES:
      raise FewshotError(
        f'{path.parent.name}/{path.name}: {name} is stored as {entry["dtype"]}; '
        f'known: {", ".join(DTYPES)}'
      )
    shape, start = tuple(entry['shape']), 8 + size + entry['data_offsets'][0]
    dtype = np.dtype(DTYPES[entry['dtype']])
    found[name] = Tensor(shape, functools.partial(read_array, path, start, shape, dtype))
  return found


def _dequantized(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
  ends = ('_scale', '_zero_point')
  packed = {n for n in found if all(f'{n}{end}' in found for end in ends)}
  parts = {f'{n}{end}' for n in packed for end in ends}
  if many := [part for part in parts if math.prod(found[part].shape) != 1]:
    raise FewshotError(f'{brief(sorted(many))}: only one scale and zero point a tensor are read')

  def read(name: str) -> np.ndarray:
    q, scale, zero = (found[f'{name}{end}'].read() for end in ('', *ends))
    if q.dtype.kind not in 'iu' or not np.isfinite(scale).all():
      raise FewshotError(f'{name} is {q.dtype} of scale {scale}; whole numbers and a finite scale')
    x = empty(q.shape, np.dtype(np.float32))
    np.subtract(q, zero.reshape(()), out=x, dtype=np.float32)  # Exact: integers of eight bits.
    return np.multiply(x, scale.reshape(()), out=x)

  return {
    name: Tensor(tensor.shape, functools.partial(read, name)) if name in packed else tensor
    for name, tensor in found.items()
    if name not in parts
  }


def _is_name(value: Any) -> bool:
  return isinstance(value, str) and Path(value).name == value not in ('', '..')
