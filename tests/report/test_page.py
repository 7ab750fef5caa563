"""The report's page: what it holds, what it leaves out, that no text can break it, its budget."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from fewshot import cli, outputs, report
from fewshot.errors import FewshotError
from fewshot.report import data, page, pictures
from tests.report import folder as folders

ROOT = Path(__file__).parents[2]


def content(built: report.Report):
  """The data of a page, read as a browser reads it: up to the first closing tag."""
  text = built.page.decode()
  inside = text.split('<script type="application/json" id="data">')[1].split('</script>')[0]
  return json.loads(inside)


def collected(folder, only='', limits=None):
  """The same data without the figures, which take the time."""
  place, known, found = page.gathered(folder, only)
  return json.loads(page.embedded(data.collect(place, found, len(known), limits)))


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return folders.make(tmp_path_factory.mktemp('report') / 'pets')


@pytest.fixture(scope='module')
def built(place):
  return report.build(place)


def test_rows_are_those_of_the_table(built):
  rows = content(built)['rows']
  assert [(r['label'], r['k'], r['mean'], r['n'], r['runs']) for r in rows[:2]] == [
    ('linear()', 4, 0.5, 2, 2), ('chain(lora(rank=4), linear())', 4, 0.75, 2, 2),
  ]  # fmt: skip
  assert rows[0]['spread'] == 'std, n = 2 splits' and rows[0]['std'] == pytest.approx(0.353553)
  broken = next(r for r in rows if r['failed'])
  assert (broken['label'], broken['mean'], broken['lost']) == ('broken()', None, 2)


def test_every_run_is_there_with_config_curve_and_hashes(built):
  c = content(built)
  assert len(c['runs']) == 10 == built.runs
  run = c['runs'][0]
  assert run['curve'] == [2.0, 1.0, 0.5] and run['steps'] == 3
  assert c['shared']['hashes'][run['hashes']]['test'] == folders.TEST
  assert {**c['base'], **run['config']}['engine.loop'] == 'scan'
  other = next(r for r in c['runs'] if c['rows'][r['row']]['k'] == 8)
  assert {**c['base'], **other['config']}['k'] == 8 and len(other['config']) == 1


def test_predictions_stand_with_their_items_and_confidence(built):
  c = content(built)
  run = c['runs'][0]
  items = c['sets'][run['set']]
  assert items['classes'] == ['cat', 'dog'] and items['labels'] == [0, 1, 0, 1]
  assert run['predictions'] == [0, 1, 1, 0]
  assert run['confidence'] == [73, 73, 73, 73]  # 1 / (1 + e^-1) = 0.731
  assert items['items'][0] == folders.NASTY


def test_no_text_can_close_the_script_tag(built):
  text = built.page.decode()
  assert folders.NASTY not in text and text.count('</script>') == 2
  assert content(built)['sets'][folders.TEST]['items'][0] == folders.NASTY
  assert '<img src=x' not in text


def test_the_page_fetches_nothing_and_says_nothing_of_the_machine(built, place):
  text = built.page.decode()
  links = re.findall(r'(?:src|href|url|import)[=(]\s*["\']?([^"\'\s)>]+)', text)
  assert all(u.startswith(('#', 'data:')) for u in links if u not in ('name', 'x')), links
  assert "default-src 'none'" in text
  assert str(place) not in text and str(place.parent) not in text


def test_the_same_records_give_the_same_bytes(built, place):
  assert report.build(place).page == built.page


def test_figures_are_themed_and_their_names_do_not_clash(built):
  text = built.page.decode()
  titles = re.findall(r'<figcaption>([^<]*)', text)
  wanted = ('pareto', 'seconds', 'shots', 'curves', 'confusion', 'calibration', 'masks')
  assert {pictures.TITLES[kind] for kind in wanted} == set(titles)
  assert 'var(--blue)' in text and '#0072b2' not in text.split('</style>')[1]
  ids = re.findall(r' id="([^"]+)"', text)
  assert len(ids) == len(set(ids))


def test_only_keeps_what_is_asked_for(place):
  c = collected(place, only='LORA toy')
  assert {r['label'] for r in c['rows']} == {'chain(lora(rank=4), linear())'}
  with pytest.raises(FewshotError, match="none of its 10 records says 'zzz'"):
    report.build(place, only='zzz')


def test_old_folders_make_a_report_without_texts(tmp_path):
  old = folders.make(tmp_path / 'old', kept=False)
  c = collected(old)
  assert c['sets'] == {} and c['runs'][0]['said'] == [2, 2]
  assert 'predictions' not in c['runs'][0]


def test_what_is_over_the_limits_is_left_out_and_said(place):
  c = collected(place, limits=report.Limits(points=1, predictions=8, characters=9999))
  shown = [r['row'] for r in c['runs'] if 'predictions' in r]
  assert sorted(shown) == [0, 1]  # One of each row before a second of any.
  assert any('Predictions are shown of 2 of 8 runs' in line for line in c['left'])
  none = collected(place, limits=report.Limits(characters=3))
  assert none['sets'] == {} and 'The items of 1 test sets' in none['left'][0]


def test_curves_keep_their_ends():
  assert data.thinned([float(i) for i in range(1000)], 10)[::9] == [0.0, 999.0]
  assert data.thinned([1.23456789, None], 10) == [1.235, None]


def test_a_grid_shows_what_dev_chose(tmp_path):
  chosen = [
    folders.run(hyper={'lr': lr}, chosen=lr == 0.1, tuning='dev', id=f'{i:016x}')
    for i, lr in enumerate((0.1, 0.2))
  ]
  folders.write(tmp_path, chosen)
  c = collected(tmp_path)
  assert len(c['runs']) == 1
  assert c['left'][0].startswith('1 records are not shown: runs of a grid')


def test_records_with_odd_texts_and_no_scores_make_a_page(tmp_path):
  odd = folders.run(method='a\ud800</script>$x$', status='failed', scores={}, predictions=None)
  folders.write(
    tmp_path, [odd | {'curve': [None, 1.0], 'config': {}}, folders.run(curve=None, id='b')]
  )
  c = content(report.build(tmp_path))
  assert c['rows'][0]['label'] == 'a?</script>$x$'
  assert len(c['runs']) == 2


def test_real_episodes_make_a_page():
  c = collected(ROOT / 'experiments' / 'omniglot')
  assert len(c['rows']) == len(c['runs']) == 16
  row = c['rows'][0]
  assert (row['setting'], row['n'], row['mean']) == ('5-way 1-shot', 1000, 0.98388)
  assert row['spread'] == 'half of 95 % interval, n = 1,000 episodes'
  assert sum(c['runs'][0]['episodes']) == 1000


def test_the_commands_write_where_they_are_told(place, tmp_path, capsys):
  assert cli.main(['report', str(place), '-o', str(tmp_path / 'r.html'), '--json']) == 0
  said = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert said['bytes'] == (tmp_path / 'r.html').stat().st_size and said['runs'] == 10
  kinds = ['--only', 'linear', '--out', str(tmp_path / 'p.svg'), '--json']
  assert cli.main(['plot', str(place), *kinds]) == 0
  files = [r['file'] for r in json.loads(capsys.readouterr().out.splitlines()[-1])]
  assert [f.rpartition('/')[2] for f in files] == [
    'p-1-toy-k-4-tiny.svg', 'p-2-toy-k-8-tiny.svg'
  ]  # fmt: skip
  assert cli.main(['plot', str(place), '--kind', 'shots', '-o', str(tmp_path / 's.pdf')]) == 0
  assert (tmp_path / 's.pdf').read_bytes().startswith(b'%PDF')


@pytest.mark.parametrize(
  'arguments, said',
  [
    (['plot', '--kind', 'paretto'], "--kind 'paretto'; did you mean 'pareto'?"),
    (['plot', '--kind', 'episodes'], 'nothing to draw for --kind episodes: no record is'),
    (['plot', '--out', 'x.bmp'], '--out x.bmp ends in .bmp; give .svg, .pdf or .png'),
    (['report', '--only', 'zzz'], "says 'zzz'; try part of a method, task or model"),
  ],
)
def test_mistakes_are_one_line(place, capsys, arguments, said):
  assert cli.main([arguments[0], str(place), *arguments[1:]]) == 2
  err = capsys.readouterr().err
  assert said in err and err.count('\n') == 1


def test_an_empty_folder_says_what_to_do(tmp_path):
  (tmp_path / 'records.jsonl').touch()
  with pytest.raises(FewshotError, match='no finished run; run an experiment first'):
    report.build(tmp_path)


def test_a_thousand_runs_are_two_megabytes_at_most(tmp_path):
  """The data alone, a tenth of the way there in size: figures cost the same for any number."""
  rng = np.random.default_rng(0)
  many = [
    folders.run(
      method=f'lora(rank={m})', split=s, id=f'{m:08x}{s:08x}', curve=rng.random(500).tolist(),
      predictions=rng.integers(0, 2, 4).tolist(),
    )
    for m in range(100) for s in range(10)
  ]  # fmt: skip
  folders.write(tmp_path, many)
  folders.keep_items(tmp_path)
  place, known, found = page.gathered(tmp_path)
  size = len(page.embedded(data.collect(place, found, len(known))))
  assert size < 2_000_000
  assert outputs.items(tmp_path, many[0])
