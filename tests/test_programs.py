"""Programs in configs: `fewshot run` of one, its records, resuming, what is refused."""

import json

import pytest

from fewshot import cli
from tests.robustness import workplace

PROGRAM = 'lt_sft(budget=0.1, fit=sgd(steps=3, lr=0.01))'
ROWS = (('linear()', 'sgd(steps=3)'),)


@pytest.fixture
def place(tmp_path, monkeypatch):
  workplace.enter(tmp_path, monkeypatch)
  workplace.config(tmp_path, ROWS)
  return tmp_path


def test_a_program_is_a_row_of_records_that_resumes_from_its_stages(place, capsys):
  argv = ['run', 'config.py', f'--config.program={PROGRAM}', '--json']
  assert cli.main(argv) == 0
  (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])
  first, second = workplace.records(place)
  assert row['method'] == first['method'] == PROGRAM and first['fit'] == ''
  assert [r['split']['seed'] for r in (first, second)] == [0, 1]
  names = [s['stage'] for s in first['stages']]
  assert names[0] == 'train' and 'rewind' in names and not any(s['cached'] for s in first['stages'])
  assert first['trained'] == max(s.get('trained', 0) for s in first['stages']) > 0
  assert len(first['predictions']) == first['scores']['accuracy']['n']
  assert str(place) not in json.dumps(first)

  assert cli.main(argv) == 0 and len(workplace.records(place)) == 2
  (place / 'runs' / 'tiny' / 'records.jsonl').write_text(json.dumps(first) + '\n')
  assert cli.main(argv) == 0
  again = workplace.records(place)[1]
  assert all(s['cached'] for s in again['stages'])
  assert {k: again[k] for k in ('id', 'scores', 'predictions')} == {
    k: second[k] for k in ('id', 'scores', 'predictions')
  }


def test_dry_run_names_the_stages(place, capsys):
  argv = ['run', 'config.py', '--dry-run', f'--config.program={PROGRAM}']
  assert cli.main([*argv, '--json']) == 0
  (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])['rows']
  assert row['method'] == PROGRAM and row['stages'][0] == 'train' and row['runs'] == 2
  assert cli.main(argv) == 0
  assert f'{PROGRAM}  train, ' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('overrides', 'said'),
  [
    (['program=lt_stf()'], "did you mean 'lt_sft'"),
    (['program=lora()'], 'spells no program'),
    (["program=train(lora(), sgd(steps=2), data='other')"], "given no data 'other'"),
    ([f'program={PROGRAM}', 'grid.lr=(0.1,)', 'dev_k=1'], 'leave grid, objective and checkpoints'),
    ([f'program={PROGRAM}', 'checkpoints=True'], 'leave grid, objective and checkpoints'),
  ],
)
def test_a_mistake_is_one_line_before_anything_runs(place, capsys, overrides, said):
  assert cli.main(['run', 'config.py', *(f'--config.{o}' for o in overrides)]) == 2
  err = workplace.lines(capsys.readouterr().err)
  assert said in err[-1] and err[-1].startswith('fewshot: ')
