"""Learners that compare features: prototypes, attention over the support, a learned relation."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from fewshot.learners.base import Features, Learner
from fewshot.methods.heads import check_word, unit
from fewshot.methods.spelling import spelled

__all__ = ['matchingnet', 'nearest_centroid', 'protonet', 'relationnet']
Array = jax.Array


@spelled
def protonet(distance: Literal['euclidean', 'cosine'] = 'euclidean', scale: float = 1.0) -> Learner:
  """Prototypical networks (Snell et al. 2017, arXiv:1703.05175).

      logits_c = -s |f - mu_c|^2   or   s cos(f, mu_c),   mu_c = mean of f(x_i) with y_i = c

  The backbone is meta-trained.

  >>> protonet(distance='cosine', scale=10.0).outer
  ('params',)
  """
  check_word('protonet', 'distance', distance, ('euclidean', 'cosine'))
  return Learner(predict=_nearest(distance, scale))


@spelled
def nearest_centroid(distance: Literal['euclidean', 'cosine'] = 'cosine') -> Learner:
  """Nearest class mean of features as they are (Mensink et al. 2013); nothing is learned.

  >>> nearest_centroid().outer
  ()
  """
  check_word('nearest_centroid', 'distance', distance, ('euclidean', 'cosine'))
  return Learner((), _nearest(distance, 1.0))


@spelled
def matchingnet(scale: float = 1.0) -> Learner:
  """Matching networks (Vinyals et al. 2016, arXiv:1606.04080) with cosine attention.

      P(c | x) = sum_i a(x, x_i) [y_i = c],   a = softmax_i s cos(f(x), f(x_i))

  logits = log P.  s = 1 is published.  f = g: full context embeddings are not computed.

  >>> matchingnet(scale=10.0).adapts
  False
  """

  def predict(fit: dict[str, Any], f: Features, way: int) -> Array:
    del fit
    z = scale * unit(f.query) @ unit(f.support).T  # [Q, S]
    there = f.members(way) > 0  # [S, way]
    of_class = jnp.where(there, z[:, :, None], -1e9)
    total = jax.nn.logsumexp(jnp.where(f.weights > 0, z, -1e9), -1, keepdims=True)
    return jax.nn.logsumexp(of_class, 1) - total

  return Learner(predict=predict)


@spelled
def relationnet(hidden: int = 64) -> Learner:
  """Relation networks (Sung et al. 2018, arXiv:1711.06025): how alike two things are is learned.

      r_c = sigmoid(g([sum_{y_i = c} f(x_i), f(x)])),   loss = sum_c (r_c - [y = c])^2

  g is an MLP over feature vectors with layers of `hidden` and 8 units, where the authors have two
  blocks of convolutions over feature maps before that.

  >>> relationnet(hidden=16).outer
  ('params', 'fit')
  """

  def variables(key: Array, width: int, way: int, theta0: Any) -> dict[str, Any]:
    del way, theta0
    sizes = (2 * width, hidden, 8, 1)
    start = jax.nn.initializers.he_normal()
    keys = jax.random.split(key, 3)
    shapes = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return {f'layer_{i}': {'kernel': start(k, (a, b)), 'bias': jnp.zeros(b)}
            for i, (k, a, b) in enumerate(shapes)}  # fmt: skip

  def predict(fit: dict[str, Any], f: Features, way: int) -> Array:
    total = f.members(way).T @ f.support  # [way, d]
    shape = (f.query.shape[0], *total.shape)
    pairs = (jnp.broadcast_to(total, shape), jnp.broadcast_to(f.query[:, None], shape))
    z = jnp.concatenate(pairs, -1)
    for i in range(3):
      layer = fit[f'layer_{i}']
      z = (jax.nn.relu(z) if i else z) @ layer['kernel'] + layer['bias']
    return z[..., 0]

  def squared(z: Array, labels: Array) -> Array:
    wanted = jax.nn.one_hot(labels, z.shape[-1], dtype=z.dtype)
    return jnp.square(jax.nn.sigmoid(z) - wanted).sum(-1)

  return Learner(('params', 'fit'), predict, variables=variables, objective=squared)


def _nearest(distance: str, scale: float) -> Any:
  def predict(fit: dict[str, Any], f: Features, way: int) -> Array:
    del fit
    mu = f.means(way)
    if distance == 'cosine':
      return scale * unit(f.query) @ unit(mu).T
    return -scale * squared_distances(f.query, mu)

  return predict


def squared_distances(a: Array, b: Array) -> Array:
  """|a_i - b_j|^2 [N, M], by one matrix product."""
  squares = jnp.square(a).sum(-1)[:, None] + jnp.square(b).sum(-1)
  return jnp.maximum(squares - 2 * a @ b.T, 0)
