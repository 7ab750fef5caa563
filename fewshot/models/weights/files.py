"""Arrays out of files: read where they lie, into memory that JAX takes over without a copy.

What else is read of files is bounded here: anybody may have written them.
"""

import json
import math
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from fewshot.errors import FewshotError

ALIGNMENT = 64  # Bytes; JAX on a CPU adopts memory so aligned, and copies any other.
DIRECTORY = 16 << 20  # Bytes of the list of a zip's members: some hundred thousand.


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


class _Sparing:
  """A file of which no more than `DIRECTORY` bytes are read at once."""

  def __init__(self, file: IO[bytes]) -> None:
    self.file = file
    self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

  def read(self, count: int = -1) -> bytes:
    data = self.file.read(count if 0 <= count <= DIRECTORY else DIRECTORY + 1)
    if len(data) > DIRECTORY:
      raise zipfile.BadZipFile(f'more than {DIRECTORY:,} bytes are to be read at once')
    return data


def members(file: IO[bytes]) -> zipfile.ZipFile:
  """A zip; one that says that the list of its members is endless is refused.

  Raises `zipfile.BadZipFile` where it is none.
  """
  return zipfile.ZipFile(_Sparing(file))


def json_of(data: bytes, most: int, **options: Any) -> Any:
  """A JSON value of at most `most` entries: one of a few bytes takes a hundred in memory.

  Raises `ValueError` where it has more, is no JSON, or is nested beyond what Python reads.

  >>> json_of(b'[[], []]', 2)
  Traceback (most recent call last):
  ValueError: it has more than 2 entries
  """
  if sum(data.count(mark) for mark in (b',', b'[', b'{')) > most:
    raise ValueError(f'it has more than {most:,} entries')
  try:
    return json.loads(data, **options)
  except RecursionError:
    raise ValueError('it is nested too deeply') from None


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
