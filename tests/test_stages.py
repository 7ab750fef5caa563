"""Staged programs: what defines each of them, what they carry, and what is found again."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import fits, methods, models, programs, stages, sweep, tasks
from fewshot.errors import FewshotError
from fewshot.methods import paths, scoring
from fewshot.methods.scoring import base
from fewshot.methods.scoring import robust as attacks
from fewshot.methods.spelling import spell
from fewshot.models import mlp
from fewshot.programs import search, steps
from fewshot.tasks.encode import Encoded

FIT = fits.sgd(steps=8, lr=0.02, batch=6)
CONFIG = mlp.Config(inputs=5, dim=8, depth=3, activation='gelu')


def data_of(seed: int, k: int = 6) -> Encoded:
  """Two classes, told apart by a random direction; a dev set as large as train."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(60, 5)).astype(np.float32)
  z = x @ rng.normal(size=5)
  y = (z > np.median(z)).astype(int)
  task = tasks.from_arrays(x, y)
  return tasks.encode(task, tasks.kshot(task, k, [0, 1], dev_k=k))


@pytest.fixture(scope='module')
def model() -> models.Model:
  params = mlp.init(CONFIG, jax.random.key(3))
  return models.Model('mlp', mlp.forward(CONFIG), params, example=mlp.example(CONFIG))


@pytest.fixture(scope='module')
def data() -> Encoded:
  return data_of(0)


def run(program: Any, model: models.Model, data: Any, **kwargs: Any) -> stages.Outcome:
  program = programs.parse(program) if isinstance(program, str) else program
  if isinstance(program, stages.Stage):
    program = stages.program(program)
  return stages.run(program, model, data, **({'classes': 2} | kwargs))


def moved(a: Any, b: Any) -> dict[str, np.ndarray]:
  """Where the leaves that both have differ, by path; the classifier apart."""
  a, b = paths.flatten(a), paths.flatten(b)
  return {p: np.asarray(a[p]) != np.asarray(b[p]) for p in b if not p.startswith('head/')}


def touched(a: Any, b: Any) -> set[str]:
  """The modules with a leaf that differs."""
  return {p.rsplit('/', 1)[0] for p, mask in moved(a, b).items() if mask.any()}


def total(masks: dict[str, np.ndarray]) -> int:
  return sum(int(m.sum()) for m in masks.values())


@pytest.fixture(scope='module')
def lt(model, data) -> stages.Outcome:
  return run(programs.lt_sft(budget=10, fit=FIT), model, data)


def test_a_program_of_one_training_is_the_plain_run(model, data):
  out = run(steps.train(methods.lora('.*/up', rank=2), FIT), model, data, seed=4)
  method = methods.chain(methods.lora('.*/up', rank=2), methods.linear())
  want = next(iter(sweep.sweep(model, data, method, FIT, classes=2, seeds=(4,))))
  np.testing.assert_allclose(out.logits(), want.logits, atol=1e-5)
  assert out.notes[0]['trained'] == methods.count(want.theta)


def test_lt_sft_trains_what_moved_most_from_the_start(model, data, lt):
  base, params, chosen = model.params, lt.carried['params'], lt.carried['selection']
  first = run(steps.train(methods.full(), FIT), model, data).carried['params']
  change = paths.flatten(steps.changed(first, base))
  flat = np.concatenate([np.abs(x).ravel() for x in change.values()])
  assert chosen.entries == 10
  least = min(np.abs(np.ravel(change[p]))[x.units].min() for p, x in chosen.parts.items())
  assert least >= np.sort(flat)[-10]
  masks = moved(params, base)
  assert 0 < total(masks) <= 10
  for p, mask in masks.items():
    inside = chosen.parts[p].units if p in chosen.parts else np.array([], int)
    assert set(np.flatnonzero(mask)) <= set(inside.tolist())
  # Rewound: the second phase is a run of its own from the weights at the start.
  again = steps.train(methods.tune(), FIT, where='selection')
  seed = paths.stable_hash('stage', 0, 1) % 2**31
  want, _ = again.run(lt.setting, {'params': base, 'selection': chosen}, seed)
  jax.tree.map(np.testing.assert_array_equal, params, want['params'])


def test_lt_sft_deltas_of_two_tasks_add_to_the_sum(model, data, lt):
  other = run(programs.lt_sft(budget=10, fit=FIT), model, data_of(7))
  one, two = lt.carried['delta'], other.carried['delta']
  assert total(moved(steps.add(model.params, two), model.params)) > 0
  both = steps.add(model.params, one, two)
  dense = lambda o: steps.changed(o.carried['params'], model.params)  # noqa: E731
  want = jax.tree.map(lambda w, a, b: w + a + b, model.params, dense(lt), dense(other))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), both, want)
  jax.tree.map(np.testing.assert_array_equal, both, steps.add(model.params, two, one))
  assert sum(x['value'].size for x in one.values()) == 10  # As large as what was chosen.


def test_cola_is_a_chain_of_runs_whose_rank_grows(model, data):
  lora = methods.lora('.*/block_1/up', rank=1)
  one, two = (run(programs.cola(FIT, n, lora), model, data).carried['params'] for n in (1, 2))
  delta = lambda p: np.asarray(steps.changed(p, model.params)['encoder']['block_1']['up']['kernel'])  # noqa: E731
  assert np.linalg.matrix_rank(delta(one), 1e-4) == 1
  assert np.linalg.matrix_rank(delta(two), 1e-4) == 2
  restarted = model._replace(params=one)
  second = run(
    steps.train(lora, FIT), restarted, data, seed=paths.stable_hash('stage', 0, 1) % 2**31
  )
  jax.tree.map(np.testing.assert_array_equal, second.carried['params'], two)


def test_surgical_trains_the_layers_of_the_largest_fisher(model, data):
  out = run(programs.surgical(1, FIT), model, data)
  calib = out.setting.calib('task')
  scores = scoring.fisher()(jax.random.key(0), model.forward, model.params, calib)
  layer = lambda p: p.split('/up')[0]  # noqa: E731
  names = sorted({layer(p) for p in scores})
  mean = {n: np.mean(np.concatenate([np.ravel(x) for p, x in scores.items() if layer(p) == n]))
          for n in names}  # fmt: skip
  best = max(names, key=mean.get)
  assert {layer(p) for p, m in moved(out.carried['params'], model.params).items() if m.any()} == {
    best
  }


def test_subtuning_adds_the_layer_that_cross_validation_likes_best(model, data):
  out = run(programs.subtuning(FIT, folds=3, epsilon=-1.0, most=2), model, data)
  note, setting = out.notes[0], out.setting
  assert len(note['layers']) == 2 and len(note['profile']) == 3
  cv = lambda names: search.crossval(  # noqa: E731
    setting, model.params, steps.placed_at(methods.tune(), search.layers(model.params, names)),
    FIT, 'task', 3, 0,
  )  # fmt: skip
  alone = {n: cv([n]) for n in search.blocks(model.params)}
  assert note['profile'][1] == max(alone.values()) == alone[note['layers'][0]]
  touched = {
    p.rsplit('/up')[0] for p, m in moved(out.carried['params'], model.params).items() if m.any()
  }
  assert touched == set(note['layers'])


def test_subtuning_stops_where_nothing_is_gained(model, data):
  out = run(programs.subtuning(FIT, folds=3, epsilon=1.0), model, data)
  assert out.notes[0]['layers'] == [] and len(out.notes[0]['profile']) == 1
  assert total(moved(out.carried['params'], model.params)) == 0  # The classifier alone.
  assert np.abs(out.carried['params']['head']['kernel']).max() > 0


def test_folds_hold_each_example_out_once_and_show_no_test_item(data):
  one = stages.only(data, 1)
  parts = search.folded(one, 4)
  assert parts.train['x'].shape == (4, 9, 5) and parts.dev['x'].shape == (4, 3, 5)
  rows = lambda x: sorted(map(tuple, np.asarray(x).reshape(-1, 5).tolist()))  # noqa: E731
  assert rows(parts.dev['x']) == rows(one.train['x'])
  for i in range(4):
    assert not set(rows(parts.train['x'][i])) & set(rows(parts.dev['x'][i]))
  assert set(rows(parts.test[0].batches['x'])) <= set(rows(one.train['x']))


def test_cofitune_trains_the_best_module_of_the_best_range(model, data):
  program = programs.cofitune(FIT, folds=2, parts=2)
  out = run(program, model, {'task': data, 'general': data_of(5)})
  note = out.notes[0]
  names = search.blocks(model.params)
  ranges = [names[:2], names[2:], names]  # Two, and both side by side.
  assert len(note['ranges']) == 3
  assert note['layers'] == ranges[int(np.argmax(note['ranges']))]
  assert max(note['modules'].values()) >= max(note['ranges'])
  touched = {
    p.rsplit('/up')[0] for p, m in moved(out.carried['params'], model.params).items() if m.any()
  }
  assert touched == set(note['layers'])


def test_cofitune_scales_each_update_by_one_minus_importance(model, data):
  """Its last stage against plain tuning: in two steps, since a head of zeros has no slope below."""
  named, fit = {'task': data, 'general': data_of(5)}, fits.sgd(steps=2, lr=0.1, batch=6)
  stage = programs.cofitune(fit).stages[-1]
  chosen = search.layers(model.params, search.blocks(model.params)[:2])
  setting = run(steps.remember('kept'), model, named).setting
  ends = []
  for s in (stage, steps.train(methods.tune(), fit, where='selection')):
    ends.append(s.run(setting, {'params': model.params, 'selection': chosen}, 3)[0]['params'])
  fine, plain = (paths.flatten(steps.changed(p, model.params)) for p in ends)
  method = steps.placed_at(stage.made.args[0], chosen)
  _, state = method.init(jax.random.key(0), model.forward, model.params, setting.calib('task'))
  assert len(state['soft']) == 4
  for p in state['soft']:
    assert np.abs(plain[p]).max() > 0.01
    share = np.asarray(fine[p] / plain[p])
    assert (share >= -1e-5).all() and (share <= 1 + 1e-5).all()
    if share.ndim > 1:  # One factor for each output; biases of 0 have none.
      assert np.ptp(share) > 0.1
      np.testing.assert_allclose(share, np.broadcast_to(share[:1], share.shape), atol=1e-3)


def test_l1_holds_what_lt_sft_trains_at_the_start_in_both_phases(model, data):
  free, held = (run(programs.lt_sft(10, FIT, l1=l1), model, data).carried for l1 in (0.0, 1e4))
  sizes = [sum(np.abs(x['value']).sum() for x in c['delta'].values()) for c in (free, held)]
  assert sizes[1] < 0.5 * sizes[0]
  stages_ = programs.lt_sft(10, FIT, l1=0.1).stages
  assert [dict(stages_[i].made.named)['l1'] for i in (0, 3)] == [0.1, 0.1]


@pytest.fixture(scope='module')
def grafted(model, data) -> stages.Outcome:
  fit = fits.sgd(steps=60, lr=0.03, batch=12)
  mask = fits.sgd(steps=60, batch=12)
  program = stages.program(
    steps.train(methods.full(), fit), steps.remember('tuned'), steps.keep(4),
    programs.graft(mask, rate=1e4),
  )  # fmt: skip
  return run(program, model, data)


def test_grafting_takes_the_tuned_values_of_its_region_alone(model, grafted):
  base, tuned = paths.flatten(model.params), paths.flatten(grafted.carried['tuned'])
  chosen = grafted.carried['selection']
  for p, x in paths.flatten(grafted.carried['params']).items():
    if p.startswith('head/'):
      np.testing.assert_array_equal(x, tuned[p])
      continue
    inside = np.zeros(x.size, bool)
    inside[chosen.parts[p].units if p in chosen.parts else []] = True
    want = np.where(inside.reshape(x.shape), tuned[p], base[p])
    np.testing.assert_array_equal(x, want)


def test_grafting_learns_a_region_that_regains_the_accuracy(model, data, grafted):
  tuned, setting = grafted.carried['tuned'], grafted.setting
  batch = {k: jnp.asarray(v[0]) for k, v in setting.of('task').train.items()}
  full = setting.accuracy(tuned, batch)
  regained = setting.accuracy(grafted.carried['params'], batch)
  assert full == 1.0 and regained >= 0.95 * full
  bare = paths.replace(tuned, paths.flatten(model.params))
  largest = steps.keep(4).run(setting, {'params': tuned, 'base': model.params}, 0)[0]['selection']
  sized = {p: np.ravel(x) for p, x in paths.flatten(steps.changed(tuned, model.params)).items()}
  patch = {p: {'index': x.units, 'value': sized[p][x.units]} for p, x in largest.parts.items()}
  for untrained in (bare, steps.add(bare, patch)):  # The region is learned, not just what moved.
    assert setting.accuracy(untrained, batch) < 0.95 * full
  entries = sum(x.size for x in jax.tree.leaves(model.params))
  assert 4 < grafted.carried['selection'].entries < 0.1 * entries


def test_fpf_tunes_on_the_buffer_what_changed_most_between_tasks(model, data):
  named = {'first': data, 'second': data_of(8), 'buffer': data_of(9)}
  before = run(stages.Program(programs.fpf(1, FIT).stages[:4]), model, named).carried
  change = paths.flatten(steps.changed(before['params'], before['first_task']))
  mean = {}
  for p, x in change.items():
    if not p.startswith('head/'):
      mean.setdefault(p.rsplit('/', 1)[0], []).append(np.abs(x).ravel())
  mean = {m: np.concatenate(x).mean() for m, x in mean.items()}
  after = run(programs.fpf(1, FIT), model, named).carried['params']
  assert touched(after, before['params']) == {max(mean, key=mean.get)}


def test_lofit_moves_the_chosen_heads_alone(tiny):
  model = tiny.model._replace(example=tiny.batch)
  out = run(programs.staged_lofit(heads=1, fit=FIT, steps=2), model, tiny.encoded, classes=3)
  ((path, part),) = out.carried['selection'].parts.items()
  scores = scoring.head_scales(steps=2)(
    jax.random.key(0), tiny.forward, tiny.params, out.setting.calib('task')
  )
  best = max((float(s), p, h) for p, of in scores.items() for h, s in enumerate(of))
  assert (path.replace('out/kernel', 'core'), int(part.units[0])) == best[1:]
  masks = moved(out.carried['params'], tiny.params)
  bias = path.replace('kernel', 'bias')
  assert {p for p, m in masks.items() if m.any()} == {bias}
  # The change of the bias is in the span of the chosen head's rows of `out`.
  kernel = np.asarray(paths.flatten(tiny.params)[path])
  shift = np.asarray(paths.flatten(out.carried['params'])[bias]) - paths.flatten(tiny.params)[bias]
  rows = kernel.reshape(4, -1, kernel.shape[-1])[int(part.units[0])]
  left = shift - rows.T @ np.linalg.lstsq(rows.T, shift, rcond=None)[0]
  assert np.abs(shift).max() > 1e-3 and np.abs(left).max() < 1e-5


def test_rift_tunes_the_least_critical_module_and_stays_robust(model, data):
  robust = run(steps.train(methods.full(), FIT), model, data).model  # With a classifier.
  named = {'task': data_of(11), 'robust': data}
  out = run(programs.staged_rift(FIT), robust, named)
  scores = scoring.rift()(
    jax.random.key(0), robust.forward, robust.params, out.setting.calib('robust')
  )
  least = min(scores, key=lambda m: float(scores[m]))
  chosen = out.carried['selection']
  assert list(chosen.parts) == [least]
  rows = out.notes[-1]['tried']
  kept = [r for r in rows if r[2] >= rows[0][2] - 0.001]
  alpha = out.notes[-1]['alpha']
  assert max(kept, key=lambda r: (r[1], -r[0]))[0] == alpha and len(rows) == 11
  dev = {k: jnp.asarray(v[0]) for k, v in out.setting.of('robust').dev.items()}
  score = out.setting.accuracy
  assert score(out.carried['params'], dev) >= score(robust.params, dev) - 0.001


@pytest.fixture(scope='module')
def shown_images() -> tuple[models.Model, Encoded]:
  """A small network with a classifier, and images of two classes."""
  rng = np.random.default_rng(0)
  image = rng.uniform(size=(60, 4, 4, 1)).astype(np.float32)
  z = image.reshape(60, -1) @ rng.normal(size=16)
  task = tasks.make('images', {'image': image}, (z > np.median(z)).astype(int))
  shown = tasks.encode(task, tasks.kshot(task, 6, [0], dev_k=6))
  kernels = [0.5 * rng.normal(size=s).astype(np.float32) for s in ((16, 4), (4, 2))]
  params = {'stem': {'kernel': kernels[0]}, 'head': {'kernel': kernels[1]}}

  def net(p: Any, image: Any) -> dict[str, Any]:
    features = jnp.tanh(image.reshape(len(image), -1) @ p['stem']['kernel'])
    return {'features': features, 'logits': features @ p['head']['kernel']}

  return models.Model('net', models.from_function(net, ('image',)), params), shown


def test_rift_measures_robustness_on_attacked_images(shown_images):
  model, shown = shown_images
  program = programs.staged_rift(FIT, robust='task', radius=0.2, drop=0.0)
  out = run(program, model, shown)
  rows = np.array(out.notes[-1]['tried'])
  assert (rows[:, 2] <= rows[:, 1]).all() and (rows[:, 2] < rows[:, 1]).any()
  kept = rows[rows[:, 2] >= rows[0, 2]]
  assert out.notes[-1]['alpha'] in kept[kept[:, 1] == kept[:, 1].max(), 0]


def test_harden_trains_on_images_that_are_attacked_in_each_step(shown_images):
  """Its first loss is that of attacked images; what it ends with withstands them."""
  model, shown = shown_images
  radius, fit = 0.1, fits.sgd(steps=300, lr=0.02, batch=12)
  both = (steps.train(methods.full(), fit), programs.harden(fit, radius, data='task'))
  plain, hard = (run(stage, model, shown) for stage in both)
  calib, loss = hard.setting.calib('task'), []
  for params in (model.params, plain.carried['params'], hard.carried['params']):
    task = base.problem(model.forward, params, calib)
    batch = attacks.attacked(jax.random.key(1), task, radius)
    loss.append(float(task._replace(batch=batch).value(task.leaves)))
  np.testing.assert_allclose(hard.notes[0]['loss'][0], loss[0], rtol=0.01)
  assert loss[2] < 0.2 * loss[1]


def test_rift_starts_from_adversarial_training_where_asked(shown_images):
  model, shown = shown_images
  program = programs.staged_rift(FIT, robust='task', radius=0.1, first=FIT)
  assert [s.name for s in program.stages] == ['harden', 'remember', 'select', 'train', 'blend']
  out = run(program, model, shown)
  alpha, c = out.notes[-1]['alpha'], out.carried
  moved_first = steps.changed(c['hardened'], model.params)
  assert any(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(moved_first))
  if alpha == 0:
    jax.tree.map(np.testing.assert_array_equal, c['params'], c['hardened'])
  rows = np.array(out.notes[-1]['tried'])
  kept = rows[rows[:, 2] >= rows[0, 2] - 0.001]
  assert alpha in kept[kept[:, 1] == kept[:, 1].max(), 0]


def test_interpolation_and_new_starts(model, data):
  program = stages.program(
    steps.train(methods.full(), FIT), steps.remember('tuned'), steps.interpolate(0.25),
    steps.remember('mixed'), steps.reinit('.*/block_2/.*'),
  )  # fmt: skip
  c = run(program, model, data).carried
  flat = {k: paths.flatten(c[k]) for k in ('base', 'tuned', 'mixed', 'params')}
  for p, w in flat['base'].items():
    np.testing.assert_allclose(flat['mixed'][p], 0.75 * w + 0.25 * flat['tuned'][p], atol=1e-6)
  np.testing.assert_array_equal(flat['mixed']['head/bias'], flat['tuned']['head/bias'])
  new = {p for p in flat['mixed'] if (np.asarray(flat['mixed'][p]) != flat['params'][p]).any()}
  assert new == {'encoder/block_2/up/kernel', 'encoder/block_2/up/bias'}
  old, now = (np.asarray(flat[k]['encoder/block_2/up/kernel']) for k in ('mixed', 'params'))
  assert (
    0.5 < now.std() / old.std() < 2
    and not np.asarray(flat['params']['encoder/block_2/up/bias']).any()
  )


def test_a_finished_stage_is_found_again(model, data, tmp_path, lt, monkeypatch):
  program = programs.lt_sft(budget=10, fit=FIT)
  first = run(program, model, data, cache=tmp_path)
  assert not any(n['cached'] for n in first.notes)
  monkeypatch.setattr(steps.sweeps, 'sweep', lambda *a, **k: pytest.fail('it trains again'))
  again = run(program, model, data, cache=tmp_path)
  assert all(n['cached'] for n in again.notes)
  assert [n | {'cached': 0} for n in again.notes] == [n | {'cached': 0} for n in first.notes]
  for name in ('params', 'delta'):
    got, want, plain = (o.carried[name] for o in (again, first, lt))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    jax.tree.map(np.testing.assert_array_equal, got, plain)
  assert again.carried['selection'] == first.carried['selection']
  names = {p.name for folder in tmp_path.iterdir() for p in folder.iterdir()}
  assert names == {'stage.json', 'carried.safetensors', 'selection.safetensors'}


def test_what_a_stage_depends_on_makes_it_run_anew(model, data, tmp_path):
  def cached(model=model, data=data, budget=10, seed=0, split=0, lr=0.02):
    fit = fits.sgd(steps=2, lr=lr, batch=6)
    program = stages.program(steps.train(methods.full(), fit), steps.keep(budget))
    out = run(program, model, data, cache=tmp_path, seed=seed, split=split)
    return [n['cached'] for n in out.notes]

  assert cached() == [False, False] and cached() == [True, True]
  assert cached(budget=11) == [True, False]
  for other in ({'lr': 0.03}, {'seed': 1}, {'split': 1}, {'data': data_of(1)}):
    assert cached(**other) == [False, False]
  params = jax.tree.map(lambda x: x + 1e-3, model.params)
  assert cached(model=model._replace(params=params)) == [False, False]
  louder = lambda p, b, key=None: jax.tree.map(lambda x: 2 * x, model.forward(p, b, key))  # noqa: E731
  assert cached(model=model._replace(forward=louder))[0] is False
  assert cached() == [True, True]


def test_a_damaged_cache_is_told(model, data, tmp_path):
  program = stages.program(steps.remember('kept'))
  run(program, model, data, cache=tmp_path)
  (folder,) = tmp_path.iterdir()
  (folder / 'carried.safetensors').write_bytes(b'no')
  with pytest.raises(FewshotError, match=r'carried\.safetensors is missing or damaged .* delete'):
    run(program, model, data, cache=tmp_path)


def test_another_constant_in_the_forward_is_another_computation(model, data):
  """Label words are numbers within the computation, which its text names by their shape alone."""
  one = {'task': stages.only(data, 0)}

  def digest(ids):
    @jax.jit
    def inner(z):
      return z[:, np.array(ids)]

    def forward(params, batch, key=None):
      outputs = model.forward(params, batch, key)
      return outputs | {'logits': inner(outputs['features'])}

    return stages.forward_hash(stages.Setting(model._replace(forward=forward), one, 3))

  assert digest([1, 2, 3]) == digest([1, 2, 3]) != digest([1, 2, 4])


@pytest.mark.parametrize(
  'text',
  [
    'lt_sft(budget=0.01, fit=sgd(steps=9))',
    'cola(fit=sgd(), links=2, method=lora(rank=2))',
    'surgical(layers=2, score=gradient())',
    "program(train(full(), sgd()), keep(budget=9), train(tune(), sgd(), where='selection'))",
    "program(select(top(fisher(), 2, granularity='layer')), staged_rift(radius=0.03))",
  ],
)
def test_programs_are_spelled_as_methods_are(text):
  assert spell(programs.parse(text)) == text


@pytest.mark.parametrize(
  'text, message',
  [
    ("train(tune(), sgd(), where='selection')", "train, reads 'selection', which no stage before"),
    ("train(full(), sgd(), data='other')", "no data 'other'; known: task"),
    ('train(soft_prompt(), sgd())', 'cannot be merged into the weights'),
    ("program(keep(9), train(bitfit(), sgd(), where='selection'))", 'has no where= for what was'),
    ("remember('params')", "'params' is no name for an entry"),
    ('interpolate(1.5)', r'alpha is in \[0, 1\]'),
    ('program()', 'at least one stage'),
    ('lora()', 'spells no program'),
    ('lt_sfd()', "did you mean 'lt_sft'"),
    ('cola(links=0)', 'links is at least 1'),
    ('harden(sgd(), 0.0)', 'radius is above 0'),
    ('greedy(sgd(), folds=1)', 'folds is at least 2'),
    ('greedy(sgd(), folds=50)', '50 folds need as many train examples, and there are 12'),
    ("fpf(tasks=('a',))", 'name at least two'),
    ('graft(sgd(), rate=0.0)', 'rate is above 0'),
    ("program(select(top(magnitude(), 1, granularity='layer')), difference())", 'parts of leaves'),
  ],
)
def test_refused(model, data, text, message):
  with pytest.raises(FewshotError, match=message):
    run(text, model, data)


def test_no_split_and_no_dev_set(model, data):
  with pytest.raises(FewshotError, match='there is no split 5; the data has 2'):
    run('rewind()', model, data, split=5)
  bare = data._replace(dev=None)
  with pytest.raises(FewshotError, match="chooses alpha on dev sets, and 'task' has none"):
    run("blend(robust='task')", model, bare)
  with pytest.raises(FewshotError, match='the delta is of another model'):
    steps.add(model.params, {'no/such': {'index': np.zeros(1, int), 'value': np.ones(1)}})
