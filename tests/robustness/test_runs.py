"""`fewshot run`: what it writes, that it repeats itself, goes on, and keeps failures as rows."""

import errno
import json
import os

import pytest

from fewshot import cli, engine, outputs, records
from tests.robustness import workplace

RUN = ('run', 'config.py')
FOUR = 4  # Two rows on two splits.


@pytest.fixture
def place(tmp_path, monkeypatch):
  return workplace.enter(tmp_path, monkeypatch)


def comparable(folder, name='tiny'):
  return [records.without_timings(r) for r in records.read(folder / 'runs' / name)]


def test_a_run_writes_its_files_and_repeats_itself(place, capsys):
  assert cli.main([*RUN, '--json']) == 0
  out = capsys.readouterr().out
  rows = json.loads(out.splitlines()[-1])
  assert [r['method'] for r in rows] == [m for m, _ in workplace.CHEAP]
  assert all(r['runs'] == 2 and r['failed'] == 0 for r in rows)
  folder = place / 'runs' / 'tiny'
  names = {'records.jsonl', 'table.md', 'accuracy.png', 'log.jsonl', 'plan.json'}
  folders = {'outputs', 'items', 'preflight', 'claims'}
  assert {p.name for p in folder.iterdir()} == names | folders
  assert not list((folder / 'claims').iterdir())
  for record in records.read(folder):
    kept = outputs.load(folder, record)
    assert kept.logits.argmax(-1).tolist() == record['predictions']
    right = kept.logits.argmax(-1) == kept.items['labels']
    assert right.mean() == pytest.approx(record['scores']['accuracy']['value'], abs=1e-6)
    assert len(kept.items['texts']) == len(right) and kept.items['texts'][0].startswith('w')
    assert sum(r['count'] for r in kept.preflight['rows'][:-1]) == record['trained']
  assert str(place) not in ''.join((folder / n).read_text() for n in names if 'png' not in n)
  assert (folder / 'accuracy.png').read_bytes().startswith(b'\x89PNG')
  events = [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]
  assert [e['event'] for e in events] == [*['run', 'timings'] * FOUR, 'table']

  assert cli.main([*RUN, '--out', 'runs/again']) == 0
  assert comparable(place, 'again') == comparable(place)


def test_a_finished_run_is_not_computed_again(place, capsys, monkeypatch):
  cli.main(RUN)
  before = (place / 'runs/tiny/records.jsonl').read_bytes()
  capsys.readouterr()

  def never(*args, **kwargs):
    raise AssertionError('computed again')

  monkeypatch.setattr(engine, 'compile_programs', never)
  assert cli.main(RUN) == 0
  out, err = capsys.readouterr()
  assert '4 runs were recorded before and not run again; --fresh' in err
  assert 'linear()' in out and 'accuracy' in out
  assert (place / 'runs/tiny/records.jsonl').read_bytes() == before


def test_fresh_sets_earlier_records_aside(place, capsys):
  cli.main(RUN)
  before = (place / 'runs/tiny/records.jsonl').read_bytes()
  assert cli.main([*RUN, '--fresh']) == 0
  assert 'earlier records are now runs/tiny/records.1.jsonl' in capsys.readouterr().err
  assert (place / 'runs/tiny/records.1.jsonl').read_bytes() == before
  assert len(workplace.records(place)) == FOUR


def test_what_is_refused_sets_nothing_aside(place):
  cli.main(RUN)
  assert cli.main([*RUN, '--fresh', '--config.wandb.mode=ofline']) == 2
  assert len(workplace.records(place)) == FOUR


def test_other_runs_in_the_folder_are_not_taken_for_these(place, capsys):
  cli.main(RUN)
  capsys.readouterr()
  assert cli.main([*RUN, '--config.seeds=(1,)']) == 0
  assert 'recorded before' not in capsys.readouterr().err


def test_table_is_rebuilt_from_the_records_alone(place, capsys):
  cli.main(RUN)
  folder = place / 'runs' / 'tiny'
  table = (folder / 'table.md').read_bytes()
  for name in ('table.md', 'log.jsonl'):
    (folder / name).unlink()
  for name in ('config.py', 'animals.csv'):
    (place / name).unlink()
  capsys.readouterr()
  assert cli.main(['table', 'runs/tiny', '--json']) == 0
  assert [r['n'] for r in json.loads(capsys.readouterr().out.splitlines()[-1])] == [2, 2]
  assert (folder / 'table.md').read_bytes() == table
  assert cli.main(['plot', 'runs/tiny', '--kind', 'accuracy']) == 0
  assert b'linear()' in (folder / 'accuracy.svg').read_bytes()


def test_files_may_lie_anywhere_and_records_name_no_folder(place):
  paths = [f'--config.model={place}/model', f'--config.task={place}/animals.csv']
  assert cli.main([*RUN, *paths]) == 0
  assert str(place) not in (place / 'runs/tiny/records.jsonl').read_text()
  absolute = comparable(place)
  assert cli.main([*RUN, '--out', 'runs/relative']) == 0
  assert comparable(place, 'relative') == absolute


def test_a_run_that_diverges_is_a_failed_row_beside_the_others(place, capsys):
  workplace.config(place, [*workplace.CHEAP, ('linear()', 'sgd(steps=3, lr=1e39)')])
  assert cli.main(RUN) == 1
  out, err = capsys.readouterr()
  assert '2 runs failed; their records say why (field cause)' in err
  assert '2 failed' in ' '.join(out.split())
  found = workplace.records(place)
  assert [r['status'] for r in found] == ['ok'] * FOUR + ['failed'] * 2
  assert all('not finite' in r['cause'] for r in found[FOUR:])
  assert '(2 failed)' in (place / 'runs/tiny/table.md').read_text()
  log = (place / 'runs/tiny/log.jsonl').read_text()
  assert 'NaN' not in log and 'Infinity' not in log

  good = [r for r in comparable(place) if r['status'] == 'ok']
  workplace.config(place, workplace.CHEAP)
  cli.main([*RUN, '--out', 'runs/good'])
  assert comparable(place, 'good') == good


def test_one_class_for_all_is_collapsed_but_of_the_majority(place, capsys):
  # A rate of zero leaves the head at zero, so that every class is as near.
  rows = [('linear()', 'sgd(steps=1, lr=0.0)'), ('majority()', 'untrained()')]
  workplace.config(place, rows)
  assert cli.main(RUN) == 0
  found = workplace.records(place)
  assert all(len(set(r['predictions'])) == 1 for r in found)
  assert [r['status'] for r in found] == ['collapsed'] * 2 + ['ok'] * 2
  assert '(2 collapsed)' in (place / 'runs/tiny/table.md').read_text()


def test_a_failure_while_compiling_becomes_failed_records(place, monkeypatch, capsys):
  compile_programs = engine.compile_programs

  def break_linear(setup, *rest):
    if setup.fit.steps:
      raise RuntimeError('RESOURCE_EXHAUSTED: out of memory\nallocating 10 GB')
    return compile_programs(setup, *rest)

  monkeypatch.setattr(engine, 'compile_programs', break_linear)
  assert cli.main(RUN) == 1
  workplace.lines(capsys.readouterr().err)
  found = workplace.records(place)
  assert [r['status'] for r in found] == ['ok', 'ok', 'failed', 'failed']
  assert found[-1]['cause'] == 'RuntimeError: RESOURCE_EXHAUSTED: out of memory'

  monkeypatch.setattr(engine, 'compile_programs', compile_programs)
  assert cli.main([*RUN, '--json']) == 0  # What failed is tried again, and counts no more.
  rows = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert [(r['runs'], r['failed']) for r in rows] == [(2, 0), (2, 0)]


@pytest.mark.parametrize('n', [1, 2])
def test_a_disk_that_fills_up_keeps_what_was_recorded(place, monkeypatch, capsys, n):
  write, seen = os.write, []

  def fill_up(fd, data):
    if bytes(data[:6]) == b'{"id":':
      seen.append(data)
      if len(seen) == n:
        write(fd, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write(fd, data)

  with monkeypatch.context() as patched:
    patched.setattr(os, 'write', fill_up)
    assert cli.main(RUN) == 2
  lines = workplace.lines(capsys.readouterr().err)
  assert 'cannot append to runs/tiny/records.jsonl: No space left on device' in lines[-1]
  assert sum(line.startswith('fewshot: ') for line in lines) == 1
  kept = workplace.records(place)
  assert len(kept) == 2 * (n - 1) and all(r['status'] == 'ok' for r in kept)  # Chunks of two.
  assert cli.main(RUN) == 0
  assert len({r['id'] for r in workplace.records(place)}) == len(workplace.records(place)) == FOUR


def test_a_table_that_cannot_be_written_costs_no_record(place, capsys):
  (place / 'runs/tiny/table.md').mkdir(parents=True)
  assert cli.main(RUN) == 2
  assert 'cannot write runs/tiny/table.md' in workplace.lines(capsys.readouterr().err)[-1]
  assert len(workplace.records(place)) == FOUR


def test_a_torn_last_line_is_set_aside_and_its_run_done_again(place, capsys):
  cli.main(RUN)
  whole = comparable(place)
  file = place / 'runs/tiny/records.jsonl'
  file.write_bytes(file.read_bytes()[:-40])
  assert cli.main(RUN) == 0
  assert '3 runs were recorded before' in capsys.readouterr().err
  assert comparable(place) == whole
  assert (place / 'runs/tiny/records.torn').exists()


def test_the_same_choice_is_made_however_a_grid_is_resumed(place):
  argv = [*RUN, '--config.grid.lr=(0.001,0.1)', '--config.dev_k=1', '--config.method=linear()']
  argv += ['--config.fit=sgd(steps=3)']
  assert cli.main(argv) == 0
  whole = comparable(place)
  assert [r['chosen'] for r in whole].count(True) == 2 and len(whole) == FOUR
  file = place / 'runs/tiny/records.jsonl'
  file.write_text(''.join(file.read_text().splitlines(keepends=True)[:1]))
  assert cli.main(argv) == 0
  assert comparable(place) == whole
