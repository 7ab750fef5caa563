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
HEADER, VALUES = 32 << 20, 1 << 20  # Bytes and values: large vocabularies have half as much.
ENTRIES = 1 << 16  # Tensors, or pairs of the metadata.
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
      head = _Header(file)
      version, count, pairs = head.unpack('<IQQ')
      if version not in (2, 3):
        raise FewshotError(f'GGUF version {version}; 2 and 3 are read')
      if max(count, pairs) > ENTRIES:
        raise ValueError(f'it says it has {count} tensors and {pairs} pairs')
      meta = dict(head.pair() for _ in range(pairs))
      entries = [head.entry() for _ in range(count)]
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
  if count % block or not all(shape) or offset + count // block * width > size:
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


class _Header:
  """The beginning of a file; it has at most so many bytes and so many values, each read once."""

  def __init__(self, file: IO[bytes]) -> None:
    self.file = file
    self.values, self.bytes = VALUES, HEADER

  def entry(self) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, kind and offset of a tensor."""
    name = self.text()
    (axes,) = self.unpack('<I')
    if axes > 4:
      raise ValueError(f'{name[:40]} has {axes} axes')
    *shape, kind, offset = self.unpack(f'<{axes}QIQ')
    return name, tuple(reversed(shape)), kind, offset

  def pair(self) -> tuple[str, Any]:
    """A key of the metadata and its value."""
    return self.text(), self.value(*self.unpack('<I'))

  def value(self, kind: int) -> Any:
    if kind == STRING:
      return self.text()
    if kind != ARRAY:
      return self.numbers(kind, 1)[0]
    kind, count = self.unpack('<IQ')
    if kind in (STRING, ARRAY):
      if count > self.values:
        raise ValueError(f'its header has more than {VALUES:,} values')
      return [self.value(kind) for _ in range(count)]
    return self.numbers(kind, count)

  def numbers(self, kind: int, count: int) -> list[Any]:
    if kind not in SCALARS:
      raise ValueError(f'its metadata has a value of type {kind}')
    dtype = np.dtype(SCALARS[kind])
    return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()

  def text(self) -> str:
    return self.take(*self.unpack('<Q')).decode(errors='replace')

  def unpack(self, layout: str) -> tuple[Any, ...]:
    self.values -= 1
    if self.values < 0:
      raise ValueError(f'its header has more than {VALUES:,} values')
    return struct.unpack(layout, self.take(struct.calcsize(layout)))

  def take(self, count: int) -> bytes:
    self.bytes -= count
    data = self.file.read(count) if self.bytes >= 0 else b''
    if len(data) != count:
      raise ValueError(f'it ends inside the header, or that is more than {HEADER:,} bytes')
    return data


def _up(n: int, step: int) -> int:
  return -(-n // step) * step
