"""Claims: which process works on which job of a folder, so that none is worked on twice.

A claim is a file that its holder keeps locked and whose count it raises every few seconds.  A lock
goes with the process that held it, whatever the clock says: on one machine a killed holder's claim
is free at once.  Where file systems do not pass locks between machines the count decides: a claim
is free when another machine saw it stand still for `PATIENCE` seconds of its own monotonic clock.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewshot.errors import FewshotError

try:
  import fcntl
except ImportError:  # Windows: only the count is left.
  fcntl = None  # type: ignore[assignment]

BEAT = 5.0  # Seconds between two counts.
PATIENCE = 60.0
SAID = ('holder', 'says')


@dataclasses.dataclass
class Claim:
  """A job that this process holds; what it `says` of its progress goes out with the count."""

  file: Path
  descriptor: int
  holder: str
  says: str = ''

  def is_held(self) -> bool:
    """Whether it is still this process's: not after another took it for dead."""
    return _read(self.file).get('holder', self.holder) == self.holder


class Claims:
  """The claims in a folder; `claim(name)` is a context that gives None where another holds it."""

  def __init__(self, folder: Path) -> None:
    self.folder = folder
    self._seen: dict[str, tuple[Any, float]] = {}  # By name: holder and count, since when.

  @contextlib.contextmanager
  def claim(self, name: str) -> Iterator[Claim | None]:
    """Holds the job of that name while the context lasts.

    Raises `FewshotError` where the folder cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   one, two = Claims(Path(folder)), Claims(Path(folder))
    ...   with one.claim('job') as held, two.claim('job') as other:
    ...     held is not None, other is None
    (True, True)
    """
    held = self._take(name)
    if held is None:
      yield None
      return
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(held, ended), daemon=True)
    beating.start()
    try:
      yield held
    finally:
      ended.set()
      beating.join()
      if held.is_held():
        held.file.unlink(missing_ok=True)
      os.close(held.descriptor)

  @contextlib.contextmanager
  def waited(self, name: str) -> Iterator[None]:
    """As `claim`, once no other holds it."""
    while True:
      with self.claim(name) as held:
        if held is not None:
          yield
          return
      time.sleep(0.05)

  def held(self) -> dict[str, str]:
    """What is worked on, by the name of the job, with what its holder says of it."""
    files = self.folder.glob('*.claim') if self.folder.is_dir() else []
    return {f.stem: _read(f).get('says', '') for f in files if not self._is_free(f)}

  def _take(self, name: str) -> Claim | None:
    file = self.folder / f'{name}.claim'
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as e:
      raise FewshotError(f'cannot claim {file}: {e.strerror}; give a writable folder') from None
    # Its holder may have let it go, and another made it again, before the lock was there.
    free = _lock(descriptor) and os.fstat(descriptor).st_ino == _inode(file)
    if not free or not self._stands_still(file):
      os.close(descriptor)
      return None
    claim = Claim(file, descriptor, _me())
    with contextlib.suppress(OSError):  # A full disk: the lock still holds it on this machine.
      _write(claim, 0)
    return claim

  def _is_free(self, file: Path) -> bool:
    try:
      descriptor = os.open(file, os.O_RDWR)
    except OSError:
      return True
    try:
      return _lock(descriptor) and self._stands_still(file)
    finally:
      os.close(descriptor)

  def _stands_still(self, file: Path) -> bool:
    """Whether nobody is behind a claim that can be locked."""
    about, now = _read(file), time.monotonic()
    holder = about.get('holder', '')
    if not holder or (fcntl is not None and holder.split(':')[0] == _machine()):
      return True  # Locks are seen within a machine.
    told, since = self._seen.get(file.stem, (None, now))
    if told != about:
      self._seen[file.stem] = (about, now)
      return False
    return now - since > PATIENCE


def _beat(claim: Claim, ended: threading.Event) -> None:
  count = 0
  while not ended.wait(BEAT):
    count += 1
    if not claim.is_held():
      return
    with contextlib.suppress(OSError):  # A full disk costs the count, not the run.
      _write(claim, count)


def _write(claim: Claim, count: int) -> None:
  about = {'holder': claim.holder, 'count': count, 'says': claim.says[:60]}
  os.pwrite(claim.descriptor, json.dumps(about).encode().ljust(400), 0)  # One write of one length.


def _read(file: Path) -> dict[str, Any]:
  try:
    found = json.loads(file.read_bytes() or b'{}')
  except (OSError, ValueError, RecursionError):
    return {}
  whole = isinstance(found, dict) and all(isinstance(found.get(k, ''), str) for k in SAID)
  return found if whole else {}


def _lock(descriptor: int) -> bool:
  """Whether nobody on this machine holds it; where locks are refused, nobody is known to."""
  if fcntl is None:
    return True
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError:
    return True
  return True


def _inode(file: Path) -> int | None:
  try:
    return file.stat().st_ino
  except OSError:
    return None


@functools.cache
def _machine() -> str:
  """The running kernel by a hash: a machine's name is nobody's business, and may not be unique."""
  boot = Path('/proc/sys/kernel/random/boot_id')
  with contextlib.suppress(OSError):
    return hashlib.sha256(boot.read_bytes()).hexdigest()[:12]
  return hashlib.sha256(platform.node().encode()).hexdigest()[:12]


def _me() -> str:
  """This process, and which of its claims."""
  return f'{_machine()}:{os.getpid()}:{secrets.token_hex(4)}'
