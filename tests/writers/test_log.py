"""The log: JSON lines always, dashboards when asked, and none tells a secret."""

import importlib.util
import sys

import pytest

from fewshot import cli, writers
from fewshot.errors import FewshotError
from fewshot.writers import behind, jsonl
from tests.robustness import workplace
from tests.writers import reading


def test_events_and_records_are_json_lines_that_are_added_to(tmp_path):
  for _ in range(2):
    log = writers.open_log(tmp_path, [reading.config()])
    log.event('timings', seconds=1.0)
    log.scalars('training', 10, {'loss': float('inf')})
    log.record(reading.record(curve=[1.5, float('nan')]))
    log.table([{'method': 'linear()', 'mean': 0.5}], '| a |')
    log.close()
  name = 'linear() lr=0.01 split 3 seed 0 beefbe'
  assert reading.lines(tmp_path) == 2 * [
    {'event': 'timings', 'seconds': 1.0},
    {'event': 'scalars', 'run': 'training', 'step': 10, 'loss': None},
    {'event': 'run', 'run': name, 'accuracy': 0.5, 'curve': [1.5, None]},
    {'event': 'table', 'rows': [{'method': 'linear()', 'mean': 0.5}]},
  ]


def test_a_log_that_cannot_be_opened_is_one_line(tmp_path):
  (tmp_path / jsonl.NAME).mkdir()
  with pytest.raises(FewshotError, match=r'cannot write the log .*Is a directory'):
    writers.open_log(tmp_path, [reading.config()])


def test_a_full_disk_costs_the_log_alone(tmp_path, capsys, monkeypatch):
  log = jsonl.Jsonl(tmp_path)

  class Full:
    def write(self, text):
      raise OSError(28, 'No space left on device')

    def close(self):
      self.write('')

  monkeypatch.setattr(log, '_file', Full())
  log.event('timings', seconds=1.0)
  log.close()
  err = capsys.readouterr().err
  assert 'No space left on device' in err and 'the run goes on' in err and err.count('\n') == 1


def test_an_unknown_mode_names_the_nearest(tmp_path):
  with pytest.raises(FewshotError, match="'ofline'; did you mean 'offline'"):
    writers.open_log(tmp_path, [reading.config(wandb__mode='ofline')])


@pytest.mark.parametrize(
  ('extra', 'package', 'changes'),
  [
    ('wandb', 'wandb', {'wandb__mode': 'offline'}),
    ('tensorboard', 'tensorboardX', {'tensorboard': True}),
  ],
)
def test_a_package_that_is_not_there_is_one_line(tmp_path, monkeypatch, extra, package, changes):
  found = importlib.util.find_spec
  monkeypatch.delitem(sys.modules, package, raising=False)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda n: None if n == package else found(n))
  with pytest.raises(FewshotError, match=rf"needs {package}; install it: pip .*'\.\[{extra}\]'"):
    writers.open_log(tmp_path, [reading.config(**changes)])
  assert not list(tmp_path.iterdir())


def test_a_secret_in_the_config_is_refused_before_it_is_logged(tmp_path, monkeypatch):
  monkeypatch.setenv('SOME_TOKEN', 'hunter2hunter2')
  with pytest.raises(FewshotError, match='environment variable SOME_TOKEN') as error:
    writers.open_log(tmp_path, [reading.config(wandb__project='at hunter2hunter2')])
  assert 'hunter2' not in str(error.value) and not list(tmp_path.iterdir())


def test_a_sweep_is_logged_with_the_values_of_all_its_rows(tmp_path):
  rows = [reading.config(method='ia3()'), reading.config(method='bitfit()', k=4)]
  found = writers.shared([dict(c) for c in rows])
  assert found['method'] == ['ia3()', 'bitfit()'] and found['k'] == [16, 4]
  assert found['task'] == 'trec'


@pytest.mark.slow
def test_a_run_with_every_dashboard_tells_nothing_of_this_machine(tmp_path, monkeypatch, capsys):
  wandb = pytest.importorskip('wandb')
  pytest.importorskip('tensorboardX')
  workplace.enter(tmp_path, monkeypatch)
  workplace.config(tmp_path, workplace.CHEAP[1:])
  reading.plant(tmp_path, monkeypatch)
  monkeypatch.setattr(behind, 'PATIENCE', 60)  # Whatever else the machine does.
  monkeypatch.setattr(behind, 'LIMIT', 60)
  for name in ('HTTP_PROXY', 'HTTPS_PROXY', 'WANDB_BASE_URL'):
    monkeypatch.setenv(name, 'http://127.0.0.1:9')  # Nothing listens there.
  asked = ['--config.wandb.mode=offline', '--config.tensorboard=True', '--config.splits=(0,)']
  assert cli.main(['run', 'config.py', *asked]) == 0
  wandb.teardown()  # As at the end of a process: the files are whole.
  assert 'left' not in capsys.readouterr().err
  out = tmp_path / 'runs' / 'tiny'
  assert list(out.glob('wandb/offline-run-*/run-*.wandb'))
  assert len(list(out.glob('tensorboard/**/events.out.tfevents.*'))) == 2
  assert [e['event'] for e in reading.lines(out)] == ['run', 'timings', 'table']
  assert reading.leaks(out) == []
