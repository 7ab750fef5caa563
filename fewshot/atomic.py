"""Files that are there as a whole or not at all."""

import contextlib
import os
from pathlib import Path

from fewshot.errors import FewshotError


def replace(path: str | Path, data: bytes) -> None:
  """Writes a file as a whole: readers see what was there before or all of `data`.

  Raises:
    FewshotError: the file cannot be written; what was there before stays.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as run:
  ...   replace(f'{run}/table.md', b'| method |')
  ...   os.listdir(run)
  ['table.md']
  """
  real = Path(os.path.realpath(path))  # A link stays, and what it names is replaced.
  beside = real.with_name(f'.{real.name}.{os.getpid()}')
  try:
    if real.exists() and not real.is_file():
      real.write_bytes(data)  # A device, such as /dev/stdout; a folder is refused by that.
      return
    with beside.open('wb') as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(beside, real)
  except OSError as error:
    with contextlib.suppress(OSError):
      beside.unlink(missing_ok=True)
    raise FewshotError(
      f'cannot write {path}: {error.strerror or error}; make room or choose another folder'
    ) from error
