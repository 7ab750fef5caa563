"""Outputs: what is kept beside the records, and that keeping it never costs a run."""

import json
import types

import numpy as np
import pytest

from fewshot import outputs, tasks
from fewshot.errors import FewshotError

RECORD = {
  'id': '0123456789abcdef', 'model': 'tiny', 'method': 'linear()', 'task': 'toy',
  'hashes': {'test': 'feedfeedfeedfeed', 'weights': 'aa'},
}  # fmt: skip


@pytest.fixture
def prepared(tiny):
  """What `save` reads of a prepared experiment: a tiny BERT with a new head, a task of texts."""
  from fewshot import methods

  params = {k: v for k, v in tiny.params.items() if k != 'head'}
  task = tasks.make('toy', [f'{"long " * 100}{i}' for i in range(8)], ['x', 'y'] * 4, test=[5, 4])
  method = methods.chain(methods.bitfit(), methods.linear())
  rows = methods.table(method, tiny.forward, params, tiny.calib)
  return types.SimpleNamespace(
    task=task, data=types.SimpleNamespace(splits=tasks.kshot(task, k=1, seeds=[0])), rows=rows,
    method=method, program=None, model=tiny.model._replace(params=params),
  )  # fmt: skip


def result(logits):
  return types.SimpleNamespace(logits=np.asarray(logits, np.float32), method=None)


def test_what_is_saved_comes_back(tmp_path, prepared):
  outputs.save(tmp_path, prepared, RECORD, result([[0.25, -3.0], [1e9, np.nan]]))
  kept = outputs.load(tmp_path, RECORD)
  assert kept.logits.dtype == np.float32 and kept.logits[0].tolist() == [0.25, -3.0]
  assert kept.logits[1, 0] == 65504 and np.isnan(kept.logits[1, 1])
  assert kept.items['classes'] == ['x', 'y'] and kept.items['labels'] == [0, 1]
  assert [len(t) for t in kept.items['texts']] == [300, 300]
  assert kept.items['texts'][0].endswith('…')
  assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*.*')) == sorted([
    'outputs/0123456789abcdef.safetensors', 'items/feedfeedfeedfeed.json',
    next((tmp_path / 'preflight').iterdir()).relative_to(tmp_path).as_posix(),
  ])  # fmt: skip


def test_the_preflight_counts_by_rule_and_by_module(tmp_path, prepared):
  outputs.save(tmp_path, prepared, RECORD, result([[0.0, 1.0]]))
  found = outputs.preflight(tmp_path, RECORD)
  assert [r['rule'] for r in found['rows']] == ['bitfit()', 'linear()', 'frozen']
  assert found['modules']['encoder/block_0/attn/query'] == [32, 32 * 32 + 32]
  assert found['modules']['head'] == [32 * 3 + 3, 0]
  trained = sum(n for n, _ in found['modules'].values())
  assert trained == sum(r['count'] for r in found['rows'][:-1])
  assert found['machine']['cores'] and found['command'] is None
  assert outputs.preflight(tmp_path, RECORD | {'method': 'other()'}) is None


def test_pairs_and_arrays_are_items_too():
  pairs = tasks.make('nli', [('a', 'b')] * 4, ['x', 'y'] * 2, test=[2, 3], fields=('p', 'h'))
  split = tasks.kshot(pairs, k=1, seeds=[0])[0]
  assert outputs.items_of(pairs, split)['texts'] == ['a\nb', 'a\nb']
  arrays = tasks.make('pix', {'image': np.eye(4)}, ['x', 'y'] * 2, test=[2, 3])
  found = outputs.items_of(arrays, tasks.kshot(arrays, k=1, seeds=[0])[0])
  assert set(found['ids']) == set(arrays.ids[[2, 3]]) and 'texts' not in found


def test_a_full_disk_costs_the_outputs_and_says_so_once(tmp_path, prepared, monkeypatch, capsys):
  def full(path, data):
    raise FewshotError(f'cannot write {path.name}: No space left on device')

  monkeypatch.setattr(outputs.records, 'replace', full)
  for _ in range(3):
    outputs.save(tmp_path, prepared, RECORD, result([[0.0, 1.0]]))
  err = capsys.readouterr().err
  assert err.count('\n') == 1 and 'outputs are not kept (cannot write' in err
  assert outputs.load(tmp_path, RECORD) == (None, None, None)


def test_a_folder_that_is_a_file_costs_the_outputs(tmp_path, prepared, capsys):
  (tmp_path / 'outputs').write_text('')
  outputs.save(tmp_path, prepared, RECORD, result([[0.0, 1.0]]))
  assert 'outputs are not kept' in capsys.readouterr().err


def test_damaged_outputs_are_left_out_with_a_line(tmp_path, prepared, capsys):
  outputs.save(tmp_path, prepared, RECORD, result([[0.0, 1.0]]))
  for file in tmp_path.rglob('*.*'):
    file.write_bytes(file.read_bytes()[:20])
  assert outputs.load(tmp_path, RECORD) == (None, None, None)
  assert capsys.readouterr().err.count('is damaged and left out') == 3


@pytest.mark.parametrize('name', ['../secret', '/etc/passwd', '', None, 3, 'a' * 65])
def test_a_record_names_no_file_outside(tmp_path, name):
  record = RECORD | {'id': name, 'hashes': {'test': name}}
  assert outputs.load(tmp_path, record) == (None, None, None)


def test_the_command_is_kept_only_where_it_gives_nothing_away(monkeypatch, tmp_path):
  monkeypatch.setattr('sys.argv', ['/usr/bin/fewshot', 'run', 'c.py', "--config.method=lora('q')"])
  assert outputs._command() == """fewshot run c.py '--config.method=lora('"'"'q'"'"')'"""
  monkeypatch.setattr('sys.argv', ['/usr/bin/fewshot', 'run', str(tmp_path), 'x'])
  assert outputs._command() is None
  monkeypatch.setattr('sys.argv', ['fewshot', 'run', 'c.py', f'--out={tmp_path}'])
  assert outputs._command() is None
  monkeypatch.setattr('sys.argv', ['/lib/pytest/__main__.py', '-x'])
  assert outputs._command() is None


def test_items_are_written_once(tmp_path, prepared):
  outputs.save(tmp_path, prepared, RECORD, result([[0.0, 1.0]]))
  file = tmp_path / 'items' / 'feedfeedfeedfeed.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | {'task': 'first'}))
  outputs.save(tmp_path, prepared, RECORD | {'id': 'b' * 16}, result([[1.0, 0.0]]))
  assert outputs.items(tmp_path, RECORD)['task'] == 'first'
  assert outputs.logits(tmp_path, RECORD | {'id': 'b' * 16}).tolist() == [[1.0, 0.0]]
