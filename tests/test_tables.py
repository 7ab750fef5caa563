"""Tables count every run, name what their numbers are, and come out the same bytes each time."""

import io
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fewshot import records, summaries, tables
from fewshot.errors import FewshotError
from fewshot.figures import dots


def make(method='linear()', split=0, value=0.5, **fields):
  k, task = fields.pop('k', 16), fields.get('task', 'digits')
  base = {
    'config': {}, 'model': 'vit', 'method': method, 'fit': 'sgd(steps=40, lr=0.001)',
    'task': task, 'split': {'k': k, 'seed': split}, 'seed': 0, 'hyper': {}, 'tuning': 'fixed',
    'chosen': True, 'scores': {'accuracy': {'value': value, 'n': 500}}, 'trained': 73_728,
    'total': 22_809_610, 'hashes': {'split': f'{task}{k}-{split}', 'test': task},
    'timings': {'seconds': 1.0 + split}, 'memory': {'bytes': 3 * 2**20, 'runs': 5},
    'versions': {}, 'status': 'ok',
  }  # fmt: skip
  return {**base, **fields}


def five(method='linear()', values=(0.5, 0.6, 0.55, 0.7, 0.65), **fields):
  return [make(method, split, value, **fields) for split, value in enumerate(values)]


def terminal(rows, width=120):
  console = Console(file=io.StringIO(), width=width)
  tables.render_terminal(rows, console)
  return console.file.getvalue()


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_mean_and_std_are_those_of_numpy(values):
  (row,) = tables.summarise(five(values=values))
  assert math.isclose(row.mean, np.mean(values), abs_tol=1e-12)
  assert math.isclose(row.std, np.std(values, ddof=1), abs_tol=1e-9)
  assert (row.kind, row.n, row.runs, row.lost) == ('split-std', len(values), len(values), 0)
  assert math.isclose(row.seconds, np.mean(1.0 + np.arange(len(values))))


@given(st.permutations(five('b()') + five('a()')))
def test_rows_come_in_first_seen_order_and_hold_the_same_numbers(shuffled):
  rows = tables.summarise(shuffled)
  assert [row.method for row in rows] == list(dict.fromkeys(r['method'] for r in shuffled))
  assert {(round(row.mean, 12), row.n) for row in rows} == {(0.6, 5)}


def test_seeds_are_averaged_within_a_split_first():
  runs = [make(split=0, value=v, seed=s) for s, v in enumerate([0.2, 0.4, 0.6])]
  (row,) = tables.summarise([*runs, make(split=1, value=0.8)])
  assert row.mean == pytest.approx(np.mean([0.4, 0.8]))
  assert row.std == pytest.approx(np.std([0.4, 0.8], ddof=1))
  assert (row.n, row.runs) == (2, 4)


def test_seeds_alone_make_a_seed_std():
  (row,) = rows = tables.summarise([make(seed=s, value=v) for s, v in enumerate([0.4, 0.6, 0.8])])
  assert row.kind == 'seed-std' and row.std == pytest.approx(0.2)
  assert 'accuracy (mean ± std over 3 seeds)' in tables.render_markdown(rows)


def test_a_row_over_seeds_says_so_under_a_header_of_splits():
  runs = five('a()') + [make('b()', seed=s, value=v) for s, v in enumerate([0.4, 0.6])]
  text = tables.render_markdown(tables.summarise([*runs, make('c()')]))
  assert 'accuracy (mean ± std over 5 splits)' in text
  assert '| 50.0 ± 14.1 % (2 seeds) |' in text
  assert '| 50.0 % (1 run) |' in text


def test_a_single_run_has_no_std():
  (row,) = rows = tables.summarise([make(value=0.625)])
  assert (row.mean, row.std, row.n) == (0.625, None, 1)
  text = tables.render_markdown(rows)
  assert '**62.5 %**' in text and 'hence no standard deviation' in text


def test_failed_and_collapsed_runs_are_counted():
  runs = five()
  runs[1].update(status='failed', scores={}, trained=0)
  runs[2].update(status='collapsed')
  (row,) = rows = tables.summarise(runs)
  assert (row.n, row.runs, row.lost, row.failed, row.collapsed) == (4, 5, 1, 1, 1)
  assert row.mean == pytest.approx(np.mean([0.5, 0.55, 0.7, 0.65]))
  assert row.trained == row.trained_min == 73_728
  for text in (tables.render_markdown(rows), terminal(rows, 160)):
    assert '4 of 5 (1 failed, 1 collapsed)' in text
    assert 'Runs without an accuracy are counted' in ' '.join(text.split())


@pytest.mark.parametrize('scores', [{}, None, {'accuracy': None}, {'accuracy': {'value': None}}])
def test_a_method_of_which_every_run_failed_keeps_its_row(scores):
  runs = five('a()') + five('b()', status='collapsed', scores=scores)
  rows = tables.summarise(runs)
  assert (rows[1].mean, rows[1].lost) == (None, 5)
  text = tables.render_markdown(rows)
  assert '| `b()` | – | 0 of 5 (5 collapsed) |' in text and '**60.0 ± 7.9 %**' in text
  assert 'over 5 splits' in text


def test_a_status_of_failed_overrides_a_score():
  (row,) = tables.summarise([*five(values=[0.5, 0.7]), make(split=2, value=0.0, status='failed')])
  assert row.mean == pytest.approx(0.6) and row.failed == 1


def grid(split, chosen, **fields):
  return [
    make(
      'full()',
      split,
      0.5 + lr,
      hyper={'lr': lr},
      tuning='dev',
      chosen=lr == chosen,
      fit=f'sgd(steps=40, lr={lr})',
      **fields,
    )
    for lr in (0.1, 0.2)
  ]


def test_of_a_grid_only_the_chosen_count_in_one_row():
  dev = {'accuracy': {'value': 0.6, 'n': 500}, 'dev_accuracy': {'value': 0.5, 'n': 32}}
  runs = grid(0, 0.1) + grid(1, 0.2, scores=dev)
  (row,) = rows = tables.summarise(runs)
  assert row.mean == pytest.approx(0.6) and (row.n, row.runs) == (2, 2)
  assert row.fit == 'sgd(steps=40, lr=dev)'
  assert 'chosen on a dev set of 32 items' in tables.caption(rows)


def test_a_grid_of_which_none_was_chosen_is_a_failed_run():
  (row,) = tables.summarise(grid(0, 0.1) + grid(1, None))
  assert (row.n, row.runs, row.failed, row.lost) == (1, 2, 1, 1)


def test_a_fixed_grid_gives_a_row_for_each_value():
  runs = [make(split=s, hyper={'fit.lr': lr}) for lr in (0.1, 0.2) for s in range(2)]
  other = [make(split=s, hyper={'decay': 0.5}) for s in range(2)]
  rows = tables.summarise(runs + other)
  assert [row.fit for row in rows] == [
    'sgd(steps=40, lr=0.1)', 'sgd(steps=40, lr=0.2)', 'sgd(steps=40, lr=0.001) decay=0.5',
  ]  # fmt: skip
  assert [row.n for row in rows] == [2, 2, 2]
  text = tables.render_markdown(rows)
  assert '| `linear()` | `lr=0.1` |' in text and 'Fit: sgd(steps=40, ...).' in text
  assert '| `linear()` | `lr=0.001, decay=0.5` |' in text


def test_mixed_tuning_is_named_in_the_caption():
  rows = tables.summarise(five('a()') + grid(0, 0.1))
  assert 'for full(), fixed beforehand for the others' in tables.caption(rows)
  assert 'Hyper-parameters: fixed beforehand.' in tables.caption(rows[:1])


def test_a_repeated_run_counts_once_as_its_last_record():
  first = make(status='failed', scores={}, id='aa')
  (row,) = tables.summarise([first, make(split=1, value=0.7, id='bb'), make(value=0.5, id='aa')])
  assert (row.runs, row.failed) == (2, 0) and row.mean == pytest.approx(0.6)


@pytest.mark.parametrize(
  'kind, place', [('split', 'digits K=16 split 1'), ('test', 'the test set')]
)
def test_records_of_other_data_are_refused(kind, place):
  runs = five('a()') + five('b()')
  runs[6]['hashes'] = {**runs[6]['hashes'], kind: 'other'}
  with pytest.raises(FewshotError, match=f'disagree on {place}.*other.*its own folder') as caught:
    tables.summarise(runs)
  assert '\n' not in str(caught.value)
  assert len(tables.summarise(runs, mixed=True)) == 2


def test_other_tasks_and_k_are_not_a_mixture_and_get_their_own_tables():
  rows = tables.summarise(five() + five(k=4) + five(task='letters'))
  text = tables.render_markdown(rows)
  titles = [line for line in text.splitlines() if line.startswith('###')]
  assert titles == ['### digits, K = 16, vit', '### digits, K = 4, vit', '### letters, K = 16, vit']
  assert text.count('**60.0 ± 7.9 %**') == 3


def test_other_prompts_get_their_own_tables():
  rows = tables.summarise([*five(), *five(prompt="cloze('{text}')", values=(0.9, 0.8))])
  one, two = tables.sections(rows)
  assert tables.title(two) == "digits, K = 16, vit, cloze('{text}')"
  assert (one[0].n, two[0].n) == (5, 2) and two[0].mean == pytest.approx(0.85)


def test_another_objective_is_another_row():
  rows = tables.summarise([*five(), *five(objective='hinge()')])
  assert [r.fit for r in rows] == ['sgd(steps=40, lr=0.001)', 'hinge() by sgd(steps=40, lr=0.001)']
  assert 'hinge() by sgd' in tables.render_markdown(rows)


def test_markdown_states_all_the_caption_must():
  rows = tables.summarise(five('chain(lora(rank=8), linear())') + five('a|b()', [0.1] * 5))
  text = tables.render_markdown(rows)
  assert '| method | accuracy (mean ± std over 5 splits) | trained | seconds | memory |' in text
  row = '| `chain(lora(rank=8), linear())` | **60.0 ± 7.9 %** | 73,728 (0.32 %) | 3.00 |'
  assert f'{row} 3.0 MiB |' in text and 'chunk of 5 runs' in text
  assert '| `a\\|b()` | 10.0 ± 0.0 % |' in text
  for fact in (
    'mean ± std over the 5 splits (sample standard deviation', 'K = 16', 'digits', 'vit',
    'test items n = 500', 'Fit: sgd(steps=40, lr=0.001).', 'fixed beforehand',
    'divided by its runs and exclude compilation', "that of the chunk's compiled program",
  ):  # fmt: skip
    assert fact in text and fact in ' '.join(terminal(rows).split())


def test_a_chunk_of_one_run_is_said_in_the_singular():
  alone, more = (
    tables.Row('vit', 'digits', 16, f'{n}', memory=2**20, memory_runs=n) for n in (1, 5)
  )
  assert 'a vmapped chunk of 1 run divided' in tables.caption([alone])
  assert '| 1.0 MiB / 1 run |' in tables.render_markdown([alone, more])


def test_a_span_of_trained_parameters_and_missing_measures_are_shown():
  runs = five(memory=None, timings={})
  runs[0]['trained'] = 10
  text = tables.render_markdown(tables.summarise(runs))
  assert '| up to 73,728 (0.32 %) | – | – |' in text


def test_the_same_records_give_the_same_bytes(tmp_path):
  runs = five('a()') + five('b()')
  one, two = (tables.render_markdown(tables.summarise(runs)).encode() for _ in range(2))
  assert one == two
  assert terminal(tables.summarise(runs)) == terminal(tables.summarise(runs))
  for name in ('one', 'two'):
    folder = records.prepare(tmp_path / name)
    for run in runs:
      records.append(folder, run)
    tables.write(folder)
  for name in ('table.md', 'accuracy.png'):
    assert (tmp_path / 'one' / name).read_bytes() == (tmp_path / 'two' / name).read_bytes()


@pytest.mark.parametrize('width', [80, 100, 200])
def test_the_terminal_table_fits_and_breaks_no_number(width):
  runs = five('chain(lora(rank=8), linear())', trained=22_809_610)
  runs[0].update(status='failed', scores={})
  rows = tables.summarise(runs + five('[bold]x[/bold]()', fit='other()'))
  text = terminal(rows, width)
  assert max(map(len, text.splitlines())) <= width
  for number in ('62.5 ± 6.5 %', '22,809,610', '(100.00 %)', '3.0 MiB', '(1 failed)', '5 runs'):
    assert number in text
  assert '[bold]' in text


def test_the_best_row_is_bold_on_the_terminal():
  console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system='standard')
  tables.render_terminal(tables.summarise(five('a()') + five('b()', [0.9] * 5)), console)
  lines = console.file.getvalue().splitlines()
  assert '\x1b[1m' in next(line for line in lines if 'b()' in line)
  assert '\x1b[1m' not in next(line for line in lines if 'a()' in line)


def test_write_leaves_a_table_and_a_figure_and_skips_torn_lines(tmp_path, capsys):
  for run in five('a()') + five('b()', status='failed', scores={}) + five('c()', k=4):
    records.append(tmp_path, run)
  with (tmp_path / records.NAME).open('a') as file:
    file.write('{"config"\n{"con')
  rows = tables.write(tmp_path)
  assert [row.method for row in rows] == ['a()', 'b()', 'c()']
  assert (tmp_path / 'table.md').read_text() == tables.render_markdown(rows)
  assert (tmp_path / 'accuracy.png').read_bytes().startswith(b'\x89PNG')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['accuracy.png', 'records.jsonl', 'table.md']
  assert capsys.readouterr().err.count('warning:') == 2
  assert tables.write(tmp_path / records.NAME) == rows
  assert not tables.is_old(tmp_path)
  os.utime(tmp_path / 'accuracy.png', (0, 0))
  assert tables.is_old(tmp_path)


def test_a_table_needs_neither_jax_nor_matplotlib(tmp_path):
  """In a process of its own; drawing and compiling take seconds before they begin."""
  for run in five('a()') + five('b()'):
    records.append(tmp_path, run)
  code = (
    'import sys; from fewshot import cli; cli.main(sys.argv[1:]); '
    "print([m for m in ('jax', 'matplotlib', 'scipy', 'pandas') if m in sys.modules])"
  )
  found = subprocess.run(
    [sys.executable, '-c', code, 'table', str(tmp_path)], capture_output=True, text=True, check=True
  )
  assert found.stdout.splitlines()[-1] == '[]' and 'a()' in found.stdout


def test_write_without_records_says_what_to_do(tmp_path):
  (tmp_path / records.NAME).touch()
  with pytest.raises(FewshotError, match=r'no finished run in .*; run an experiment'):
    tables.write(tmp_path)
  with pytest.raises(FewshotError, match=r'no row to draw in .*; run an experiment first'):
    dots.accuracy([], [], tmp_path / 'accuracy.png')


def test_the_figure_shows_every_split_and_the_mean(tmp_path, monkeypatch):
  from matplotlib.axes import Axes

  drawn, bars, texts = [], [], []
  scatter, errorbar, annotate = Axes.scatter, Axes.errorbar, Axes.annotate
  monkeypatch.setattr(
    Axes, 'scatter', lambda self, x, *a, **k: drawn.append(x) or scatter(self, x, *a, **k)
  )
  monkeypatch.setattr(
    Axes,
    'errorbar',
    lambda self, x, y, **k: bars.append((x, k['xerr'])) or errorbar(self, x, y, **k),
  )
  monkeypatch.setattr(
    Axes, 'annotate', lambda self, t, *a, **k: texts.append(t) or annotate(self, t, *a, **k)
  )
  runs = five('$a_b$()')
  dots.accuracy(summaries.summarise(runs), runs, tmp_path / 'a.png')
  assert drawn[0] == pytest.approx((50, 60, 55, 70, 65)) and drawn[1] == pytest.approx([60])
  mean, spread = bars[0]
  assert mean == pytest.approx([60])
  assert spread == pytest.approx([100 * np.std([0.5, 0.6, 0.55, 0.7, 0.65], ddof=1)])
  assert {'$a_b$()', '0.32 %', 'trained'} <= set(texts)


@pytest.mark.parametrize(
  'field, value',
  [
    ('split', None), ('split', {}), ('hashes', 3), ('hashes', {'split': 3}), ('scores', 3),
    ('scores', {'accuracy': {'value': 'x'}}), ('scores', {'accuracy': {'value': 10**400}}),
    ('timings', {'seconds': 'x'}), ('memory', 3), ('trained', 'x'), ('trained', 10**39),
    ('model', []), ('method', 3), ('fit', None), ('id', []), ('hyper', 3), ('seed', []),
  ],
)  # fmt: skip
def test_a_record_of_wrong_types_costs_only_itself(tmp_path, capsys, field, value):
  good, bad = make(split=0), {**make(split=1), field: value}
  (tmp_path / 'records.jsonl').write_text(f'{json.dumps(good)}\n{json.dumps(bad)}\n')
  (row,) = tables.write(tmp_path)
  assert row.n == 1
  assert f'record 2 of {tmp_path} is left out: its field {field}' in capsys.readouterr().err


def test_runs_of_other_settings_are_rows_of_their_own():
  base = {'model': 'vit', 'task': 'digits', 'method': 'a()', 'fit': 'f()', 'seed': 0}
  base |= {'status': 'ok', 'trained': 1, 'total': 2, 'timings': {}}
  runs = [
    base | {'split': {'k': 4, 'seed': s}, 'scores': {'accuracy': {'value': a}},
            'config': {'max_length': n, 'dtype': 'float32'}, 'hashes': {'weights': w}}
    for n, w, a in ((8, 'aaaa', 0.5), (2, 'aaaa', 0.25), (8, 'bbbb', 0.75))
    for s in (0, 1)
  ]  # fmt: skip
  rows = summaries.summarise(runs)
  assert [(r.fit, r.mean, r.runs) for r in rows] == [
    ('f() max_length=8 weights=aaaa', 0.5, 2),
    ('f() max_length=2 weights=aaaa', 0.25, 2),
    ('f() max_length=8 weights=bbbb', 0.75, 2),
  ]
  assert [r.fit for r in summaries.summarise(runs[:2])] == ['f()']
