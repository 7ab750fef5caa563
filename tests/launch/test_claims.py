"""Claims: one holder at a time, whatever the clocks say; a dead holder's is free."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fewshot.errors import FewshotError
from fewshot.launch import claims
from fewshot.launch.claims import Claims

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from fewshot.launch.claims import Claims
with Claims(Path(sys.argv[1])).claim('job') as held:
  print('held' if held else 'not', flush=True)
  time.sleep(60)
"""


def foreign(folder, count):
  """The claim of another machine, whose lock is not seen here."""
  about = {'holder': 'elsewhere:1:aa', 'count': count, 'says': ''}
  (folder / 'job.claim').write_text(json.dumps(about))


def test_a_job_has_one_holder_and_is_free_after_it(tmp_path):
  one, two = Claims(tmp_path), Claims(tmp_path)
  with one.claim('job') as held:
    assert held is not None and held.is_held()
    with two.claim('job') as other, two.claim('next') as free:
      assert other is None and free is not None
    assert set(two.held()) == {'job'}
  with two.claim('job') as other:
    assert other is not None
  assert not list(tmp_path.iterdir())


def test_a_killed_holder_is_no_holder(tmp_path):
  command = [sys.executable, '-c', HOLD, str(tmp_path)]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)
  try:
    assert process.stdout.readline() == 'held\n'
    with Claims(tmp_path).claim('job') as held:
      assert held is None
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    with Claims(tmp_path).claim('job') as held:
      assert held is not None
  finally:
    process.kill()


@pytest.mark.parametrize('jump', [-1e6, 1e6])
def test_a_clock_that_jumps_frees_nothing(tmp_path, monkeypatch, jump):
  now = time.time
  with Claims(tmp_path).claim('job') as held:
    monkeypatch.setattr(time, 'time', lambda: now() + jump)
    os.utime(held.file, (now() + jump, now() + jump))
    with Claims(tmp_path).claim('job') as other:
      assert other is None
  foreign(tmp_path, 3)
  waiting = Claims(tmp_path)
  for _ in range(3):
    with waiting.claim('job') as other:
      assert other is None


def test_another_machines_claim_is_free_when_its_count_stands_still(tmp_path, monkeypatch):
  clock = [100.0]
  monkeypatch.setattr(claims.time, 'monotonic', lambda: clock[0])
  waiting = Claims(tmp_path)
  for count in range(4):  # It beats, slowly.
    foreign(tmp_path, count)
    clock[0] += claims.PATIENCE - 1
    with waiting.claim('job') as held:
      assert held is None
  clock[0] += claims.PATIENCE + 1
  with waiting.claim('job') as held:
    assert held is not None and held.is_held()
    foreign(tmp_path, 9)  # It was not dead.
    assert not held.is_held()
  assert (tmp_path / 'job.claim').exists()


def test_a_claim_counts_and_says_how_far_it_is(tmp_path, monkeypatch):
  monkeypatch.setattr(claims, 'BEAT', 0.01)
  with Claims(tmp_path).claim('job') as held:
    held.says = 'train 40%'
    deadline = time.monotonic() + 10
    while Claims(tmp_path).held()['job'] != 'train 40%':
      assert time.monotonic() < deadline
    first = json.loads(held.file.read_text())['count']
    while json.loads(held.file.read_text())['count'] <= first:
      assert time.monotonic() < deadline


@pytest.mark.parametrize('junk', [b'', b'{', b'[1]', b'\xff\xfe'])
def test_a_damaged_claim_is_free(tmp_path, junk):
  (tmp_path / 'job.claim').write_bytes(junk)
  with Claims(tmp_path).claim('job') as held:
    assert held is not None


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
  (tmp_path / 'claims').write_text('')
  with pytest.raises(FewshotError, match=r'cannot claim .*; give a writable folder'):  # noqa: SIM117
    with Claims(tmp_path / 'claims').claim('job'):
      pass


def test_a_claim_is_waited_for(tmp_path):
  order = []

  def second():
    with Claims(tmp_path).waited('plan'):
      order.append('second')

  with Claims(tmp_path).waited('plan'):
    thread = threading.Thread(target=second)
    thread.start()
    time.sleep(0.2)
    order.append('first')
  thread.join(10)
  assert order == ['first', 'second']
