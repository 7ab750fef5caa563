"""Heads: from `outputs['features']` to `outputs['logits']`."""

from collections.abc import Callable, Collection
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from fewshot.errors import FewshotError
from fewshot.methods.base import (
  Batch,
  Calib,
  Forward,
  Method,
  Outputs,
  Params,
  State,
  Theta,
  at_least_one,
  method,
)

__all__ = ['cosine', 'learned_prototypes', 'linear', 'majority', 'mlp', 'nearest_mean']
Array = jax.Array
# How the scores of several prototypes or words become the one of their class: [..., K] -> [...].
JOINS: dict[str, Callable[..., Array]] = {
  'mean': jnp.mean,
  'max': jnp.max,
  'logsumexp': jax.nn.logsumexp,
}


@method
def linear(classes: int = 0) -> Method:
  """A fresh linear classifier, zero at the start: logits = f W + b, W [d, classes].

  With `classes=0` the task says how many.  Its weight form puts `head/kernel` and `head/bias`
  into params, which every backbone of the naming contract reads.

  >>> linear(classes=3).mergeable
  True
  """

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    del key
    d, dtype = features(forward, params, calib)
    n = count_classes(classes, calib)
    return {'head': {'kernel': jnp.zeros((d, n), dtype), 'bias': jnp.zeros(n, dtype)}}, {}

  def logits(theta: Theta, state: State, outputs: Outputs, batch: Batch) -> Array:
    del state, batch
    return outputs['features'] @ theta['head']['kernel'] + theta['head']['bias']

  def merge(theta: Theta, state: State, params: Params) -> Params:
    del state
    return params | {'head': theta['head']}

  return Method(init, wrap=scored_by(logits), merge=merge)


@method
def majority(classes: int = 0) -> Method:
  """The majority class, a baseline (Gao et al. 2021, arXiv:2012.15723): the same for every example.

      logits_c = n_c,   the train examples of class c that the run starts from

  The first of several classes that are as frequent wins, so that on balanced splits it is class 0.
  Nothing trains: fit it by `untrained()`.

  >>> majority().mergeable
  False
  """

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    del key, forward, params
    if 'labels' not in calib.batch:
      raise FewshotError('majority() counts labels, and the examples it starts from have none')
    labels = jnp.asarray(calib.batch['labels'])
    counts = jax.nn.one_hot(labels, count_classes(classes, calib), dtype=jnp.float32).sum(0)
    return {}, {'head': {'counts': counts}}

  def logits(theta: Theta, state: State, outputs: Outputs, batch: Batch) -> Array:
    del theta, outputs
    counts, rows = state['head']['counts'], len(next(iter(batch.values())))
    return jnp.broadcast_to(counts, (rows, *counts.shape))

  return Method(init, wrap=scored_by(logits))


@method
def mlp(width: int = 128, classes: int = 0) -> Method:
  """A classifier with one hidden layer; the last layer, and so every logit, is zero at the start.

      logits = gelu(f W_1 + b_1) W_2 + b_2,   W_1 [d, width], W_2 [width, classes]

  >>> mlp(width=16).mergeable
  False
  """
  at_least_one('mlp', width=width)

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    d, dtype = features(forward, params, calib)
    n = count_classes(classes, calib)
    up = jax.random.normal(key, (d, width), dtype) / jnp.sqrt(d).astype(dtype)
    hidden = {'kernel': up, 'bias': jnp.zeros(width, dtype)}
    last = {'kernel': jnp.zeros((width, n), dtype), 'bias': jnp.zeros(n, dtype)}
    return {'head': {'hidden': hidden, 'last': last}}, {}

  def logits(theta: Theta, state: State, outputs: Outputs, batch: Batch) -> Array:
    del state, batch
    hidden, last = theta['head']['hidden'], theta['head']['last']
    y = nn.gelu(outputs['features'] @ hidden['kernel'] + hidden['bias'])
    return y @ last['kernel'] + last['bias']

  return Method(init, wrap=scored_by(logits))


@method
def cosine(scale: float = 10.0, classes: int = 0) -> Method:
  """Cosine classifier (Chen et al. 2019, arXiv:1904.04232), the head of Baseline++.

      logits_c = s cos(f, w_c),   W [d, classes] at random

  s is learned and starts at `scale`, as in Gidaris & Komodakis (arXiv:1804.09458).

  >>> cosine().mergeable
  False
  """

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    d, dtype = features(forward, params, calib)
    w = jax.random.normal(key, (d, count_classes(classes, calib)), dtype)
    w = w / jnp.sqrt(d).astype(dtype)
    return {'head': {'kernel': w, 'scale': jnp.full((), scale, dtype)}}, {}

  def logits(theta: Theta, state: State, outputs: Outputs, batch: Batch) -> Array:
    del state, batch
    w = theta['head']['kernel']
    f = outputs['features'].astype(w.dtype)
    return theta['head']['scale'] * similarity(f, w.T, 'cosine')

  return Method(init, wrap=scored_by(logits))


@method
def nearest_mean(distance: Literal['cosine', 'euclidean'] = 'cosine', classes: int = 0) -> Method:
  """Nearest class mean (Mensink et al. 2013; prototypes of Snell et al. 2017, arXiv:1703.05175).

      logits_c = cos(f, mu_c)   or   -|f - mu_c|^2

  The means are state, set in closed form by the fit `prototypes()`: nothing trains.

  >>> nearest_mean().mergeable
  False
  """
  check_word('nearest_mean', 'distance', distance, ('cosine', 'euclidean'))

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    del key
    d, dtype = features(forward, params, calib)
    return {}, {'head': {'means': jnp.zeros((count_classes(classes, calib), d), dtype)}}

  def logits(theta: Theta, state: State, outputs: Outputs, batch: Batch) -> Array:
    del theta, batch
    mu = state['head']['means']
    return similarity(outputs['features'].astype(mu.dtype), mu, distance)

  return Method(init, wrap=scored_by(logits))


@method
def learned_prototypes(
  count: int = 1,
  distance: Literal['cosine', 'euclidean'] = 'cosine',
  join: Literal['mean', 'max', 'logsumexp'] = 'max',
  scale: float = 10.0,
  classes: int = 0,
) -> Method:
  """Trained prototypes, several a class (Yang et al. 2018, arXiv:1805.03438).

      logits_c = s join_k sim(f, p_ck),   sim = cos(f, p)  or  -|f - p|^2,   p [classes, count, d]

  They start at the class means of the batch that the run starts from; where a class has several,
  each is off its mean by the spread of the features.  s is learned and starts at `scale`.

  >>> learned_prototypes(count=3, join='logsumexp').mergeable
  False
  """
  check_word('learned_prototypes', 'distance', distance, ('cosine', 'euclidean'))
  check_word('learned_prototypes', 'join', join, JOINS)
  at_least_one('learned_prototypes', count=count)

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    n, (d, dtype) = count_classes(classes, calib), features(forward, params, calib)
    f, mu = _means(forward, params, calib, n, distance == 'cosine')
    off = jax.random.normal(key, (n, count, d), dtype) * f.std(0).astype(dtype)
    p = mu[:, None].astype(dtype) + (off if count > 1 else 0)
    return {'head': {'prototypes': p, 'scale': jnp.full((), scale, dtype)}}, {}

  def logits(theta: Theta, state: State, outputs: Outputs, batch: Batch) -> Array:
    del state, batch
    p = theta['head']['prototypes']
    scores = similarity(outputs['features'].astype(p.dtype), p.reshape(-1, p.shape[-1]), distance)
    return theta['head']['scale'] * JOINS[join](scores.reshape(-1, *p.shape[:2]), -1)

  return Method(init, wrap=scored_by(logits))


def scored_by(
  logits: Callable[[Theta, State, Outputs, Batch], Array],
) -> Callable[[Forward, Theta, State], Forward]:
  """The `wrap` of a head: files `logits(theta, state, outputs, batch)` among the outputs."""

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    def adapted(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
      outputs = forward(params, batch, key)
      return outputs | {'logits': logits(theta, state, outputs, batch)}

    return adapted

  return wrap


def similarity(f: Array, p: Array, distance: str) -> Array:
  """cos(f, p) or -|f - p|^2 of every row of f [B, d] with every row of p [N, d]: [B, N]."""
  if distance == 'cosine':
    return unit(f) @ unit(p).T
  return -jnp.square(f[:, None] - p).sum(-1)


def unit(x: Array) -> Array:
  """x / |x| along the last axis; zero, with its gradient, stays finite."""
  return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def logits_of(outputs: Outputs) -> Array:
  """The logits of a forward pass; a forward without any is told to take a head."""
  if 'logits' not in outputs:
    raise FewshotError(
      f'the adapted forward gives no logits (it has {", ".join(outputs)}); add a head to the '
      'method, as in chain(lora(rank=8), linear())'
    )
  return outputs['logits']


def hidden_of(outputs: Outputs) -> Array:
  """The states [B, T, D] that slots are places in: the decoder's, where there is one."""
  return outputs['decoder_hidden'] if 'decoder_hidden' in outputs else outputs['hidden']


def features(forward: Forward, params: Params, calib: Calib) -> tuple[int, Any]:
  """The width of the features, and the dtype that a head on them trains in."""
  outputs = shapes_of(forward, params, calib)
  if 'features' not in outputs:
    there = ', '.join(outputs)
    raise FewshotError(
      f"a head reads outputs['features'], which this forward lacks; it has {there}"
    )
  f = outputs['features']
  return f.shape[-1], jnp.promote_types(f.dtype, jnp.float32)


def shapes_of(forward: Forward, params: Params, calib: Calib) -> Outputs:
  """The shapes of the outputs; traces, computes nothing."""
  return jax.eval_shape(lambda p, b: forward(p, b), params, calib.batch)


def count_classes(classes: int, calib: Calib) -> int:
  """How many classes a head has: its own number, or the task's."""
  n = classes or calib.classes
  if n < 2:
    raise FewshotError(f'a classifier needs at least 2 classes, not {n}; pass classes=')
  if n < calib.classes:
    raise FewshotError(f'a head of {n} classes cannot tell the {calib.classes} of the task apart')
  return n


def check_word(name: str, argument: str, value: str, known: Collection[str]) -> None:
  """Refuses an argument that is none of the known words."""
  if value not in known:
    raise FewshotError(f'{name}({argument}={value!r}); there are {", ".join(known)}')


def _means(
  forward: Forward, params: Params, calib: Calib, classes: int, normalise: bool
) -> tuple[Array, Array]:
  """The features of the calibration batch [B, d] and their class means [classes, d]."""
  if 'labels' not in calib.batch:
    raise FewshotError('learned_prototypes start at class means, and the batch has no labels')
  f = forward(params, calib.batch)['features']
  f = unit(f) if normalise else f
  member = jax.nn.one_hot(calib.batch['labels'], classes, dtype=f.dtype)
  return f, member.T @ f / jnp.maximum(member.sum(0), 1)[:, None]
