"""Experiments of episodes: what is shared, what resumes, what is refused, what a record says."""

import json

import numpy as np
import pytest

from fewshot import backbones, episode_tables, episodic, records
from fewshot import config as configs
from fewshot.cli import main
from fewshot.episodes import make_pool
from fewshot.errors import FewshotError

CONV = 'conv4(width=4, depth=2, image_size=8, mean=(0.5,), std=(0.25,))'
SMALL = {
  'model': CONV,
  'train.pool': 'toy()',
  'test.pool': "toy(part='test')",
  **{'train.way': 4, 'train.query': 2, 'train.steps': 3, 'test.way': 3, 'test.query': 2},
  'test.episodes': 12,
}


def toy(part: str = 'train'):
  """Classes that differ by where they are bright."""
  rng = np.random.default_rng(len(part))
  prototypes = rng.integers(0, 256, (8, 1, 8, 8, 1))
  images = np.clip(prototypes + rng.normal(0, 30, (8, 9, 8, 8, 1)), 0, 255).astype(np.uint8)
  return make_pool(f'toy-{part}', images.reshape(72, 8, 8, 1), np.repeat(range(8), 9), 'abcdefgh')


@pytest.fixture(autouse=True)
def toys(monkeypatch):
  monkeypatch.setitem(backbones.POOLS, 'toy', toy)


def config(**changes):
  """A small experiment; keys with __ are those of a part."""
  dotted = {k.replace('__', '.'): v for k, v in changes.items()}
  return configs.with_changes(configs.episodes(), SMALL | dotted)


def write(path, sweep='', **changes):
  body = {k.replace('__', '.'): v for k, v in changes.items()}
  path.write_text(
    'from fewshot import config as configs\n'
    f'def get_config():\n  return configs.with_changes(configs.episodes(), {SMALL | body!r})\n'
    + (f'def sweep():\n  return {sweep}\n' if sweep else '')
  )
  return str(path)


def test_record_has_what_others_read(tmp_path):
  (e,) = episodic.prepare([config()])
  record = episodic.run(e, tmp_path)
  assert not [k for k in records.REQUIRED if k not in record]
  assert record['scores']['accuracy']['kind'] == 'episode-ci95'
  assert len(record['episodes']) == record['scores']['accuracy']['n'] == 12
  assert np.mean(record['episodes']) == pytest.approx(
    record['scores']['accuracy']['value'], abs=1e-4
  )
  assert record['split']['k'] == 1 and record['split']['way'] == 3
  records.append(tmp_path, record)  # No path, no secret, every field.


def test_rows_share_a_training_and_its_result(tmp_path):
  rows = [config(test__shot=1), config(test__shot=2), config(train__lr=1e-2)]
  first, second, third = episodic.prepare(rows)
  assert first.training == second.training != third.training
  assert first.backbone is second.backbone
  episodic.run(first, tmp_path)
  steps = []
  assert episodic.run(second, tmp_path, progress=lambda t, loss: steps.append(t))
  assert steps == []  # The training was there.


def test_interrupted_training_gives_the_same_record(tmp_path):
  (e,) = episodic.prepare([config()])
  whole = episodic.run(e, tmp_path / 'whole')
  parts = 0
  while (record := episodic.run(e, tmp_path / 'parts', minutes=1e-9)) is None:
    parts += 1
  assert parts == 2  # A step a session.
  assert record['episodes'] == whole['episodes']
  assert record['timings']['train_steps'] == 3
  assert (
    len(json.loads((tmp_path / 'parts/training' / e.training / 'sessions.json').read_text())) == 3
  )


def test_features_embedded_once_give_the_same_accuracies(tmp_path):
  rows = [config(test__shot=s) for s in (1, 2)]
  shared: dict = {}
  together = [episodic.run(e, tmp_path, kept=shared) for e in episodic.prepare(rows)]
  alone = [episodic.run(e, tmp_path) for e in episodic.prepare(rows)]
  assert [r['episodes'] for r in together] == [r['episodes'] for r in alone]
  assert len(shared) == 1


def test_learner_of_another_backbone(tmp_path):
  """SimpleShot on a classifier's backbone is centred by the training images."""
  (e,) = episodic.prepare(
    [config(learner='simpleshot()', train__learner='baseline()', train__images=8)]
  )
  record = episodic.run(e, tmp_path)
  assert record['training']['learner'] == 'baseline()'
  assert record['method'] == 'simpleshot()'


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'learner': 'protonett()'}, "did you mean 'protonet'"),
    ({'learner': 'ptmap()'}, 'learns nothing across episodes'),
    ({'model': 'conv5()'}, "did you mean 'conv4'"),
    ({'model': 'conv4(widht=4)'}, "did you mean 'width'"),
    ({'test__pool': 'omniglott()'}, "did you mean 'omniglot'"),
    ({'test__pool': 'toy(size=3)'}, 'size'),
    ({'statistics': 'sometimes'}, 'known: always, never, train'),
    ({'train__schedule': 'cos'}, 'cosine'),
    ({'test__way': 9}, '9'),
  ],
)
def test_mistakes_are_one_line(changes, message):
  with pytest.raises(FewshotError, match=message) as caught:
    episodic.prepare([config(**changes)])
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'learner': 'relationnet()', 'train__learner': 'protonet()'}, 'train it as itself'),
    ({'learner': 'simpleshot()', 'train__steps': 0}, 'centres by the training images'),
    ({'train__learner': 'maml(steps=1)'}, r'protonet\(\) is not served by maml\(steps=1\)'),
    ({'learner': 'maml(steps=1)', 'train__learner': 'protonet()'}, 'only one of them has theta0'),
    ({'learner': 'nearest_centroid()', 'train__learner': 'maml(steps=1)'}, 'has theta0'),
    ({'train__lr': float('inf')}, 'is a number above 0'),
    ({'seed': 2**32}, 'from 0 to 2,147,483,647'),
    ({'train__meta_batch': 0}, 'are at least 1'),
    ({'train__pool': 'subset(toy(), (True, False))'}, 'different numbers from 0 to 7'),
    ({'train__pool': 'subset(toy(), (1, 1))'}, 'different numbers from 0 to 7'),
    ({'train__pool': 'rotated(3)'}, 'rotated: AttributeError'),
    ({'model': "conv4(mean='x')"}, "mean='x' is to be a tuple"),
  ],
)
def test_what_a_backbone_cannot_serve_is_refused_before_it_trains(changes, message):
  with pytest.raises(FewshotError, match=message):
    episodic.prepare([config(**changes)])


def test_dashboards_do_not_change_a_run_and_ids_of_before_hold():
  (plain,) = episodic.prepare([config()])
  assert plain._replace(config=config(wandb__mode='offline', tensorboard=True)).id == plain.id
  before = configs.as_dict(plain.config)
  del before['wandb'], before['tensorboard']  # Configs had neither.
  assert plain.id == records.run_id({'config': before, 'hashes': plain.hashes})


def test_command_runs_resumes_and_shows(tmp_path, capsys):
  path = write(tmp_path / 'c.py', "[{'test.shot': 1}, {'learner': 'nearest_centroid()',"
               " 'train.learner': 'protonet()'}]")  # fmt: skip
  out = str(tmp_path / 'out')
  assert main(['run', path, '--dry-run', '--json']) == 0
  assert len(json.loads(capsys.readouterr().out)['rows']) == 2
  assert main(['run', path, '--out', out, '--minutes', '1e-9']) == 75
  assert main(['run', path, '--out', out, '--json']) == 0
  cells = json.loads(capsys.readouterr().out)
  assert [c['learner'] for c in cells] == ['protonet()', 'nearest_centroid()']
  lines = [json.loads(t) for t in (tmp_path / 'out/log.jsonl').read_text().splitlines()]
  assert [x['event'] for x in lines] == ['scalars'] * 3 + ['run'] * 2 + ['table']
  assert [x['step'] for x in lines[:3]] == [1, 2, 3] and all(x['loss'] > 0 for x in lines[:3])
  found = [r['scores']['accuracy']['value'] for r in records.read(out)]
  assert [x['accuracy'] for x in lines[3:5]] == [r['value'] for r in lines[5]['rows']] == found
  table = (tmp_path / 'out/table.md').read_bytes()
  assert main(['run', path, '--out', out]) == 0
  assert 'recorded before' in capsys.readouterr().err
  assert main(['table', out]) == 0
  assert (tmp_path / 'out/table.md').read_bytes() == table
  assert len(records.read(out)) == 2


def test_minutes_are_for_episodes(tmp_path, capsys):
  path = tmp_path / 'c.py'
  path.write_text('from fewshot import config\ndef get_config():\n  return config.default()\n')
  assert main(['run', str(path), '--minutes', '1']) == 2
  assert '--minutes' in capsys.readouterr().err


def test_table_marks_the_best_and_what_equals_it():
  base = {
    **{'model': 'm', 'task': 't', 'status': 'ok'},
    'split': {'way': 5, 'k': 1, 'query': 15, 'seed': 0},
    'hashes': {'test': 'a', 'episodes': 'b'},
    'training': {'learner': '', 'pool': '', 'steps': 0, 'name': ''},
  }
  rng = np.random.default_rng(0)
  best = rng.uniform(0.6, 0.8, 100)
  arms = {'good': best, 'same': best + rng.normal(0, 0.01, 100) - 1e-4, 'bad': best - 0.1}

  def record(name, a):
    score = {'value': float(a.mean()), 'spread': 0.01, 'n': len(a)}
    return base | {'id': name, 'method': name, 'episodes': list(a), 'scores': {'accuracy': score}}

  cells = {c.learner: c for c in episode_tables.cells(record(*arm) for arm in arms.items())}
  assert {n: c.best for n, c in cells.items()} == {'good': True, 'same': True, 'bad': False}
  assert cells['bad'].behind == pytest.approx(0.1, abs=0.01)
  assert '| `bad` | m |' in episode_tables.render_markdown(list(cells.values()))


def test_fresh_sets_records_aside_and_tests_anew_from_the_same_training(tmp_path, capsys):
  path, out = write(tmp_path / 'c.py'), str(tmp_path / 'out')
  assert main(['run', path, '--out', out]) == 0
  (first,) = records.read(out)
  assert main(['run', path, '--out', out, '--fresh']) == 0
  (again,) = records.read(out)
  assert 'earlier records are now' in capsys.readouterr().err
  assert (tmp_path / 'out' / 'records.1.jsonl').exists()
  assert (again['id'], again['episodes']) == (first['id'], first['episodes'])


def test_the_mean_of_the_train_images_is_computed_once_for_rows_that_share_a_training(
  tmp_path, monkeypatch
):
  made = []
  centre = episodic.meta.centre
  monkeypatch.setattr(episodic.meta, 'centre', lambda *a: made.append(a) or centre(*a))
  taught = {'learner': 'simpleshot()', 'train__learner': 'protonet()'}
  rows = episodic.prepare([config(**taught), config(**taught, test__shot=2)])
  kept = {}
  together = [episodic.run(e, tmp_path, kept=kept)['episodes'] for e in rows]
  assert len(made) == 1
  assert together == [episodic.run(e, tmp_path)['episodes'] for e in rows] and len(made) == 3


def test_classes_that_were_trained_on_are_not_tested():
  with pytest.raises(FewshotError, match=r"train\.pool and test\.pool share classes, such as 'a'"):
    episodic.prepare([config(test__pool='toy()')])
  subset = {'train__pool': 'subset(toy(), (0, 1, 2, 3))', 'test__pool': 'subset(toy(), (4, 5, 6))'}
  (e,) = episodic.prepare([config(**subset)])
  assert e.test.pool.classes == ('e', 'f', 'g')


def test_a_learner_without_a_name_trains_where_nothing_is_kept(tmp_path):
  (e,) = episodic.prepare([config()])
  nameless = e.learner._replace(made=None)
  done = episodic.meta.train(nameless, e.backbone.batch, e.train, steps=1)
  assert done.step == 1
  with pytest.raises(FewshotError, match='no spelling'):
    episodic.meta.train(nameless, e.backbone.batch, e.train, steps=1, folder=tmp_path)


def test_a_pool_is_spelled_with_underscores():
  with pytest.raises(FewshotError, match="no pool 'image-folder'; did you mean 'image_folder'"):
    backbones.pool_of("image-folder('pics')")


def test_minutes_that_are_over_still_print_one_json_value(tmp_path, capsys):
  path = write(tmp_path / 'c.py', train__steps=400)
  argv = ['run', path, '--out', str(tmp_path / 'out'), '--minutes', '0.00001', '--json']
  assert main(argv) == 75
  assert json.loads(capsys.readouterr().out.splitlines()[-1]) is not None
  assert main(['run', path, '--minutes', 'x']) == 2
  assert 'x is no number of minutes above 0' in capsys.readouterr().err
  assert main(['run', path, '--dry-run', '--devices', '2']) == 2


def test_a_model_that_diverged_is_a_failed_record_and_not_chance(tmp_path, capsys):
  path = write(tmp_path / 'c.py', train__lr=1e30)
  assert main(['run', path, '--out', str(tmp_path / 'out')]) == 1
  (record,) = records.read(tmp_path / 'out')
  assert record['status'] == 'failed' and record['scores']['accuracy']['value'] is None
  assert 'failed' in (tmp_path / 'out' / 'table.md').read_text()


def test_scores_exactly_at_chance_are_collapsed(tmp_path):
  (e,) = episodic.prepare([config()])
  at_chance = episodic._record(e, {}, np.full(12, 1 / 3), {'train_steps': 3})
  assert at_chance['status'] == 'collapsed'


def test_an_interrupted_session_counts_and_junk_tells_no_time(tmp_path):
  (e,) = episodic.prepare([config(train__save_every=1)])

  def interrupt(step, loss):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    episodic.run(e, tmp_path, progress=interrupt)
  file = tmp_path / 'training' / e.training / 'sessions.json'
  first = json.loads(file.read_text())
  assert len(first) == 1 and first[0]['seconds'] > 0
  assert episodic.run(e, tmp_path)['timings']['train_s'] >= first[0]['seconds']
  for junk in ('', '{', '3', 'null', '[{}]'):
    file.write_text(junk)
    assert episodic.run(e, tmp_path)['status'] in ('ok', 'collapsed')


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path):
  (e,) = episodic.prepare([config(train__save_every=1)])
  whole = episodic.run(e, tmp_path)
  folder = tmp_path / 'training' / e.training
  steps = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
  assert steps == [2, 3]

  def damage(step):
    for file in (folder / str(step)).rglob('*'):
      if file.is_file():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

  damage(3)
  with pytest.warns(UserWarning, match='the checkpoint of step 3 is damaged'):
    again = episodic.run(e, tmp_path)
  assert again['episodes'] == whole['episodes']


def test_another_training_is_not_taken_up(tmp_path):
  (e,) = episodic.prepare([config()])
  again = lambda **kw: episodic.meta.train(  # noqa: E731
    e.learner, e.backbone.batch, e.train, steps=1, folder=tmp_path, **kw
  )
  again(lr=1e-3)
  with pytest.raises(FewshotError, match=r'a training with lr 0\.001, and this one has 0\.5'):
    again(lr=0.5)


def test_trainings_of_one_setting_are_rows_of_their_own(tmp_path):
  for e in episodic.prepare([config(), config(train__steps=2)]):
    records.append(tmp_path, episodic.run(e, tmp_path))
  table = episode_tables.render_markdown(episode_tables.write(tmp_path))
  assert ', 3 steps (' in table and ', 2 steps (' in table and ' / ' not in table


def test_absolute_folders_of_pools_stay_out_of_records():
  c = config(train__pool="subset(image_folder('/data/of/me/pics', size=8), (0, 1))")
  assert configs.as_dict(c)['train']['pool'] == "subset(image_folder('pics', size=8), (0, 1))"


def test_records_of_splits_and_unsound_ones_are_one_line(tmp_path, capsys):
  path, out = write(tmp_path / 'c.py'), tmp_path / 'out'
  out.mkdir()
  (sound,) = episodic.prepare([config()])
  record = episodic.run(sound, tmp_path)
  of_splits = {k: v for k, v in record.items() if k != 'episodes'}
  (out / 'records.jsonl').write_text(json.dumps(of_splits) + '\n')
  assert main(['run', path, '--out', str(out)]) == 2
  assert 'has records of splits' in capsys.readouterr().err
  (out / 'records.jsonl').write_text(json.dumps(record | {'training': 3}) + '\n')
  assert main(['table', str(out)]) == 2
  err = capsys.readouterr().err
  assert f'record 1 of {out} is left out: its field training' in err and 'no finished run' in err
