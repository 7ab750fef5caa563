"""The benchmark harness, on scripts that note who ran and print what they are told."""

import json
from pathlib import Path
from types import SimpleNamespace

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
  import sys

  monkeypatch.setenv('FEWSHOT_PEERS', str(folder / 'peers'))
  monkeypatch.setenv('FEWSHOT_PEERS_PYTHON', sys.executable)


def case(ours: list[float], peer: list[float], **more: float) -> Case:
  a, b = json.dumps({'ms': ours, **more}), json.dumps({'ms': peer})
  return Case('toy', ['ours.py', 'A', a], ['peer.py', 'B', b], 'ms', 'ms')


def test_sides_take_turns_and_medians_are_divided(here, monkeypatch):
  use(monkeypatch, case([9.0, 1.0, 2.0], [4.0, 8.0, 100.0], limit=0.5))
  with_peers(monkeypatch, here)
  (row,) = bench.run('toy', 3)['rows']
  assert (here / 'order').read_text() == 'ABABAB'
  assert row == {
    'name': 'toy', 'ours': 2.0, 'peer': 8.0, 'ratio': 0.25, 'limit': 0.5, 'unit': 'ms', 'n': 3,
  }  # fmt: skip


def test_without_a_peer_its_columns_are_null(here, monkeypatch, capsys):
  use(monkeypatch, case([3.0], []))
  assert cli.main(['bench', 'toy', '--repeats', '1', '--json']) == 0
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert set(found) == {'machine', 'rows'}
  (row,) = found['rows']
  assert row['peer'] is None and row['ratio'] is None and row['limit'] is None
  assert (here / 'order').read_text() == 'A'
  (here / 'order').unlink()
  assert cli.main(['bench', 'toy', '--repeats', '1']) == 0
  printed = capsys.readouterr()
  assert 'ours 3 ms, peer not measured, ratio -, limit -' in printed.out
  assert 'set FEWSHOT_PEERS' in printed.err


@pytest.mark.parametrize(
  ('source', 'said'),
  [
    ('print("warm"); print("no json")', 'ours.py printed no JSON line last: no output'),
    ('', 'ours.py printed no JSON line last'),
    ('print("[1, 2]")', 'ours.py printed no JSON line last'),
    ('print("{}")', "ours.py printed no number 'ms'; it printed nothing"),
    ('print(\'{"ms": "fast", "s": 1}\')', "ours.py printed no number 'ms'; it printed ms, s"),
    ('raise SystemExit("out of luck")', 'printed no JSON line last: out of luck'),
    ('print(\'{"ms": 1}\'); 1 / 0', 'printed no JSON line last: ZeroDivisionError'),
  ],
)
def test_a_script_that_prints_something_else_is_one_line(here, monkeypatch, capsys, source, said):
  (here / 'ours.py').write_text(source)
  use(monkeypatch, case([1.0], []))
  assert cli.main(['bench', 'toy', '--repeats', '1']) == 2
  err = capsys.readouterr().err
  assert said in err and err.count('\n') == 1


def test_a_peer_that_cannot_run_is_one_line(here, monkeypatch):
  use(monkeypatch, case([1.0], [1.0]))
  with_peers(monkeypatch, here)
  monkeypatch.setenv('FEWSHOT_PEERS_PYTHON', str(here / 'no-python'))
  with pytest.raises(FewshotError, match='cannot run no-python: No such file'):
    bench.run('toy', 1)


@pytest.mark.parametrize('repeats', [0, -1])
def test_repeats_are_at_least_one(repeats):
  with pytest.raises(FewshotError, match='--repeats is at least 1'):
    bench.run('step', repeats)


def test_an_unknown_benchmark_names_the_nearest():
  with pytest.raises(FewshotError, match="no benchmark 'stpe'; did you mean 'step'"):
    bench.run('stpe', 1)


def test_every_file_of_benchmarks_is_a_benchmark():
  folder = Path(__file__).parents[1] / 'benchmarks'
  for file in folder.glob('*.py'):
    for made in bench._module(file.stem).cases():
      assert isinstance(made, Case) and Path(made.ours[0]).is_file() and made.key and made.unit
