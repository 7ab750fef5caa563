"""GGUF files, as llama.cpp writes them: metadata, tokenizer and tensors in one file.

The header is read here; of the `gguf` package only the arithmetic of the packed formats is used,
for its reader takes seconds and hundreds of megabytes for a large vocabulary.
"""

import functools
import math
import struct
from pathlib import Path
from typing import IO, Any

import jax.numpy as jnp
import numpy as np

from fewshot.errors import FewshotError
from fewshot.models.weights.files import broken, empty, read_array, regular
from fewshot.models.weights.names import Tensor

SCALARS = {
  0: 'u1', 1: 'i1', 2: '<u2', 3: '<i2', 4: '<u4', 5: '<i4', 6: '<f4', 7: '?',
  10: '<u8', 11: '<i8', 12: '<f8',
}  # fmt: skip
STRING, ARRAY = 8, 9
PLAIN: dict[str, Any] = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': jnp.bfloat16,
}
CHUNK = 1 << 22  # Numbers unpacked at a time: what unpacking takes beside the result.


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
  """A file's metadata, and its tensors: floats as stored, the rest unpacked to float32.

  Shapes are in row-major order, [out, in] for a linear map; the file has them the other way.

  Raises:
    FewshotError: the file is broken, or packs a tensor in a way that is not known.
  """
  regular(path)
  try:
    size = path.stat().st_size
    with open(path, 'rb') as file:
      if file.read(4) != b'GGUF':
        raise ValueError('it does not begin with GGUF')
      version, count, pairs = struct.unpack('<IQQ', _take(file, 20))
      if version not in (2, 3):
        raise FewshotError(f'GGUF version {version}; 2 and 3 are read')
      meta = {}
      for _ in range(pairs):
        key = _text(file)
        meta[key] = _value(file, *struct.unpack('<I', _take(file, 4)))
      entries = [_entry(file) for _ in range(count)]
      step = meta.get('general.alignment', 32)
      if type(step) is not int or step < 1:
        raise ValueError('its general.alignment is no number of bytes')
      start = _up(file.tell(), step)
    found = {
      name: _tensor(path, name, shape, kind, start + offset, size)
      for name, shape, kind, offset in entries
    }
    if len(found) != len(entries):
      raise ValueError('it has two tensors of one name')
  except FewshotError as e:
    raise FewshotError(f'{path.parent.name}/{path.name}: {e}') from None
  except Exception as e:  # Whatever damaged bytes lead to.
    raise broken(path, str(e)[:80] or type(e).__name__) from None
  return meta, found


def _tensor(
  path: Path, name: str, shape: tuple[int, ...], kind: int, offset: int, size: int
) -> Tensor:
  from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

  known = [k for k in GGMLQuantizationType if k == kind]
  label = known[0].name if known else str(kind)
  if not known or not _unpacks(known[0]):
    raise FewshotError(f'{name} is packed as {label}, which is not read; convert it, as to Q8_0')
  block, width = GGML_QUANT_SIZES[known[0]]
  count = math.prod(shape)
  if count % block or offset + count // block * width > size:
    raise ValueError(f'{name} reaches beyond the file')
  if label in PLAIN:
    read = functools.partial(read_array, path, offset, shape, np.dtype(PLAIN[label]))
  else:
    read = functools.partial(_unpack, path, offset, shape, known[0])
  return Tensor(shape, read)


@functools.cache
def _unpacks(kind: Any) -> bool:
  from gguf.constants import GGML_QUANT_SIZES
  from gguf.quants import dequantize

  if kind.name in PLAIN:
    return True
  try:
    dequantize(np.zeros(GGML_QUANT_SIZES[kind][1], np.uint8), kind)  # One block.
  except NotImplementedError:
    return False
  return True


def _unpack(path: Path, offset: int, shape: tuple[int, ...], kind: Any) -> np.ndarray:
  """Some blocks at a time, so that what is packed is never in memory as a whole."""
  from gguf.constants import GGML_QUANT_SIZES
  from gguf.quants import dequantize

  block, width = GGML_QUANT_SIZES[kind]
  out = empty(shape, np.dtype(np.float32))
  flat, step = out.reshape(-1), CHUNK // block * block
  for i in range(0, flat.size, step):
    part = flat[i : i + step]
    packed = read_array(
      path, offset + i // block * width, (part.size // block * width,), np.dtype(np.uint8)
    )
    part[:] = dequantize(packed, kind)
  return out


def _entry(file: IO[bytes]) -> tuple[str, tuple[int, ...], int, int]:
  """Name, shape, kind and offset of a tensor."""
  name = _text(file)
  (axes,) = struct.unpack('<I', _take(file, 4))
  if axes > 4:
    raise ValueError(f'{name[:40]} has {axes} axes')
  *shape, kind, offset = struct.unpack(f'<{axes}QIQ', _take(file, 8 * axes + 12))
  return name, tuple(reversed(shape)), kind, offset


def _value(file: IO[bytes], kind: int) -> Any:
  if kind == STRING:
    return _text(file)
  if kind != ARRAY:
    return _numbers(file, kind, 1)[0]
  kind, count = struct.unpack('<IQ', _take(file, 12))
  if kind in (STRING, ARRAY):
    return [_value(file, kind) for _ in range(count)]
  return _numbers(file, kind, count)


def _numbers(file: IO[bytes], kind: int, count: int) -> list[Any]:
  if kind not in SCALARS:
    raise ValueError(f'its metadata has a value of type {kind}')
  dtype = np.dtype(SCALARS[kind])
  return np.frombuffer(_take(file, count * dtype.itemsize), dtype).tolist()


def _text(file: IO[bytes]) -> str:
  return _take(file, *struct.unpack('<Q', _take(file, 8))).decode(errors='replace')


def _take(file: IO[bytes], count: int) -> bytes:
  data = file.read(count) if count < 1 << 31 else b''
  if len(data) != count:
    raise ValueError('it ends inside the header')
  return data


def _up(n: int, step: int) -> int:
  return -(-n // step) * step
