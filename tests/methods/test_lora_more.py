"""Budgets that shrink in training: schedules, and what is left after a step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fewshot.errors import FewshotError
from fewshot.methods.lora_more import adalora, cubic, largest, roselora

RNG = np.random.default_rng(0)


def noise(*shape):
  return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def train(method, theta, grads, steps):
  """theta after each step of constant gradients."""
  tx, seen = optax.with_extra_args_support(method.optimizer(optax.sgd(1e-3))), []
  opt = tx.init(theta)
  step = jax.jit(lambda o, t, i: tx.update(grads, o, t, step=i, method_state={}))
  for i in range(steps):
    updates, opt = step(opt, theta, i)
    theta = optax.apply_updates(theta, updates)
    seen.append(jax.tree.map(np.asarray, theta))
  return seen


def test_cubic_falls_from_one_to_zero():
  got = [float(cubic(t, 2, 6)) for t in (0, 2, 4, 6, 9)]
  np.testing.assert_allclose(got, [1, 1, 0.125, 0, 0])


def test_largest_counts_even_where_all_are_alike():
  assert [int(largest(jnp.zeros(5), n).sum()) for n in (0, 2, 5)] == [0, 2, 5]


def test_adalora_keeps_the_budget_of_triples_over_all_sites():
  method = adalora(init_r=4, target_r=2, tinit=2, tfinal=3, total_step=12)
  sites = {p: {'a': noise(6, 4), 'e': noise(4), 'b': noise(4, 5)} for p in ('x', 'y')}
  grads = jax.tree.map(jnp.ones_like, sites)
  seen = train(method, sites, grads, 12)
  left = [sum(int((t['e'] != 0).sum()) for t in s.values()) for s in seen]
  want = [int(np.floor(2 * (2 + 2 * (1 - np.clip((t - 2) / 7, 0, 1)) ** 3))) for t in range(12)]
  assert left == want and left[0] == 8 and left[-1] == 4
  kept = [np.concatenate([t['e'] != 0 for t in s.values()]) for s in seen[-4:]]
  assert all((k == kept[0]).all() for k in kept)  # The final choice stays.


def test_adalora_drops_what_matters_least():
  method = adalora(init_r=3, target_r=1, total_step=4)
  theta = {'x': {'a': jnp.ones((6, 3)), 'e': jnp.array([0.1, 5.0, 0.2]), 'b': jnp.ones((3, 5))}}
  grads = jax.tree.map(jnp.ones_like, theta)
  assert (train(method, theta, grads, 4)[-1]['x']['e'] != 0).tolist() == [False, True, False]


def test_adalora_takes_a_step_that_is_no_array():
  theta = {'x': {'a': noise(6, 3), 'e': noise(3), 'b': noise(3, 5)}}
  method = adalora(init_r=3, target_r=1, total_step=4)
  tx = optax.with_extra_args_support(method.optimizer(optax.sgd(1e-3)))
  updates, _ = tx.update(theta, tx.init(theta), theta, step=3, method_state={})
  after = optax.apply_updates(theta, updates)
  assert int((after['x']['e'] != 0).sum()) == 1


def test_adaloras_penalty_is_zero_for_orthonormal_factors():
  method = adalora(init_r=2, target_r=1, orth_reg_weight=0.5)
  a, b = np.linalg.qr(noise(6, 2))[0], np.linalg.qr(noise(5, 2))[0].T
  penalty = lambda a, b: method.penalty(None, {'x': {'a': a, 'e': None, 'b': b}}, {}, {}, {}, {}, 0)  # noqa: E731
  assert penalty(a, b) < 1e-5
  want = 0.5 * (np.linalg.norm(3 * np.eye(2)) + 0) / 2
  np.testing.assert_allclose(penalty(2 * a, b), want, rtol=1e-4)


def test_roselora_keeps_the_most_sensitive_of_each_column_and_row():
  method = roselora(rank=2, density=0.3, total_step=10)
  a, b = noise(10, 2), noise(2, 10)
  grads = {'x': {'a': jnp.ones((10, 2)), 'b': jnp.ones((2, 10))}}
  seen = train(method, {'x': {'a': a, 'b': b}}, grads, 10)
  assert (seen[0]['x']['a'] != 0).all()
  end = seen[-1]['x']
  assert ((end['a'] != 0).sum(0) == 3).all() and ((end['b'] != 0).sum(1) == 3).all()
  assert set(np.flatnonzero(end['a'][:, 0])) == set(np.argsort(-np.abs(np.asarray(a[:, 0])))[:3])
  assert ((end['a'] @ end['b']) != 0).sum() <= 2 * 3 * 3


@pytest.mark.parametrize(
  'make, match',
  [
    (lambda: adalora(init_r=2, target_r=3), 'shrinks from init_r=2 to target_r=3'),
    (lambda: adalora(tinit=30, tfinal=10), 'tinit=30 and total_step - tfinal = 30'),
    (lambda: adalora(deltaT=0), 'deltaT is at least 1'),
    (lambda: roselora(density=0.0), 'kept share'),
    (lambda: roselora(rank=0), 'rank is at least 1'),
  ],
)
def test_what_makes_no_sense_is_refused(make, match):
  with pytest.raises(FewshotError, match=match):
    make()
