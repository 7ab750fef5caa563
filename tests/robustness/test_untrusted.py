"""Files that lie are refused in one line, within a second of this process and a GiB."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fewshot import cli, records
from fewshot.methods import paths
from tests.robustness.hostile.child import CASES

ROOT = Path(__file__).parents[2]
SECONDS, BYTES = 1.0, 1 << 30


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  """What came of each case, by one process that reads them all."""
  folder = tmp_path_factory.mktemp('hostile')
  env = os.environ | {'PYTHONPATH': str(ROOT), 'FEWSHOT_CACHE': str(folder / 'cache')}
  command = [sys.executable, '-m', 'tests.robustness.hostile.child', str(folder)]
  done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
  rows = [json.loads(line) for line in done.stdout.splitlines()]
  assert done.returncode == 0 and len(rows) == len(CASES), (rows[-1:], done.stderr[-2000:])
  return {row['name']: row for row in rows}


@pytest.mark.parametrize('name', CASES)
def test_refused_at_once_in_one_line(found, name):
  row = found[name]
  assert row['error'] == 'FewshotError', row
  assert re.search(CASES[name].said, row['text']) and '\n' not in row['text'], row
  assert row['cpu'] < SECONDS and row['seconds'] < 30 * SECONDS, row  # Others may use the machine.
  assert row['bytes'] < BYTES, row


LIES = {
  'config': [1], 'model': 7, 'method': [1], 'task': None, 'split': 7, 'seed': 'x', 'scores': 'x',
  'trained': 'all', 'total': -1, 'hashes': [], 'timings': 3, 'versions': 'x', 'status': {},
}  # fmt: skip


@pytest.mark.parametrize('field', LIES)
def test_a_table_of_records_that_lie(tmp_path, capsys, field):
  """One good record and one of another type: a table or one line, and never a traceback."""
  good = {key: {} for key in records.REQUIRED} | {
    'model': 'm', 'method': 'linear()', 'task': 't', 'split': {'k': 1, 'seed': 0}, 'seed': 0,
    'scores': {'accuracy': {'value': 0.5, 'n': 2}}, 'trained': 1, 'total': 2, 'status': 'ok',
  }  # fmt: skip
  lines = (json.dumps(r) + '\n' for r in (good, good | {'seed': 1, field: LIES[field]}))
  (tmp_path / records.NAME).write_text(''.join(lines))
  status = cli.main(['table', str(tmp_path)])
  said = capsys.readouterr().err
  assert status in (0, 2) and 'unexpected' not in said and 'Traceback' not in said, said


@pytest.mark.parametrize(
  'pattern, often',
  [
    ('.*/(query|value)/kernel', 1), (r'(.*/)?block_\d+/(attn|mlp)', 2), ('a*|b*|c*d*', 2),
    (r'(\(a+\))', 1), ('[)*(+]+x', 1), ('((a)b)+', 1), ('(a|b)?', 0), ('a{2}b{1,}', 2),
  ],
)  # fmt: skip
def test_patterns_that_take_little_time(pattern, often):
  assert paths._repetitions(pattern) == often
  assert paths.compiled(pattern).pattern == pattern


@pytest.mark.parametrize(
  'pattern, said',
  [
    ('(a+)+!', 'repeats what repeats or chooses'), ('(a|a)*!', 'repeats what repeats'),
    ('((a|a)b)+!', 'repeats what repeats'), ('(?:x+y){9}', 'repeats what repeats'),
    (r'([a-z_]+/?)+!', 'repeats what repeats'), ('.*' * 9 + '!', '9 repetitions in a row; at most'),
    ('(a', 'is not a regular expression'),
  ],
)  # fmt: skip
def test_patterns_that_may_take_for_ever(pattern, said):
  with pytest.raises(paths.FewshotError, match=said):
    paths.compiled(pattern)
