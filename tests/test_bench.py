"""The benchmark harness, on scripts that note who ran and print what they are told."""

import datetime
import json
import os
import platform
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from fewshot import bench, cli
from fewshot.bench import Case
from fewshot.errors import FewshotError

SCRIPT = """
import json, pathlib, sys
who, figures = sys.argv[1], json.loads(sys.argv[2])
log = pathlib.Path('order')
order = (log.read_text() if log.exists() else '') + who
log.write_text(order)
print('warming up')
print(json.dumps(dict(figures, ms=figures['ms'][order.count(who) - 1])))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
  """A folder with ours.py and, as the peers' folder, peers/peer.py; peers are not asked for."""
  (tmp_path / 'peers').mkdir()
  for name in ('ours.py', 'peers/peer.py'):
    (tmp_path / name).write_text(SCRIPT)
  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv('FEWSHOT_PEERS', raising=False)
  monkeypatch.delenv('FEWSHOT_PEERS_PYTHON', raising=False)
  return tmp_path


def use(monkeypatch: pytest.MonkeyPatch, *cases: Case) -> None:
  monkeypatch.setattr(bench, '_module', lambda name: SimpleNamespace(cases=lambda: list(cases)))


def with_peers(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
  monkeypatch.setenv('FEWSHOT_PEERS', str(folder / 'peers'))
  monkeypatch.setenv('FEWSHOT_PEERS_PYTHON', sys.executable)


def case(ours: list[float], peer: list[float], name: str = 'toy', **more: float) -> Case:
  a, b = json.dumps({'ms': ours, **more}), json.dumps({'ms': peer})
  return Case(name, ['ours.py', 'A', a], ['peer.py', 'B', b], 'ms', 'ms')


def test_sides_take_turns_and_medians_are_divided(here, monkeypatch):
  use(monkeypatch, case([9.0, 1.0, 2.0], [4.0, 8.0, 100.0], limit=0.5)._replace(bars=(0.9, 0.4)))
  with_peers(monkeypatch, here)
  (row,) = bench.run('toy', 3)['rows']
  assert (here / 'order').read_text() == 'ABABAB'
  assert row == {
    'name': 'toy', 'ours': 2.0, 'peer': 8.0, 'ratio': 0.25, 'bar': 0.9, 'limit': 0.5, 'unit': 'ms',
    'n': 3, 'error': None, 'printed': {'ms': 2.0, 'limit': 0.5},
    'peer_printed': {'ms': 100.0},
  }  # fmt: skip


def test_without_a_peer_its_columns_are_null(here, monkeypatch, capsys):
  use(monkeypatch, case([3.0], []))
  found = bench.run('toy', 1)
  assert set(found) == {'date', 'machine', 'versions', 'rows'}
  (row,) = found['rows']
  assert row['peer'] is None and row['ratio'] is None and row['limit'] is None
  assert row['error'] is None and row['bar'] is None
  assert (here / 'order').read_text() == 'A'
  bench.show(found)
  printed = capsys.readouterr()
  assert 'ours 3 ms, peer not measured, ratio -, limit -, medians of 1' in printed.out
  assert 'set FEWSHOT_PEERS' in printed.err


def test_a_case_may_have_no_peer_to_ask_for(here, monkeypatch, capsys):
  use(monkeypatch, case([3.0], [])._replace(peer=[]))
  assert bench.run('toy', 1)['rows'][0]['peer'] is None
  assert 'FEWSHOT_PEERS' not in capsys.readouterr().err


def test_every_measurement_is_a_line_on_stderr(here, monkeypatch, capsys):
  use(monkeypatch, case([1.0, 1.0], [1.0, 1.0]))
  with_peers(monkeypatch, here)
  bench.run('toy', 2)
  printed = capsys.readouterr()
  lines = [line.split(', ')[0] for line in printed.err.splitlines()]
  assert lines == [f'toy: {side} {i} of 2' for i in (1, 2) for side in ('ours', 'peer')]
  assert printed.out == ''


def test_a_peer_of_our_own_folder_runs_by_this_python(here, monkeypatch):
  monkeypatch.setattr(bench, 'FOLDER', here)
  own = case([2.0], [4.0])
  use(monkeypatch, own._replace(peer=[str(here / 'ours.py'), *own.peer[1:]]))
  assert bench.run('toy', 1)['rows'][0]['ratio'] == 0.5


def test_what_is_counted_is_measured_once(here, monkeypatch):
  use(monkeypatch, case([2.0], [4.0])._replace(once=True))
  with_peers(monkeypatch, here)
  assert bench.run('toy', 5)['rows'][0]['n'] == 1
  assert (here / 'order').read_text() == 'AB'


def test_bars_are_those_of_the_device(here, monkeypatch):
  use(monkeypatch, case([2.0], [])._replace(bars=(0.9, 0.4)))
  monkeypatch.setattr(bench, '_gpu', lambda: '1 x Fast GPU')
  found = bench.run('toy', 1)
  assert found['rows'][0]['bar'] == 0.4 and found['machine'].endswith('1 x Fast GPU')


def test_the_gpu_is_the_one_that_the_driver_names(tmp_path, monkeypatch):
  tool = tmp_path / 'nvidia-smi'
  tool.write_text('#!/bin/sh\necho Fast GPU; echo Fast GPU\n')
  tool.chmod(0o755)
  monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  assert bench._gpu() == '2 x Fast GPU'
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  assert bench._gpu() is None


def test_a_result_says_when_on_what_and_with_what(here, monkeypatch):
  use(monkeypatch, case([3.0], []))
  with_peers(monkeypatch, here)
  found = bench.run('toy', 1)
  assert datetime.date.fromisoformat(found['date']) <= datetime.date.today()
  assert found['versions']['jax'] == jax.__version__
  assert found['versions']['python'] == platform.python_version()
  assert f'{os.cpu_count()} cores' in found['machine'] and '\n' not in found['machine']
  info = Path('/proc/cpuinfo')
  if info.exists() and 'model name' in info.read_text():
    (model,) = set(re.findall(r'model name\s*:\s*(.+)', info.read_text()))
    assert f'({model})' in found['machine']


@pytest.mark.parametrize(
  ('source', 'said'),
  [
    ('print("warm"); print("no json")', 'bad.py printed no JSON line last: no output'),
    ('', 'bad.py printed no JSON line last'),
    ('print("[1, 2]")', 'bad.py printed no JSON line last'),
    ('print("{}")', "bad.py printed no number 'ms'; it printed nothing"),
    ('print(\'{"ms": "fast", "s": 1}\')', "bad.py printed no number 'ms'; it printed ms, s"),
    ('raise SystemExit("out of luck")', 'printed no JSON line last: out of luck'),
    ('print(\'{"ms": 1}\'); 1 / 0', 'printed no JSON line last: ZeroDivisionError'),
  ],
)
def test_a_failed_case_is_a_row_with_its_error_and_loses_no_other(
  here, monkeypatch, capsys, source, said
):
  (here / 'bad.py').write_text(source)
  use(monkeypatch, Case('bad', ['bad.py'], [], 'ms', 'ms'), case([1.0], []))
  found = bench.run('toy', 1)
  bad, good = found['rows']
  assert said in bad['error'] and bad['ours'] is None and bad['ratio'] is None
  assert good['ours'] == 1.0 and good['error'] is None
  bench.show(found)
  out = capsys.readouterr().out
  assert 'bad: ours not measured' in out and 'failed: ' in out and 'toy: ours 1 ms' in out


def test_what_was_measured_before_a_failure_is_kept(here, monkeypatch):
  use(monkeypatch, case([4.0, 6.0, 8.0], [1.0]))  # The peer has no second figure.
  with_peers(monkeypatch, here)
  (row,) = bench.run('toy', 3)['rows']
  assert row['ours'] == 5.0 and row['peer'] == 1.0 and row['n'] == 2
  assert row['error'].startswith('peer: peer.py printed no JSON line last: IndexError')


def test_a_peer_that_cannot_run_leaves_ours(here, monkeypatch):
  use(monkeypatch, case([1.0], [1.0]))
  with_peers(monkeypatch, here)
  monkeypatch.setenv('FEWSHOT_PEERS_PYTHON', str(here / 'no-python'))
  (row,) = bench.run('toy', 1)['rows']
  assert row['ours'] == 1.0 and row['peer'] is None
  assert row['error'] == 'peer: cannot run no-python: No such file or directory'


def test_a_pattern_chooses_cases(here, monkeypatch):
  use(monkeypatch, case([1.0], [], 'step small'), case([1.0], [], 'step base'))
  assert [r['name'] for r in bench.run('toy', 1, 'ba.e$')['rows']] == ['step base']
  with pytest.raises(FewshotError, match="no case matches 'huge'; there are step small, step base"):
    bench.run('toy', 1, 'huge')
  with pytest.raises(FewshotError, match=r"'\(' is no regular expression: missing \)"):
    bench.run('toy', 1, '(')


def test_the_command_fails_where_a_case_did(here, monkeypatch, capsys):
  bad = Case('bad', ['ours.py', 'A', '{}'], [], 'ms', 'ms')
  use(monkeypatch, bad, case([1.0], [], 'good'))
  for args, status, names in (([], 1, ['bad', 'good']), (['--case', '^g'], 0, ['good'])):
    (here / 'order').unlink(missing_ok=True)
    assert cli.main(['bench', 'toy', '--repeats', '1', '--json', *args]) == status
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [r['name'] for r in found['rows']] == names


@pytest.mark.parametrize('repeats', [0, -1])
def test_repeats_are_at_least_one(repeats):
  with pytest.raises(FewshotError, match='--repeats is at least 1'):
    bench.run('step', repeats)


def test_an_unknown_benchmark_names_the_nearest():
  with pytest.raises(FewshotError, match="no benchmark 'stpe'; did you mean 'step'"):
    bench.run('stpe', 1)


def test_a_file_without_cases_is_no_benchmark():
  with pytest.raises(FewshotError, match="no benchmark 'plots'; "):
    bench.run('plots', 1)


NAMES = sorted(p.stem for p in bench.FOLDER.glob('*.py') if p.stem not in ('plots', 'page'))


@pytest.mark.parametrize('name', NAMES)
def test_every_benchmark_has_cases_of_files_that_are_there(name):
  try:
    made = bench._module(name).cases()
  except FewshotError as e:
    if 'FEWSHOT_DATA' not in str(e):
      raise
    pytest.skip(str(e))
  assert len({c.name for c in made}) == len(made) > 0
  for c in made:
    assert isinstance(c, Case) and Path(c.ours[0]).is_file() and c.key and c.unit


def test_rates_of_the_device_are_rates():
  assert 1e6 < bench.matmul_flops_per_s(64) < 1e16
  assert 1e6 < bench.copy_bytes_per_s(1) < 1e15
