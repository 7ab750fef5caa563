"""setfit(): the loss by hand, the pairs that are drawn, and whole fits."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import fits, methods, models, objectives, runs, savings, sweep, tasks, train
from fewshot.errors import FewshotError
from fewshot.fits.base import Data, Loss
from fewshot.fits.setfit import pair_loss, pairs

KEY = jax.random.key(0)
LABELS = np.array([0, 0, 0, 1, 1, 2], np.int32)


def test_the_pair_loss_by_hand():
  """cos = 0.6 of two classes, 0.6 of one, 0 of two, and -1 of one."""
  features = np.array(
    [[2, 0], [3, 4], [0, 1], [8, 6], [1, 0], [0, 5], [1, 1], [-3, -3]], np.float32
  )
  batch = {'labels': np.array([0, 1, 1, 1, 0, 2, 2, 2])}
  got = pair_loss({'features': features}, batch)
  np.testing.assert_allclose(got, [0.36, 0.36, 0.16, 0.16, 0, 0, 4, 4], atol=1e-6)


pair_up = jax.jit(pairs, static_argnums=1)


def drawn(steps: int, batch: int = 4, key=KEY, labels=LABELS) -> np.ndarray:
  """[steps * batch, 2]"""
  every = [pair_up(jnp.asarray(labels), batch, key, t) for t in range(steps)]
  return np.concatenate(every).reshape(-1, 2)


def test_pairs_are_in_turn_of_one_class_and_of_two():
  got = drawn(30)
  same = LABELS[got[:, 0]] == LABELS[got[:, 1]]
  np.testing.assert_array_equal(same, np.arange(120) % 2 == 0)
  itself = got[:, 0] == got[:, 1]
  np.testing.assert_array_equal(itself, same & (got[:, 0] == 5))  # 5 is alone in its class.


@pytest.mark.parametrize('batch', [4, 5])
def test_every_example_has_as_many_pairs_of_both_kinds(batch):
  """R iterations are 2 R N / batch steps: here R = 5, N = 6."""
  got = drawn(60 // batch, batch)
  for kind in (0, 1):
    np.testing.assert_array_equal(np.bincount(got[kind::2, 0]), 5)
  first, second = got[:12:2, 0].tolist(), got[12:24:2, 0].tolist()
  assert sorted(first) == sorted(second) == list(range(6)) and first != second


def test_partners_are_drawn_from_all_there_are():
  got = drawn(200)
  partners = lambda kind, i: set(got[kind::2][got[kind::2, 0] == i, 1].tolist())  # noqa: E731
  assert partners(0, 0) == {1, 2} and partners(1, 0) == {3, 4, 5}
  assert (drawn(9) != drawn(9, key=jax.random.key(1))).any()


def test_of_one_class_all_pairs_are_of_it():
  got = drawn(20, labels=np.zeros(3, np.int32))
  assert (got[::2, 0] != got[::2, 1]).all() and got.max() == 2


def task():
  """Two classes at right angles, and an axis of five times the spread that tells nothing."""
  rng = np.random.default_rng(0)
  y = np.arange(40) % 2
  x = rng.normal(size=(40, 4)).astype(np.float32)
  x += 4 * np.eye(4, dtype=np.float32)[y]
  x[:, 2] *= 5
  return tasks.from_arrays(x, y)


TASK = task()
DATA = tasks.encode(TASK, tasks.kshot(TASK, 4, [0, 1]))
MODEL = models.Model('net', models.from_function(lambda w, x: x @ w), np.eye(4, dtype=np.float32))
FULL = 'chain(full(), unit_features(), linear())'
FIT = 'setfit(steps=40, lr=0.03, batch=4, weight_decay=0.0)'


@functools.cache
def swept() -> list:
  return list(sweep.sweep(MODEL, DATA, methods.parse(FULL), fits.parse(FIT), classes=2))


def test_classes_come_apart_and_the_head_tells_them():
  for result in swept():
    curve = np.asarray(result.curve)
    assert curve[:10].mean() > 2 * curve[-10:].mean() > 0
    assert (result.predictions == DATA.labels).mean() >= 0.8


def test_runs_of_a_sweep_are_single_runs():
  shared = train.Setup(
    MODEL.forward, methods.parse(FULL), fits.parse(FIT), objectives.classification(), 2
  )
  one = jax.jit(functools.partial(train.fit_run, shared))
  for result in swept():
    run = jax.tree.map(lambda x: x[0], runs.stack(DATA, [result.run]))
    theta, _ = one(MODEL.params, run)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), theta, result.theta)


def test_the_engine_packs_the_pairs_that_are_announced(tiny):
  """Texts of 3 tokens at most, two a row of 7; the engine tries it on a real minibatch."""
  data = {k: v.copy() for k, v in tiny.encoded.train.items()}
  data['mask'][..., 3:] = False
  encoded = tiny.encoded._replace(train=data)
  method, fit = methods.parse('chain(bitfit(), linear())'), fits.setfit(steps=3, batch=4)
  shared = sweep.setup(tiny.model, encoded, method, fit, classes=3)
  todo = [sweep.Run(0, 0, {}), sweep.Run(1, 0, {})]
  found = savings.find(shared, tiny.model.params, encoded, todo, {'packing': 'on'})
  assert found.notes['packing'] == '8 texts of up to 7 tokens in 4 rows'
  assert found.setup.training is not None


def problem(tiny, method: str):
  method = methods.parse(method)
  batch = {**tiny.batch, 'labels': tiny.batch['labels'] % 2}
  calib = tiny.calib._replace(batch=batch, classes=2)
  theta, state = method.init(KEY, tiny.forward, tiny.params, calib)
  loss = Loss(tiny.forward, method, tiny.params, objectives.classification())
  return loss, theta, state, Data(batch)


@pytest.mark.parametrize(('method', 'lr'), [('full()', 2e-3), ('lora(rank=2)', 0.02)])
def test_a_text_encoder_learns_its_examples(tiny, method, lr):
  loss, theta, state, data = problem(tiny, f'chain({method}, linear())')
  fit = fits.setfit(steps=30, lr=lr, batch=4)
  carry = fit.start(loss, theta, state, data, KEY)
  step = jax.jit(lambda carry, t: fit.step(loss, carry, data, KEY, t))
  for t in range(30):
    assert not np.any(carry['theta'][1]['head']['kernel'])  # Until the last step, exactly zero.
    carry = step(carry, jnp.int32(t))
  theta, state = fit.finish(carry)
  outputs = methods.adapt(loss.method, loss.forward, theta, state)(loss.params, data.train)
  assert (outputs['logits'].argmax(-1) == data.train['labels']).all()
  curve = np.asarray(carry['curve'])
  assert curve[-5:].mean() < 0.5 * curve[:5].mean()


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('setfit(steps=0)', 'steps=0 is no whole number of at least 1'),
    ('setfit(batch=0)', 'batch=0 is no whole number'),
    ('setfit(lr=-1.0)', 'setfit(lr=-1.0) is negative'),
    ('setfit(warmup_proportion=2.0)', 'setfit(warmup_proportion=2.0) is a part of 1'),
    ('setfit(l2=0.0)', 'setfit(l2=0.0) has no optimum'),
  ],
)
def test_refused_arguments(text, said):
  with pytest.raises(FewshotError, match=re.escape(said)):
    fits.parse(text)


@pytest.mark.parametrize(
  ('method', 'said'),
  [
    ('linear()', 'trains the features, and this method is but a head'),
    ('chain(bitfit(), cosine())', 'setfit() sets the kernel and bias of one linear() head'),
  ],
)
def test_refused_methods(tiny, method, said):
  loss, theta, state, data = problem(tiny, method)
  with pytest.raises(FewshotError, match=re.escape(said)):
    fits.setfit().start(loss, theta, state, data, KEY)
