"""Arrays out of files: read where they lie, into memory that JAX takes over without a copy."""

import math
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fewshot.errors import FewshotError

ALIGNMENT = 64  # Bytes; JAX on a CPU adopts memory so aligned, and copies any other.


def regular(path: Path, most: int | None = None) -> Path:
  """The path, where it is a file of at most `most` bytes: to open a pipe or device may never end.

  Raises `FewshotError` for anything else.
  """
  where = f'{path.parent.name}/{path.name}'
  try:
    found = path.stat()
  except (OSError, ValueError) as e:
    raise FewshotError(f'{where} is not readable: {getattr(e, "strerror", None) or e}') from None
  if not stat.S_ISREG(found.st_mode):
    raise FewshotError(f'{where} is no file but a folder, pipe or device')
  if most is not None and found.st_size > most:
    raise FewshotError(f'{where} has {found.st_size} bytes; a file of its kind has at most {most}')
  return path


def empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
  """An uninitialised array in aligned memory.

  >>> empty((3, 2), np.dtype('float32')).ctypes.data % ALIGNMENT
  0
  """
  size = math.prod(shape) * dtype.itemsize
  memory = np.empty(size + ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % ALIGNMENT
  return memory[start : start + size].view(dtype).reshape(shape)


def read_array(path: Path, offset: int, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
  """The array of `shape` that begins at byte `offset` of a file.

  Files are read, not mapped: the pages of a mapped file would count as this process's memory
  beside the array.

  Raises:
    FewshotError: the file ends before the array does.
  """
  x = empty(shape, dtype)
  if x.size:
    with open(path, 'rb', buffering=0) as file:
      file.seek(offset)
      view = memoryview(x.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
      while view:
        count = file.readinto(view)
        if not count:
          raise broken(path, 'it ends inside an array')
        view = view[count:]
  return x


def broken(path: Path, why: str) -> FewshotError:
  """The error for a file whose bytes are not what its format says."""
  return FewshotError(
    f'{path.parent.name}/{path.name} is corrupted or truncated ({why}); remove it and fetch it '
    'again with `fewshot assets get`'
  )
