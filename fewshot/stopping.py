"""Stopping: a signal of termination asks long work to save itself; it looks between its steps.

SLURM and the clouds send SIGTERM before they take a machine back, and kill some 30 s later.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

UNFINISHED = 75  # EX_TEMPFAIL: the same command goes on from there, so a scheduler may requeue it.
_asked = threading.Event()


class Stopped(Exception):
  """Work has saved itself and ends, because it was asked to."""


@contextlib.contextmanager
def on_signal() -> Iterator[None]:
  """Within it SIGTERM sets what `asked` reads, in place of ending the process.

  >>> with on_signal():
  ...   signal.raise_signal(signal.SIGTERM)
  ...   asked()
  True
  >>> asked()
  False
  """
  if threading.current_thread() is not threading.main_thread():  # Where none can be set.
    yield
    return
  before: Any = signal.signal(signal.SIGTERM, lambda number, frame: _asked.set())
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)
    _asked.clear()


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
  """Within it Ctrl-C waits until the end; a second one does not.

  For what must not be left half done, such as a state that threads are about to write.

  >>> with contextlib.suppress(KeyboardInterrupt), uninterrupted():
  ...   signal.raise_signal(signal.SIGINT)
  ...   print('goes on')
  goes on
  """
  raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
  if not raises or threading.current_thread() is not threading.main_thread():
    yield
    return
  came: list[int] = []

  def wait(number: int, frame: Any) -> None:
    came.append(number)
    if len(came) > 1:
      raise KeyboardInterrupt

  signal.signal(signal.SIGINT, wait)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if len(came) == 1:
      signal.raise_signal(signal.SIGINT)


def ask() -> None:
  """What SIGTERM does within `on_signal`, for other signals; kept for one that begins later."""
  _asked.set()


def asked() -> bool:
  """Whether the process was asked to end."""
  return _asked.is_set()
