"""The inner loop: gradients through it against finite differences and a loop written out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import learners
from fewshot.episodes import Episode
from fewshot.learners import learning
from fewshot.learners.gradient import classifier, descent
from fewshot.methods import chain, full, paths, remake
from fewshot.models import mlp
from fewshot.models.layers import ACTIVATIONS

CONFIG = mlp.Config(inputs=4, dim=5, depth=2, activation='gelu')
FORWARD, WAY = mlp.forward(CONFIG), 3


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def problem(text: str) -> tuple[learners.Setup, Any, Any, Episode]:
  """(setup, params, outer, episode) in the precision that is on."""
  rng = np.random.default_rng(0)
  dtype = jnp.zeros(()).dtype
  params = jax.tree.map(
    lambda s: jnp.asarray(0.6 * rng.standard_normal(s.shape), dtype),
    jax.eval_shape(lambda: mlp.init(CONFIG, jax.random.key(0))),
  )
  batch = lambda n: {  # noqa: E731
    'x': jnp.asarray(rng.standard_normal((n, 4)), dtype),
    'labels': jnp.arange(n) % WAY,
    'weights': jnp.ones(n, dtype),
  }
  episode = Episode(batch(6), batch(9), None)
  setup = learners.Setup(learners.parse(text), FORWARD, WAY)
  return setup, params, learners.start(setup, jax.random.key(1), params, episode.support), episode


def outer_gradient(text: str) -> tuple[Any, Any, Any]:
  """(f, theta0, df/dtheta0) of the episode's loss."""
  setup, params, outer, episode = problem(text)

  def f(theta0: Any) -> Any:
    at = outer | {'theta0': theta0}
    return learning.episodic(setup, params, at, episode, jax.random.key(2))[0]

  return f, outer['theta0'], jax.grad(f)(outer['theta0'])


@pytest.mark.parametrize('text', ['maml(steps=3, lr=0.3)', 'meta_sgd(steps=2)', 'anil(steps=2)'])
def test_the_outer_gradient_equals_finite_differences(text: str, x64: None) -> None:
  f, theta0, gradient = outer_gradient(text)
  flat, unflat = jax.flatten_util.ravel_pytree(theta0)
  got = jax.flatten_util.ravel_pytree(gradient)[0]
  value, eps = jax.jit(lambda x: f(unflat(x))), 1e-5
  steps = eps * jnp.eye(len(flat))[::3]
  wanted = jnp.array([(value(flat + e) - value(flat - e)) / (2 * eps) for e in steps])
  assert got.dtype == jnp.float64 and float(jnp.abs(wanted).max()) > 1e-2
  np.testing.assert_allclose(got[::3], wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize('first_order', [False, True])
def test_mamls_gradient_equals_a_loop_written_out(first_order: bool, x64: None) -> None:
  _, theta0, gradient = outer_gradient(f'maml(steps=3, lr=0.3, first_order={first_order})')
  _, _, _, episode = problem('maml()')

  def loss(w: Any, batch: Any) -> Any:
    body, head = w
    h = batch['x']
    for i in range(2):
      up = f'encoder/block_{i}/up'
      h = ACTIVATIONS['gelu'](h @ body[f'{up}/kernel'] + body[f'{up}/bias'])
    z = jax.nn.log_softmax(h @ head['head']['kernel'] + head['head']['bias'])
    return -z[jnp.arange(len(z)), batch['labels']].mean()

  def written_out(w: Any) -> Any:
    for _ in range(3):
      g = jax.grad(loss)(w, episode.support)
      g = jax.lax.stop_gradient(g) if first_order else g
      w = jax.tree.map(lambda a, b: a - 0.3 * b, w, g)
    return loss(w, episode.query)

  wanted = paths.flatten(jax.grad(written_out)(theta0))
  for path, g in paths.flatten(gradient).items():
    np.testing.assert_allclose(g, wanted[path], atol=1e-6, err_msg=path)


def test_checkpointed_steps_give_the_same_gradient(x64: None) -> None:
  _, _, plain = outer_gradient('maml(steps=3, lr=0.3)')
  _, _, again = outer_gradient('maml(steps=3, lr=0.3, checkpoint=True)')
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), plain, again)
  setup, params, outer, episode = problem('maml(steps=3, lr=0.3, checkpoint=True)')
  run = lambda o: learning.episodic(setup, params, o, episode, jax.random.key(2))[0]  # noqa: E731
  assert 'remat' in str(
    jax.make_jaxpr(jax.grad(run))({'theta0': outer['theta0'], 'state': outer['state']})
  )


@pytest.mark.parametrize(('text', 'moves'), [('anil(steps=2)', True), ('boil(steps=2)', False)])
def test_anil_moves_the_head_and_boil_the_body(text: str, moves: bool) -> None:
  from fewshot.learners import adapting

  setup, params, outer, episode = problem(text)
  i = adapting.inner(setup, params, outer, episode.support, jax.random.key(0), {})
  before, after = paths.flatten(i.theta), paths.flatten(i.fit.finish(adapting.run(i))[0])
  for path, x in before.items():
    changed = bool((np.asarray(x) != np.asarray(after[path])).any())
    assert changed == (('/head/' in path) == moves), path


def test_reptiles_gradient_is_where_the_fit_ended() -> None:
  from fewshot.learners import adapting

  setup, params, outer, episode = problem('reptile(steps=4, lr=0.2)')
  loss, key = setup.learner.loss, jax.random.key(0)
  assert loss is not None
  value = lambda t: loss(setup, params, outer | {'theta0': t}, episode, key)[0]  # noqa: E731
  got = jax.grad(value)(outer['theta0'])
  i = adapting.inner(setup, params, outer, episode.support, key, {})
  ended = i.fit.finish(adapting.run(i))[0]
  check = lambda g, a, b: np.testing.assert_allclose(g, a - b, atol=1e-6)  # noqa: E731
  jax.tree.map(check, got, outer['theta0'], ended)
  assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(got)) > 1e-3


def test_learned_rates_are_one_a_weight() -> None:
  _, _, outer, _ = problem('meta_sgd(lr=0.2)')
  same = jax.tree.map(lambda r, x: r.shape == x.shape and bool((r == 0.2).all()),
                      outer['fit']['lr'], outer['theta0'])  # fmt: skip
  assert all(jax.tree.leaves(same))


def test_a_rate_may_be_traced_or_a_tree() -> None:
  fit = descent(steps=2, lr=0.1)
  assert remake(fit, lr=jnp.float32(0.5)).steps == 2
  setup, params, outer, episode = problem('maml(steps=2, lr=0.1)')
  tree = jax.tree.map(lambda x: jnp.full_like(x, 0.1), outer['theta0'])
  by_tree = setup.learner._replace(fit=remake(fit, lr=tree))
  a = learners.respond(setup, params, outer, episode)['logits']
  b = learners.respond(setup._replace(learner=by_tree), params, outer, episode)['logits']
  np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_query_labels_do_not_reach_the_answer() -> None:
  setup, params, outer, episode = problem('maml(steps=1)')
  other = episode._replace(query=episode.query | {'labels': episode.query['labels'] * 0})
  a, b = (learners.respond(setup, params, outer, e)['logits'] for e in (episode, other))
  np.testing.assert_array_equal(a, b)


def test_mamls_start_is_all_of_the_model_and_a_head() -> None:
  setup, params, outer, _ = problem('maml()')
  body, head = outer['theta0']
  assert set(body) == set(paths.flatten(params)) and head['head']['kernel'].shape == (5, WAY)
  assert float(jnp.abs(head['head']['kernel']).max()) > 0
  assert setup.learner.method is not None and chain(full(), classifier()).parts
