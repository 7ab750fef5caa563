"""Heads on features against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import learners
from fewshot.learners import closed, transductive
from fewshot.learners.base import Features, score

WAY = 3


def features(
  shots=(4, 4, 4), queries=(6, 6, 6), noise=0.5, seed=0, d=8
) -> tuple[Features, np.ndarray]:
  """Gaussian classes, and the labels of the queries."""
  rng = np.random.default_rng(seed)
  means = rng.standard_normal((WAY, d))
  y, q = np.repeat(np.arange(WAY), shots), np.repeat(np.arange(WAY), queries)
  draw = lambda y: jnp.asarray(means[y] + noise * rng.standard_normal((len(y), d)), jnp.float32)  # noqa: E731
  return Features(draw(y), jnp.asarray(y), jnp.ones(len(y)), draw(q), jnp.ones(len(q))), q


def logits(text: str, f: Features, **fit) -> np.ndarray:
  return np.asarray(score(learners.parse(text), fit, f, WAY))


def test_protonet_is_its_formula() -> None:
  f, _ = features()
  mu = np.stack([np.asarray(f.support)[np.asarray(f.labels) == c].mean(0) for c in range(WAY)])
  wanted = -np.square(np.asarray(f.query)[:, None] - mu).sum(-1)
  np.testing.assert_allclose(logits('protonet()', f), wanted, atol=1e-4)
  cos = np.asarray(f.query) @ mu.T
  cos /= np.linalg.norm(f.query, axis=1)[:, None] * np.linalg.norm(mu, axis=1)
  got = logits("protonet(distance='cosine', scale=10.0)", f)
  np.testing.assert_allclose(got, 10 * cos, atol=1e-4)


def test_matchingnet_gives_probabilities_of_its_attention() -> None:
  f, _ = features()
  s, q = (np.asarray(x) / np.linalg.norm(x, axis=1)[:, None] for x in (f.support, f.query))
  a = np.exp(2 * q @ s.T)
  p = (a / a.sum(1, keepdims=True)) @ np.eye(WAY)[np.asarray(f.labels)]
  np.testing.assert_allclose(np.exp(logits('matchingnet(scale=2.0)', f)), p, atol=1e-5)


def test_r2d2_is_ridge_regression_in_the_primal() -> None:
  f, _ = features()
  x, q = (np.c_[np.asarray(v, np.float64), np.ones(len(v))] for v in (f.support, f.query))
  y = np.eye(WAY)[np.asarray(f.labels)]
  w = np.linalg.solve(x.T @ x + 0.7 * np.eye(x.shape[1]), x.T @ y)
  got = logits('r2d2()', f, log_ridge=jnp.log(0.7), scale=jnp.float32(2), bias=jnp.float32(1))
  np.testing.assert_allclose(got, 2 * q @ w + 1, atol=1e-3)


def test_the_svm_dual_is_solved() -> None:
  f, _ = features(noise=1.5)
  gram, y = f.support @ f.support.T, jax.nn.one_hot(f.labels, WAY)
  there = jnp.ones(WAY, bool)
  a = np.asarray(closed.svm_dual(gram, y, 0.1, 300, there))
  np.testing.assert_allclose(a.sum(1), 0, atol=1e-5)
  assert (a <= 0.1 * np.asarray(y) + 1e-6).all()
  value = lambda a: float((a * y).sum() - 0.5 * (a * (gram @ a)).sum())  # noqa: E731
  # The duality gap of Crammer and Singer's problem: 1/2 |w|^2 + C sum of hinges.
  z = np.asarray(gram @ a)
  labels = np.asarray(f.labels)
  margins = z - z[np.arange(len(z)), labels][:, None] + 1 - np.asarray(y)
  primal = 0.5 * float((a * z).sum()) + 0.1 * margins.max(1).sum()
  assert abs(primal - value(a)) < 0.02 * abs(primal)
  assert value(np.asarray(closed.svm_dual(gram, y, 0.1, 30, there))) > 0.95 * value(a)


def test_rows_are_projected_exactly() -> None:
  rng = np.random.default_rng(1)
  v, u = jnp.asarray(rng.standard_normal((50, 5))), jax.nn.one_hot(rng.integers(0, 5, 50), 5)
  a = np.asarray(closed._project(v, u, jnp.ones(5, bool)))
  np.testing.assert_allclose(a.sum(1), 0, atol=1e-5)
  assert (a <= np.asarray(u) + 1e-6).all()
  tau = np.where(
    a < np.asarray(u) - 1e-6, np.asarray(v) - a, np.nan
  )  # The same for all that are free.
  assert (np.nanmax(tau, 1) - np.nanmin(tau, 1) < 1e-5).all()


def test_the_transport_has_its_marginals() -> None:
  rng = np.random.default_rng(2)
  rows = jnp.array([1.0, 1, 1, 1, 0, 0])
  there = jnp.array([True, True, False])
  p = np.asarray(transductive._sinkhorn(jnp.asarray(rng.standard_normal((6, 3))), rows, there))
  np.testing.assert_allclose(p.sum(0), [2, 2, 0], atol=1e-2)
  np.testing.assert_allclose(p.sum(1), rows, atol=1e-4)


@pytest.mark.parametrize(
  ('text', 'queries', 'noise'),
  [
    ('laplacianshot()', (20, 12, 6), 1.0),
    ('bdcspn()', (20, 12, 6), 1.0),
    ('tim(steps=60, lr=0.01)', (14, 12, 12), 1.0),
    ('ptmap()', (12, 12, 12), 1.0),  # It assumes balance.
    ('tpn(neighbours=5)', (20, 12, 6), 0.5),  # A graph needs clusters.
  ],
)
def test_looking_at_all_queries_helps(text: str, queries: tuple[int, ...], noise: float) -> None:
  learner, fit = learners.parse(text), {'log_sigma': jnp.log(0.5)}
  plain = learners.parse('nearest_centroid()')
  both = jax.jit(lambda f: (score(learner, fit, f, WAY), score(plain, {}, f, WAY)))
  right = []
  for seed in range(20):
    f, q = features((1, 1, 1), queries, noise=noise, seed=seed, d=10)
    right.append([(np.asarray(z).argmax(1) == q).mean() for z in both(f)])
  ours, alone = np.mean(right, 0)
  assert ours >= alone, (ours, alone)
