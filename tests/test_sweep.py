"""Sweeps: equal to the runs one by one, however they are chunked, and equal to themselves."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import fewshot
from fewshot import fits, methods, models, objectives, runs, sweep, tasks, train
from fewshot.errors import FewshotError
from fewshot.tasks.encode import Encoded
from fewshot.tasks.splits import Split

METHOD = methods.parse('chain(lora(rank=2), linear())')
FIT = fits.sgd(steps=4, lr=0.02, batch=4)


@pytest.fixture(scope='module')
def five(tiny) -> Encoded:
  """Five splits over the tiny test set."""
  rng = np.random.default_rng(3)

  def draw(n: int) -> dict[str, np.ndarray]:
    mask = np.arange(7) < rng.integers(2, 8, (5, n, 1))
    tokens = np.where(mask, rng.integers(1, tiny.config.vocab, mask.shape), 0).astype(np.int32)
    labels = np.broadcast_to(np.arange(n) % 3, (5, n)).astype(np.int32)
    return {'tokens': tokens, 'mask': mask, 'labels': labels}

  rows = np.arange(9)
  splits = tuple(Split(s, 3, rows, rows[:6], np.arange(10), f's{s}', 'test') for s in range(5))
  return tiny.encoded._replace(train=draw(9), dev=draw(6), splits=splits)


@pytest.fixture(scope='module')
def small() -> tuple[models.Model, Encoded]:
  """A net that compiles in no time, for what is not about models; two splits, a dev set."""
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(60, 5)).astype(np.float32), np.arange(60) % 3
  task = tasks.from_arrays(x, y)
  params = {'kernel': rng.normal(size=(5, 8)).astype(np.float32)}
  forward = models.from_function(lambda p, x: jnp.tanh(x @ p['kernel']))
  data = tasks.encode(task, tasks.kshot(task, 5, [0, 1], dev_k=2))
  return models.Model('net', forward, params), data


def only(data: Encoded, i: int) -> Encoded:
  take = lambda batch: {k: v[i : i + 1] for k, v in batch.items()}  # noqa: E731
  dev = None if data.dev is None else take(data.dev)
  return data._replace(train=take(data.train), dev=dev, splits=data.splits[i : i + 1])


def run(model: models.Model, data: Encoded, **kwargs: Any) -> list[sweep.Result]:
  kwargs = {'method': METHOD, 'fit': FIT, 'classes': 3} | kwargs
  method, fit = kwargs.pop('method'), kwargs.pop('fit')
  return list(sweep.sweep(model, data, method, fit, **kwargs))


@pytest.fixture(scope='module')
def whole(tiny, five) -> list[sweep.Result]:
  return run(tiny.model, five)


def assert_equal(got: list[sweep.Result], want: list[sweep.Result], atol: float) -> None:
  assert [r.run for r in got] == [r.run for r in want]
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a.logits, b.logits, atol=atol)
    np.testing.assert_allclose(a.curve, b.curve, atol=atol)
    assert (a.dev is None) == (b.dev is None)
    if a.dev:
      np.testing.assert_allclose(list(a.dev.values()), list(b.dev.values()), atol=1e-3)


def test_five_splits_at_once_are_five_sweeps(tiny, five, whole):
  assert len(whole) == 5 and {r.memory['runs'] for r in whole} == {5}
  for i, result in enumerate(whole):
    (alone,) = run(tiny.model, only(five, i))
    assert np.abs(alone.logits - result.logits).max() <= 1e-4
    np.testing.assert_allclose(alone.curve, result.curve, atol=1e-4)
  for a, b in itertools.combinations(whole, 2):
    assert np.abs(a.logits - b.logits).max() > 1e-2  # Or equality would say little.


def test_a_small_memory_makes_chunks_with_the_same_results(tiny, five, whole):
  fixed = sum(x.nbytes for x in jax.tree.leaves(tiny.params))
  each = (whole[0].memory['bytes'] - fixed) / 5
  results = run(tiny.model, five, options=sweep.Options(memory=int(fixed + 2.5 * each)))
  assert {r.memory['runs'] for r in results} == {2}  # Five runs in twos: the last has a pad.
  assert_equal(results, whole, 1e-4)
  assert results[0].memory['bytes'] < whole[0].memory['bytes']


def test_the_smallest_chunk_is_one_run(small):
  results = run(*small, method=methods.linear(), options=sweep.Options(memory=1))
  assert {r.memory['runs'] for r in results} == {1}
  assert_equal(results, run(*small, method=methods.linear()), 1e-5)


def test_twice_is_the_same_bit_for_bit(tiny, five, whole):
  for a, b in zip(run(tiny.model, five), whole, strict=True):
    np.testing.assert_array_equal(a.logits, b.logits)
    np.testing.assert_array_equal(a.curve, b.curve)
    jax.tree.map(np.testing.assert_array_equal, (a.theta, a.state), (b.theta, b.state))
    assert a.dev == b.dev


def test_two_programs_are_compiled_whatever_the_number_of_runs(small, monkeypatch):
  compiled, compile_ = [], jax.stages.Lowered.compile
  monkeypatch.setattr(
    jax.stages.Lowered, 'compile', lambda self, *a, **k: compiled.append(1) or compile_(self)
  )
  results = run(*small, method=methods.linear(), seeds=(0, 1), grid={'lr': [0.01, 0.02]})
  assert len(results) == 8 and len(compiled) == 2


def test_the_start_of_a_method_is_traced_once(small):
  """Though the carry's shapes and the program that fits both need it."""
  starts, linear = [], methods.linear()
  counted = linear._replace(init=lambda *args: starts.append(1) or linear.init(*args))
  assert len(run(*small, method=counted)) == 2 and len(starts) == 1


def test_results_say_what_they_cost(whole):
  for r in whole:
    assert r.memory['bytes'] > 0 and r.timings['seconds'] > 0
    assert r.timings['chunk_runs'] == 5 and r.timings['step_flops'] > 0
    np.testing.assert_allclose(5 * r.timings['seconds'], r.timings['chunk_seconds'])
    assert r.curve.shape == (4,) and r.logits.shape == (10, 3)
    np.testing.assert_allclose(r.curve[0], np.log(3), atol=1e-5)  # The head starts at zero.
    np.testing.assert_array_equal(r.predictions, r.logits.argmax(1))


def test_the_order_of_runs(small):
  grid = {'lr': [0.1, 0.001], 'weight_decay': [0.0, 0.5]}
  todo = runs.runs(2, (7, 3), grid)
  assert [(r.split, r.seed) for r in todo[::4]] == [(0, 7), (0, 3), (1, 7), (1, 3)]
  points = [(0.1, 0.0), (0.1, 0.5), (0.001, 0.0), (0.001, 0.5)]
  assert [tuple(r.hyper.values()) for r in todo[:4]] == points
  results = run(*small, grid={'lr': [0.1, 0.001]}, method=methods.linear())
  assert [r.run.hyper['lr'] for r in results] == [0.1, 0.001] * 2
  moved = [np.abs(r.theta['head']['kernel']).max() for r in results]
  assert all(fast > 10 * slow for fast, slow in zip(moved[::2], moved[1::2], strict=True))


def test_a_grid_point_is_the_fit_spelled_with_it(small):
  spelled = run(*small, method=methods.linear())
  fit = fits.sgd(steps=4, batch=4)
  points = run(*small, method=methods.linear(), fit=fit, grid={'lr': [0.02]})
  assert_equal([p._replace(run=p.run._replace(hyper={})) for p in points], spelled, 1e-5)


def test_labels_of_test_items_are_not_given_to_the_forward(small):
  model, data = small
  seen = {}

  def spying(params: Any, batch: dict[str, Any], key: Any = None) -> dict[str, Any]:
    seen.setdefault(len(batch['x']), set()).add('labels' in batch)
    return model.forward(params, batch, key)

  run(model._replace(forward=spying), data, method=methods.linear())
  (test,) = data.test
  assert test.batches['x'].shape[1] == 30 and seen[30] == {False}
  assert seen[4] == {True}  # A train batch.


def test_progress_runs_through_the_phases(small):
  ticks = []
  run(*small, method=methods.linear(), progress=lambda phase, done: ticks.append((phase, done)))
  assert list(dict.fromkeys(p for p, _ in ticks)) == ['compile', 'train', 'score']
  for phase in ('compile', 'train', 'score'):
    done = [d for p, d in ticks if p == phase]
    assert done == sorted(done) and done[-1] == 1.0


def test_dev_is_scored_where_there_is_one(small):
  results = run(*small, method=methods.linear())
  assert all(set(r.dev) == {'score', 'loss'} and 0 <= r.dev['score'] <= 1 for r in results)
  model, data = small
  assert {r.dev is None for r in run(model, data._replace(dev=None), method=methods.linear())} == {
    True
  }


@pytest.mark.parametrize(
  'kwargs, message',
  [
    ({'grid': {'rate': [1]}}, "cannot vary 'rate' in one compiled sweep; known: head_lr, lr"),
    ({'grid': {'steps': [1]}}, "cannot vary 'steps'"),
    ({'fit': fits.prototypes(), 'grid': {'lr': [1]}}, 'this fit has none that can'),
    ({'grid': {'lr': []}}, 'there is nothing to run'),
    ({'seeds': ()}, 'there is nothing to run'),
    ({'method': methods.full()}, 'gives no logits .it has features.; add a head'),
  ],
)
def test_refused(small, kwargs, message):
  with pytest.raises(FewshotError, match=message):
    run(*small, **kwargs)


class ConvNet(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.relu(nn.Conv(4, (3, 3), name='conv')(x)).mean((1, 2))


@pytest.fixture(scope='module')
def images() -> tuple[models.Model, Encoded]:
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(40, 6, 6, 1)).astype(np.float32), np.arange(40) % 2
  x[y == 1] += 1
  task = tasks.from_arrays(x, y)
  params = ConvNet().init(jax.random.key(0), x[:1])['params']
  model = models.Model('conv', models.from_linen(ConvNet()), params, example={'x': x[:1]})
  return model, tasks.encode(task, tasks.kshot(task, 5, [0, 1]))


def test_convolutions_on_a_cpu_take_straight_steps(images, tiny):
  """One step a dispatch, with the result of the loop."""
  model, data = images
  method, fit = methods.parse('chain(full(), linear())'), fits.sgd(steps=3, lr=0.02, batch=4)
  shared = sweep.setup(model, data, method, fit, 2)
  batch = {k: v[0] for k, v in data.train.items()}
  on_cpu = jax.default_backend() == 'cpu'
  assert train.steps_are_straight(model.forward, model.params, batch) == on_cpu
  assert not train.steps_are_straight(tiny.forward, tiny.params, tiny.batch)
  ticks = []
  results = run(
    model, data, method=method, fit=fit, classes=2, progress=lambda p, d: ticks.append(p)
  )
  assert ticks.count('train') == 3
  one = jax.jit(lambda r: train.fit_run(shared, model.params, r))
  for i, result in enumerate(results):
    inputs = jax.tree.map(lambda x: x[0], runs.stack(data, [sweep.Run(i, 0, {})]))
    theta, state = one(inputs)
    x = np.stack([b.batches['x'].reshape(-1, 6, 6, 1) for b in data.test])[0]
    logits = methods.adapt(method, model.forward, theta, state)(model.params, {'x': x})['logits']
    order = np.argsort(data.test[0].rows)
    np.testing.assert_allclose(result.logits, np.asarray(logits)[order][-20:], atol=1e-4)


@pytest.mark.slow
@pytest.mark.assets
def test_the_real_minilm_on_trec_at_once_and_one_by_one():
  try:
    model, task = models.load('minilm-l6'), tasks.load('trec')
  except FewshotError as e:
    pytest.skip(f'the assets cannot be had: {e}')
  splits = tasks.kshot(task, 1, [0, 1], max_test=12)
  data = tasks.encode(task, splits, model.tokenizer, max_length=16)
  fit = fits.sgd(steps=2, lr=1e-3, head_lr=1e-2, batch=3)
  both = run(model, data, fit=fit, classes=6)
  for i, result in enumerate(both):
    (alone,) = run(model, only(data, i), fit=fit, classes=6)
    assert np.abs(alone.logits - result.logits).max() <= 1e-4
  assert np.abs(both[0].logits - both[1].logits).max() > 1e-3
  objective = objectives.classification()
  chance = objective.mean({'logits': np.zeros((1, 6))}, {'labels': np.zeros(1, int)})
  np.testing.assert_allclose(both[0].curve[0], chance, atol=1e-5)  # The head starts at zero.


def test_labels_beyond_the_classes_are_refused(tiny):
  with pytest.raises(FewshotError, match='a label is 2, and there are 2 classes, 0 to 1'):
    list(sweep.sweep(tiny.model, tiny.encoded, methods.linear(), fits.sgd(steps=1), classes=2))


def test_a_head_of_other_classes_is_refused(tiny):
  head = {'kernel': np.zeros((32, 5), np.float32), 'bias': np.zeros(5, np.float32)}
  model = tiny.model._replace(params=tiny.params | {'head': head})
  run = lambda spelling: sweep.sweep(  # noqa: E731
    model, tiny.encoded, methods.parse(spelling), fits.sgd(steps=1, batch=4), classes=3
  )
  with pytest.raises(FewshotError, match='came with tells 5 classes apart, and the task has 3'):
    list(run('bitfit()'))
  assert len(list(run('chain(bitfit(), linear())'))) == 2


def test_a_planned_method_comes_back_with_its_results(tiny, tmp_path):
  method = methods.parse('chain(lofit(steps=2), linear())')
  model = tiny.model._replace(example=tiny.batch)
  results = list(sweep.sweep(model, tiny.encoded, method, fits.sgd(steps=1, batch=4), classes=3))
  planned = results[0].method
  assert methods.spell(planned) != methods.spell(method) and planned.parts[0].plan is None
  adapted = fewshot.Adapted(model, planned, results[0].theta, results[0].state, ('a', 'b', 'c'))
  fewshot.save(adapted, tmp_path / 'x')
  back = fewshot.load(tmp_path / 'x', model=model)
  inputs = {k: tiny.batch[k] for k in ('tokens', 'mask')}
  np.testing.assert_allclose(back.logits(inputs), adapted.logits(inputs), atol=1e-6)
