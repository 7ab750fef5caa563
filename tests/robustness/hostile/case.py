"""What a case of an untrusted file is, and how such files are written."""

import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

FIXTURES = Path(__file__).parents[2] / 'parity' / 'fixtures'
GIB = 1 << 30
DAMAGED = 'corrupted or truncated'


class Case(NamedTuple):
  """Fills a folder, reads what is in it, and what the one line of the refusal says."""

  make: Callable[[Path], Any]
  read: Callable[[Path], Any]
  said: str


Cases = dict[str, Case]


def sparse(path: Path, head: bytes, size: int, tail: bytes = b'') -> None:
  """`head`, zeros up to `size` that are nowhere on the disk, `tail`."""
  with open(path, 'wb') as file:
    file.write(head)
    file.truncate(max(size, len(head)))
    file.seek(0, os.SEEK_END)
    file.write(tail)


def file(name: str, head: Callable[[], bytes], size: int = 0) -> Callable[[Path], None]:
  """Makes one file of the folder."""
  return lambda folder: sparse(folder / name, head(), size)


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
  """A zip of these members."""
  with zipfile.ZipFile(path, 'w', method) as archive:
    for name, data in members.items():
      archive.writestr(name, data)


def directory(size: int) -> bytes:
  """The end of a zip that says its list of members has so many bytes."""
  return struct.pack('<4s4H2LH', b'PK\x05\x06', 0, 0, 1, 1, size, 0, 0)


def safetensors(path: Path, header: Any, size: int = 0, length: int | None = None) -> None:
  """A header, as it is or as JSON, and so many zeros."""
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  start = struct.pack('<Q', len(text) if length is None else length) + text
  sparse(path, start, len(start) + size)


def tensor(shape: list[Any], begin: int, end: int, dtype: str = 'F32') -> dict[str, Any]:
  """An entry of such a header."""
  return {'dtype': dtype, 'shape': shape, 'data_offsets': [begin, end]}


def laid_out(shapes: dict[str, list[int]]) -> tuple[dict[str, Any], int]:
  """The entries of float32 tensors one after another, and the bytes of all."""
  entries, at = {}, 0
  for name, shape in shapes.items():
    size = 4
    for n in shape:
      size *= n
    entries[name], at = tensor(shape, at, at + size), at + size
  return entries, at


def model(folder: Path, **changes: Any) -> Path:
  """The tiny BERT with changes to its config."""
  for name in ('config.json', 'model.safetensors'):
    shutil.copy(FIXTURES / 'bert-tiny' / name, folder)
  config = json.loads((folder / 'config.json').read_text()) | changes
  (folder / 'config.json').write_text(json.dumps(config))
  return folder


def load(folder: Path) -> Any:
  """The model of a folder."""
  from fewshot import models

  return models.load(str(folder))
