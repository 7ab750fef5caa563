"""TensorBoard's writer: its files as TensorBoard reads them, served, and drawn in a browser."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fewshot.writers import base, behind
from tests.writers import reading

pytest.importorskip('tensorboardX')
pytest.importorskip('tensorboard')

NAME = 'linear() lr=0.01 split 3 seed 0 beefbe'
FLAGS = (
  *('headless=new', 'no-sandbox', 'disable-gpu', 'no-first-run', 'disable-background-networking'),
  *('disable-component-update', 'disable-sync', 'disable-quic', 'window-size=1280,800'),
)


@pytest.fixture(scope='module')
def logged(tmp_path_factory) -> Path:
  """The folder of two runs, an event, a training and a table."""
  from fewshot.writers.tensorboard import TensorBoard

  out = tmp_path_factory.mktemp('tensorboard')
  writer = TensorBoard(out, {'task': 'toy', 'k': [4, 8]})
  writer.event('timings', run='a', seconds=1.5)
  writer.event('timings', run='b', seconds=2.5)
  writer.scalars('training 1', 40, {'loss': 0.125})
  writer.record(reading.record(curve=[1 / (1 + i) for i in range(500)]))
  writer.record(reading.record(id='f' * 16, method="lora('.*/(query|value)')", hyper={}))
  writer.table([{'method': 'linear()'}], '| method |\n| --- |\n| `linear()` |')
  writer.close()
  return out / 'tensorboard'


def read(folder: Path) -> Any:
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

  return EventAccumulator(str(folder), size_guidance={'scalars': 0}).Reload()


def test_a_run_is_a_folder_with_its_curve_and_scores(logged):
  names = {p.name for p in logged.iterdir() if p.is_dir()}
  assert names == {NAME, 'training 1', 'lora(-.-(query-value)-) split 3 seed 0 ffffff'}
  found = read(logged / NAME)
  curve = [(e.step, e.value) for e in found.Scalars('loss')]
  assert len(curve) == base.POINTS and curve[0] == (0, 1.0) and curve[-1][0] == 499
  assert all(loss == pytest.approx(1 / (1 + step), rel=1e-6) for step, loss in curve)
  assert [(e.step, e.value) for e in found.Scalars('accuracy')] == [(499, 0.5)]


def test_its_hyper_parameters_are_a_session(logged):
  from tensorboard.plugins.hparams import metadata

  found = read(logged / NAME).PluginTagToContent('hparams')
  told = metadata.parse_session_start_info_plugin_data(found['_hparams_/session_start_info'])
  assert told.hparams['lr'].number_value == 0.01 and told.hparams['split'].number_value == 3
  assert told.hparams['method'].string_value == 'linear()'


def test_events_count_up_and_trainings_go_on(logged):
  seconds = read(logged).Scalars('timings/seconds')
  assert [(e.step, e.value) for e in seconds] == [(0, 1.5), (1, 2.5)]
  (point,) = read(logged / 'training 1').Scalars('loss')
  assert (point.step, point.value) == (40, 0.125)


def test_config_and_table_are_texts(logged):
  tensors = read(logged)
  texts = {k: tensors.Tensors(k)[0].tensor_proto.string_val[0] for k in tensors.Tags()['tensors']}
  assert b'"k": [4, 8]' in texts['config/text_summary']
  assert texts['table/text_summary'].endswith(b'| `linear()` |')


def test_files_do_not_name_the_host(logged):
  assert reading.leaks(logged) == []
  names = [p.name for p in logged.rglob('events*')]
  assert len(names) == 4 and all(re.fullmatch(r'events\.out\.tfevents\.\d{19}', n) for n in names)


def test_a_full_disk_costs_the_dashboard_alone(tmp_path, capsys, monkeypatch):
  from fewshot.writers import tensorboard

  def full(self, data):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(tensorboard.RecordWriter, 'write', full)
  writer = behind.Behind('TensorBoard', lambda: tensorboard.TensorBoard(tmp_path, {}))
  writer.record(reading.record())
  writer.close()
  said = capsys.readouterr().err
  assert said == (
    'fewshot: TensorBoard is left out from here on ([Errno 28] No space left on device)\n'
  )


@contextlib.contextmanager
def served(folder: Path, log: Path) -> Iterator[str]:
  """TensorBoard on a free port of loopback; its address."""
  code = 'from tensorboard.main import run_main; run_main()'
  asked = ['--logdir', str(folder), '--port', '0', '--load_fast=false']
  with log.open('w') as said:
    process = subprocess.Popen([sys.executable, '-c', code, *asked], stdout=said, stderr=said)
  try:
    within(60, lambda: re.search(r'http://localhost:\d+/', log.read_text()) or process.poll())
    found = re.search(r'http://localhost:\d+/', log.read_text())
    assert found, log.read_text()
    yield found.group()
  finally:
    process.terminate()
    process.wait(10)


def within(seconds: float, ask: Any) -> Any:
  """What is answered as soon as it is true."""
  end = time.monotonic() + seconds
  while not (found := ask()):
    assert time.monotonic() < end, 'no answer'
    time.sleep(0.2)
  return found


def tags(address: str) -> dict[str, Any]:
  with urllib.request.urlopen(f'{address}data/plugin/scalars/tags', timeout=30) as answer:
    return json.load(answer)


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Any]:
  """Chromium without a window, with a profile of its own."""
  from selenium import webdriver

  options = webdriver.ChromeOptions()
  options.binary_location = shutil.which('chromium')
  for flag in (*FLAGS, f'user-data-dir={profile}'):
    options.add_argument(f'--{flag}')
  driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which('chromedriver')))
  try:
    yield driver
  finally:
    driver.quit()


@pytest.mark.slow
def test_a_page_of_it_is_drawn_in_a_browser(logged, tmp_path):
  pytest.importorskip('selenium')
  if not (shutil.which('chromium') and shutil.which('chromedriver')):
    pytest.skip('chromium and chromedriver are not installed')
  with served(logged, tmp_path / 'said') as address:
    found = within(30, lambda: tags(address))
    assert set(found[NAME]) == {'loss', 'accuracy'} and set(found['.']) == {'timings/seconds'}
    with browser(tmp_path / 'profile') as driver:
      driver.get(f'{address}#timeseries')
      shown = lambda: driver.execute_script('return document.body.innerText')  # noqa: E731
      text = within(60, lambda: NAME in shown() and 'accuracy' in shown() and shown())
  assert {'loss', 'accuracy', 'timings'} <= set(text.split())
