"""Ctrl-C and kill -9 in the middle of a real process; the same command then goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fewshot import assets, cli, records
from tests.robustness import workplace

ROOT = Path(__file__).parents[2]
SPLITS = '--config.splits=(0,1,2)'
RUN = ('run', 'config.py', SPLITS)
# The config slows down its own process: a record every half a second, so that a signal after the
# first of them arrives in the middle.
SLOW = """
import os, time
from fewshot import records

if os.environ.get('SLOW'):
  append = records.append

  def slowly(*args):
    append(*args)
    time.sleep(0.5)

  records.append = slowly
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
  workplace.enter(tmp_path, monkeypatch)
  (tmp_path / 'config.py').write_text((tmp_path / 'config.py').read_text() + SLOW)
  return tmp_path


def stopped(place, sign):
  """Starts a run, sends it a signal once a record is there: (exit status, stderr)."""
  cache = str(assets.cache_dir() / 'xla')
  env = os.environ | {'SLOW': '1', 'PYTHONPATH': str(ROOT), 'JAX_COMPILATION_CACHE_DIR': cache}
  env['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  command = [sys.executable, '-m', 'fewshot', *RUN]
  process = subprocess.Popen(
    command,
    cwd=place,
    env=env,
    stderr=subprocess.PIPE,
    text=True,
    # A job in the background ignores SIGINT, and its children inherit that.
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
  )
  try:
    deadline = time.monotonic() + 90
    while not workplace.records(place):
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.02)
    process.send_signal(sign)
    _, err = process.communicate(timeout=60)
  finally:
    process.kill()
  return process.returncode, err


def completed(place, capsys, kept):
  """The same command, run to its end, gives what an undisturbed one gives."""
  assert cli.main(RUN) == 0
  assert f'{kept} runs were recorded before' in capsys.readouterr().err
  assert cli.main([*RUN, '--out', 'runs/whole']) == 0
  found = [records.read(place / 'runs' / name) for name in ('tiny', 'whole')]
  tiny, whole = ([records.without_timings(r) for r in rows] for rows in found)
  assert len(tiny) == 6
  assert sorted(tiny, key=lambda r: r['id']) == sorted(whole, key=lambda r: r['id'])


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(place, capsys):
  status, err = stopped(place, signal.SIGINT)
  kept = records.read(place / 'runs/tiny')
  assert status == 130 and 1 <= len(kept) < 6
  said = f'interrupted: {len(kept)} finished runs are kept in runs/tiny; the same command goes on'
  assert workplace.lines(err)[-1].startswith(said)
  assert sum('interrupted' in line for line in workplace.lines(err)) == 1
  completed(place, capsys, len(kept))


def test_after_kill_9_the_same_command_goes_on_without_duplicates(place, capsys):
  status, _ = stopped(place, signal.SIGKILL)
  kept = workplace.records(place)
  assert status == -signal.SIGKILL and 1 <= len(kept) < 6
  with (place / 'runs/tiny/records.jsonl').open('ab') as file:
    file.write(b'{"id": "half a rec')
  completed(place, capsys, len(kept))
