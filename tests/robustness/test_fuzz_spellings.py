"""Random texts are spellings or are refused in one line, and run nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.robustness.tries import tries

ROOT = Path(__file__).parents[2]


def test_random_spellings_are_taken_or_refused_and_run_nothing(tmp_path):
  count = tries(350, 10_000)
  command = [sys.executable, '-m', 'tests.robustness.spellings', str(count), '0']
  env = os.environ | {'PYTHONPATH': str(ROOT), 'FEWSHOT_CACHE': str(tmp_path / 'cache')}
  done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  report = json.loads(done.stdout.splitlines()[-1])
  assert report['tries'] == count and not report['found'], report['found'][:5]
  assert not (tmp_path / 'ran').exists()
  kinds = {name.split()[0] for name in report['counts']}
  assert (
    len(kinds) == 7 and sum(n for k, n in report['counts'].items() if 'taken' in k) > count / 50
  )


def test_the_watch_sees_what_it_is_for(tmp_path):
  """A parser that evaluates is found out."""
  script = (
    'from tests.robustness.spellings import Watch\nwatch = Watch()\n'
    "watch.text = 'x'\neval(\"open('ran', 'w')\")\nwatch.text = None\nprint(watch.seen)"
  )
  env = os.environ | {'PYTHONPATH': str(ROOT)}
  command = [sys.executable, '-c', script]
  done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
  assert 'exec' in done.stdout and 'open' in done.stdout, done.stderr
