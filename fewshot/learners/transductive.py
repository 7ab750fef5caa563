"""Learners that look at all queries of an episode together; the backbone comes from elsewhere.

Each takes features as any trained `outer` gives them; only `tpn` is meta-trained itself.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fewshot.errors import counts
from fewshot.learners.base import ABSENT, Features, Learner
from fewshot.learners.metric import squared_distances
from fewshot.methods.heads import unit
from fewshot.methods.spelling import spelled

__all__ = ['bdcspn', 'laplacianshot', 'ptmap', 'tim', 'tpn']
Array = jax.Array


@spelled
def laplacianshot(neighbours: int = 3, weight: float = 0.7, steps: int = 20) -> Learner:
  """LaplacianShot (Ziko et al. 2020, arXiv:2006.15486): near queries should be labelled alike.

      y_q <- softmax(-|f_q - m|^2 + lambda sum_p w_qp y_p),   w_qp = 1 for p among q's nearest

  on features of unit length; m are the class means and lambda is `weight`.

  >>> laplacianshot().outer
  ()
  """
  counts(neighbours=neighbours, steps=steps)

  def predict(fit: dict[str, Any], f: Features, way: int) -> Array:
    del fit
    f = f.unit()
    alone = _there(f, way, -squared_distances(f.query, f.means(way)))
    near = _nearest(f.query, f.query_weights, neighbours)

    def step(z: Array, _: None) -> tuple[Array, None]:
      return alone + weight * near @ jax.nn.softmax(z), None

    return jax.lax.scan(step, alone, None, steps)[0]

  return Learner((), predict)


@spelled
def bdcspn(scale: float = 10.0) -> Learner:
  """BD-CSPN (Liu et al. 2020, arXiv:1911.10713): prototypes rectified by pseudo-labelled queries.

      f_q <- f_q + mean support - mean query;   each query joins its nearest class
      m_c = sum_{i in c} w_i f_i,   w = softmax over c's members of s cos(f_i, mu_c)

  >>> bdcspn().adapts
  False
  """

  def predict(fit: dict[str, Any], f: Features, way: int) -> Array:
    del fit
    f = f.unit()
    shift = _mean(f.support, f.weights) - _mean(f.query, f.query_weights)
    f = f._replace(query=unit(f.query + shift))
    mu = unit(f.means(way))
    guess = _there(f, way, f.query @ mu.T).argmax(-1)
    joined = jax.nn.one_hot(guess, way) * f.query_weights[:, None]
    members = jnp.concatenate([f.members(way), joined])  # [S + Q, way]
    rows = jnp.concatenate([f.support, f.query])
    z = jnp.where(members > 0, scale * rows @ mu.T, ABSENT)
    means = jax.nn.softmax(z, 0).T @ rows
    return scale * f.query @ unit(means).T

  return Learner((), predict)


@spelled
def tim(
  steps: int = 100, lr: float = 1e-3, temperature: float = 15.0, ce: float = 0.1, alpha: float = 0.1
) -> Learner:
  """TIM-GD (Boudiaf et al. 2020, arXiv:2008.11297): maximises what queries tell of their labels.

      min_w  ce * CE(support) - H(mean_q p_q) + alpha mean_q H(p_q),
      p_q = softmax_c(-tau / 2 |w_c - f_q|^2),   w starts at the class means

  by Adam on features of unit length; tau is `temperature`.  The authors take 1000 steps of 1e-4.

  >>> tim(steps=50).outer
  ()
  """
  counts(steps=steps)
  tx = optax.adam(lr)

  def predict(fit: dict[str, Any], f: Features, way: int) -> Array:
    del fit
    f = f.unit()

    def logits(w: Array, x: Array) -> Array:
      return _there(f, way, -temperature / 2 * squared_distances(x, w))

    def loss(w: Array) -> Array:
      log_s = jax.nn.log_softmax(logits(w, f.support))
      supervised = -_mean((log_s * jax.nn.one_hot(f.labels, way)).sum(-1), f.weights)
      p = jax.nn.softmax(logits(w, f.query))
      each = _mean(_entropy(p), f.query_weights)
      return ce * supervised - _entropy(_mean(p, f.query_weights)) + alpha * each

    def step(carry: Any, _: None) -> Any:
      w, opt = carry
      updates, opt = tx.update(jax.grad(loss)(w), opt)
      return (optax.apply_updates(w, updates), opt), None

    start = f.means(way)
    return logits(jax.lax.scan(step, (start, tx.init(start)), None, steps)[0][0], f.query)

  return Learner((), predict)


@spelled
def ptmap(
  power: float = 0.5, rate: float = 0.2, sinkhorn: float = 10.0, steps: int = 20
) -> Learner:
  """PT-MAP (Hu et al. 2021, arXiv:2006.03806): a power transform, then optimal transport.

      f <- unit(sign(f) |f|^power), centred;   P = Sinkhorn(exp(-sinkhorn |f_q - m_c|^2))
      m_c <- m_c + rate (mean of members by P - m_c)

  The transport gives each class as many queries: it assumes balanced episodes.

  >>> ptmap(steps=10).outer
  ()
  """
  counts(steps=steps)

  def predict(fit: dict[str, Any], f: Features, way: int) -> Array:
    del fit
    bent = lambda x: unit(jnp.sign(x) * (jnp.abs(x) + 1e-6) ** power)  # noqa: E731
    s, q = bent(f.support), bent(f.query)
    f = f._replace(support=s - _mean(s, f.weights), query=q - _mean(q, f.query_weights)).unit()
    members = f.members(way)
    there = members.sum(0) > 0

    def plan(m: Array) -> Array:
      return _sinkhorn(-sinkhorn * squared_distances(f.query, m), f.query_weights, there)

    def step(m: Array, _: None) -> tuple[Array, None]:
      p = plan(m)
      total = members.T @ f.support + p.T @ f.query
      mean = total / jnp.maximum(members.sum(0) + p.sum(0), 1e-12)[:, None]
      return m + rate * (mean - m), None

    means = jax.lax.scan(step, f.means(way), None, steps)[0]
    return jnp.log(jnp.maximum(plan(means), 1e-30))

  return Learner((), predict)


@spelled
def tpn(neighbours: int = 20, alpha: float = 0.99) -> Learner:
  """Label propagation as in TPN (Liu et al. 2019, arXiv:1805.10002).

      F = (I - alpha D^-1/2 W D^-1/2)^-1 Y,   w_ij = exp(-|f_i - f_j|^2 / 2 sigma^2 mean)

  over support and query, W kept among the `neighbours` nearest.  Distances are over their mean;
  log sigma is one learned number, where the authors' network gives one for each example.

  >>> tpn().outer
  ('params', 'fit')
  """
  counts(neighbours=neighbours)

  def variables(key: Array, width: int, way: int, theta0: Any) -> dict[str, Any]:
    del key, width, way, theta0
    return {'log_sigma': jnp.log(0.5)}

  def predict(fit: dict[str, Any], f: Features, way: int) -> Array:
    x, w = jnp.concatenate([f.support, f.query]), jnp.concatenate([f.weights, f.query_weights])
    w = (w > 0).astype(x.dtype)
    d, pairs = squared_distances(x, x), jnp.outer(w, w)
    d = d / jnp.maximum((d * pairs).sum() / jnp.maximum(pairs.sum(), 1), 1e-12)
    near = jax.lax.stop_gradient(_nearest(x, w, neighbours))
    graph = jnp.exp(-d / (2 * jnp.exp(2 * fit['log_sigma']))) * jnp.maximum(near, near.T)
    root = jax.lax.rsqrt(graph.sum(-1) + 1e-8)
    spread = jnp.eye(len(x), dtype=x.dtype) - alpha * root[:, None] * graph * root
    y = jnp.concatenate([f.members(way), jnp.zeros((f.query.shape[0], way), x.dtype)])
    return jnp.linalg.solve(spread, y)[f.support.shape[0] :]

  return Learner(('params', 'fit'), predict, variables=variables)


def _there(f: Features, way: int, z: Array) -> Array:
  """Logits of the classes that have support."""
  return jnp.where(f.members(way).sum(0) > 0, z, ABSENT)


def _mean(x: Array, weights: Array) -> Array:
  return jnp.tensordot(weights, x, 1) / jnp.maximum(weights.sum(), 1e-12)


def _entropy(p: Array) -> Array:
  return -(p * jnp.log(p + 1e-12)).sum(-1)


def _nearest(x: Array, weights: Array, k: int) -> Array:
  """[N, N]: 1 where the column is among the k nearest other rows; 0 where either is padded."""
  n = x.shape[0]
  d = squared_distances(x, x)
  out = (weights <= 0) | (weights <= 0)[:, None] | jnp.eye(n, dtype=bool)
  d = jnp.where(out, jnp.inf, d)
  k = min(k, n - 1)
  _, columns = jax.lax.top_k(-d, k)
  near = jnp.zeros((n, n), x.dtype).at[jnp.arange(n)[:, None], columns].set(1.0)
  return jnp.where(jnp.isfinite(d), near, 0)


def _sinkhorn(z: Array, rows: Array, there: Array, rounds: int = 50) -> Array:
  """The plan [Q, way] nearest exp(z) with the row sums `rows` and equal sums of classes there."""
  kept = rows > 0
  z = jnp.where(there & kept[:, None], z, ABSENT)
  row = jnp.log(jnp.where(kept, rows, 1))[:, None]
  column = jnp.log(rows.sum() / jnp.maximum(there.sum(), 1))

  def step(z: Array, _: None) -> tuple[Array, None]:
    z = z + jnp.where(there, column - jax.nn.logsumexp(z, 0), 0)
    return z + jnp.where(kept[:, None], row - jax.nn.logsumexp(z, 1, keepdims=True), 0), None

  return jnp.exp(jax.lax.scan(step, z, None, rounds)[0])
