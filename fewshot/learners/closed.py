"""Learners whose head is the solution of a convex problem, differentiated through."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from fewshot.errors import counts
from fewshot.learners.base import Features, Learner
from fewshot.methods.heads import check_word
from fewshot.methods.spelling import spelled

__all__ = ['metaoptnet', 'r2d2']
Array = jax.Array


@spelled
def r2d2(ridge: float = 1.0) -> Learner:
  """R2-D2 (Bertinetto et al. 2019, arXiv:1805.08136): ridge regression on the support.

      W = X' (X X' + lambda I)^-1 Y,   logits = a f W + b

  X [S, d + 1] has a column of ones, Y is one-hot; lambda (`ridge` at the start), a and b are
  learned with the backbone.  S x S is inverted, not d x d.

  >>> r2d2().outer
  ('params', 'fit')
  """

  def variables(key: Array, width: int, way: int, theta0: Any) -> dict[str, Any]:
    del key, width, way, theta0
    return {'log_ridge': jnp.log(ridge), 'scale': jnp.ones(()), 'bias': jnp.zeros(())}

  def predict(fit: dict[str, Any], f: Features, way: int) -> Array:
    x, q = (jnp.pad(v, ((0, 0), (0, 1)), constant_values=1) for v in (f.support, f.query))
    root = jnp.sqrt(f.weights)[:, None]
    x, y = x * root, f.members(way) / jnp.maximum(root, 1e-12)
    gram = x @ x.T + jnp.exp(fit['log_ridge']) * jnp.eye(x.shape[0], dtype=x.dtype)
    solved = jax.scipy.linalg.solve(gram, y, assume_a='pos')
    return fit['scale'] * (q @ x.T) @ solved + fit['bias']

  return Learner(('params', 'fit'), predict, variables=variables)


@spelled
def metaoptnet(
  head: Literal['svm', 'ridge'] = 'svm', c: float = 0.1, ridge: float = 50.0, steps: int = 30
) -> Learner:
  """MetaOptNet (Lee et al. 2019, arXiv:1904.03758): a linear SVM or ridge regression as head.

      max_a  sum_i a_{i, y_i} - 1/2 |X' a|^2,   a_ik <= C [k = y_i],   sum_k a_ik = 0
      logits = s f X' a,   s learned

  The dual of Crammer and Singer's multi-class SVM, by `steps` accelerated projected-gradient
  steps (Beck and Teboulle 2009), where the authors call a QP solver; the projection is exact.

  >>> metaoptnet(head='ridge').outer
  ('params', 'fit')
  """
  check_word('metaoptnet', 'head', head, ('svm', 'ridge'))
  counts(steps=steps)

  def variables(key: Array, width: int, way: int, theta0: Any) -> dict[str, Any]:
    del key, width, way, theta0
    return {'scale': jnp.ones(())}

  def predict(fit: dict[str, Any], f: Features, way: int) -> Array:
    y = jax.nn.one_hot(f.labels, way, dtype=f.support.dtype)
    there = (f.weights > 0)[:, None]
    x = jnp.where(there, f.support, 0)
    gram = x @ x.T
    if head == 'ridge':
      solved = jax.scipy.linalg.solve(
        gram + ridge * jnp.eye(len(x), dtype=x.dtype), jnp.where(there, y, 0), assume_a='pos'
      )
    else:
      solved = svm_dual(gram, jnp.where(there, y, 0), c, steps, f.members(way).sum(0) > 0)
    return fit['scale'] * (f.query @ x.T) @ solved

  return Learner(('params', 'fit'), predict, variables=variables)


def svm_dual(gram: Array, y: Array, c: float, steps: int, classes: Array) -> Array:
  """a [S, K] of the dual above, from the Gram matrix and one-hot labels (zero rows stay 0)."""
  there = classes & (y.sum(-1, keepdims=True) > 0)  # What is absent stays 0.
  rate = 1 / jnp.maximum(
    jnp.linalg.norm(gram), 1e-12
  )  # Frobenius: at least the largest eigenvalue.

  def step(carry: tuple[Array, Array, Array], _: None) -> tuple[Any, None]:
    a, z, t = carry
    new = _project(z + rate * (y - gram @ z), c * y, there)
    t2 = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
    return (new, new + (t - 1) / t2 * (new - a), t2), None

  zero = jnp.zeros_like(y)
  return jax.lax.scan(step, (zero, zero, jnp.ones((), y.dtype)), None, steps)[0][0]


def _project(v: Array, u: Array, there: Array) -> Array:
  """The nearest a <= u with rows of sum 0: min(v - tau, u), where tau is the least of K roots.

  With the m largest v - u at their bound, tau_m = (sum of their u + sum of the other v) / (K - m).
  """
  k = v.shape[-1]
  order = jnp.argsort(jnp.where(there, u - v, jnp.inf), -1)
  v_, u_, in_ = (
    jnp.take_along_axis(jnp.broadcast_to(x, v.shape), order, -1) for x in (v, u, there)
  )
  v_, u_ = jnp.where(in_, v_, 0), jnp.where(in_, u_, 0)
  bound = jnp.cumsum(u_, -1) - u_
  free = jnp.cumsum(v_[:, ::-1], -1)[:, ::-1]
  left = in_.sum(-1, keepdims=True) - jnp.arange(k)
  tau = jnp.where(left > 0, (bound + free) / jnp.maximum(left, 1), jnp.inf).min(-1, keepdims=True)
  tau = jnp.where(jnp.isfinite(tau), tau, 0)
  return jnp.where(there, jnp.minimum(v - tau, u), 0)
