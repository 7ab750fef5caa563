"""Records by their fields: cells by hand, nothing mixed, every run counted, pairs of the same."""

import csv
import io
import json
import re
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fewshot import cli, grids, pivots, records, renderers, tables
from fewshot.errors import FewshotError
from fewshot.sound import usable
from tests.test_tables import five, make

ROOT = Path(__file__).parents[1]
SCORES = [0.5, 0.6, 0.55, 0.7]


def eight(method='linear()', gain=0.0, **fields):
  """Eight splits that differ much, and methods on them that differ by a constant."""
  return five(method, [0.3 + 0.05 * s + gain for s in range(8)], **fields)


def cell(table, row, column='digits'):
  return table.cells[(row,), (column,)]


def shown(text):
  return ' '.join(text.split())


def markdown(found, stats=('mean', 'std'), **options):
  return renderers.FORMATS['markdown'](grids.grid(pivots.pivot(found, **options), stats))


def test_a_cell_by_hand():
  runs = five('a()', SCORES) + five('a()', [0.25, 0.75], task='letters') + five('b()', SCORES[:1])
  table = pivots.pivot(runs)
  assert table.lines == [('a()',), ('b()',)] and table.heads == [('digits',), ('letters',)]
  a = cell(table, 'a()')
  assert [a.of(s) for s in ('mean', 'median', 'min', 'iqm')] == pytest.approx(
    [0.5875, 0.575, 0.5, 0.575]
  )
  assert a.of('std') == pytest.approx(np.std(SCORES, ddof=1)) and (a.n, a.runs, a.over) == (
    4, 4, 'split')  # fmt: skip
  half = 3.182446 * np.std(SCORES, ddof=1) / 2  # t of three degrees of freedom.
  assert a.interval == pytest.approx((0.5875 - half, 0.5875 + half), abs=1e-6)
  assert cell(table, 'b()').interval is None and cell(table, 'b()').of('std') is None
  assert (a.trained, a.total, a.memory) == (73_728, 22_809_610, 3 * 2**20)
  assert a.seconds == pytest.approx(2.5) and a.flops is None
  assert (('b()',), ('letters',)) not in table.cells


def test_no_interval_leaves_what_an_accuracy_can_be():
  """Of 0.96 and 1.0 it is 0.98 ± 12.706205 * 0.02; of 0.0 and 0.04 the mirror image."""
  ends = [
    cell(pivots.pivot(five('a()', values)), 'a()').interval for values in ((0.96, 1.0), (0.0, 0.04))
  ]
  low, high = 0.98 - 12.706205 * 0.02, 0.02 + 12.706205 * 0.02
  assert ends == [pytest.approx((low, 1.0), abs=1e-6), pytest.approx((0.0, high), abs=1e-6)]
  assert '72.6 to 100.0' in markdown(five('a()', (0.96, 1.0)), ['ci'])


def test_episodes_show_half_of_their_interval_unless_asked(capsys):
  omniglot = [
    'table',
    str(ROOT / 'experiments' / 'omniglot'),
    '--columns',
    'task,split.k,split.way',
  ]
  cli.main([*omniglot, '--format', 'markdown'])
  out = capsys.readouterr().out
  (known,) = (
    r['scores']['accuracy'] for r in records.read(ROOT / 'experiments' / 'omniglot')
    if r['method'] == 'protonet()' and r['split']['way'] == 20 and r['split']['k'] == 1
    and r['training']['steps'] == 5000 and r['task'] == 'omniglot-vinyals-test'
  )  # fmt: skip
  assert f'{100 * known["value"]:.2f} ± {100 * known["spread"]:.2f}' in out
  assert 'mean ± half of 95 % CI over episodes' in out and 'ddof' not in out
  cli.main([*omniglot, '--format', 'markdown', '--stat', 'mean,std'])
  assert 'mean ± std over episodes' in capsys.readouterr().out


def test_every_statistic_has_a_text():
  runs = five('a()', SCORES, timings={'seconds': 2.0, 'step_flops': 3.5e9}) + eight('b()', 0.4)
  text = markdown(runs, list(grids.STATS))
  head, _, line, _ = text.splitlines()[:4]
  names = re.sub(r'digits: ', '', head).strip('| ').split(' | ')
  found = dict(zip(names, line.strip('| ').split(' | '), strict=True))
  assert found == {
    'method': '`a()`', 'mean ± std over splits': '<u>58.8 ± 8.5</u>',
    'half of 95 % CI over splits': '13.6', '95 % CI over splits': '45.2 to 72.3',
    'median': '57.5', 'min': '50.0', 'iqm': '57.5',
    'n': '4', 'runs': '4', 'collapse': '0.0', 'letters': 'a', 'trained': '73,728 (0.32 %)',
    'flops': '3.50 GFLOP', 'seconds': '2.00 s', 'memory': '3.00 MiB',
  }  # fmt: skip


def test_any_field_makes_rows_and_columns():
  runs = [
    r | {'hyper': {'fit.lr': lr}, 'seed': seed, 'config': {'head': 'linear()'}}
    for lr in (0.1, 0.2) for seed in (0, 1) for r in five(values=[lr, lr + 0.1], k=4)
  ]  # fmt: skip
  table = pivots.pivot(runs, ['hyper.fit.lr'], ['split.k', 'config.head'])
  assert table.lines == [('0.1',), ('0.2',)] and table.heads == [('4', 'linear()')]
  assert table.cells[('0.2',), ('4', 'linear()')].of('mean') == pytest.approx(0.25)
  by_seed = pivots.pivot(runs, ['seed'], [], ['hyper.fit.lr=0.1'])
  assert {k: c.n for k, c in by_seed.cells.items()} == {(('0',), ()): 2, (('1',), ()): 2}
  assert grids.grid(table, ['mean']).heads == [('k = 4, head = linear()', 'mean')]


def test_a_cell_mixes_nothing():
  runs = five('a()') + five('a()', k=4) + five('b()')
  table = pivots.pivot(runs)
  assert table.rows == ('method', 'split.k')
  assert table.lines == [('a()', '16'), ('a()', '4'), ('b()', '16')]
  fixed = [r | {'hyper': {'lr': lr}} for lr in (0.1, 0.2) for r in five('a()')]
  assert pivots.pivot(fixed).rows == ('method', 'fit')
  assert pivots.pivot(fixed, columns=['hyper.lr']).rows == ('method',)
  other = five('a()', model='bert')
  assert pivots.pivot(five('b()') + other).lines == [('b()', 'vit'), ('a()', 'bert')]
  assert pivots.pivot(five('b()') + other, columns=['model']).rows == ('method',)


def test_of_a_grid_what_the_dev_set_chose_counts():
  runs = [
    make('full()', s, 0.5 + lr, hyper={'lr': lr}, tuning='dev', chosen=lr == 0.1)
    for s in range(3) for lr in (0.1, 0.2)
  ]  # fmt: skip
  table = pivots.pivot(runs)
  assert cell(table, 'full()').of('mean') == pytest.approx(0.6) and cell(table, 'full()').runs == 3
  assert 'chosen on a dev set' in grids.caption(table, ['mean'])


def test_failed_and_collapsed_runs_are_counted_in_their_cell():
  runs = five('a()')
  runs[1].update(status='failed', scores={})
  runs[2].update(status='collapsed')
  table = pivots.pivot(runs + five('b()', status='failed', scores={}))
  a, b = cell(table, 'a()'), cell(table, 'b()')
  assert (a.n, a.runs, a.lost, a.failed, a.collapsed, a.of('collapse')) == (4, 5, 1, 1, 1, 0.2)
  assert (b.n, b.runs, b.failed, b.of('mean')) == (0, 5, 5, None)
  text = markdown(runs + five('b()', status='failed', scores={}))
  assert '(1 failed, 1 collapsed of 5)' in text and '| `b()` | – (5 failed of 5) |' in text
  assert 'Runs without an accuracy are counted' in text


def test_spreads_of_another_kind_are_labelled():
  runs = (
    five('a()') + five('c()') + [make('b()', seed=s, value=v) for s, v in enumerate([0.4, 0.6])]
  )
  text = markdown(runs, ['mean', 'std', 'ci'])
  assert '| digits: mean ± std over splits | digits: 95 % CI over splits |' in text
  assert '50.0 ± 14.1 (2 seeds) | 0.0 to 100.0 (2 seeds) |' in text
  assert 'n = 5 splits or 2 seeds' in text


def test_pairs_are_of_the_same_splits_whatever_their_order():
  runs = eight('a()') + eight('b()', 0.1)[::-1]
  (family,) = pivots.pivot(runs).comparisons
  assert family.places[0] == (('b()',), ('digits',))
  # A constant difference of eight pairs: two of 256 choices of signs are as far.
  assert family.ps == {(0, 1): pytest.approx(2 / 256)} and family.apart == [(0, 1)]
  lost = eight('b()', 0.1)
  lost[0].update(status='failed', scores={})
  (family,) = pivots.pivot(eight('a()') + lost).comparisons
  assert family.ps == {(0, 1): pytest.approx(2 / 128)} and family.n == 7


def test_holm_is_over_all_pairs_of_a_test_set():
  runs = eight('a()') + eight('b()', 0.1) + eight('c()', 0.2) + eight('a()', 0.1, task='letters')
  first, *rest = pivots.pivot(runs).comparisons
  assert not rest  # Letters has one cell: there is nothing to compare.
  assert list(first.ps.values()) == pytest.approx([3 * 2 / 256] * 3)
  grid = grids.grid(pivots.pivot(runs), ['mean', 'letters'])
  assert [(c.rank, c.apart) for _, cells in grid.lines for c in cells[:1]] == [
    (0, True), (2, True), (1, False),
  ]  # fmt: skip
  assert [cells[1].text for _, cells in grid.lines] == ['c', 'b', 'a']
  assert grid.lines[0][1][2][1:] == (0, False)


def test_rows_may_hold_the_settings_and_columns_the_methods():
  runs = [r for k in (4, 16) for m, g in (('a()', 0.0), ('b()', 0.1)) for r in eight(m, g, k=k)]
  table = pivots.pivot(runs, ['split.k'], ['method'])
  grid = grids.grid(table, ['mean'])
  assert [[c.rank for c in cells] for _, cells in grid.lines] == [[2, 1], [2, 1]]


def test_what_a_test_cannot_show_is_said():
  text = markdown(five('a()', [0.1] * 5) + five('b()'))
  assert 'With n = 5 and 1 pairs the smallest corrected p of this test is 0.062' in text
  assert grids.DAGGER + ' |' not in text
  steady = five('a()', [0.1, 0.11, 0.1, 0.1, 0.12]) + five('b()', [0.6, 0.6, 0.61, 0.6, 0.6])
  text = markdown(steady, test='t')
  assert '10.6 ± 0.9</u>† |' in text and 't-test' in text and 'cannot show' not in text
  alone = markdown(five('a()', [0.1]) + five('b()', [0.2]))
  assert 'fewer than two results in common are not compared' in alone


def test_episodes_are_compared_on_the_same_ones():
  found = records.read(ROOT / 'experiments' / 'omniglot')
  table = pivots.pivot(
    found, columns=['split.way', 'split.k'], where=['task=omniglot-vinyals-test']
  )
  assert all(c.over == 'episode' for c in table.cells.values())
  best = max(table.cells.values(), key=lambda c: c.of('mean'))
  (record,) = [r for r in found if abs(r['scores']['accuracy']['value'] - best.of('mean')) < 1e-5
               and r['task'] == 'omniglot-vinyals-test']  # fmt: skip
  low, high = best.interval
  # The record has 1.96 standard errors; t of 999 degrees of freedom is 1.9623.
  spread = record['scores']['accuracy']['spread']
  assert (high - low) / 2 == pytest.approx(spread * 1.96234 / 1.96, rel=1e-3)
  for family in table.comparisons:
    assert len({table.cells[p].test for p in family.places}) == 1


@pytest.mark.parametrize(
  ('options', 'said'),
  [
    ({'rows': ['metod']}, "no record has a field 'metod'; did you mean 'method'"),
    ({'columns': ['split.kk']}, "did you mean 'split.k'"),
    ({'where': ['split.k=3']}, 'no record has split.k=3; there are 16'),
    ({'where': ['split.k']}, '--where split.k has no value'),
    ({'test': 'tt'}, "no paired test 'tt'"),
  ],
)
def test_a_wrong_word_is_named(options, said):
  with pytest.raises(FewshotError, match=said):
    pivots.pivot(five('a()') + five('b()'), **options)


def test_no_record_and_no_such_statistic_are_said():
  with pytest.raises(FewshotError, match='no finished run'):
    pivots.pivot([])
  with pytest.raises(FewshotError, match="no statistic 'men'; did you mean 'mean'"):
    grids.grid(pivots.pivot(five()), ['men'])
  runs = five('a()') + five('b()')
  runs[6]['hashes'] = {**runs[6]['hashes'], 'split': 'other'}
  with pytest.raises(FewshotError, match=r'disagree on digits K=16 split 1.*hashes\.split'):
    pivots.pivot(runs)


def test_other_test_sets_stand_in_one_table_where_it_says_so():
  """A row for each of them, or only one; what was measured on both is not compared."""
  runs = five('a()') + five('b()')
  other = [
    r | {'hashes': r['hashes'] | {'test': 'other', 'split': f'other {i}'}, 'id': f'other {i}'}
    for i, r in enumerate(five('a()'))
  ]
  with pytest.raises(FewshotError, match=r'disagree on the test set of digits.*,hashes\.test'):
    pivots.pivot(runs + other)
  told = pivots.pivot(runs + other, ['method', 'hashes.test'])
  assert len(told.cells) == 3 and all(cell.n == 5 for cell in told.cells.values())
  (pairs,) = told.comparisons
  assert {row[0] for row, _ in pairs.places} == {'a()', 'b()'}
  assert all(row[1] != 'other' for row, _ in pairs.places)
  one = pivots.pivot(runs + other, where=['hashes.test=other'])
  assert [cell.n for cell in one.cells.values()] == [5]


@pytest.fixture(scope='module')
def sample():
  runs = eight('a_b(x=1)') + eight('c<d>()', 0.1) + eight('e()', 0.2)
  runs += [
    r for m, g in (('a_b(x=1)', 0.1), ('e()', 0.0)) for r in eight(m, g, task='letters & co')
  ]
  return pivots.pivot(runs)


STATS = ('mean', 'std', 'ci', 'n')


def test_latex_is_balanced_and_marks_the_best(sample):
  text = renderers.FORMATS['latex'](grids.grid(sample, STATS))
  lines = text.splitlines()
  assert re.sub(r'\\[{}]', '', text).count('{') == re.sub(r'\\[{}]', '', text).count('}')
  body = [line for line in lines if line.startswith(r'\texttt')]
  assert len(body) == 3 and all(len(re.findall(r'(?<!\\)&', line)) == 6 for line in body)
  assert r'\begin{tabular}{lrrrrrr}' in lines and r'\cmidrule(lr){2-4} \cmidrule(lr){5-7}' in lines
  assert lines[3] == r'\label{tab:method-digits-letters-co}' and lines.count(r'\centering') == 1
  assert r'\multicolumn{3}{c}{letters \& co}' in text and r'\texttt{a\_b(x=1)}' in text
  assert r'\textbf{67.5 $\pm$ 12.2} & ' in body[2]
  assert r'\underline{57.5 $\pm$ 12.2}$^\dagger$ & ' in body[1]
  assert r'\texttt{c$<$d$>$()}' in body[1] and body[1].endswith(r'-- & -- & -- \\')
  assert lines[-1] == r'\end{table}' and [r'\toprule' in text, r'\bottomrule' in text] == [True] * 2


def test_html_is_well_formed_and_its_rows_are_even(sample):
  root = ET.fromstring(renderers.FORMATS['html'](grids.grid(sample, STATS)))
  width = [sum(int(c.get('colspan', 1)) for c in row) for row in root.findall('.//tr')]
  assert width == [7, 6, 7, 7, 7]  # The heads of rows span both lines of the head.
  assert root.findtext('.//tbody/tr[2]/th/code') == 'c<d>()'
  assert [x.text for x in root.iter('strong')] == ['57.5 ± 12.2', '67.5 ± 12.2']
  assert [x.text for x in root.iter('sup')] == ['†'] * 3
  assert 'Holm' in root.findtext('caption')


def test_csv_and_json_have_the_numbers(sample):
  rows = [*csv.DictReader(io.StringIO(renderers.as_csv(sample, STATS)))]
  assert len(rows) == len(sample.cells) == 5
  for row, (place, of) in zip(rows, sample.cells.items(), strict=True):
    assert (row['method'], row['task']) == (place[0][0], place[1][0])
    assert float(row['mean']) == of.of('mean') and float(row['std']) == of.of('std')
    assert (float(row['ci_low']), float(row['ci_high'])) == of.interval
    assert (row['over'], row['n'], row['runs'], row['failed']) == ('split', '8', '8', '0')
  assert [row['place'] for row in rows] == ['3', '2', '1', '1', '2']
  assert rows[0]['p'] == str(3 * 2 / 256) and rows[2]['p'] == ''
  assert json.loads(json.dumps(renderers.records(sample, STATS)))[0]['place'] == 3


def test_the_terminal_shows_the_same(sample):
  console = Console(file=io.StringIO(), width=160, force_terminal=True, color_system='standard')
  renderers.terminal(grids.grid(sample, STATS), console)
  lines = console.file.getvalue().splitlines()
  assert '\x1b[1m67.5 ± 12.2\x1b[0m' in next(x for x in lines if x.startswith('e()'))
  assert '\x1b[4m57.5 ± 12.2†\x1b[0m' in next(x for x in lines if x.startswith('c<d>()'))


@pytest.fixture
def folders(tmp_path):
  for name, runs in (('one', eight('a()') + eight('b()', 0.1)), ('two', eight('c()', 0.2))):
    records.prepare(tmp_path / name)
    lines = ''.join(json.dumps(run) + '\n' for run in runs)
    (tmp_path / name / records.NAME).write_text(lines)
  return [str(tmp_path / name) for name in ('one', 'two')]


@pytest.mark.parametrize('suffix', ['md', 'tex', 'csv', 'html'])
def test_several_folders_make_one_table_the_same_bytes_twice(folders, tmp_path, capsys, suffix):
  out = [tmp_path / f'{i}.{suffix}' for i in (0, 1)]
  for path in out:
    assert cli.main(['table', *folders, '--out', str(path), '--stat', 'mean,ci,letters']) == 0
  assert out[0].read_bytes() == out[1].read_bytes()
  assert all(f'{m}()' in out[0].read_text() for m in 'abc')
  assert capsys.readouterr().out == ''


@pytest.mark.parametrize('name', ['lm_bff', 'omniglot'])
def test_the_committed_tables_are_the_same_bytes_twice(name, capsys):
  said = []
  for _ in range(2):
    cli.main(['table', str(ROOT / 'experiments' / name), '--format', 'markdown'])
    said.append(capsys.readouterr().out)
  assert said[0] == said[1] and said[0].count('\n') > 5


def test_the_command_prints_json_last_and_formats(folders, capsys):
  assert cli.main(['table', *folders, '--json', '--stat', 'mean']) == 0
  rows = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert [row['method'] for row in rows] == ['a()', 'b()', 'c()']
  assert rows[2]['place'] == 1 and rows[0]['p'] == pytest.approx(3 * 2 / 256)
  assert cli.main(['table', folders[0], '--format', 'csv', '--columns', '']) == 0
  assert capsys.readouterr().out.startswith('method,over,n,runs,failed,collapsed,mean,std,')
  assert cli.main(['table', *folders]) == 0
  assert 'paired permutation test' in shown(capsys.readouterr().out)


@pytest.mark.parametrize(
  ('more', 'said'),
  [
    (['--format', 'latx'], "no format 'latx'; did you mean 'latex'"),
    (['--out', 'table.pdf'], 'table.pdf does not say a format; end it in .md, .tex, .csv, .html'),
    (['--out', 'x.md', '--format', 'terminal'], 'terminal goes to no file'),
    (['--rows', ','], '--rows names nothing'),
    (['--stat', 'mean,sdt'], "no statistic 'sdt'; did you mean 'std'"),
    (['--row', 'method'], "unknown argument '--row'; did you mean '--rows'"),
  ],
)
def test_a_wrong_option_is_one_line(folders, capsys, more, said):
  assert cli.main(['table', folders[0], *more]) == 2
  out, err = capsys.readouterr()
  assert out == '' and said in err and err.count('\n') == 1


def test_a_folder_alone_is_the_table_as_the_run_wrote_it(folders, tmp_path, capsys):
  assert cli.main(['table', folders[0]]) == 0
  assert 'Accuracy of vit on digits with K = 16' in shown(capsys.readouterr().out)
  assert {p.name for p in Path(folders[0]).iterdir()} == {'records.jsonl', 'table.md'}
  cli.main(['table', folders[0], '--rows', 'method'])
  assert {p.name for p in Path(folders[1]).iterdir()} == {'records.jsonl'}


def test_a_picture_of_too_many_rows_is_not_drawn(tmp_path):
  runs = [make(f'lora(rank={i})') for i in range(1, tables.DRAWN + 2)]
  (tmp_path / 'accuracy.png').write_bytes(b'of an earlier run')
  (tmp_path / records.NAME).write_text(''.join(json.dumps(run) + '\n' for run in runs))
  assert len(tables.write(tmp_path)) == tables.DRAWN + 1
  assert sorted(p.name for p in tmp_path.iterdir()) == ['records.jsonl', 'table.md']


def test_a_table_of_many_records_takes_little_more_than_to_parse_them(tmp_path):
  """By ratio, in seconds of this process: other work of the machine does not count."""
  runs = [
    make(f'lora(rank={m + 1})', s, (7 * m + 3 * s) % 50 / 100, predictions=[s % 6] * 300,
         hyper={'fit.lr': 0.01}, id=f'{m}-{s}', curve=[0.5] * 30)
    for m in range(40) for s in range(50)
  ]  # fmt: skip
  file = tmp_path / records.NAME
  file.write_text(''.join(json.dumps(run) + '\n' for run in runs))

  def parse():
    return [json.loads(line) for line in file.read_bytes().splitlines()]

  def table():
    known = usable(tmp_path)
    return tables.render_markdown(tables.summarise(known))

  def seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start

  table()
  command = lambda: cli.main(['table', str(tmp_path)])  # noqa: E731 - With all that it does.
  least = [min(seconds(work) for _ in range(3)) for work in (parse, table, command)]
  assert max(least[1:]) < 5 * least[0], least
  assert sorted(p.name for p in tmp_path.iterdir()) == ['records.jsonl', 'table.md']
