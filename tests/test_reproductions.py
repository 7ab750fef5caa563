"""Published numbers as data, our claims on them, their verdicts and the pages made of them."""

import collections
import json
import re
import time

import numpy as np
import pytest
from rich.console import Console

from fewshot import (
  command_reproduce,
  fits,
  learners,
  listings,
  methods,
  published,
  reproduction_pages,
  reproductions,
)
from fewshot import config as configs
from fewshot.cli import main
from fewshot.errors import FewshotError
from tests.test_docs import run_blocks


def test_every_published_number_is_sound():
  numbers = published.numbers()
  assert len(numbers) == 3374 + 31  # Of the survey, and of CIFAR-FS, PaddleFSL and Lake.
  named = collections.Counter(tuple(getattr(n, f) for f in published.NAMED) for n in numbers)
  assert max(named.values()) == 1
  for n in numbers:
    assert n.grade in published.GRADES and n.spread_kind in published.KINDS, n
    assert (n.spread is None) == (n.spread_kind is None), n
    assert all((n.paper, n.table, n.method, n.task, n.setting, n.metric, n.unit, n.source)), n
    assert n.n is None or n.n >= 1
    low, high = (-100, 100) if n.unit.startswith('%') else (0, 10_000)
    assert low <= n.value <= high, n
    assert n.note is None or len(n.note) <= 140, n.note  # Facts, not the source's prose.


def test_numbers_are_what_their_sources_say():
  """Cells of four sources, one of each form a row can have."""
  find = published.find
  shared = {'paper': 'lm-bff', 'table': 'Table 3', 'backbone': 'RoBERTa-large', 'setting': 'K=16'}
  trec = find(**shared, method='prompt-based fine-tuning (man)', task='TREC')
  assert (trec.value, trec.spread, trec.spread_kind, trec.n) == (84.8, 5.1, 'split-std', 5)
  cola = find(
    **shared, method='prompt-based fine-tuning (man)', task='CoLA', metric='Matthews correlation'
  )
  assert cola.value == 9.3
  minilm = find(
    paper='setfit', table='final_results (mean computed here)', method='SetFit',
    backbone='all-MiniLM-L6-v2', task='CR', setting='8 per class',
  )  # fmt: skip
  assert (minilm.value, minilm.spread, minilm.n, minilm.grade) == (71.6335, 3.6713, 10, 'A')
  tim = published.of_paper('tim')[0]
  assert (tim.spread, tim.n, tim.error) == (None, 10_000, 0.0)


def test_the_page_runs(tmp_path, capsys):
  number = run_blocks('docs/reproductions.md', tmp_path)['number']
  assert number.value == 84.8 and "['weights of RoBERTa-large']" in capsys.readouterr().out


def test_standard_errors_of_published_numbers():
  one = published.numbers()[0]
  of = lambda **k: one._replace(**k).error  # noqa: E731
  assert of(spread=3.0, spread_kind='split-std', n=10) == 1.0  # 3 / sqrt(10 - 1).
  assert of(spread=0.98, spread_kind='episode-ci95', n=None) == pytest.approx(0.5)
  assert of(spread=3.0, spread_kind='unknown', n=10) == 0.0
  assert of(spread=3.0, spread_kind='split-std', n=1) == 0.0


def test_unknown_papers_and_numbers_are_refused():
  with pytest.raises(FewshotError, match="no number of the paper 'setfitt'; did you mean 'setfit'"):
    published.of_paper('setfitt')
  with pytest.raises(FewshotError, match='nothing is published as x, 1, m, None, t, s, accuracy'):
    published.find(paper='x', table='1', method='m', backbone=None, task='t', setting='s')


def test_what_is_at_hand_is_there():
  """The names that published backbones and tasks are mapped to are the library's own."""
  hand = published.at_hand()
  backbones = {'conv4', 'resnet12', 'pixels'} | {r['name'] for r in listings.rows('models')}
  assert set(hand['backbones'].values()) <= backbones
  assert set(hand['tasks'].values()) <= {r['name'] for r in listings.rows('tasks')}
  assert set(hand['backbones']) <= {n.backbone for n in published.numbers()}
  assert set(hand['tasks']) <= {n.task for n in published.numbers()}


def test_every_claim_names_numbers_and_what_runs_them():
  """Of a claim's config, some row is of the method, and of each setting or task that is claimed."""
  for name, claim in reproductions.claims().items():
    for row in claim['rows']:
      number = published.find(**{f: v for f, v in {**claim, **row}.items() if f in published.NAMED})
      assert number.grade != 'D' and number.unit == '%' and row['margin'] > 0, name
      assert published.needs(number) == [] or 'lacks' in claim or 'differs' in claim, name
    if 'config' not in claim:  # The distance of drawings needs none.
      continue
    found = configs.load(reproductions.ROOT / claim['config'], claim.get('overrides', []))
    assert {c.name for c in found} == {claim['experiment']}, name
    if 'learner' in found[0]:
      learners.parse(claim['by'])
      settings = {f'{c.test.way}-way {c.test.shot}-shot' for c in found if c.learner == claim['by']}
      assert {row['setting'] for row in claim['rows']} <= settings, name
    else:
      methods.parse(claim['by'])
      assert all(fits.parse(c.fit) for c in found)
      wanted = {(row['on'], row.get('at', row['setting'])) for row in claim['rows']}
      assert wanted <= {(c.task, f'K={c.k}') for c in found}, name


@pytest.fixture(scope='module')
def committed():
  return reproductions.rows()


def test_verdicts_of_the_committed_records(committed):
  verdicts = {(r['name'], r['task'], r['setting']): r['verdict'] for r in committed}
  assert len(verdicts) == len(committed) and set(verdicts.values()) == set(reproductions.VERDICTS)
  assert verdicts['protonet-omniglot', 'Omniglot', '5-way 1-shot'] == 'reproduced'
  assert verdicts['protonet-omniglot', 'Omniglot', '20-way 5-shot'] == 'different'
  assert verdicts['maml-omniglot', 'Omniglot', '5-way 1-shot'] == 'different'
  lake = next(r for r in committed if r['name'] == 'lake-hausdorff')
  assert lake['verdict'] == 'reproduced' and lake['published'] == 61.2
  assert verdicts['lm-bff-encoders', 'TREC', 'K=16'] == 'not comparable'
  assert verdicts['setfit-minilm', 'SST-5', '8 per class'] == 'not run'


def test_our_numbers_are_those_of_the_records(committed):
  """Of splits, against numpy on the raw lines."""
  row = next(r for r in committed if r['name'] == 'lm-bff-encoders' and r['task'] == 'TREC')
  lines = (reproductions.ROOT / 'experiments/lm_bff/records.jsonl').read_text().splitlines()
  runs = [json.loads(line) for line in lines]
  values = [
    100 * r['scores']['accuracy']['value']
    for r in runs
    if (r['method'], r['task']) == ('chain(full(), linear())', 'lmbff/trec')
  ]
  assert (row['ours'], row['n']) == (round(np.mean(values), 2), 5)
  assert row['spread'] == round(np.std(values, ddof=1), 2) and row['spread_kind'] == 'split-std'
  assert row['why'].startswith('another encoder') and row['difference'] == round(
    np.mean(values) - 84.8, 2
  )


def record(value, status='ok', seed=0):
  """A record of a split of SST-5 as configs/setfit/minilm.py makes them."""
  score = {'value': value, 'spread': 0.01, 'kind': 'item-bootstrap', 'n': 100}
  return {key: {} for key in ('hyper', 'hashes', 'versions')} | {
    'fit': 'sgd()', 'id': str(seed), 'config': {'name': 'setfit-minilm'}, 'model': 'minilm-l6',
    'method': 'chain(full(), unit_features(), linear())', 'task': 'sst-5', 'trained': 1, 'total': 2,
    'split': {'k': 8, 'seed': seed}, 'seed': 0, 'scores': {'accuracy': score},
    'timings': {'seconds': 60.0}, 'status': status,
  }  # fmt: skip


def rows_of(folder, runs):
  text = ''.join(json.dumps(r) + '\n' for r in runs)
  (folder / 'records.jsonl').write_text(text)
  return reproductions.rows('setfit-minilm', folder)


def test_the_error_of_theirs_counts_too(tmp_path):
  """Ours 29.8 ± 1.06 over 4, theirs 29.77 ± 1.66 over 10: e = sqrt(1.06^2 / 4 + 1.66^2 / 9)."""
  runs = [record(v / 100, seed=i) for i, v in enumerate((29.1, 30.9, 28.7, 30.5))]
  sst, cr = rows_of(tmp_path, runs)
  assert (sst['verdict'], sst['ours'], sst['n'], sst['train_s']) == ('reproduced', 29.8, 4, 240.0)
  error = (np.std([29.1, 30.9, 28.7, 30.5], ddof=1) ** 2 / 4 + 1.6598**2 / 9) ** 0.5
  assert sst['spread'] == 1.06 and error == pytest.approx(0.768, abs=0.001)
  assert (cr['verdict'], cr['command']) == ('not run', 'fewshot reproduce setfit-minilm')
  # 1.9 below is within the margin of 3, but by 1.1 / 0.77 errors alone: not beyond doubt.
  moved = [record(r['scores']['accuracy']['value'] - 0.019, seed=i) for i, r in enumerate(runs)]
  assert rows_of(tmp_path, moved)[0]['verdict'] == 'different'


def test_runs_that_failed_are_said(tmp_path):
  failed = record(None, 'failed')
  assert rows_of(tmp_path, [failed])[0]['why'] == 'failed'
  assert rows_of(tmp_path, [failed])[0]['verdict'] == 'different'


def test_the_list_has_claims_and_a_line_a_paper(capsys):
  assert main(['reproduce', '--list', '--json']) == 0
  shown = json.loads(capsys.readouterr().out)
  wanted = {'paper', 'table', 'method', 'task', 'setting', 'published', 'ours', 'spread', 'n',
            'margin', 'verdict'}  # fmt: skip
  assert shown['rows'] and all(wanted <= set(r) and r['name'] for r in shown['rows'])
  of = {p['paper']: p for p in shown['papers']}
  assert sum(p['numbers'] for p in of.values()) == len(published.numbers())
  for p in of.values():
    assert p['numbers'] == sum(p[v] for v in reproductions.VERDICTS)
    assert bool(p['needs']) == bool(p['not run']), p
  assert (of['protonet']['reproduced'], of['protonet']['different']) == (3, 1)
  assert of['t-few']['not run'] == 872 and 'weights of T0-3B' in of['t-few']['needs']
  assert of['libfewshot']['needs'].startswith('data of mini-ImageNet')


def test_all_are_listed_each_once(capsys):
  assert main(['reproduce', '--list', '--all', '--json']) == 0
  rows = json.loads(capsys.readouterr().out)['rows']
  assert {tuple(r[f] for f in published.NAMED) for r in rows} == {
    tuple(getattr(n, f) for f in published.NAMED) for n in published.numbers()
  }
  unclaimed = [r for r in rows if not r['name']]
  assert all(r['verdict'] == 'not run' and r['why'] for r in unclaimed)
  assert main(['reproduce', '--list', '--paper', 'tim', '--json']) == 0
  assert len(json.loads(capsys.readouterr().out)['rows']) == 28
  assert main(['reproduce', '--list', 'maml', '--json']) == 0
  names = {r['name'] for r in json.loads(capsys.readouterr().out)['rows']}
  assert len(names) > 2 and all(n.startswith('maml') for n in names)


def test_no_word_is_broken_at_80_columns(capsys, monkeypatch):
  """Every word of a wide terminal's text stands whole in that of a narrow one."""
  texts = []
  for width in (1000, 80):
    console = Console(highlight=False, soft_wrap=True, markup=False, width=width)
    monkeypatch.setattr(command_reproduce, 'stdout', console)
    assert main(['reproduce', '--list']) == 0
    texts.append(capsys.readouterr().out)
  wide, narrow = texts
  assert max(map(len, wide.splitlines())) > 80
  assert max(map(len, narrow.splitlines())) <= 80 and '\n3,405 published numbers' in narrow
  words = lambda text: set(re.findall(r'[^\s─]+', text))  # noqa: E731
  assert words(wide) == words(narrow)


def test_what_is_for_people_names_numbers_without_claims(capsys):
  assert main(['reproduce', '--list', '--paper', 'lora']) == 0
  out = capsys.readouterr().out
  assert 'lora, README NLG: LoRA, GPT-2 M\n' in out
  assert 'needs weights of GPT-2 M and data of E2E' in ' '.join(out.split())


def test_the_list_is_quick():
  reproductions.everything()
  start = time.process_time()
  reproductions.papers(reproductions.everything())
  assert time.process_time() - start < 2


def test_reproduce_checks_records_and_trains_nothing(tmp_path):
  (row, *_) = reproductions.rows('protonet-omniglot', tmp_path)
  assert row['verdict'] == 'not run' and 'fewshot reproduce' in row['why']


def test_pages_say_what_the_records_say():
  """Committed READMEs are what `fewshot reproduce --pages` writes."""
  folders = [f.parent for f in (reproductions.ROOT / 'experiments').glob('*/records.jsonl')]
  assert folders
  for folder in folders:
    page = reproduction_pages.page(f'experiments/{folder.name}')
    assert (folder / 'README.md').read_text(encoding='utf-8') == page
    assert re.search(r'Took \d+ minutes in all on cpu', page)


def test_mistakes_are_one_line(tmp_path, capsys):
  for args, said in (
    ([], '--list'),
    (['protonet-omniglt', '--check'], "did you mean 'protonet-omniglot'"),
    (['protonet-omniglot', '--all'], '--list'),
    (['protonet-omniglot', '--check', '--out', str(tmp_path / 'no')], 'there is no folder'),
    (['--list', 'zebra'], "no claim begins with 'zebra'"),
    (['--list', '--paper', 'lorra'], "did you mean 'lora'"),
    (['lm-bff-prompts'], 'it needs the weights of RoBERTa-large: fewshot run'),
  ):
    assert main(['reproduce', *args]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count('\n') == 1
