"""One run, however it is driven: as a function, as fit_run, or as a sweep's chunks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import fits, methods, models, objectives, runs, sweep, tasks, train
from fewshot.fits.base import Loss

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 5)).astype(np.float32), np.arange(60) % 3
TASK = tasks.from_arrays(X, Y)
DATA = tasks.encode(TASK, tasks.kshot(TASK, 4, [0, 1], dev_k=2))
PARAMS = {
  'kernel': RNG.normal(size=(5, 8)).astype(np.float32),
  'bias': RNG.normal(size=8).astype(np.float32),
}
MODEL = models.Model(
  'net', models.from_function(lambda p, x: jnp.tanh(x @ p['kernel'] + p['bias'])), PARAMS
)
DEV = {k: v[0] for k, v in DATA.dev.items()}
SPELLINGS = (
  ('chain(bitfit(), linear())', 'sgd(steps=12, batch=5, lr=0.01)'),
  ('chain(full(), linear())', 'sgd(steps=5, batch=4, lr=0.01, eval_every=2)'),
  ('nearest_mean()', 'prototypes()'),
)


def setup(method: str, fit: str) -> train.Setup:
  return train.Setup(
    MODEL.forward, methods.parse(method), fits.parse(fit), objectives.classification(), 3
  )


def inputs(run: sweep.Run) -> train.Inputs:
  return jax.tree.map(lambda x: x[0], runs.stack(DATA, [run]))


def as_a_function(shared: train.Setup, params: Any, run: train.Inputs) -> Any:
  """What the docs say that a run is, from the parts."""
  calib = methods.Calib(run.data.train, shared.classes, shared.objective.loss)
  key = jax.random.fold_in(run.key, methods.paths.stable_hash('init'))
  theta, state = shared.method.init(key, shared.forward, params, calib)
  loss = Loss(shared.forward, shared.method, params, shared.objective)
  key = jax.random.fold_in(run.key, methods.paths.stable_hash('fit'))
  return shared.fit(loss, theta, state, run.data, key)


@pytest.mark.parametrize('method, fit', SPELLINGS)
def test_a_fit_as_a_function_is_fit_run_is_the_sweep(method, fit):
  shared = setup(method, fit)
  (result, *_) = sweep.sweep(MODEL, DATA, shared.method, shared.fit, classes=3)
  run = inputs(result.run)
  programs = [jax.jit(functools.partial(f, shared)) for f in (as_a_function, train.fit_run)]
  found = [(result.theta, result.state), *(p(PARAMS, run) for p in programs)]
  scored = [methods.adapt(shared.method, MODEL.forward, *f)(PARAMS, DEV)['logits'] for f in found]
  assert np.abs(scored[0]).max() > 1e-2
  for other in scored[1:]:
    np.testing.assert_allclose(scored[0], other, atol=1e-4)


def test_the_key_and_the_hyper_parameters_of_a_run_matter():
  """The init of a head is zero, so that seeds differ by the order of examples alone."""
  shared = setup('linear()', 'sgd(steps=3, batch=2)')
  run = jax.jit(functools.partial(train.fit_run, shared))
  plan = [sweep.Run(0, 0, {'lr': 0.1}), sweep.Run(0, 1, {'lr': 0.1}), sweep.Run(0, 0, {'lr': 0.2})]
  kernels = [run(PARAMS, inputs(r))[0]['head']['kernel'] for r in plan]
  assert np.abs(kernels[0] - kernels[1]).max() > 1e-3
  np.testing.assert_allclose(np.abs(kernels[2]).max(), 2 * np.abs(kernels[0]).max(), rtol=0.5)
  np.testing.assert_array_equal(kernels[0], run(PARAMS, inputs(plan[0]))[0]['head']['kernel'])


def test_chunks_of_steps_are_the_steps():
  """advance from 0 to 2, then to 5, is advance from 0 to 5; any carry is overwritten at 0."""
  shared = setup('linear()', 'sgd(steps=5, batch=4)')
  run = inputs(sweep.Run(0, 0, {}))
  advance = jax.jit(functools.partial(train.advance, shared, False, None))
  begin = jax.jit(functools.partial(train.begin, shared))(PARAMS, run)
  junk = jax.tree.map(lambda x: x + 7, begin)
  once = advance(PARAMS, run, junk, jnp.int32(0), jnp.int32(5))
  carry = advance(PARAMS, run, junk, jnp.int32(0), jnp.int32(2))
  assert carry['curve'].astype(bool).tolist() == [True, True, False, False, False]
  carry = advance(PARAMS, run, carry, jnp.int32(2), jnp.int32(5))
  jax.tree.map(np.testing.assert_array_equal, once, carry)


def test_score_dev_is_the_objective_on_dev():
  shared = setup('linear()', 'sgd(steps=2, batch=4)')
  (result, *_) = sweep.sweep(MODEL, DATA, shared.method, shared.fit, classes=3)
  outputs = methods.adapt(shared.method, MODEL.forward, result.theta, {})(PARAMS, DEV)
  want = (outputs['logits'].argmax(-1) == DEV['labels']).mean()
  np.testing.assert_allclose(result.dev['score'], want, atol=1e-6)
  loss = objectives.classification().mean(outputs, DEV)
  np.testing.assert_allclose(result.dev['loss'], loss, atol=1e-5)
