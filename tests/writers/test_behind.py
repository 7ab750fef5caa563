"""Behind a queue: whatever a dashboard does, nothing waits long, nothing fails, and it is said."""

import threading
import time

import pytest

from fewshot.writers import behind
from fewshot.writers.behind import Behind


@pytest.fixture
def limits(monkeypatch):
  """Sets how much waits, and how long close does."""
  return lambda **values: [monkeypatch.setattr(behind, k, v) for k, v in values.items()]


class Calls:
  """A dashboard that notes what it is told."""

  def __init__(self):
    self.told = []

  def event(self, kind, **fields):
    self.told.append((kind, fields))

  def scalars(self, run, step, values):
    self.told.append((run, step, values))

  def record(self, record):
    self.told.append(record)

  def table(self, rows, markdown):
    self.told.append((rows, markdown))

  def flush(self):
    pass

  def close(self):
    self.told.append('closed')


def test_calls_arrive_in_order_and_all_before_close_returns(capsys):
  calls = Calls()
  writer = Behind('it', lambda: calls)
  writer.event('timings', seconds=1.0)
  writer.scalars('a', 3, {'loss': 0.5})
  writer.record({'id': 'b'})
  writer.table([{'k': 1}], '| k |')
  writer.close()
  told = [('timings', {'seconds': 1.0}), ('a', 3, {'loss': 0.5}), {'id': 'b'}]
  assert calls.told == [*told, ([{'k': 1}], '| k |'), 'closed']
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize('error', [ConnectionError('gone\nlong story'), SystemExit('gone')])
def test_one_that_raises_is_left_out_and_said_once(capsys, error):
  class Broken(Calls):
    def record(self, record):
      super().record(record)
      raise error

  calls = Broken()
  writer = Behind('it', lambda: calls)
  for _ in range(3):
    writer.record({})
  writer.close()
  assert capsys.readouterr().err == 'fewshot: it is left out from here on (gone)\n'
  assert calls.told == [{}]


def test_one_that_does_not_start_is_left_out(capsys):
  def start():
    raise PermissionError(28, 'No space left on device')

  writer = Behind('it', start)
  writer.event('timings')
  writer.close()
  err = capsys.readouterr().err
  assert err == 'fewshot: it is left out from here on ([Errno 28] No space left on device)\n'


def test_one_that_hangs_is_left_behind_and_calls_never_wait(capsys, limits):
  never = threading.Event()

  class Hung(Calls):
    def record(self, record):
      never.wait()

  limits(QUEUED=5, PATIENCE=0.2)
  writer = Behind('it', Hung)
  start = time.monotonic()
  for _ in range(100):
    writer.record({})
  assert time.monotonic() - start < 0.1
  writer.close()
  assert 0.2 <= time.monotonic() - start < 1
  (said,) = capsys.readouterr().err.splitlines()
  assert said == 'fewshot: it does not finish and is left behind; 100 calls are lost'
  never.set()


def test_one_that_hangs_in_close_is_left_behind(capsys, limits):
  never = threading.Event()

  class Hung(Calls):
    def close(self):
      never.wait()

  limits(PATIENCE=0.1)
  writer = Behind('it', Hung)
  writer.record({})
  writer.close()
  said = capsys.readouterr().err
  assert said == 'fewshot: it does not finish and is left behind; 0 calls are lost\n'
  never.set()


def test_one_that_is_slow_is_waited_for_and_what_was_dropped_is_counted(capsys, limits):
  go = threading.Event()

  class Slow(Calls):
    def record(self, record):
      go.wait()
      time.sleep(0.1)
      super().record(record)

  calls = Slow()
  limits(QUEUED=4, PATIENCE=0.3)
  writer = Behind('it', lambda: calls)
  writer.record({'id': 0})
  while not writer._calls.empty():  # The first is with the writer, four wait, four are dropped.
    time.sleep(0.001)
  for i in range(1, 9):
    writer.record({'id': i})
  go.set()
  writer.close()
  assert calls.told == [{'id': i} for i in range(5)] + ['closed']
  assert capsys.readouterr().err == 'fewshot: it was too slow: 4 calls were dropped\n'


def test_one_that_goes_on_forever_is_left_behind_at_the_limit(capsys, limits):
  class Endless(Calls):
    def record(self, record):
      time.sleep(0.05)

  limits(LIMIT=0.3)
  writer = Behind('it', Endless)
  for _ in range(1000):
    writer.record({})
  start = time.monotonic()
  writer.close()
  assert time.monotonic() - start < 1
  assert 'is left behind; 99' in capsys.readouterr().err
