"""The files of benchmarks/ at their smallest: they run, and what they print holds together."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fewshot import bench, engine, experiment, prepared, records, tables, writers
from fewshot.errors import FewshotError

LLAMA = {
  'model_type': 'llama', 'vocab_size': 50, 'hidden_size': 32, 'num_hidden_layers': 1,
  'num_attention_heads': 4, 'num_key_value_heads': 2, 'intermediate_size': 64,
  'max_position_embeddings': 64, 'rope_theta': 1e5, 'rms_norm_eps': 1e-5,
  'tie_word_embeddings': True,
}  # fmt: skip


def load(name: str) -> ModuleType:
  spec = importlib.util.spec_from_file_location(f'bench_{name}', bench.FOLDER / f'{name}.py')
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


NAMES = ('decode', 'memory', 'selection', 'start', 'scale', 'plots', 'overhead')
decode, memory, selection, start, scale, plots, overhead = map(load, NAMES)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
  """Runs the main of a benchmark, and reads its line."""

  def run(module: ModuleType, *args: Any, **kwargs: Any) -> dict[str, Any]:
    module.main(*args, **kwargs)
    return json.loads(capsys.readouterr().out.splitlines()[-1])

  return run


MODULES = [decode, memory, selection, start, scale, overhead]


@pytest.mark.parametrize('module', MODULES, ids=lambda m: m.__name__)
def test_both_sides_of_a_case_do_the_same_work(module):
  for case in module.cases():
    for script, *_ in filter(None, (case.ours, case.peer)):
      assert Path(script).is_file() and bench.FOLDER in Path(script).parents
    if case.peer and Path(case.peer[0]) != Path(case.ours[0]):
      assert case.ours[1:] == case.peer[1:]
    elif case.peer:  # Ourselves, with one argument changed.
      assert sum(a != b for a, b in zip(case.ours, case.peer, strict=True)) == 1


def test_selection_keeps_four_times_the_bytes_of_what_it_chose(printed):
  found = printed(selection, 'merged', '2', 'tiny')
  assert found['ms_median'] > 0 and found['temp_bytes'] > 0
  # Theta, index and two moments; of a choice so small Adam's counters tell.
  kept = found['state_bytes']
  assert 4 * kept / found['state_ratio'] <= kept <= 4 * kept / found['state_ratio'] + 32


def test_decoding_prints_its_rate_and_the_time_to_compile(printed, monkeypatch):
  monkeypatch.setattr(decode, 'matmul_flops_per_s', lambda: 1e9)
  monkeypatch.setattr(decode, 'copy_bytes_per_s', lambda: 4e9)
  found = printed(decode, 2, 4, 3, LLAMA)
  assert set(found) == {'ms_per_token', 'tokens_per_s', 'compile_s', 'limit'}
  assert all(v > 0 for v in found.values())
  assert found['tokens_per_s'] == pytest.approx(2e3 / found['ms_per_token'])
  weights = 50 * 32 + 32 * (32 + 16 + 16 + 32) + 3 * 32 * 64 + 3 * 32
  assert found['limit'] == pytest.approx(1e3 * 2 * weights * 2 / 1e9)  # The products take longer.


def test_the_peer_decodes_as_many_tokens():
  python = os.environ.get('FEWSHOT_PEERS_PYTHON')
  if not python:
    pytest.skip('FEWSHOT_PEERS_PYTHON names no Python with Transformers')
  command = [python, str(bench.FOLDER / 'peers' / 'decode.py'), '2', '4', '3', json.dumps(LLAMA)]
  found = bench._json_of(command)  # It asserts the shape of what it decoded.
  assert found['tokens_per_s'] == pytest.approx(2e3 / found['ms_per_token'])


def test_memory_of_seeds_shares_the_frozen_weights(printed, monkeypatch):
  monkeypatch.setattr(memory, 'BATCHES', (1, 2))
  one, eight = (printed(memory, 'bitfit', seeds, 'tiny') for seeds in ('1', '8'))
  for found in (one, eight):
    assert found['fixed_bytes'] == found['argument_bytes'] + found['temp_intercept']
    line = found['temp_intercept'] + found['temp_per_example'] * np.array(memory.BATCHES)
    np.testing.assert_allclose(found['temp_bytes'], line)
  frozen = 4 * (50 * 32 + 64 * 32 + 2 * 32 + 4 * 32 * 33 + 32 * 64 * 2 + 64 + 32 + 6 * 32)
  examples = memory.EXAMPLES * (memory.LENGTH * 5 + 4)
  assert frozen + examples < one['argument_bytes']
  grown = eight['argument_bytes'] - one['argument_bytes']
  assert 7 * examples < grown < 7 * (one['argument_bytes'] - frozen) * 1.01


def test_help_is_timed_against_an_empty_python(printed):
  found = printed(start, 'help')
  assert 0 < found['limit'] < found['seconds'] < 60


def test_warm_is_the_second_start_with_one_cache(printed, monkeypatch):
  seen: list[tuple[str, str]] = []

  def took(shape: str, cache: str) -> float:
    assert Path(cache).is_dir() and not list(Path(cache).iterdir())
    seen.append((shape, cache))
    return 10.0 - len(seen)

  monkeypatch.setattr(start, '_to_first_step', took)
  assert printed(start, 'warm', 'tiny') == {'seconds': 8.0}
  assert seen[0] == seen[1]
  assert printed(start, 'cold', 'tiny') == {'seconds': 7.0}
  assert seen[2][1] != seen[0][1] and not Path(seen[0][1]).exists()


@pytest.mark.slow
def test_a_process_gets_to_its_first_step_and_leaves_its_programs(tmp_path):
  assert 0 < start._to_first_step('tiny', str(tmp_path)) < 600
  assert list(tmp_path.iterdir())


def test_growth_is_measured_and_fitted(printed):
  found = printed(scale, 'seeds', quick=True)
  assert [p['n'] for p in found['points']] == [1, 2]
  one, two = found['points']
  assert all(p['seconds'] > 0 and p['compile_seconds'] > 0 for p in found['points'])
  assert one['bytes'] < two['bytes'] < 2 * one['bytes']
  assert found['bytes_exponent'] == pytest.approx(np.log2(two['bytes'] / one['bytes']))
  assert found['bytes_r2'] == pytest.approx(1) and found['seconds_r2'] == pytest.approx(1)


def test_a_power_law_is_found():
  n = [1, 2, 4, 8, 16]
  exponent, r2 = scale.power_law(n, [3 * x**1.5 for x in n])
  assert exponent == pytest.approx(1.5) and r2 == pytest.approx(1)
  assert scale.power_law(n, [1, 3, 1, 3, 1])[1] < 0.1
  assert scale.power_law(n, [7] * 5) == pytest.approx((0, 1))


def test_the_command_line_of_scale_names_its_axes():
  command = [sys.executable, str(bench.FOLDER / 'scale.py'), 'depth']
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 2 and 'choose from' in done.stderr


@pytest.fixture
def results(tmp_path: Path) -> list[str]:
  """A file of ratios, with an old row that has no bar, and one of growth."""
  rows = [
    {'name': 'fast & new', 'ratio': 0.5, 'bar': 0.7},
    {'name': 'old', 'ratio': 1.2},
    {'name': 'failed', 'ratio': None, 'bar': 0.7},
  ]
  points = [{'n': n, 'seconds': 0.1 * n, 'bytes': 1e6} for n in (1, 4, 16)]
  printed = {'axis': 'shots', 'points': points, 'seconds_exponent': 1.0, 'seconds_r2': 1.0}
  printed |= {'bytes_exponent': 0.0, 'bytes_r2': 1.0}
  grown = [{'name': 'seconds by shots', 'ratio': None, 'printed': printed}]
  for name, rows_ in (('ratios', rows), ('scale', grown)):
    result = {'machine': 'a machine', 'date': '2026-01-01', 'rows': rows_}
    (tmp_path / f'{name}.json').write_text(
      'a line before\n' * (name == 'scale') + json.dumps(result)
    )
  return [str(tmp_path / f'{name}.json') for name in ('ratios', 'scale')]


def test_plots_are_drawn_the_same_twice(results, tmp_path):
  first, again = (plots.main(results, str(tmp_path / out)) for out in ('a', 'b'))
  assert [p.name for p in first] == ['ratios.svg', 'scale.svg']
  assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
  text = first[0].read_text()
  assert text.count('fast &amp; new') == 1 and plots.BAR.lower() in text.lower()
  assert 'shots: n^1.00' in first[1].read_text() and '<!-- failed -->' not in text


def test_what_cannot_be_plotted_is_said(results, tmp_path):
  assert [p.name for p in plots.main(results[1:], str(tmp_path))] == ['scale.svg']
  bad = tmp_path / 'bad.json'
  for text, said in (('{}', 'holds no result'), ('no json', 'holds no result'),
                     ('{"rows": []}', 'no row has a ratio or points')):  # fmt: skip
    bad.write_text(text)
    with pytest.raises(FewshotError, match=said):
      plots.main([str(bad)], str(tmp_path))
  with pytest.raises(FewshotError, match=r'cannot read .*gone\.json: No such file'):
    plots.main([str(tmp_path / 'gone.json')], str(tmp_path))


def test_the_page_is_that_of_the_committed_results():
  page = load('page')
  assert page.PAGE.read_text(encoding='utf-8') == page.page()


def test_the_overhead_is_what_the_runs_did_not_take(tmp_path, monkeypatch):
  timed = ((prepared, 'prepare'), (experiment, 'identity'), (records, 'append'))
  for module, name in (*timed, (tables, 'write'), (engine, 'compile_programs')):
    monkeypatch.setattr(module, name, getattr(module, name))  # They are put back.
  slow, told = writers.Log.event, []

  def event(self, kind, **fields):
    told.append(kind)
    time.sleep(0.02)
    slow(self, kind, **fields)

  for name in overhead.CALLS:
    monkeypatch.setattr(writers.Log, name, getattr(writers.Log, name))
  monkeypatch.setattr(writers.Log, 'event', event)
  monkeypatch.chdir(tmp_path)
  overhead.make(tmp_path)
  (tmp_path / 'config.py').write_text(overhead.CONFIG.format(steps=2, rows=('linear()',)))
  found = overhead.measured(None)
  assert found['runs'] == 20 and 0 < found['overhead'] < 1
  sums = found['compile_s'] + found['runs_s'] + found['rest_s']
  assert found['wall_s'] == pytest.approx(sums)
  assert all(0 < found[f'{part}_s'] < found['rest_s'] for part in ('prepare', 'append', 'write'))
  assert 0.02 * len(told) < found['writers_s'] < found['rest_s'] and len(told) == 20
  assert found['writers'] == pytest.approx(found['writers_s'] / found['wall_s'])
