"""Composition: chain's algebra, keys, and the fields that few methods fill."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fewshot import fits, methods, objectives, sweep
from fewshot.errors import FewshotError
from fewshot.methods import in_weights, paths

KEY = jax.random.key(3)
PARTS = {
  name: methods.parse(name)
  for name in (
    'lora(rank=2)', 'ia3()', 'adapter(width=4)', 'soft_prompt(length=3)', 'linear()',
    "tune(where='.*/query/.*')", 'as_weights(lora(rank=2))',
  )
}  # fmt: skip


def start(method, tiny, key=KEY):
  return method.init(key, tiny.forward, tiny.params, tiny.calib)


def logits(method, tiny, theta, state):
  return methods.adapt(method, tiny.forward, theta, state)(tiny.params, tiny.batch)['logits']


def same(a, b) -> bool:
  if jax.tree.structure(a) != jax.tree.structure(b):
    return False
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize('names', list(itertools.permutations(PARTS, 3))[::30])
def test_chain_is_associative(tiny, perturb, names):
  a, b, c = (PARTS[n] for n in names)
  flat, left, right = (
    methods.chain(a, b, c),
    methods.chain(methods.chain(a, b), c),
    methods.chain(a, methods.chain(b, c)),
  )
  theta, state = start(flat, tiny)
  for other in (left, right):
    assert methods.spell(other) == methods.spell(flat)
    assert same(start(other, tiny), (theta, state))
    moved = perturb(theta)
    want = logits(flat, tiny, moved, state)
    np.testing.assert_array_equal(logits(other, tiny, moved, state), want)


@pytest.mark.parametrize('name', PARTS)
def test_a_chain_of_one_is_that_one(tiny, name):
  one = methods.chain(PARTS[name])
  assert one is PARTS[name]
  for same_as_one in (methods.chain(methods.chain(), one), methods.chain(one, methods.chain())):
    assert methods.spell(same_as_one) == name
    assert same(start(same_as_one, tiny), start(one, tiny))


def test_the_empty_chain_changes_nothing(tiny):
  theta, state = start(methods.chain(), tiny)
  assert jax.tree.leaves((theta, state)) == []
  got = logits(methods.chain(), tiny, theta, state)
  np.testing.assert_array_equal(got, tiny.forward(tiny.params, tiny.batch)['logits'])
  assert same(methods.merge(methods.chain(), theta, state, tiny.params), tiny.params)


@pytest.mark.parametrize('a, b', list(itertools.combinations(PARTS, 2)))
def test_a_start_does_not_depend_on_the_position_in_a_chain(tiny, a, b):
  ab, _ = start(methods.parse(f'chain({a}, {b})'), tiny)
  ba, _ = start(methods.parse(f'chain({b}, {a})'), tiny)
  assert same(ab[0], ba[1]) and same(ab[1], ba[0])
  assert same(ab[0], start(PARTS[a], tiny)[0])


def test_two_of_one_method_start_from_different_keys(tiny):
  lora = PARTS['lora(rank=2)']
  (first, second), _ = start(methods.chain(lora, lora), tiny)
  a = {p: x for p, x in paths.flatten(first).items() if p.endswith('/a')}
  assert len(a) == 4
  for p, x in a.items():
    assert not np.array_equal(x, paths.flatten(second)[p])
  drawn = np.stack(list(a.values()))
  assert len(np.unique(drawn)) == drawn.size, 'two sites share their random numbers'


def test_two_run_keys_give_two_starts(tiny):
  one, two = (start(PARTS['lora(rank=2)'], tiny, jax.random.key(s))[0] for s in (0, 1))
  assert not same(one, two)


def test_chain_takes_methods_alone():
  with pytest.raises(
    FewshotError, match=r'chain takes methods, not <function lora.*write lora\(\)'
  ):
    methods.chain(methods.lora)


def l2_sp(where: str, strength: float) -> methods.Method:
  """L2-SP (Li et al. 2018, arXiv:1802.01483): the distance to the pretrained weights costs."""

  def penalty(forward, theta, state, params, batch, outputs, key):
    flat = paths.flatten(params)
    return strength * sum(jnp.square(t - flat[p]).sum() for p, t in theta.items())

  return in_weights(where, lambda key, w: w, lambda t, w: t)._replace(penalty=penalty)


def test_a_penalty_is_added_to_the_loss(tiny, perturb):
  objective, method = objectives.classification(), l2_sp('.*/query/kernel', 0.5)
  theta, state = start(method, tiny)
  moved = perturb(theta)
  distance = sum(np.square(a - b).sum() for a, b in zip(
    jax.tree.leaves(moved), jax.tree.leaves(theta), strict=True
  ))  # fmt: skip
  value, outputs = fits.Loss(tiny.forward, method, tiny.params, objective)(moved, state, tiny.batch)
  plain = objective.mean(outputs, tiny.batch)
  np.testing.assert_allclose(value - plain, 0.5 * distance, rtol=1e-5)
  twice = methods.chain(method, l2_sp('.*/key/kernel', 2.0), methods.lora(rank=2))
  parts, states = start(twice, tiny)
  chained = fits.Loss(tiny.forward, twice, tiny.params, objective)
  value, outputs = chained((moved, parts[1], parts[2]), states, tiny.batch)
  plain = objective.mean(outputs, tiny.batch)
  np.testing.assert_allclose(value - plain, 0.5 * distance, rtol=1e-5)


def masked(where: str) -> methods.Method:
  """Trains the even entries of the selected leaves: a mask in state multiplies the updates."""
  inner = methods.tune(where)

  def init(key, forward, params, calib):
    theta, _ = inner.init(key, forward, params, calib)
    even = lambda x: (jnp.arange(x.size) % 2 == 0).reshape(x.shape)  # noqa: E731
    return theta, {p: {'mask': even(x)} for p, x in theta.items()}

  def optimizer(tx):
    tx = optax.with_extra_args_support(tx)

    def update(grads, opt, theta=None, *, method_state, **extra):
      updates, opt = tx.update(grads, opt, theta, **extra)
      return {p: u * method_state[p]['mask'] for p, u in updates.items()}, opt

    return optax.GradientTransformationExtraArgs(tx.init, update)

  return methods.Method(
    init, lambda theta, state, params: inner.weights(theta, {}, params), optimizer=optimizer
  )


@pytest.mark.parametrize('chained', [False, True])
def test_an_optimizer_freezes_by_masking_updates(tiny, chained):
  """Weight decay moves what has no gradient, so the mask has to be on updates to hold."""
  method = masked('.*/query/kernel')
  if chained:
    method = methods.chain(methods.lora(rank=2), method, methods.linear())
  loss = fits.Loss(tiny.forward, method, tiny.params, objectives.classification())
  theta, state = start(method, tiny)
  fit = fits.sgd(steps=3, lr=1e-2, batch=4, weight_decay=0.1)
  after, _ = jax.jit(lambda t, s: fit(loss, t, s, fits.Data(tiny.batch), KEY))(theta, state)
  if chained:
    assert not same(theta[0], after[0]) and not same(theta[2], after[2])
    theta, after = theta[1], after[1]
  for p, x in theta.items():
    moved = (np.asarray(x) != np.asarray(after[p])).reshape(-1)
    assert moved[::2].all() and not moved[1::2].any()


def test_an_optimizer_is_told_params_step_and_key(tiny):
  seen: dict = {}
  method = masked('.*/query/kernel')

  def optimizer(tx):
    inner = optax.with_extra_args_support(method.optimizer(tx))

    def update(grads, opt, theta=None, **extra):
      seen.update(extra)
      return inner.update(grads, opt, theta, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)

  told = method._replace(optimizer=optimizer)
  loss = fits.Loss(tiny.forward, told, tiny.params, objectives.classification())
  theta, state = start(told, tiny)
  fit = fits.sgd(steps=1, batch=4)
  jax.eval_shape(lambda t, s: fit(loss, t, s, fits.Data(tiny.batch), KEY), theta, state)
  assert {'method_state', 'frozen', 'step', 'key'} <= seen.keys()
  assert seen['frozen'] is tiny.params


def planned(seen: list) -> methods.Method:
  """Tunes the kernel with the largest gradient on the calibration batch."""

  def plan(forward, params, calib):
    gradient = paths.flatten(calib.gradient(forward, params))
    scores = {p: float(jnp.square(g).sum()) for p, g in gradient.items() if p.endswith('kernel')}
    seen.append(max(scores, key=scores.__getitem__))
    return methods.tune(seen[-1])

  return methods.tune('.*kernel')._replace(plan=plan, made=None)


@pytest.mark.parametrize('wrapped', ['alone', 'chained', 'as_weights'])
def test_a_plan_chooses_the_structure_before_the_sweep(tiny, wrapped):
  seen: list = []
  method = planned(seen)
  if wrapped == 'chained':
    method = methods.chain(methods.bitfit(), method)
  if wrapped == 'as_weights':
    method = methods.as_weights(method)
  fit = fits.sgd(steps=1, batch=4)
  results = list(sweep.sweep(tiny.model, tiny.encoded, method, fit, classes=3))
  assert len(seen) == 1, 'a plan runs once, outside the compiled runs'
  theta = results[0].theta[1] if wrapped == 'chained' else results[0].theta
  assert list(theta) == seen


def test_a_gradient_score_needs_a_loss(tiny):
  with pytest.raises(FewshotError, match='needs a loss to start from; pass Calib'):
    methods.Calib(tiny.batch).gradient(tiny.forward, tiny.params)


def test_what_cannot_be_merged_says_so(tiny):
  chain = methods.parse('chain(lora(rank=2), adapter(width=4), soft_prompt(length=3))')
  theta, state = start(chain, tiny)
  names = r'^adapter\(width=4\), soft_prompt\(length=3\) cannot be merged .*; save theta instead$'
  with pytest.raises(FewshotError, match=names):
    methods.merge(chain, theta, state, tiny.params)
