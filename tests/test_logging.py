"""The log: JSON lines always, wandb when asked, and neither ever stops a run or tells a secret."""

import json
import sys

import pytest

from fewshot import cli, logging
from fewshot.errors import FewshotError
from tests.robustness import workplace

OFF = {'mode': 'disabled', 'project': 'fewshot'}
RECORD = {
  'method': 'linear()', 'split': {'seed': 3}, 'seed': 0, 'curve': [1.5, float('nan')],
  'scores': {'accuracy': {'value': 0.5}},
}  # fmt: skip


def lines(folder):
  def refuse(constant):
    raise AssertionError(f'{constant} is not JSON')

  text = (folder / logging.NAME).read_text()
  return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_events_and_records_are_json_lines_that_are_added_to(tmp_path):
  for _ in range(2):
    log = logging.open_log(tmp_path, 'toy', OFF, {})
    log.event('timings', seconds=1.0)
    log.record(RECORD)
    log.close()
  run = {'event': 'run', 'run': 'linear() split 3 seed 0', 'accuracy': 0.5, 'curve': [1.5, None]}
  assert lines(tmp_path) == [{'event': 'timings', 'seconds': 1.0}, run] * 2


def test_a_log_that_cannot_be_opened_is_one_line(tmp_path):
  (tmp_path / logging.NAME).mkdir()
  with pytest.raises(FewshotError, match=r'cannot write the log .*Is a directory'):
    logging.open_log(tmp_path, 'toy', OFF, {})


def test_a_full_disk_costs_the_log_alone(tmp_path, capsys, monkeypatch):
  log = logging.open_log(tmp_path, 'toy', OFF, {})

  class Full:
    def write(self, text):
      raise OSError(28, 'No space left on device')

    close = write

  monkeypatch.setattr(log, '_file', Full())
  Full.close = lambda self: self.write('')
  log.event('timings', seconds=1.0)
  log.close()
  err = capsys.readouterr().err
  assert 'No space left on device' in err and 'the run goes on' in err and err.count('\n') == 1


def test_an_unknown_mode_names_the_nearest(tmp_path):
  with pytest.raises(FewshotError, match="'ofline'; did you mean 'offline'"):
    logging.open_log(tmp_path, 'toy', {**OFF, 'mode': 'ofline'}, {})


def test_without_wandb_one_line_says_how_to_get_it(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(FewshotError, match=r"needs wandb; install it: pip install -e '\.\[wandb\]'"):
    logging.open_log(tmp_path, 'toy', {**OFF, 'mode': 'offline'}, {})


def test_a_wandb_that_does_not_start_is_one_line(tmp_path, monkeypatch):
  wandb = pytest.importorskip('wandb')

  def init(**kwargs):
    raise wandb.errors.CommError('no network\nlong story')

  monkeypatch.setattr(wandb, 'init', init)
  with pytest.raises(FewshotError, match=r'wandb does not start \(no network\); run with'):
    logging.open_log(tmp_path, 'toy', {**OFF, 'mode': 'online'}, {})


def test_a_wandb_that_breaks_later_is_left_out(tmp_path, capsys):
  class Broken:
    def log(self, figures):
      raise ConnectionError('gone')

  log = logging.Log(tmp_path, Broken())
  log.record(RECORD)
  log.record(RECORD)
  log.close()
  assert capsys.readouterr().err == 'fewshot: wandb is left out from here on (gone)\n'
  assert len(lines(tmp_path)) == 2


def test_a_secret_in_the_config_is_refused_before_it_is_logged(tmp_path, monkeypatch):
  monkeypatch.setenv('SOME_TOKEN', 'hunter2hunter2')
  with pytest.raises(FewshotError, match='environment variable SOME_TOKEN') as error:
    logging.open_log(tmp_path, 'toy', OFF, {'wandb': {'project': 'at hunter2hunter2'}})
  assert 'hunter2' not in str(error.value) and not list(tmp_path.iterdir())


def test_offline_wandb_holds_the_curves_without_account_network_or_secrets(
  tmp_path, monkeypatch, capsys
):
  workplace.enter(tmp_path, monkeypatch)
  workplace.config(tmp_path, workplace.CHEAP[1:])
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  monkeypatch.setenv('WANDB_API_KEY', 'k' * 20 + '0123456789' * 2)
  monkeypatch.setenv('MY_PASSWORD', 'correct horse battery')
  for name in ('HTTP_PROXY', 'HTTPS_PROXY', 'WANDB_BASE_URL'):
    monkeypatch.setenv(name, 'http://127.0.0.1:9')  # Nothing listens there.
  assert cli.main(['run', 'config.py', '--config.wandb.mode=offline', '--config.splits=(0,)']) == 0
  out = tmp_path / 'runs' / 'tiny'
  (file,) = out.glob('wandb/offline-run-*/run-*.wandb')
  held = file.read_bytes()
  (record,) = workplace.records(tmp_path)
  assert b'accuracy/linear() split 0 seed 0' in held
  assert str(record['scores']['accuracy']['value']).encode() in held
  for loss in record['curve']:
    assert b'loss/linear() split 0 seed 0' in held and str(loss).encode() in held
  for path in out.rglob('*'):
    if path.is_file():
      assert b'0123456789' * 2 not in path.read_bytes(), path
      assert b'correct horse' not in path.read_bytes(), path
  assert str(tmp_path).encode() not in held
