"""SaRA: what is too small to matter trains, is all that is kept, and stays of low rank."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fewshot import fits, methods, objectives, papers
from fewshot.errors import FewshotError
from fewshot.methods import paths

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
SHAPES = {'block_0/kernel': (4, 5), 'block_1/kernel': (5, 4), 'head/kernel': (4, 3)}
PARAMS = {p: RNG.normal(size=s).astype(np.float32) for p, s in SHAPES.items()}
WHERE = 'block_./kernel'


def steps(spelling: str, n: int, tx: Any, grads: Any = None) -> list[dict[str, np.ndarray]]:
  """The merged weights at the start and after each of n steps of one compiled program."""
  method = methods.parse(spelling)
  method = method.plan(None, PARAMS, None)
  theta, state = method.init(KEY, None, PARAMS, None)
  inner = optax.with_extra_args_support(method.optimizer(tx))
  opt, rng, traced = inner.init(theta), np.random.default_rng(1), []

  @jax.jit
  def step(theta: Any, opt: Any, g: Any, t: Any) -> Any:
    traced.append(t)
    extra = {'step': t, 'key': jax.random.fold_in(KEY, t), 'method_state': state, 'frozen': PARAMS}
    updates, opt = inner.update(g, opt, theta, **extra)
    return optax.apply_updates(theta, updates), opt

  seen = [PARAMS]
  for t in range(n):
    g = grads or (lambda x: rng.normal(size=x.shape).astype(np.float32))
    theta, opt = step(theta, opt, jax.tree.map(g, theta), jnp.int32(t))
    seen.append(paths.flatten(methods.merge(method, theta, state, PARAMS)))
  assert len(traced) == 1, 'a mask that moves must not compile anything'
  return [{p: np.asarray(w) for p, w in x.items()} for x in seen]


def test_sara_trains_what_is_small_and_later_what_still_is():
  hosted = papers.read(papers.FILE.read_text())['sara']['hosted_by']
  assert methods.parse(hosted).made.fn is methods.sara
  seen = steps(f"sara('{WHERE}', threshold=0.5, progressive_iter=3)", 6, optax.sgd(0.3))
  first = {p: np.abs(PARAMS[p]) < 0.5 for p in PARAMS if p[0] == 'b'}
  later = {p: m & (np.abs(seen[3][p]) < 0.5) for p, m in first.items()}
  for t in range(6):
    want = first if t < 3 else later
    assert all(((seen[t + 1][p] != seen[t][p]) == want[p]).all() for p in want)
    np.testing.assert_array_equal(seen[t + 1]['head/kernel'], PARAMS['head/kernel'])
  assert 0 < sum(m.sum() for m in later.values()) < sum(m.sum() for m in first.values())


def test_sara_keeps_values_gradients_and_moments_of_what_is_small_alone():
  method = methods.parse(f"sara('{WHERE}', threshold=0.5)").plan(None, PARAMS, None)
  theta, state = method.init(KEY, None, PARAMS, None)
  n = sum(int((np.abs(PARAMS[p]) < 0.5).sum()) for p in PARAMS if p[0] == 'b')
  size = sum(PARAMS[p].size for p in PARAMS if p[0] == 'b')
  assert methods.count(theta) == n < size / 2
  moments = jax.tree.leaves(method.optimizer(optax.adam(0.1)).init(theta)[0])
  assert sum(x.size for x in moments if x.ndim) == 2 * n
  loss = lambda t: sum((w**2).sum() for w in method.weights(t, state, PARAMS).values())  # noqa: E731
  assert methods.count(jax.grad(loss)(theta)) == n
  # Without its plan it is the same method, with room for all.
  whole = methods.parse(f"sara('{WHERE}', threshold=0.5)")
  assert methods.count(whole.init(KEY, None, PARAMS, None)[0]) == size
  assert methods.spell(method) == methods.spell(methods.parse(methods.spell(method)))


def test_sara_pulls_down_the_nuclear_norm_of_what_trains():
  zeros = lambda x: np.zeros(x.shape, np.float32)  # noqa: E731
  spelling = f"sara('{WHERE}', threshold=0.5, progressive_iter=4, lambda_rank=2.0)"
  seen = steps(spelling, 12, optax.sgd(0.05), zeros)
  on, moved = {p: np.abs(PARAMS[p]) < 0.5 for p in PARAMS if p[0] == 'b'}, []
  for t in range(12):
    if t == 4:
      on = {p: m & (np.abs(seen[4][p]) < 0.5) for p, m in on.items()}
    want = []
    for p, m in on.items():
      u, _, v = np.linalg.svd(seen[t][p] * m, full_matrices=False)
      want.append(seen[t][p] - 0.05 * 2.0 * m * (u @ v))
    hit = [i for i, p in enumerate(on) if (seen[t + 1][p] != seen[t][p]).any()]
    assert len(hit) == 1, 'one kernel a step'
    np.testing.assert_allclose(seen[t + 1][list(on)[hit[0]]], want[hit[0]], atol=1e-5)
    moved += hit
  assert set(moved) == {0, 1}


def linear(params: Any, batch: Any, key: Any = None) -> Any:
  p = paths.flatten(params)
  x = jnp.tanh(batch['x'] @ p['block_0/kernel']) @ p['block_1/kernel']
  return {'features': x, 'logits': x @ p['head/kernel']}


def test_a_fit_of_several_runs_is_each_of_them():
  x = RNG.normal(size=(9, 4)).astype(np.float32)
  data = fits.Data({'x': x, 'labels': np.arange(9, dtype=np.int32) % 3})
  calib = methods.Calib(data.train, 3, objectives.classification().loss)
  method = methods.parse(
    f"chain(sara('{WHERE}', threshold=0.5, progressive_iter=2, lambda_rank=0.1), linear())"
  )
  method = method.plan(linear, PARAMS, calib)
  loss = fits.Loss(linear, method, PARAMS, objectives.classification())
  fit = fits.sgd(steps=6, lr=0.05, batch=3, weight_decay=0.1)

  def fitted(key: Any) -> Any:
    theta, state = method.init(key, linear, PARAMS, calib)
    return fit(loss, theta, state, data, key)[0]

  keys = jax.random.split(jax.random.key(3), 2)
  both = jax.jit(jax.vmap(fitted))(keys)
  one = jax.jit(fitted)(keys[1])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=2e-5), both, one)
  start = method.init(keys[1], linear, PARAMS, calib)[0]
  assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (one[0], start[0])), strict=True))


def test_a_threshold_below_all_weights_is_refused():
  with pytest.raises(FewshotError, match=r'sara\(threshold=1e-09\): no weight is below it'):
    methods.sara(WHERE, threshold=1e-9).plan(None, PARAMS, None)
