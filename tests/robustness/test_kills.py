"""Ctrl-C and kill -9 in the middle of a real process; the same command then goes on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fewshot import assets, cli, records, stopping
from tests.robustness import workplace
from tests.robustness.tries import tries

ROOT = Path(__file__).parents[2]
SPLITS = '--config.splits=(0,1,2)'
RUN = ('run', 'config.py', SPLITS)
# The config slows down its own process: half a second after the records of each chunk, so that a
# signal after the first of them arrives in the middle.
SLOW = """
import os, time
from fewshot import records

if os.environ.get('SLOW'):
  append = records.append

  def slowly(*args, **kwargs):
    written = append(*args, **kwargs)
    time.sleep(0.5)
    return written

  records.append = slowly
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
  workplace.enter(tmp_path, monkeypatch)
  (tmp_path / 'config.py').write_text((tmp_path / 'config.py').read_text() + SLOW)
  return tmp_path


def started(place, *args):
  """A run in a process of its own, which shares the tests' compiled programs."""
  cache = str(assets.cache_dir() / 'xla')
  env = os.environ | {'SLOW': '1', 'PYTHONPATH': str(ROOT), 'JAX_COMPILATION_CACHE_DIR': cache}
  env['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  return subprocess.Popen(
    [sys.executable, '-m', 'fewshot', *RUN, *args],
    cwd=place,
    env=env,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    # A job in the background ignores SIGINT, and its children inherit that.
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
  )


def stopped(place, sign):
  """Starts a run, sends it a signal once a record is there: (exit status, stderr)."""
  process = started(place)
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


def test_sigterm_saves_ends_with_75_and_the_same_command_goes_on(place, capsys):
  status, err = stopped(place, signal.SIGTERM)
  kept = records.read(place / 'runs/tiny')
  assert status == stopping.UNFINISHED and 1 <= len(kept) < 6
  said = f'asked to end: {len(kept)} finished runs are kept in runs/tiny; the same command goes on'
  assert workplace.lines(err)[-1].startswith(said)
  completed(place, capsys, len(kept))


def test_a_damaged_cache_of_compiled_programs_costs_time_alone(place, monkeypatch):
  workplace.config(place, workplace.CHEAP[:1])
  cache = place / 'xla'
  monkeypatch.setattr(assets, 'cache_dir', lambda: place)
  assert started(place, '--out', 'runs/whole').wait(120) == 0
  programs = [f for f in cache.rglob('*') if f.is_file()]
  assert programs
  for file in programs:
    file.write_bytes(b'\0' * (file.stat().st_size // 2))
  assert started(place, '--out', 'runs/again').wait(120) == 0
  whole, again = (records.read(place / 'runs' / name) for name in ('whole', 'again'))
  plain = records.without_timings
  assert [plain(r) for r in whole] == [plain(r) for r in again]


@pytest.mark.slow
def test_kill_9_at_random_moments_loses_and_doubles_nothing(place, capsys):
  """Runs are killed until a sweep is whole, and sweeps made until there were enough kills."""
  rows = [*workplace.CHEAP, ('chain(bitfit(), linear())', 'sgd(steps=20, lr=0.01)')]
  workplace.config(place, rows)
  slow = (place / 'config.py').read_text() + SLOW
  (place / 'config.py').write_text(slow.replace('sleep(0.5)', 'sleep(0.2)'))
  often = '--config.save_every=0.0'
  begun = time.monotonic()
  assert started(place, '--out', 'runs/whole', often).wait(180) == 0
  longest = time.monotonic() - begun
  whole = sorted((records.without_timings(r) for r in records.read('runs/whole')), key=_id)
  rng, kills, sweep = random.Random(0), 0, 0
  while kills < tries(3, 100):
    sweep += 1
    folder = Path(f'runs/{sweep}')
    while True:
      process = started(place, '--out', str(folder), often)
      try:
        status = process.wait(rng.uniform(0.2, 1.1) * longest)
      except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        kills += 1
        continue
      assert status == 0, process.communicate()[1]
      break
    lines = (folder / records.NAME).read_text().splitlines()
    found = [records.without_timings(json.loads(line)) for line in lines]
    assert sorted(found, key=_id) == whole  # None lost, none twice, each the same.
    assert (folder / 'table.md').exists()
    assert cli.main(['table', str(folder)]) == cli.main(['table', 'runs/whole']) == 0
    tables = [(place / n / 'table.md').read_text() for n in (folder, 'runs/whole')]
    assert [_scores(t) for t in tables[:1]] == [_scores(t) for t in tables[1:]]
  capsys.readouterr()


def _id(record):
  return record['id']


def _scores(table):
  """Method and accuracy of each row of a Markdown table; the seconds differ."""
  return [line.split('|')[1:4] for line in table.splitlines() if line.startswith('|')]
