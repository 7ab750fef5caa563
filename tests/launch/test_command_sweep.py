"""The command line of `fewshot sweep` and `fewshot status`: each mistake is one line, exit 2."""

import json

import pytest

from fewshot import cli, command_sweep
from fewshot.launch import plans
from tests.robustness import held, workplace


@pytest.fixture
def place(tmp_path, monkeypatch):
  return workplace.enter(tmp_path, monkeypatch)


def refused(capsys, *argv: str) -> str:
  assert cli.main(['sweep', *argv]) == 2
  (line,) = workplace.lines(capsys.readouterr().err)
  return line


MISTAKES = {
  ('config.py', '--workers', '0'): '--workers: 0 is no whole number above 0',
  ('config.py', '--workers', 'two'): '--workers: two is no whole number',
  ('config.py', '--workers', '2'): '--workers 2 goes with --launcher processes, slurm or local',
  ('config.py', '--launcher', 'slurm', '--time', '1:00:00'): '--time: 1:00:00 is no whole number',
  ('config.py', '--launcher', 'slurm', '--memory', 'nan'): '--memory: nan is no number of GB',
  ('config.py', '--launcher', 'local', '--gres', 'gpu:1'): '--gres is of --launcher slurm',
  (
    'config.py',
    '--launcher',
    'processes',
    '--time',
    '5',
  ): '--time is of --launcher local and slurm',
  ('config.py', '--time', '5'): 'leave it out with --launcher here',
  ('config.py', '--launcher', 'slrum'): "did you mean 'slurm'",
  ('config.py', '--launcher', 'processes', '--out', 'config.py/x'): 'cannot write to the folder',
  ('other.py', '--launcher', 'processes'): 'there is no config file other.py',
  ('config.py', '--launcher', 'processes', '--config.k=x'): "config.k is of type int, not 'x'",
  (): 'takes a config, or --resume and a folder',
  ('config.py', '--resume', 'runs/tiny'): 'takes a config, or --resume and a folder',
  ('--resume', 'runs/tiny', '--fresh'): 'leave --fresh and --out away',
  ('--resume', 'runs/tiny'): 'runs/tiny does not say what made it (command.json, config.py)',
}


@pytest.mark.parametrize(('argv', 'said'), MISTAKES.items(), ids=lambda x: ' '.join(x)[:60])
def test_a_mistake_is_one_line(place, capsys, monkeypatch, argv, said):
  del place
  monkeypatch.setattr('shutil.which', lambda name: f'/usr/bin/{name}')
  assert said in refused(capsys, *argv)


DAMAGED = ('', '[]', '{}', '{"overrides": "k=3"}', '{"overrides": [3]}', '[' * 100_000)


@pytest.mark.parametrize('text', DAMAGED, ids=lambda text: text[:20] or 'empty')
def test_a_folder_whose_command_is_damaged_does_not_resume(place, capsys, text):
  (place / 'command.json').write_text(text)  # And config.py is there.
  assert 'does not say what made it' in refused(capsys, '--resume', '.')


def test_a_folder_goes_on_by_what_it_was_made_with(place, capsys):
  (place / 'runs').mkdir()
  (place / 'config.py').rename(place / 'runs/config.py')
  (place / 'runs/command.json').write_text(json.dumps({'overrides': ['k=x']}))
  assert "config.k is of type int, not 'x'" in refused(capsys, '--resume', 'runs')
  assert 'leave --config. out' in refused(capsys, '--resume', 'runs', '--config.k=3')


def test_records_stay_where_nothing_can_be_launched(place, capsys, monkeypatch):
  (place / 'runs/tiny').mkdir(parents=True)
  (place / 'runs/tiny/records.jsonl').write_text('')
  monkeypatch.setenv('PATH', str(place))
  assert 'no sbatch' in refused(capsys, 'config.py', '--launcher', 'slurm', '--fresh')
  assert [f.name for f in (place / 'runs/tiny').iterdir()] == ['records.jsonl']


def test_a_config_in_another_encoding_is_kept_as_it_is(place):
  text = '# coding: latin-1\n# caf\xe9\n'.encode('latin-1') + (place / 'config.py').read_bytes()
  (place / 'config.py').write_bytes(text)
  (place / 'made').mkdir()
  command_sweep._remember(place / 'made', 'config.py', ['k=2', 'out=made'])
  assert (place / 'made/config.py').read_bytes() == text
  assert command_sweep.resume('made', []) == ('made/config.py', ['k=2'])


def test_status_says_what_it_wants(place, capsys):
  for folder in ('config.py', 'nowhere'):
    assert cli.main(['status', folder]) == 2
    (line,) = workplace.lines(capsys.readouterr().err)
    assert 'has no plan and no records; give the folder of a run' in line


def test_status_before_a_worker_begins(place, capsys):
  plans.write(place, [])
  assert cli.main(['status', '.']) == 0
  assert 'no worker has begun yet' in capsys.readouterr().out


def test_what_a_worker_s_mistake_was_is_said(place, capsys, monkeypatch):
  monkeypatch.setenv('PYTHONPATH', str(held.ROOT))
  argv = ['sweep', 'config.py', '--launcher', 'processes', '--config.method=lorra()']
  assert cli.main(argv) == 2
  last = workplace.lines(capsys.readouterr().err)[-1]
  assert last.startswith('a worker ended with status 2: ') and "'lorra'" in last
