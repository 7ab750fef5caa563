"""A dashboard behind a queue: whatever it does, the experiment neither waits for it nor fails."""

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fewshot.writers.base import MetricWriter

QUEUED = 4096  # Calls that wait for a slow dashboard; more are dropped and counted.
PATIENCE = 10.0  # Seconds that `close` waits for a dashboard that shows no progress ...
LIMIT = 30.0  # ... and for one that does, or that is still starting.


class Behind:
  """Makes a writer in a daemon thread and hands it every call there, in order.

  A writer that raises, while it is made or later, is left out from there on. Each of this is one
  line on stderr, as is the number of calls that were dropped because the queue was full.
  """

  def __init__(self, name: str, make: Callable[[], MetricWriter]) -> None:
    self._name, self._make = name, make
    self._calls: queue.Queue[Callable[[MetricWriter], None] | None] = queue.Queue(QUEUED)
    self._asked = self._served = 0
    self._started = self._over = False  # When it is over, nothing more is asked of the writer.
    self._thread = threading.Thread(target=self._serve, name=f'fewshot-{name}', daemon=True)
    self._thread.start()

  def event(self, kind: str, **fields: Any) -> None:
    """Queued."""
    self._put(lambda writer: writer.event(kind, **fields))

  def scalars(self, run: str, step: int, values: Mapping[str, float]) -> None:
    """Queued."""
    self._put(lambda writer: writer.scalars(run, step, values))

  def record(self, record: Mapping[str, Any]) -> None:
    """Queued."""
    self._put(lambda writer: writer.record(record))

  def table(self, rows: Sequence[Mapping[str, Any]], markdown: str) -> None:
    """Queued."""
    self._put(lambda writer: writer.table(rows, markdown))

  def flush(self) -> None:
    """Nothing to do: the thread does so whenever the queue is empty."""

  def close(self) -> None:
    """Waits until all is written, as long as something is; then goes on without the rest."""
    end = time.monotonic() + LIMIT
    room = self._wait(end, lambda: not self._calls.full())
    with contextlib.suppress(queue.Full):
      self._calls.put_nowait(None)
    if not (room and self._wait(end, lambda: not self._thread.is_alive())):
      lost = self._asked - self._served
      self._say(f'{self._name} does not finish and is left behind; {lost} calls are lost')
    elif not self._over and (dropped := self._asked - self._served):
      self._say(f'{self._name} was too slow: {dropped} calls were dropped')
    self._over = True

  def _put(self, call: Callable[[MetricWriter], None]) -> None:
    if not self._over:
      self._asked += 1
      with contextlib.suppress(queue.Full):
        self._calls.put_nowait(call)

  def _wait(self, end: float, done: Callable[[], bool]) -> bool:
    """Whether it is done before the end, and before PATIENCE is over without progress."""
    served, since = self._served, time.monotonic()
    while not done():
      now = time.monotonic()
      if self._served != served or not self._started:
        served, since = self._served, now
      if now > end or now - since > PATIENCE:
        return False
      self._thread.join(0.02)
    return True

  def _serve(self) -> None:
    try:
      writer = self._make()
      self._started = True
      while (call := self._calls.get()) is not None and not self._over:
        call(writer)
        if self._calls.empty():
          writer.flush()
        self._served += 1
      if not self._over:
        writer.close()
    except BaseException as e:  # SystemExit too: some libraries end the process where a key is bad.
      if not self._over:
        self._say(f'{self._name} is left out from here on ({line(e)})')
      self._over = True

  def _say(self, text: str) -> None:
    print(f'fewshot: {text}', file=sys.stderr)


def line(error: BaseException) -> str:
  """The first line of an error's message, or its name.

  >>> line(ValueError('bad key\\nlong story'))
  'bad key'
  """
  return next(iter(str(error).splitlines()), type(error).__name__)
