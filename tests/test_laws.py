"""Representatives of each place x every law: chains in both orders, sweeps, compilations.

The laws of every method are in tests/laws; a new place is one row of PLACES here.
"""

import functools
import itertools
import os
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import fits, methods, objectives, runs, sweep, train
from fewshot.errors import FewshotError
from fewshot.methods import paths

D, DEPTH, WIDTH, CLASSES = 32, 2, 64, 3  # Of the tiny BERT in conftest.py.
NORMS = (1 + 2 * DEPTH) * 2 * D
BIASES = D + DEPTH * (4 * D + 2 * D + WIDTH + D) + CLASSES  # Of norms, attention and MLP; head.
EMBEDDINGS = (50 + 64 + 2) * D
BLOCK = 4 * (D * D + D) + 2 * 2 * D + 2 * D * WIDTH + WIDTH + D
HEAD = D * CLASSES + CLASSES


class Case(NamedTuple):
  """What is promised of a method.

  count:  the number of trained scalars, in closed form
  starts: the outputs that start as the pretrained function's
  merges: whether it has a weight form
  adds:   whether theta stands beside the params instead of for some of them
  fit:    the fit of the sweep laws
  """

  spelling: str
  count: int
  starts: tuple[str, ...] = ('features', 'hidden', 'logits')
  merges: bool = True
  adds: bool = False
  fit: str = 'sgd(steps=5, batch=4)'


CASES = (
  Case('full()', EMBEDDINGS + 2 * D + DEPTH * BLOCK + HEAD),
  Case("tune(where='.*/query/kernel')", DEPTH * D * D),
  Case('linear_probe()', HEAD),
  Case('bitfit()', BIASES),
  Case('layernorm()', NORMS),
  Case('lora(rank=2)', DEPTH * 2 * 2 * (D + D), adds=True),
  Case('ia3()', DEPTH * (D + D + WIDTH), adds=True),
  Case('adapter(width=4)', DEPTH * 2 * (2 * 4 * D + 4 + D), merges=False, adds=True),
  # A prompt is read by every token, so nothing stays; test_prompts says what is promised.
  Case('soft_prompt(length=3)', 3 * D, starts=(), merges=False, adds=True),
  # A fresh head leaves the features; its logits start at zero (test_heads).
  Case('linear()', HEAD, starts=('features', 'hidden')),
  Case('nearest_mean()', 0, starts=('features', 'hidden'), merges=False, fit='prototypes()'),
  Case('as_weights(lora(rank=2))', DEPTH * 2 * 2 * (D + D), adds=True),
)
# One or more of each place: weights, activations, inputs, heads.  Pairs are taken in both orders;
# lora before ia3 is not ia3 before lora.
PLACES = (
  "tune(where='.*/query/kernel')",
  'bitfit()',
  'lora(rank=2)',
  'ia3()',
  'as_weights(lora(rank=2))',
  'linear()',
  'adapter(width=4)',
  'soft_prompt(length=3)',
  'nearest_mean()',
)


@pytest.fixture(scope='module', autouse=True)
def quick_compilation():
  """These programs compile for seconds and run for milliseconds."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


class Ready(NamedTuple):
  """A method at its start and after some training."""

  case: Case
  method: methods.Method
  start: Any
  state: Any
  theta: Any


@pytest.fixture(scope='module', params=CASES, ids=[c.spelling for c in CASES])
def ready(request, tiny, perturb) -> Ready:
  """One case; scoped to the module so that all laws of a method run together."""
  case, method = request.param, methods.parse(request.param.spelling)
  start, state = method.init(jax.random.key(1), tiny.forward, tiny.params, tiny.calib)
  if not case.count:
    state = perturb(state)  # What trains nothing lives in its state.
  return Ready(case, method, start, state, perturb(start))


class Swept(NamedTuple):
  """One sweep over 2 splits x 2 seeds x 2 learning rates, and how many programs it compiled."""

  setup: train.Setup
  results: list[sweep.Result]
  compiled: int


@pytest.fixture(scope='module')
def swept(ready, tiny) -> Swept:
  compiled, compile_ = [], jax.stages.Lowered.compile
  fit = fits.parse(ready.case.fit)
  grid = {'lr': [1e-3, 3e-3]} if fit.varies else None
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      jax.stages.Lowered, 'compile', lambda self, *a, **k: compiled.append(1) or compile_(self)
    )
    results = list(
      sweep.sweep(
        tiny.model, tiny.encoded, ready.method, fit, classes=CLASSES, seeds=(0, 1), grid=grid
      )
    )
  setup = train.Setup(tiny.forward, ready.method, fit, objectives.classification(), CLASSES)
  return Swept(setup, results, len(compiled))


def leaves(tree: Any) -> dict[str, np.ndarray]:
  return {p: np.asarray(x) for p, x in paths.flatten(tree).items()}


def assert_close(got: Any, want: Any, tolerance: float) -> None:
  """The largest difference, relative to the largest entry."""
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  assert got.shape == want.shape
  worst = np.abs(got - want).max() / max(1.0, np.abs(want).max())
  assert worst <= tolerance, worst


def assert_same(a: Any, b: Any) -> None:
  """The same structure and bits."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


def cast(tree: Any, dtype: Any) -> Any:
  """Float leaves at another dtype."""
  floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
  return jax.tree.map(lambda x: np.asarray(x).astype(dtype) if floating(x) else x, tree)


def test_the_spelling_round_trips(ready):
  assert methods.spell(ready.method) == ready.case.spelling
  again = methods.parse(f'chain({ready.case.spelling}, bitfit())')
  assert methods.spell(again) == f'chain({ready.case.spelling}, bitfit())'


def test_the_count_is_its_closed_form(ready, tiny):
  assert methods.count(ready.start) == ready.case.count
  theta, _ = methods.shapes(ready.method, tiny.forward, tiny.params, tiny.calib)
  assert methods.count(theta) == ready.case.count
  rows = methods.table(ready.method, tiny.forward, tiny.params, tiny.calib)
  assert [methods.count(r.leaves) for r in rows[:-1]] == [ready.case.count]


def test_it_starts_at_the_pretrained_function(ready, tiny):
  want = tiny.forward(tiny.params, tiny.batch)
  got = methods.adapt(ready.method, tiny.forward, ready.start, ready.state)(tiny.params, tiny.batch)
  assert got.keys() == want.keys()
  for name in ready.case.starts:
    assert_close(got[name], want[name], 1e-6)


def test_training_theta_changes_the_function(ready, tiny):
  want = tiny.forward(tiny.params, tiny.batch)['logits']
  adapted = methods.adapt(ready.method, tiny.forward, ready.theta, ready.state)
  assert np.abs(adapted(tiny.params, tiny.batch)['logits'] - want).max() > 1e-2


def test_it_promotes_no_dtype_silently(ready, tiny):
  """Strict promotion holds; rank promotion is left on: a bias [D] added to [B, T, D] needs it."""
  with jax.numpy_dtype_promotion('strict'):
    theta, state = ready.method.init(jax.random.key(1), tiny.forward, tiny.params, tiny.calib)
    outputs = methods.adapt(ready.method, tiny.forward, theta, state)(tiny.params, tiny.batch)
  assert outputs['features'].dtype == np.float32


@pytest.mark.parametrize('dtype, tolerance', [(np.float32, 1e-4), (np.float64, 1e-9)])
def test_merge_equals_apply(ready, tiny, perturb, dtype, tolerance):
  assert ready.method.mergeable == ready.case.merges
  check_merge(ready.method, tiny, perturb, dtype, tolerance)


@pytest.mark.parametrize('first, second', list(itertools.product(PLACES, repeat=2)))
def test_merge_equals_apply_for_pairs_of_places(tiny, perturb, first, second):
  pair = methods.chain(methods.parse(first), methods.parse(second))
  check_merge(pair, tiny, perturb, np.float64, 1e-9)


@pytest.mark.parametrize(
  'spelling',
  [
    'chain(lora(rank=2), ia3())',
    'chain(ia3(), lora(rank=2))',
    "chain(lora(rank=2), tune(where='.*/query/kernel'), ia3(), linear())",
  ],
)
def test_merge_equals_apply_for_chains_in_float32(tiny, perturb, spelling):
  check_merge(methods.parse(spelling), tiny, perturb, np.float32, 1e-4)


def check_merge(method, tiny, perturb, dtype, tolerance):
  with jax.enable_x64(dtype == np.float64):
    params = cast(tiny.params, dtype)
    theta, state = method.init(jax.random.key(1), tiny.forward, params, tiny.calib)
    theta = perturb(theta)
    assert all(x.dtype == dtype for x in jax.tree.leaves(theta))
    if not method.mergeable:
      stuck = [m for m in method.parts or (method,) if not m.mergeable]
      with pytest.raises(FewshotError, match='cannot be merged into the weights') as e:
        methods.merge(method, theta, state, params)
      assert all(methods.spell(m) in str(e.value) for m in stuck)
      return
    applied = methods.adapt(method, tiny.forward, theta, state)(params, tiny.batch)
    merged = tiny.forward(methods.merge(method, theta, state, params), tiny.batch)
    for name in ('features', 'logits'):
      assert_close(merged[name], applied[name], tolerance)


def test_the_order_of_a_pair_matters_where_it_should(tiny, perturb):
  """Otherwise the law of pairs could not tell a right merge from a wrong one."""
  a, b = methods.parse('lora(rank=2)'), methods.parse('ia3()')
  ta, tb = (perturb(m.init(jax.random.key(1), *tiny[1:3], tiny.calib)[0]) for m in (a, b))
  ab = methods.merge(methods.chain(a, b), (ta, tb), ({}, {}), tiny.params)
  ba = methods.merge(methods.chain(b, a), (tb, ta), ({}, {}), tiny.params)
  path = 'encoder/block_0/attn/value/kernel'
  assert np.abs(leaves(ab)[path] - leaves(ba)[path]).max() > 1e-2


def test_every_trained_leaf_gets_gradient(ready, tiny):
  """Key biases excepted: softmax is blind to a shift of all scores, so theirs is rounding."""
  loss = fits.Loss(tiny.forward, ready.method, tiny.params, objectives.classification())
  value = lambda theta: loss(theta, ready.state, tiny.batch, jax.random.key(0))[0]  # noqa: E731
  gradients = {p: np.abs(g).max() for p, g in leaves(jax.jit(jax.grad(value))(ready.theta)).items()}
  blind = {p: g for p, g in gradients.items() if p.endswith('attn/key/bias')}
  assert all(g < 1e-6 for g in blind.values())
  assert [p for p, g in gradients.items() if p not in blind and g < 1e-6] == []


def test_the_mask_says_where_merged_weights_differ(ready, tiny):
  mask = methods.mask(ready.method, tiny.forward, tiny.params, tiny.calib)
  assert jax.tree.structure(mask.params) == jax.tree.structure(tiny.params)
  new = ready.method.weights(ready.theta, ready.state, tiny.params)
  if ready.case.merges:
    new = methods.merge(ready.method, ready.theta, ready.state, tiny.params)
  before, after = leaves(tiny.params), leaves(new)
  differs = {p: not np.array_equal(after[p], x) for p, x in before.items()}
  assert differs == paths.flatten(mask.params)
  assert any(differs.values()) == (ready.case.merges and bool(ready.case.count))
  assert methods.count(mask.added) == (ready.case.count if ready.case.adds else 0)


def test_frozen_leaves_are_bit_identical_after_training(ready, swept, tiny):
  mask = paths.flatten(methods.mask(ready.method, tiny.forward, tiny.params, tiny.calib).params)
  for result in swept.results:
    assert jax.tree.structure(result.theta) == jax.tree.structure(ready.start)
    new = ready.method.weights(result.theta, result.state, tiny.params)
    if ready.case.merges:
      new = methods.merge(ready.method, result.theta, result.state, tiny.params)
    after = leaves(new)
    for path, before in leaves(tiny.params).items():
      assert mask[path] or np.array_equal(before, after[path]), path
  if ready.case.count:
    moved = [
      not np.array_equal(a, b)
      for a, b in zip(
        jax.tree.leaves(swept.results[0].theta),
        jax.tree.leaves(swept.results[-1].theta),
        strict=True,
      )
    ]
    assert all(moved)


def test_a_sweep_equals_the_loop_over_its_runs(ready, swept, tiny):
  """Functions are compared, not parameters: Adam inflates the rounding of a blind gradient."""
  one = jax.jit(functools.partial(single, swept.setup))
  todo = runs.runs(2, (0, 1), {'lr': [1e-3, 3e-3]} if swept.setup.fit.varies else None)
  assert [r.run for r in swept.results] == todo
  everything = items_in_order(tiny.encoded)
  for result in swept.results:
    inputs = jax.tree.map(lambda x: x[0], runs.stack(tiny.encoded, [result.run]))
    assert_close(result.logits, one(tiny.params, inputs, everything), 1e-4)
  if ready.case.count:
    low, high = swept.results[0], swept.results[1]
    assert low.run.hyper != high.run.hyper
    assert np.abs(low.logits - high.logits).max() > 1e-4


def single(setup: train.Setup, params: Any, inputs: train.Inputs, batch: Any) -> Any:
  theta, state = train.fit_run(setup, params, inputs)
  return methods.adapt(setup.method, setup.forward, theta, state)(params, batch)['logits']


def items_in_order(encoded) -> dict[str, np.ndarray]:
  """The test set as one batch in the split's order, unlike the buckets that a sweep scores."""
  out = {'tokens': np.zeros((10, 7), np.int32), 'mask': np.zeros((10, 7), bool)}
  for bucket in encoded.test:
    for name, x in out.items():
      rows = bucket.batches[name].reshape(-1, bucket.batches[name].shape[-1])
      x[bucket.rows[bucket.rows >= 0], : rows.shape[1]] = rows[bucket.rows >= 0]
  return out


def test_each_run_has_its_own_key_and_its_splits_data(tiny):
  """What the loop above takes from `stack`, checked by itself."""
  todo = runs.runs(2, (0, 1), {'lr': [1e-3, 3e-3]})
  inputs = runs.stack(tiny.encoded, todo)
  keys = [bytes(np.asarray(jax.random.key_data(k))) for k in inputs.key]
  assert len(set(keys)) == 4, 'a key is of (split, seed), shared by the points of a grid'
  assert keys[::2] == keys[1::2]
  for i, run in enumerate(todo):
    assert float(inputs.hyper['lr'][i]) == np.float32(run.hyper['lr'])
    for name, x in tiny.encoded.train.items():
      np.testing.assert_array_equal(inputs.data.train[name][i], x[run.split])


def test_a_sweep_compiles_two_programs(swept):
  assert swept.compiled == 2
  assert len(swept.results) == (8 if swept.setup.fit.varies else 4)


def test_a_second_sweep_compiles_two_programs_and_nothing_else(tiny):
  """Counted by JAX itself, for any number of runs: eager operations are compiled by then."""
  counted: list[str] = []

  def listener(event: str, seconds: float, **kwargs: Any) -> None:
    counted.append(event)

  method, fit = methods.parse('chain(bitfit(), linear())'), fits.sgd(steps=2, batch=4)
  run = lambda: list(  # noqa: E731
    sweep.sweep(tiny.model, tiny.encoded, method, fit, classes=CLASSES, grid={'lr': [1e-3, 1e-2]})
  )
  run()
  jax.monitoring.register_event_duration_secs_listener(listener)
  try:
    run()
  finally:
    jax.monitoring.unregister_event_duration_listener(listener)
  assert counted.count('/jax/core/compile/backend_compile_duration') == 2


def test_it_works_under_jit_vmap_and_pmap(ready, tiny, perturb):
  logits = lambda theta, state: methods.adapt(ready.method, tiny.forward, theta, state)(  # noqa: E731
    tiny.params, tiny.batch
  )['logits']
  many = [(perturb(ready.start, s), perturb(ready.state, s)) for s in (5, 6)]
  if ready.case.count:
    many = [(theta, ready.state) for theta, _ in many]
  stacked = jax.tree.map(lambda *x: np.stack(x), *many)
  want = np.stack([jax.jit(logits)(*m) for m in many])
  assert_close(want[0], logits(*many[0]), 1e-5)
  assert_close(jax.jit(jax.vmap(logits))(*stacked), want, 1e-5)
  first = jax.tree.map(lambda x: x[:1], stacked)
  assert_close(jax.pmap(logits, devices=jax.devices()[:1])(*first), want[:1], 1e-5)


def test_it_works_on_bfloat16_params(ready, tiny, perturb):
  params = cast(tiny.params, jnp.bfloat16)
  theta, state = ready.method.init(jax.random.key(1), tiny.forward, params, tiny.calib)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(theta))
  theta = perturb(theta)
  outputs = methods.adapt(ready.method, tiny.forward, theta, state)(params, tiny.batch)
  assert outputs['features'].dtype == outputs['hidden'].dtype == jnp.bfloat16
  # A head of one's own stays in float32, where the loss is computed.
  own_head = 'logits' not in ready.case.starts and bool(ready.case.starts)
  assert outputs['logits'].dtype == (jnp.float32 if own_head else jnp.bfloat16)
  assert all(np.isfinite(np.asarray(outputs[k], np.float32)).all() for k in ('features', 'logits'))
  changed = ready.method.weights(theta, state, params)
  assert jax.tree.map(lambda x: x.dtype, changed) == jax.tree.map(lambda x: x.dtype, params)


EIGHT = """
import jax, numpy as np
from fewshot import methods
from fewshot.models import bert
config = bert.Config(vocab=9, dim=8, depth=1, heads=2, width=16, positions=8, types=1)
forward, params = bert.forward(config), bert.init(config, jax.random.key(0))
batch = {'tokens': np.arange(12).reshape(3, 4) % 9, 'mask': np.ones((3, 4), bool)}
calib = methods.Calib(batch, 3)
method = methods.parse('chain(lora(rank=2), adapter(width=2), soft_prompt(length=2), linear())')

def run(key):
  theta, state = method.init(key, forward, params, calib)
  noise = lambda x: x + jax.random.normal(key, x.shape)
  theta = jax.tree.map(noise, theta)
  return methods.adapt(method, forward, theta, state)(params, batch)['logits']

keys = jax.random.split(jax.random.key(1), 8)
out = jax.pmap(run)(keys)
one = jax.jit(run)
assert len(out.sharding.device_set) == jax.device_count() == 8
want = np.stack([one(k) for k in keys])
assert np.abs(want[0] - want[1]).max() > 1e-2
np.testing.assert_allclose(out, want, atol=1e-4)
"""


def test_seeds_go_over_eight_devices():
  flags = '--xla_force_host_platform_device_count=8'
  env = os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.getcwd()}
  done = subprocess.run([sys.executable, '-c', EIGHT], env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
