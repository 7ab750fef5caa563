"""Result records: one JSON line per run, written so that a kill or a full disk loses no other."""

import contextlib
import gc
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fewshot.atomic import replace as replace
from fewshot.errors import FewshotError
from fewshot.leaks import check

try:
  import fcntl
except ImportError:  # Windows has no flock; a single writer per folder is safe without it.
  fcntl = None  # type: ignore[assignment]

NAME = 'records.jsonl'
LONGEST = 64 << 20  # Bytes of a line.
REQUIRED = [
  *('config', 'model', 'method', 'task', 'split', 'seed', 'scores', 'trained', 'total'),
  *('hashes', 'timings', 'versions', 'status'),
]


def append(
  path: str | Path, *new: Mapping[str, Any], once: bool = False
) -> list[Mapping[str, Any]]:
  """Appends records, each as one line, all of them or none; those that were.

  The lines go out in a single write and are synced to disk before this returns. If that fails,
  the file is cut back to what it held. A tail without a newline, left by a killed process, is
  first moved to `records.torn` beside the file. Non-finite numbers are written as null, for JSON
  has none; arrays are written as lists.

  Args:
    path: the run's folder, or the file itself.
    new: the fields of each; `REQUIRED` names those that must be there.
    once: leaves out a record where the last one of the same id has a result (`has_result`), which
      another process may have written a moment ago.

  Raises:
    FewshotError: a field is missing, the record holds a path or a secret of this machine (see
      `check`), or the file cannot be written.

  >>> import tempfile
  >>> record = dict.fromkeys(REQUIRED, 0)
  >>> with tempfile.TemporaryDirectory() as run:
  ...   append(run, record) == read(run) == [record]
  True
  """
  file = _file(path)
  lines = [_line(file, record) for record in new]
  try:
    fd = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
      _lock(fd)
      data = file.read_bytes() if once else b''
      left = [i for i, one in enumerate(new) if not (once and _is_there(data, one['id']))]
      if left:
        _append_lines(fd, file, b''.join(lines[i] for i in left))
      return [new[i] for i in left]
    finally:
      os.close(fd)
  except OSError as error:
    raise FewshotError(
      f'cannot append to {file}: {error.strerror or error}; its earlier records are intact, '
      'make room or give a folder that exists and is writable, then run again'
    ) from error


def _line(file: Path, record: Mapping[str, Any]) -> bytes:
  plain = _plain(record)
  if problem := _problem(plain):
    raise FewshotError(f'cannot append to {file}: {problem}; pass a record with every field')
  check(plain)
  return json.dumps(plain, allow_nan=False).encode() + b'\n'


def _lock(fd: int) -> None:
  if fcntl is not None:
    with contextlib.suppress(OSError):  # Some network file systems refuse locks.
      fcntl.flock(fd, fcntl.LOCK_EX)


def _is_there(data: bytes, id: str) -> bool:
  """Whether the last record of that id has a result; only lines that hold the id are parsed."""
  mark = json.dumps(id).encode()
  if mark not in data:  # As nearly always: nothing is taken apart.
    return False
  found = [_parse(x) for x in data.split(b'\n') if mark in x]
  same = [record for record, problem in found if not problem and record.get('id') == id]
  return bool(same) and has_result(same[-1])


def has_result(record: Mapping[str, Any] | None) -> bool:
  """Whether a run came to something; a failure that was not its own (memory, a lost file) is none.

  >>> has_result({'status': 'collapsed', 'timings': {'seconds': 1.0}}), has_result(None)
  (True, False)
  """
  return record is not None and (record['status'] != 'failed' or bool(record['timings']))


def _append_lines(fd: int, file: Path, lines: bytes) -> None:
  size = _set_torn_aside(fd, file)
  try:
    written = os.write(fd, lines)
    if written != len(lines):
      raise OSError(f'only {written} of {len(lines)} bytes written, the disk is full')
    os.fsync(fd)
  except OSError:  # Not on Ctrl-C: the lines are whole by then, or not there.
    with contextlib.suppress(OSError):
      os.ftruncate(fd, size)
    raise


def _set_torn_aside(fd: int, file: Path) -> int:
  """Moves what follows the last newline to the sidecar; returns the size that remains."""
  size = end = os.fstat(fd).st_size
  tail = b''
  while end > 0 and b'\n' not in tail:
    start = max(0, end - 65536)
    os.lseek(fd, start, os.SEEK_SET)
    tail = os.read(fd, end - start) + tail
    end = start
  torn = tail[tail.rfind(b'\n') + 1 :]
  if torn:
    # Synced before the cut: a kill in between leaves the tail twice, never nowhere.
    with file.with_suffix('.torn').open('ab') as sidecar:
      sidecar.write(torn + b'\n')
      sidecar.flush()
      os.fsync(sidecar.fileno())
    os.ftruncate(fd, size - len(torn))
  return size - len(torn)


def read(path: str | Path, strict: bool = True) -> list[dict[str, Any]]:
  """Reads the records of a run in the order they were written.

  A last line without a newline was torn by a kill: it is skipped with a warning on stderr.

  Args:
    path: the run's folder, or the file itself.
    strict: whether any other unreadable line is an error; if not, it is skipped with a warning.

  Raises:
    FewshotError: there is no such file, or a line is no record (`strict`), named by its number.

  >>> read('no-such-run')  # doctest: +ELLIPSIS
  Traceback (most recent call last):
  fewshot.errors.FewshotError: no records at no-such-run/records.jsonl: ...
  """
  file = _file(path)
  lines: list[bytes] = []
  try:
    with open(file, 'rb') as source:
      while line := source.readline(LONGEST):
        if len(line) == LONGEST:
          raise FewshotError(f'{file} line {len(lines) + 1} is longer than any record; delete it')
        lines.append(line)
  except OSError as error:
    raise FewshotError(
      f'no records at {file}: {error.strerror}; give the folder of a finished run, '
      'or run an experiment into this one first'
    ) from error
  if lines and not lines[-1].endswith(b'\n'):
    lines.pop()
    _warn(f'{file} line {len(lines) + 1} is torn (no newline) and skipped; its run is not counted')
  with uncollected():  # Its walks take a third of the time.
    parsed = [_parse(line) for line in lines]
  found = []
  for number, (record, problem) in enumerate(parsed, 1):
    if not problem:
      found.append(record)
    elif strict:
      raise FewshotError(
        f'{file} line {number}: {problem}; {len(lines)} lines are there, '
        'repair or delete this one and run again'
      )
    else:
      _warn(f'{file} line {number} is skipped: {problem}')
  return found


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
  """Without the garbage collector: records are many and hold no cycles, but it walks them all.

  >>> with uncollected():
  ...   gc.isenabled()
  False
  """
  collecting = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    (gc.enable if collecting else gc.disable)()


def read_if_any(path: str | Path) -> list[dict[str, Any]]:
  """As `read`; no record where the file is not there yet.

  >>> read_if_any('no-such-run')
  []
  """
  return read(path) if _file(path).exists() else []


def _parse(line: bytes) -> tuple[dict[str, Any], str]:
  try:
    record = json.loads(line.decode())
  except (ValueError, RecursionError):
    return {}, 'not valid JSON'
  return record, _problem(record)


def _problem(record: Any) -> str:
  """What keeps a value from being a record; empty when nothing does."""
  if not isinstance(record, dict):
    return 'not a JSON object'
  missing = [name for name in REQUIRED if name not in record]
  return f'missing {", ".join(missing)}' if missing else ''


def run_id(fields: Mapping[str, Any]) -> str:
  """The name of a run: 16 hex digits of the SHA-256 of its fields as canonical JSON.

  The order of the fields does not matter; every value does.

  >>> run_id({'model': 'vit', 'seed': 0}) == run_id({'seed': 0, 'model': 'vit'})
  True
  >>> run_id({'seed': 0})
  'bd0488843468e63c'
  """
  text = json.dumps(fields, sort_keys=True, separators=(',', ':'), default=_as_list)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def set_aside(folder: Path) -> str:
  """Earlier records are never deleted: they move to records.<n>.jsonl; its name, if there are any.

  Raises `FewshotError` if they cannot be moved.
  """
  current = folder / NAME
  if not current.exists():
    return ''
  n = next(i for i in range(1, 10**6) if not (folder / f'records.{i}.jsonl').exists())
  try:
    current.rename(folder / f'records.{n}.jsonl')
  except OSError as e:
    raise FewshotError(f'cannot set aside {current}: {e.strerror}') from None
  return f'records.{n}.jsonl'


def prepare(path: str | Path) -> Path:
  """Makes the folder of a run and proves that it can be written, before any compute is spent.

  Raises:
    FewshotError: the folder cannot be made, or a file in it cannot be written.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as base:
  ...   prepare(f'{base}/runs/first').is_dir()
  True
  """
  folder = Path(path)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix='.writable-') as probe:
      probe.write(b'\n' * 4096)
      probe.flush()
  except OSError as error:
    raise FewshotError(
      f'cannot write to the folder {folder}: {error.strerror or error}; '
      'choose a folder that can be made and has room'
    ) from error
  return folder


def without_timings(record: Mapping[str, Any]) -> dict[str, Any]:
  """The record without what may differ between two identical runs.

  That is `timings`, and `memory`: both belong to the chunk of runs that were compiled together,
  and a run that is resumed may land in a chunk of another size.

  >>> without_timings({'seed': 0, 'timings': {'seconds': 1.5}, 'memory': {'bytes': 9}})
  {'seed': 0}
  """
  return {name: value for name, value in record.items() if name not in ('timings', 'memory')}


def _file(path: str | Path) -> Path:
  path = Path(path)
  is_file = path.is_file() or (path.suffix == '.jsonl' and not path.is_dir())
  return path if is_file else path / NAME


def _plain(record: Mapping[str, Any]) -> Any:
  """The record as JSON would give it back: lists for arrays, null for NaN and infinity."""
  return json.loads(json.dumps(record, default=_as_list), parse_constant=lambda _: None)


def _as_list(value: Any) -> Any:
  if hasattr(value, 'tolist'):
    return value.tolist()
  raise TypeError(f'{type(value).__name__} cannot be written as JSON')


def _warn(message: str) -> None:
  print(f'warning: {message}', file=sys.stderr)


class Tail:
  """The records of a folder by id, the last of each, read on from where the last call stopped."""

  def __init__(self, path: str | Path) -> None:
    self._file, self._at = _file(path), 0
    self._latest: dict[str, dict[str, Any]] = {}

  def read(self) -> dict[str, dict[str, Any]]:
    """All that is there by now; a line that is no record is left out with a warning.

    >>> Tail('no-such-run').read()
    {}
    """
    try:
      size = self._file.stat().st_size
      if size < self._at:  # Set aside, or begun anew.
        self._at, self._latest = 0, {}
      with self._file.open('rb') as file:
        file.seek(self._at)
        whole, newline, _ = file.read().rpartition(b'\n')
    except OSError:
      return self._latest
    for line in whole.split(b'\n') if newline else []:
      record, problem = _parse(line)
      if problem or not isinstance(record.get('id'), str):
        _warn(f'a line of {self._file} is skipped: {problem or "it has no id"}')
        continue
      self._latest[record['id']] = record
    self._at += len(whole + newline)
    return self._latest
