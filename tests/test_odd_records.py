"""Records that no run wrote: each is left out with a line, or said in one; nothing else breaks."""

import copy
import json
import random
from pathlib import Path

import pytest

from fewshot import cli, episode_tables, records
from fewshot.errors import FewshotError
from fewshot.report import data, gathered

ROOT = Path(__file__).parents[1] / 'experiments'
ODD = [
  None, True, -1, 0, 3.5, float('nan'), float('inf'), 10**400, '', 'x', '\ud800', [], [[]],
  [1, 'x', None], {}, {'a': [{}]}, [[0.5] * 3], [None] * 12,
]  # fmt: skip
STATS = 'mean,std,half,ci,n,letters,trained,flops,seconds,memory,collapse,median'


def short(record):
  """The same with twelve episodes, or predictions of as many items."""
  cut = {k: record[k][:12] for k in ('episodes', 'predictions', 'curve') if record.get(k)}
  found = copy.deepcopy(record | cut)
  if 'episodes' in cut:
    found['scores']['accuracy']['n'] = 12
  return found


@pytest.fixture(scope='module')
def sound():
  return {n: [*map(short, records.read(ROOT / n)[:6])] for n in ('lm_bff', 'omniglot')}


def places(value, at=()):
  inner = value.items() if isinstance(value, dict) else enumerate(value[:2])
  for key, x in inner:
    yield (*at, key)
    if isinstance(x, dict | list):
      yield from places(x, (*at, key))


def mutated(record, rng):
  """The record with one field gone or of another kind."""
  found = copy.deepcopy(record)
  *path, last = rng.choice(sorted(places(found), key=str))
  inner = found
  for key in path:
    inner = inner[key]
  if rng.random() < 0.3:
    del inner[last]
  else:
    inner[last] = rng.choice(ODD)
  return found


def everything(folder):
  """The status of what reads records: two tables, the ledger, the data and groups of a report."""
  status = max(
    cli.main(['table', folder, '--json']),
    cli.main(['table', folder, '--stat', STATS]),
    cli.main(['reproduce', 'protonet-omniglot', '--check', '--out', folder]),
  )
  try:
    place, _, groups = gathered(folder)
    json.dumps(data.collect(place, groups, 6))
  except FewshotError as e:
    assert '\n' not in str(e)
    return 2
  return status


@pytest.mark.parametrize('name', ['lm_bff', 'omniglot'])
def test_no_mutation_breaks_what_reads_records(sound, name, tmp_path, capsys, monkeypatch):
  monkeypatch.setenv('FEWSHOT_TRACEBACK', '1')  # What is no FewshotError is raised.
  rng, statuses = random.Random(0), []
  for i in range(60):
    bad = [mutated(r, rng) if j == 0 or i % 4 == 0 else r for j, r in enumerate(sound[name])]
    lines = [json.dumps(r) + '\n' for r in bad]
    (tmp_path / records.NAME).write_text(''.join(lines))
    statuses.append(everything(str(tmp_path)))
  assert statuses.count(0) > 30 and set(statuses) <= {0, 2}, statuses
  assert 'is left out: its field' in capsys.readouterr().err


def test_one_bad_record_of_episodes_costs_only_itself(sound, tmp_path, capsys):
  good, bad = sound['omniglot'][:2]
  bad['config']['train'] = []
  (tmp_path / records.NAME).write_text(f'{json.dumps(bad)}\n{json.dumps(good)}\n')
  assert cli.main(['table', str(tmp_path), '--json']) == 0
  out, err = capsys.readouterr()
  assert [row['learner'] for row in json.loads(out.splitlines()[-1])] == [good['method']]
  assert f'record 1 of {tmp_path} is left out: its field config.train.images is not what' in err


@pytest.mark.parametrize(
  'field, value',
  [
    ('episodes', [0.5] * 11), ('episodes', [0.5] * 11 + [None]), ('episodes', [2.0] * 12),
    ('episodes', [True] * 12), ('episodes', 'x'), ('status', None), ('id', 3), ('timings', 3),
    ('split', {'k': 1, 'seed': 0, 'query': 5}), ('training', {'learner': 'a()', 'pool': 'b'}),
  ],
)  # fmt: skip
def test_what_no_run_of_episodes_writes_is_named(sound, field, value):
  record = sound['omniglot'][2]
  assert episode_tables.odd(record) == ''
  assert episode_tables.odd(record | {field: value}).partition('.')[0] == field


def test_the_page_is_given_what_its_program_can_show(sound, tmp_path):
  """A list where it goes through one, an object where it goes through its entries."""
  odd = sound['lm_bff'][0] | {'stages': 3, 'training': 'x', 'cause': ['a'], 'hyper': {'lr': 1}}
  (tmp_path / records.NAME).write_text(json.dumps(odd) + '\n')
  place, _, groups = gathered(str(tmp_path))
  (run,) = data.collect(place, groups, 1)['runs']
  assert run['hyper'] == {'lr': 1} and not {'stages', 'training', 'cause'} & set(run)


def test_a_failed_run_of_episodes_is_counted_in_tables_by_fields(sound, tmp_path, capsys):
  good, lost = copy.deepcopy(sound['omniglot'][2:4])
  lost |= {'episodes': [None] * 12, 'status': 'failed'}
  lost['scores']['accuracy'] |= {'value': None, 'spread': None}
  (tmp_path / records.NAME).write_text(f'{json.dumps(good)}\n{json.dumps(lost)}\n')
  rows = ['--rows', 'method,id', '--columns', '', '--stat', 'mean,n']
  assert cli.main(['table', str(tmp_path), *rows, '--json']) == 0
  row = json.loads(capsys.readouterr().out)[-1]
  assert (row['mean'], row['n'], row['failed'], row['id']) == (None, 0, 1, lost['id'])
