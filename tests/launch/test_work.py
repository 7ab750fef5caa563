"""Groups of runs: what shares a program, and that a break at any step changes no record."""

import json
import shutil
import signal
import threading

import jax
import pytest

from fewshot import cli, engine, records, stopping, sweep
from fewshot import config as configs
from fewshot.errors import FewshotError
from fewshot.launch import attempts, groups, halving, plans, work
from fewshot.launch.keeping import Keeper, kept
from fewshot.launch.worker import Job
from fewshot.prepared import prepare
from fewshot.runs import Run
from fewshot.states import States
from tests.robustness import workplace

RUN = ('run', 'config.py')
LONG = (('linear()', 'sgd(steps=20, lr=0.01)'),)
ROWS = (
  ('linear()', 'sgd(steps=3, lr=0.01)'),
  ('nearest_mean()', 'prototypes()'),
  ('linear()', 'sgd(steps=3, lr=0.1, weight_decay=0.2)'),
  ('linear()', 'sgd(steps=4, lr=0.1)'),
)


@pytest.fixture
def place(tmp_path, monkeypatch):
  return workplace.enter(tmp_path, monkeypatch)


def plain(folder, name):
  return [records.without_timings(r) for r in records.read(folder / 'runs' / name)]


def stopped_after(monkeypatch, n):
  """The process is asked to end when training looks for the n-th time."""
  seen = []

  def asked():
    seen.append(0)
    return len(seen) >= n

  return monkeypatch.setattr(stopping, 'asked', asked)


def test_rows_that_differ_by_what_a_fit_takes_traced_share_a_program(place):
  workplace.config(place, ROWS)
  prepared = prepare(configs.load('config.py', ['seeds=(0,1)']))
  found = groups.groups(prepared)
  assert [[p.config.fit for p in g.rows] for g in found] == [
    [ROWS[0][1], ROWS[2][1]], [ROWS[1][1]], [ROWS[3][1]],
  ]  # fmt: skip
  axis = [planned.run for planned in found[0].runs.values()]
  assert [r.hyper for r in axis[::4]] == [
    {'lr': 0.01, 'weight_decay': 0.0}, {'lr': 0.1, 'weight_decay': 0.2},
  ]  # fmt: skip
  assert len(axis) == 8 and all(planned.own.hyper == {} for planned in found[0].runs.values())
  assert not groups.group(prepared[0]).runs.keys() - found[0].runs.keys()


def test_a_shared_program_gives_the_records_of_separate_ones(place):
  workplace.config(place, ROWS)
  assert cli.main(RUN) == 0
  for method, fit in (ROWS[0], ROWS[2]):
    workplace.config(place, [(method, fit)])
    assert cli.main([*RUN, '--out', 'runs/one']) == 0
  one, all_ = ({r['id']: r for r in plain(place, name)} for name in ('one', 'tiny'))
  assert len(one) == 4 and one.keys() < all_.keys()
  for id, record in one.items():
    assert {k: record[k] for k in ('fit', 'hyper', 'predictions')} == {
      k: all_[id][k] for k in ('fit', 'hyper', 'predictions')
    }
    assert record['curve'] == pytest.approx(all_[id]['curve'], abs=1e-5)


@pytest.mark.parametrize(
  'overrides',
  [
    [],
    ['--config.fit=sgd(steps=20, lr=0.01, eval_every=2)', '--config.dev_k=2'],
    ['--config.grid.lr=(0.01,0.1)', '--config.dev_k=2', '--config.engine.runs=3'],
  ],
  ids=['plain', 'best-on-dev', 'grid-across-chunks'],
)
@pytest.mark.parametrize('n', [4, 9])
def test_a_run_that_is_asked_to_end_goes_on_bit_for_bit(place, monkeypatch, capsys, overrides, n):
  workplace.config(place, LONG)
  run = [*RUN, *overrides]
  assert cli.main([*run, '--out', 'runs/whole']) == 0
  with monkeypatch.context() as patched:
    stopped_after(patched, n)
    assert cli.main(run) == stopping.UNFINISHED
  err = capsys.readouterr().err
  assert 'asked to end:' in err and 'the same command goes on from there' in err
  (state,) = (place / 'runs/tiny/jobs').glob('*/*/[0-9]*')
  assert 0 < int(state.name) <= 20
  steps = []
  restored = Keeper.restore
  monkeypatch.setattr(Keeper, 'restore', lambda *a: steps.append(restored(*a)) or steps[-1])
  assert cli.main(run) == 0
  assert steps[0][0] == int(state.name)  # It did go on from there.
  assert plain(place, 'tiny') == plain(place, 'whole')
  assert not (place / 'runs/tiny/jobs').exists()


def files(state):
  return sorted(f for f in state.rglob('*') if f.is_file())


def damaged(file):
  """A bit flipped in a file."""
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 4
  file.write_bytes(data)


def test_a_flipped_bit_is_found_and_the_state_before_it_used(place, monkeypatch):
  workplace.config(place, LONG)
  run = [*RUN, '--config.save_every=0.0']
  assert cli.main([*run, '--out', 'runs/whole']) == 0
  with monkeypatch.context() as patched:
    stopped_after(patched, 7)
    assert cli.main(run) == stopping.UNFINISHED
  *_, before, last = sorted(
    (place / 'runs/tiny/jobs').glob('*/*/[0-9]*'), key=lambda p: int(p.name)
  )
  for file in files(last):
    damaged(file)
  went = []
  restored = Keeper.restore
  monkeypatch.setattr(Keeper, 'restore', lambda *a: went.append(restored(*a)) or went[-1])
  with pytest.warns(UserWarning, match=f'the checkpoint of step {last.name} is damaged'):
    assert cli.main(run) == 0
  assert went[0][0] == int(before.name)
  assert plain(place, 'tiny') == plain(place, 'whole')


@pytest.mark.filterwarnings('ignore:the checkpoint of step 2')
def test_no_flipped_bit_and_no_cut_file_gives_another_state(tmp_path):
  def saved(folder, step):
    states = States(folder, {})
    states.save(step, {'x': jax.numpy.arange(9.0) + step})
    states.close()

  def restored(folder):
    step, carry = States(folder, {}).restore({'x': jax.numpy.zeros(9)})
    assert carry['x'].tolist() == [i + step for i in range(9)]
    return step

  saved(tmp_path / 'whole', 1)
  saved(tmp_path / 'whole', 2)
  found = []
  names = [f.relative_to(tmp_path / 'whole') for f in files(tmp_path / 'whole' / '2')]
  for i, name in enumerate(names):
    for j, damage in enumerate((damaged, lambda f: f.write_bytes(f.read_bytes()[:-1]))):
      copy = tmp_path / f'{i}-{j}'
      shutil.copytree(tmp_path / 'whole', copy)
      damage(copy / name)
      found.append(restored(copy))
  assert set(found) == {1, 2}  # Some files hold nothing that is read.


def test_states_keep_the_last_two_and_the_best(tmp_path):
  states = States(tmp_path / 's', {'a': 1})
  for step, score in enumerate([0.1, 0.9, 0.3, 0.2, 0.4]):
    states.save(step, {'x': jax.numpy.full(3, step), 'key': jax.random.key(step)}, score)
  states.close()
  kept = sorted(int(p.name) for p in (tmp_path / 's').iterdir() if p.name.isdigit())
  assert kept == [1, 3, 4]
  like = {'x': jax.numpy.zeros(3, int), 'key': jax.random.key(9)}
  step, carry = States(tmp_path / 's', {'a': 1}).restore(like)
  assert step == 4 and carry['x'].tolist() == [4, 4, 4]
  assert jax.random.key_data(carry['key']).tolist() == [0, 4]
  with pytest.raises(FewshotError, match='holds a training with a 1, and this one has 2'):
    States(tmp_path / 's', {'a': 2}).restore(like)


def test_a_state_that_cannot_be_written_costs_no_run(place, monkeypatch):
  workplace.config(place, LONG)

  def full(*args):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(States, 'save', full)
  with pytest.warns(UserWarning, match='could not be saved .*No space left'):
    assert cli.main([*RUN, '--config.save_every=0.0']) == 0
  assert [r['status'] for r in plain(place, 'tiny')] == ['ok'] * 2


def short_of_memory(monkeypatch, holds):
  """A device on which no more than so many runs fit."""
  compute = engine.fit_and_score
  sizes = []

  def bounded(programs, *rest):
    sizes.append(programs.chunk)
    if programs.chunk > holds:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes')
    return compute(programs, *rest)

  monkeypatch.setattr(engine, 'fit_and_score', bounded)
  return sizes


def test_a_chunk_that_memory_does_not_hold_is_halved_once_and_says_so(place, monkeypatch):
  workplace.config(place, LONG)
  sizes = short_of_memory(monkeypatch, 2)
  run = [*RUN, '--config.splits=(0,1,2,3,4)']
  assert cli.main(run) == 0
  assert sizes == [5, 2, 2, 2]
  found = plain(place, 'tiny')
  assert [r['split']['seed'] for r in found] == [0, 1, 2, 3, 4]
  said = '5 runs at once took more memory than there is'
  assert {r['engine']['halved'] for r in found} == {said}


def test_a_half_that_memory_does_not_hold_either_is_failed_rows(place, monkeypatch):
  workplace.config(place, LONG)
  sizes = short_of_memory(monkeypatch, 1)
  assert cli.main([*RUN, '--config.splits=(0,1,2,3,4)']) == 1
  assert sizes == [5, 2]
  assert [(r['status'], r['cause'][:35]) for r in plain(place, 'tiny')] == [
    ('failed', 'JaxRuntimeError: RESOURCE_EXHAUSTED')
  ] * 5


def test_dead_runs_start_anew_from_other_keys_and_both_attempts_are_rows(place, capsys):
  workplace.config(place, [('linear()', 'sgd(steps=3, lr=1e39)'), ROWS[0]])
  assert cli.main([*RUN, '--config.retries=2', '--json']) == 1
  found = plain(place, 'tiny')
  dead = [r for r in found if 'e39' in r['fit'] or 'e+39' in r['fit']]
  assert [r['status'] for r in dead] == ['failed'] * 6 and len(found) == 8
  first, again = dead[0], dead[2]
  assert again['attempt']['of'] == first['id'] and again['attempt']['number'] == 1
  assert again['attempt']['rule'].endswith('at most 2 times')
  assert again['seed'] == first['seed'] and again['attempt']['seed'] != first['seed']
  (row, other) = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert (row['runs'], row['failed'], row['retried']) == (2, 2, 4)
  assert (other['runs'], other['failed'], other['retried']) == (2, 0, 0)
  before = (place / 'runs/tiny/records.jsonl').read_bytes()
  assert cli.main([*RUN, '--config.retries=2']) == 1
  assert (place / 'runs/tiny/records.jsonl').read_bytes() == before


def test_a_retry_has_another_key(place, monkeypatch):
  workplace.config(place, [('chain(lora(rank=1), linear())', 'sgd(steps=2, lr=0.01)')])
  judge = work.experiment._status
  calls = []

  def dead_at_first(result, *rest):
    calls.append(result)
    return ('collapsed', 'so says the test') if len(calls) <= 2 else judge(result, *rest)

  monkeypatch.setattr(work.experiment, '_status', dead_at_first)
  assert cli.main([*RUN, '--config.retries=1']) == 0
  a, b, c, d = plain(place, 'tiny')
  assert [r['status'] for r in (a, b, c, d)] == ['collapsed'] * 2 + ['ok'] * 2
  assert a['curve'] != c['curve'] and b['curve'] != d['curve']


@pytest.mark.parametrize('bad', ['retries=-1', 'save_every=-1.0', 'engine.runs=-2'])
def test_odd_values_are_one_line(place, capsys, bad):
  assert cli.main([*RUN, f'--config.{bad}']) == 2
  (line,) = workplace.lines(capsys.readouterr().err)
  assert (bad.partition('=')[0] in line and 'at least 0' in line) or 'give 0' in line


def test_a_model_that_vanishes_is_one_line_and_costs_no_record(place, capsys):
  assert cli.main(RUN) == 0
  before = (place / 'runs/tiny/records.jsonl').read_bytes()
  shutil.rmtree(place / 'model')
  capsys.readouterr()
  assert cli.main([*RUN, '--config.seeds=(0,1)']) == 2
  (line,) = workplace.lines(capsys.readouterr().err)
  assert 'model' in line
  assert (place / 'runs/tiny/records.jsonl').read_bytes() == before


def test_the_status_of_a_folder(place, capsys):
  assert cli.main(['status', 'runs/tiny']) == 2
  assert 'no plan and no records' in capsys.readouterr().err
  assert cli.main(RUN) == 0
  file = place / 'runs/tiny/records.jsonl'
  whole = file.read_bytes().splitlines(keepends=True)
  file.write_bytes(b''.join(whole[:3]))
  capsys.readouterr()
  assert cli.main(['status', 'runs/tiny', '--json']) == 0
  found = json.loads(capsys.readouterr().out)
  assert (found['runs'], found['done'], found['running']) == (4, 3, 0)
  assert [(j['state'], j['done']) for j in found['jobs']] == [('done', 2), ('waiting', 1)]
  best = max(r['scores']['accuracy']['value'] for r in plain(place, 'tiny'))
  assert found['best']['accuracy'] == best
  assert cli.main(['status', 'runs/tiny']) == 0
  assert '3 of 4 runs' in capsys.readouterr().out
  assert len(plans.read(place / 'runs/tiny')) == 2


def test_the_status_counts_the_retries_that_are_due(tmp_path, capsys):
  """Of three runs, each at most twice anew: one is well, one died once, one died three times."""
  first, second = ({id: attempts.retry_id(id, n) for id in 'abc'} for n in (1, 2))
  ended = {'a': 'ok', 'b': 'failed', 'c': 'collapsed', first['c']: 'failed', second['c']: 'failed'}

  def record(id, status):
    fields = dict.fromkeys(records.REQUIRED, 0) | dict.fromkeys(('model', 'method', 'task'), 'x')
    tables = {'scores': {}, 'hashes': {}, 'split': {'k': 1, 'seed': 0}, 'config': {}}
    return fields | tables | {'id': id, 'status': status, 'timings': {'seconds': 3.0}}

  def asked():
    assert cli.main(['status', str(tmp_path), '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    (job,) = found['jobs']
    assert (found['runs'], found['done']) == (job['runs'], job['done'])
    return job['state'], job['done'], job['runs'], found['eta_seconds']

  for id, status in ended.items():
    records.append(tmp_path, record(id, status))
  plans.write(tmp_path, [Job('j', 'some', tuple('abc'), lambda done: 0, lambda *a: None, 2)])
  assert asked() == ('waiting', 5, 6, 3.0)
  assert cli.main(['status', str(tmp_path)]) == 0
  assert '5 of 6 runs' in capsys.readouterr().out
  records.append(tmp_path, record(first['b'], 'ok'))
  assert asked() == ('done', 6, 6, 0.0)
  (tmp_path / 'plan.json').write_text('{"jobs": [{"id": "j", "label": "", "runs": ["a", "b"]}]}')
  (job,) = plans.Watch(tmp_path).status()['jobs']
  assert (job['state'], job['runs']) == ('done', 2)  # Of a plan that says nothing of retries.


def test_halving_drops_the_worst_on_dev_and_keeps_the_rest_as_they_were(place):
  workplace.config(place, LONG)
  grid = ['--config.grid.lr=(0.0,0.001,0.01,0.1)', '--config.dev_k=2', '--config.engine.runs=3']
  assert cli.main([*RUN, *grid, '--out', 'runs/whole']) == 0
  assert cli.main([*RUN, *grid, '--config.halving=2']) == 0
  whole = {r['id']: r for r in plain(place, 'whole')}
  found = plain(place, 'tiny')
  assert [r['id'] for r in found] == list(whole)
  for split in (0, 1):
    of = [r for r in found if r['split']['seed'] == split]
    assert sorted(r['status'] for r in of)[:1] == ['ok'] or of[0]['status'] == 'collapsed'
    assert [r['cause'] for r in of if r['status'] == 'stopped'].count(
      'stopped at step 5: others of the grid did better on dev'
    ) == 2
    assert sum(r['status'] == 'stopped' for r in of) == 3
    (best,) = [r for r in of if r['chosen']]
    assert best['curve'] == pytest.approx(whole[best['id']]['curve'], abs=1e-5)
    assert best['predictions'] == whole[best['id']]['predictions']


def test_halving_keeps_the_highest_score_then_the_lowest_loss():
  devs = {0: (0.5, 1.0), 1: (0.5, 0.5), 2: (0.9, float('nan')), 3: (0.2, 0.1), 4: (0.1, 9.0)}
  named = {i: {'score': s, 'loss': x} for i, (s, x) in devs.items()}
  assert halving._best([0, 1, 2, 3, 4], 'aaaab', named, eta=2) == {0, 1, 4}


def test_a_staged_run_that_is_asked_to_end_goes_on_in_the_middle_of_a_stage(place, monkeypatch):
  program = 'lt_sft(budget=0.1, fit=sgd(steps=20, lr=0.01))'
  run = [*RUN, f'--config.program={program}', '--config.splits=(0,)']
  assert cli.main([*run, '--out', 'runs/whole']) == 0
  saved, gone_on, restored = [], [], Keeper.restore

  def watched(*args):
    step, carry = restored(*args)
    gone_on.append(step)
    return step, carry

  monkeypatch.setattr(Keeper, 'restore', watched)
  for n in (5, 12):  # In the first training, then in the last.
    with monkeypatch.context() as patched:
      stopped_after(patched, n)
      assert cli.main(run) == stopping.UNFINISHED
    (state,) = (place / 'runs/tiny/jobs').glob('*/*/*/[0-9]*')
    saved.append((len(list((place / 'runs/tiny/stages').glob('*'))), int(state.name)))
  assert not workplace.records(place)
  assert cli.main(run) == 0
  assert saved[0][0] == 0 < saved[1][0] and all(0 < step < 20 for _, step in saved)
  assert gone_on == [0, saved[0][1], 0, saved[1][1]]
  found, whole = (
    [{**r, 'stages': [{**s, 'cached': None} for s in r['stages']]} for r in plain(place, name)]
    for name in ('tiny', 'whole')
  )
  assert found == whole and len(found) == 1
  assert not (place / 'runs/tiny/jobs').exists()


def test_fresh_computes_finished_stages_anew(place):
  run = [*RUN, '--config.program=train(linear(), sgd(steps=2, lr=0.01))', '--config.splits=(0,)']

  def found():
    return [s['cached'] for r in records.read(place / 'runs/tiny') for s in r['stages']]

  assert cli.main(run) == 0
  (place / 'runs/tiny/records.jsonl').unlink()
  assert cli.main(run) == 0
  assert found() == [True]  # As after a kill between the stage and the record.
  assert cli.main([*run, '--fresh']) == 0
  assert found() == [False] and (place / 'runs/tiny/records.1.jsonl').exists()


def test_the_trainings_of_a_stage_find_their_own_states_alone(tmp_path):
  """A chunk of another size, or after one of another size, is another one."""
  runs = [Run(0, seed, {}) for seed in range(4)]

  def names(*sizes):
    with kept(tmp_path / 'stage', 0.0) as keep:
      return [keep(runs[:n], n)._folder.name for n in sizes]

  assert names(2, 2)[0] == names(2, 3)[0] and len({*names(2, 2, 2), *names(3, 2)}) == 5
  with kept(tmp_path / 'stage', 0.0) as keep:
    keeper = keep(runs, 4)
    keeper(1, {'x': jax.numpy.ones(2)})
    keeper.close()
    assert list((tmp_path / 'stage').glob('*/1'))
  assert not (tmp_path / 'stage').exists()


def test_a_cell_of_a_grid_that_lies_across_chunks_is_decided_as_a_whole(place):
  workplace.config(place, (('linear()', 'sgd(steps=3, lr=0.01)'),))
  run = [
    *RUN,
    '--config.dev_k=2',
    '--config.engine.runs=3',
    '--config.grid.lr=(0.1,0.01,0.001,0.0)',
  ]
  assert cli.main([*run, '--out', 'runs/whole']) == 0
  assert cli.main(run) == 0
  file = place / 'runs/tiny/records.jsonl'
  file.write_bytes(b''.join(file.read_bytes().splitlines(keepends=True)[:3]))
  assert cli.main(run) == 0
  chosen = [{r['id']: r['chosen'] for r in plain(place, name)} for name in ('tiny', 'whole')]
  assert chosen[0] == chosen[1] and sum(chosen[0].values()) == 2


@pytest.mark.parametrize('line', ['{{"id":"{id}"}}', '["{id}"]', '"{id}"'])
def test_a_damaged_line_that_names_a_run_does_not_keep_it_from_being_recorded(place, line):
  workplace.config(place, workplace.CHEAP[:1])
  assert cli.main(RUN) == 0
  file = place / 'runs/tiny/records.jsonl'
  first, last = file.read_text().splitlines()
  id = json.loads(last)['id']
  file.write_text(first + '\n' + line.format(id=id) + '\n')
  assert cli.main(RUN) == 0
  assert [json.loads(x)['id'] for x in file.read_text().splitlines()[::2]] == [
    json.loads(first)['id'], id,
  ]  # fmt: skip


def test_a_resumed_run_took_what_all_processes_took(place, monkeypatch):
  keeper = Keeper(place / 'state', {}, 0.0, clock=iter([0.0, 10.0, 17.0, 17.0, 17.0]).__next__)
  keeper.restore({'x': jax.numpy.ones(2)})
  keeper(4, {'x': jax.numpy.ones(2)})
  keeper.close()
  again = Keeper(place / 'state', {}, 60.0)
  step, _ = again.restore({'x': jax.numpy.zeros(2)})
  assert (step, again.spent) == (4, 7.0)


@pytest.mark.parametrize('error', [KeyboardInterrupt, jax.errors.JaxRuntimeError])
def test_what_is_being_written_is_waited_for_whatever_ends_a_chunk(monkeypatch, tmp_path, error):
  """Else the process would end beside threads of orbax that write."""
  keeper = Keeper(tmp_path / 'state', {}, 0.0)

  def interrupted(programs, chunk, tick, keeper):
    keeper(4, {'x': jax.numpy.ones(200_000)})
    raise error

  monkeypatch.setattr(engine, 'fit_and_score', interrupted)
  with pytest.raises(error):
    list(sweep.computed(None, [], lambda phase, done: None, keeper))
  assert [f.name for f in (tmp_path / 'state').iterdir()] == ['4']  # Not a folder being filled.
  assert not [t for t in threading.enumerate() if 'save' in t.name]


@pytest.fixture
def interruptible():
  """Ctrl-C as in a terminal: what runs in the background begins with it ignored."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.filterwarnings('error')
@pytest.mark.usefixtures('interruptible')
def test_ctrl_c_waits_until_a_state_is_handed_over_and_until_it_is_written(tmp_path, monkeypatch):
  states = States(tmp_path, {})
  done = []

  def interrupted(name):
    whole = getattr(states._manager, name)

    def call(*args, **kwargs):
      signal.raise_signal(signal.SIGINT)
      whole(*args, **kwargs)
      done.append(name)

    monkeypatch.setattr(states._manager, name, call)

  for name in ('save', 'close'):
    interrupted(name)
  with pytest.raises(KeyboardInterrupt):
    states.save(4, {'x': jax.numpy.ones(9)})
  with pytest.raises(KeyboardInterrupt):
    states.close()
  assert done == ['save', 'close'] and [f.name for f in tmp_path.iterdir()] == ['4']


def test_another_size_of_chunks_begins_anew(place, monkeypatch):
  workplace.config(place, LONG)
  with monkeypatch.context() as patched:
    stopped_after(patched, 4)
    assert cli.main([*RUN, '--config.engine.runs=2']) == stopping.UNFINISHED
  assert cli.main([*RUN, '--config.engine.runs=1']) == 0
  assert {r['memory']['runs'] for r in records.read(place / 'runs/tiny')} == {1}
