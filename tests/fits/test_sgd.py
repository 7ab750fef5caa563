"""sgd against optax and numpy on a linear model, whose gradient is written down."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fewshot import fits, methods, models, objectives
from fewshot.errors import FewshotError
from fewshot.fits import scaling
from fewshot.fits.base import Data, Loss

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 3)).astype(np.float32)
Y = np.array([0, 1, 0, 1, 1, 0, 1, 0], np.int32)
TRAIN = {'x': X, 'labels': Y}
START = {
  'body': RNG.normal(size=(3, 4)).astype(np.float32),
  'head': RNG.normal(size=(4, 2)).astype(np.float32),
}
KEY = jax.random.key(0)


def problem(theta: Any = START) -> Loss:
  """logits = x @ body @ head, all of it trained."""
  forward = models.from_function(
    lambda p, x: x @ p['body'] @ p['head'], inputs=('x',), output='logits'
  )
  return Loss(forward, methods.tune('.*'), theta, objectives.classification())


def gradient(theta: Any, x: np.ndarray = X, y: np.ndarray = Y) -> Any:
  hidden = x @ theta['body']
  z = hidden @ theta['head']
  p = np.exp(z - z.max(1, keepdims=True))
  d = (p / p.sum(1, keepdims=True) - np.eye(2)[y]) / len(y)
  return {'body': x.T @ d @ theta['head'].T, 'head': hidden.T @ d}


def fit(theta: Any = START, dev: Any = None, train: Any = TRAIN, **kwargs: Any) -> Any:
  """theta after the fit; the batch is the whole of train, so that order does not matter."""
  made = fits.sgd(**{'batch': 8, 'steps': 3, 'lr': 0.1} | kwargs)
  return made(problem(theta), jax.tree.map(jnp.asarray, theta), {}, Data(train, dev), KEY)[0]


def by_optax(rates: dict[str, list[float]], weight_decay: float = 0.0, clip: float = 0.0) -> Any:
  """The same steps with one AdamW a leaf, whose rate is looked up."""
  theta = START
  tx = {
    k: optax.adamw(lambda t, r=r: jnp.asarray(r)[t], weight_decay=weight_decay)
    for k, r in rates.items()
  }
  opt = {k: tx[k].init(theta[k]) for k in tx}
  for _ in rates['body']:
    g = gradient(theta)
    if clip:
      norm = np.sqrt(sum((v**2).sum() for v in g.values()))
      g = {k: v * min(1, clip / norm) for k, v in g.items()}
    new = {}
    for k in tx:
      update, opt[k] = tx[k].update(jnp.asarray(g[k]), opt[k], theta[k])
      new[k] = np.asarray(theta[k] + update)
    theta = new
  return theta


def assert_close(got: Any, want: Any, atol: float = 2e-5) -> None:
  for k in want:
    np.testing.assert_allclose(got[k], want[k], atol=atol)


def test_adamw_by_hand():
  """Bias-corrected moments in numpy, decay beside them."""
  theta, m, v = START, *({k: np.zeros_like(x) for k, x in START.items()} for _ in range(2))
  for t in range(1, 4):
    g = gradient(theta)
    for k in g:
      m[k] = 0.9 * m[k] + 0.1 * g[k]
      v[k] = 0.999 * v[k] + 0.001 * g[k] ** 2
    step = {k: m[k] / (1 - 0.9**t) / (np.sqrt(v[k] / (1 - 0.999**t)) + 1e-8) for k in g}
    theta = {k: theta[k] - 0.1 * (step[k] + 0.01 * theta[k]) for k in g}
  assert_close(fit(weight_decay=0.01), theta)


def test_bertadam_leaves_the_moments_as_they_are():
  """m and v start at zero and stay small: the first step is 0.1 g / (sqrt(0.001) |g| + 1e-6)."""
  theta, m, v = START, *({k: np.zeros_like(x) for k, x in START.items()} for _ in range(2))
  for _ in range(2):
    g = gradient(theta)
    m = {k: 0.9 * m[k] + 0.1 * g[k] for k in g}
    v = {k: 0.999 * v[k] + 0.001 * g[k] ** 2 for k in g}
    theta = {k: theta[k] - 0.01 * (m[k] / (np.sqrt(v[k]) + 1e-6) + 0.01 * theta[k]) for k in theta}
  ours = fit(steps=2, lr=0.01, weight_decay=0.01, optimizer='bertadam')
  assert_close(ours, theta)
  # Of a gradient far above 1e-6 the first step is lr 0.1 / sqrt(0.001) = 3.16 lr; AdamW's is lr.
  first = fit(steps=1, lr=0.01, optimizer='bertadam')
  np.testing.assert_allclose(abs(first['head'] - START['head']), 0.0316228, rtol=1e-2)
  corrected = fit(steps=1, lr=0.01)
  np.testing.assert_allclose(abs(corrected['head'] - START['head']), 0.01, rtol=1e-3)


def test_plain_descent_has_momentum_and_decays_as_adamw_does():
  """v <- 0.9 v + g,   w <- w - lr (v + decay w)"""
  theta, v = START, {k: np.zeros_like(w) for k, w in START.items()}
  for _ in range(3):
    g = gradient(theta)
    v = {k: 0.9 * v[k] + g[k] for k in v}
    theta = {k: w - 0.1 * (v[k] + 0.01 * w) for k, w in theta.items()}
  ours = fit(optimizer='sgd', weight_decay=0.01)
  for k in theta:
    np.testing.assert_allclose(ours[k], theta[k], rtol=1e-5)


@pytest.mark.parametrize(
  'kwargs, curve',
  [
    ({}, [1, 1, 1]),
    ({'warmup': 2}, [0.5, 1, 1]),
    ({'schedule': 'linear'}, [1, 2 / 3, 1 / 3]),
    ({'schedule': 'linear', 'warmup': 1}, [1, 1, 0.5]),
    ({'schedule': 'cosine'}, [1, 0.75, 0.25]),
    ({'schedule': 'cosine', 'warmup': 2}, [0.5, 1, 1]),
  ],
)
def test_schedules(kwargs, curve):
  rates = [0.1 * c for c in curve]
  assert_close(fit(**kwargs), by_optax({'body': rates, 'head': rates}))


def test_the_head_may_have_its_own_rate():
  want = by_optax({'body': [0.01] * 3, 'head': [0.1] * 3})
  assert_close(fit(lr=0.01, head_lr=0.1), want)
  assert_close(fit(lr=0.1, head_lr=0.0), by_optax({'body': [0.1] * 3, 'head': [0.1] * 3}))


def test_the_gradient_is_clipped_by_its_global_norm():
  theta = {k: 3 * v for k, v in START.items()}
  norm = np.sqrt(sum((g**2).sum() for g in gradient(theta).values()))
  assert norm > 0.2
  rates = {'body': [0.1] * 3, 'head': [0.1] * 3}
  assert_close(fit(clip=0.2, weight_decay=0.1), by_optax(rates, 0.1, clip=0.2))
  assert_close(fit(clip=1e6), by_optax(rates))


def test_rates_may_be_traced():
  run = jax.jit(lambda lr, decay: fit(lr=lr, weight_decay=decay))
  want = fit(lr=0.05, weight_decay=0.1)
  assert_close(run(0.05, 0.1), want, 1e-6)


@pytest.mark.parametrize('n, batch', [(8, 2), (7, 3), (5, 9), (1, 1)])
def test_every_epoch_visits_each_example_once(n, batch):
  """At most: what does not fill a batch waits for another epoch's order."""
  per_epoch = n // min(batch, n)
  draw = jax.vmap(lambda t: fits.sgd(steps=1, batch=batch).rows(jnp.zeros(n), KEY, t))
  for epoch in np.asarray(draw(jnp.arange(3 * per_epoch))).reshape(3, -1):
    assert len(set(epoch.tolist())) == len(epoch) == per_epoch * min(batch, n)
    assert set(epoch.tolist()) <= set(range(n))


def test_epochs_are_reshuffled():
  rows, key = fits.sgd(steps=1, batch=50).rows, jax.random.key(0)
  a, b = (rows(jnp.zeros(50), key, jnp.int32(t)).ravel().tolist() for t in (0, 1))
  assert sorted(a) == sorted(b) == list(range(50)) and a != b


DEV = {'x': X[:4], 'labels': 1 - Y[:4]}  # Train's labels turned around: the fit gets worse on it.


def accuracy(theta: Any, batch: Any) -> float:
  return float((np.argmax(batch['x'] @ theta['body'] @ theta['head'], 1) == batch['labels']).mean())


@pytest.fixture(scope='module')
def path() -> list[Any]:
  """theta after each of 6 steps."""
  made, loss, data = fits.sgd(steps=6, lr=0.3, batch=8), problem(), Data(TRAIN)
  step = jax.jit(lambda carry, t: made.step(loss, carry, data, KEY, t))
  carry = made.start(loss, jax.tree.map(jnp.asarray, START), {}, data, KEY)
  carries = [carry := step(carry, jnp.int32(t)) for t in range(6)]
  return [c['theta'] for c in carries]


def test_the_best_theta_on_dev_is_kept(path):
  """The last is worse, and ties go to the lower loss."""
  scores = [accuracy(theta, DEV) for theta in path]
  assert scores[-1] < max(scores)
  kept = fit(steps=6, lr=0.3, eval_every=1, dev=DEV)
  value = lambda theta: problem()(theta, {}, DEV)[0]  # noqa: E731
  tied = [theta for theta, s in zip(path, scores, strict=True) if s == max(scores)]
  assert_close(kept, min(tied, key=value), 1e-5)


def test_dev_is_scored_every_so_often_and_after_the_last(path):
  """With a period longer than the fit, the last alone is a candidate."""
  assert_close(fit(steps=6, lr=0.3, eval_every=9, dev=DEV), path[5], 1e-5)
  kept = fit(steps=6, lr=0.3, eval_every=4, dev=DEV)
  assert_close(kept, max((path[3], path[5]), key=lambda theta: accuracy(theta, DEV)), 1e-5)


def test_a_diverged_theta_is_never_the_best():
  """NaN logits have an argmax, which some labels agree with."""
  easy = {'x': X[:4], 'labels': np.zeros(4, np.int32)}
  kept = fit(steps=4, lr=1e30, eval_every=1, dev=easy)
  assert np.isfinite(kept['body']).all()


def test_a_dev_set_alone_changes_nothing():
  assert_close(fit(dev=DEV), fit(), 0)


def test_the_curve_is_the_loss_before_each_step():
  made = fits.sgd(steps=2, lr=0.1, batch=8)
  loss, theta = problem(), jax.tree.map(jnp.asarray, START)
  carry = made.start(loss, theta, {}, Data(TRAIN), KEY)
  values = []
  for t in range(2):
    values.append(float(loss(carry['theta'], {}, TRAIN)[0]))
    carry = made.step(loss, carry, Data(TRAIN), KEY, jnp.int32(t))
  np.testing.assert_allclose(carry['curve'], values, rtol=1e-5)


@pytest.mark.parametrize(
  'text, message',
  [
    ('sgd(steps=0)', 'sgd(steps=0, batch=16): both are at least 1'),
    ('sgd(batch=0)', 'both are at least 1'),
    ("sgd(optimizer='adam')", "optimizer='adam') is unknown; there are adamw, bertadam, sgd"),
    ("sgd(schedule='poly')", "schedule='poly') is unknown; there are constant, linear, cosine"),
    ('sgd(learning_rate=1)', "no argument 'learning_rate'"),
    ('sgd(steps=2.5)', 'sgd(steps=...) takes int, not 2.5'),
    ('sgb()', "unknown fit 'sgb'; did you mean 'sgd'?"),
    ('sgd', 'is a bare name; write sgd()'),
    ('3', 'spells no fit'),
  ],
)
def test_refused(text, message):
  with pytest.raises(FewshotError, match=re.escape(message)):
    fits.parse(text)


def test_scoring_a_dev_set_that_is_not_there():
  with pytest.raises(FewshotError, match=re.escape('sgd(eval_every=2) scores a dev set')):
    fit(eval_every=2)


def test_a_minibatch_in_parts_is_the_minibatch():
  """Also with weights, whose sums differ from part to part."""
  assert_close(fit(accumulate=4), fit())
  weighted = {**TRAIN, 'weights': np.linspace(0.1, 2, len(Y)).astype(np.float32)}
  assert_close(fit(train=weighted, accumulate=2), fit(train=weighted))


@pytest.mark.parametrize('parts', [0, 3])
def test_parts_divide_the_batch(parts):
  with pytest.raises(FewshotError, match=rf'accumulate={parts}.*divides batch=8'):
    fits.sgd(steps=1, batch=8, accumulate=parts)


def test_an_overflow_of_float16_leaves_the_step_out_and_halves_the_factor():
  old = {'theta': jnp.ones(2), 'state': {}, 'opt': jnp.zeros(2), 'scale': scaling.start()}
  new = old | {'theta': jnp.zeros(2), 'opt': jnp.ones(2)}
  kept = scaling.keep_finite({'w': jnp.array([1.0, jnp.inf])}, new, old)
  assert kept['theta'].tolist() == [1, 1] and kept['opt'].tolist() == [0, 0]
  assert float(kept['scale']['factor']) == scaling.START / 2
  moved = scaling.keep_finite({'w': jnp.ones(2)}, new, old)
  assert moved['theta'].tolist() == [0, 0] and int(moved['scale']['good']) == 1
  ripe = old | {'scale': {**scaling.start(), 'good': jnp.int32(scaling.PATIENCE - 1)}}
  grown = scaling.keep_finite({'w': jnp.ones(2)}, new, ripe)
  assert float(grown['scale']['factor']) == 2 * scaling.START
