"""Heads: from `outputs['features']` to `outputs['logits']`."""

from typing import Literal

import jax
import jax.numpy as jnp

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
  method,
)

__all__ = ['linear', 'nearest_mean']
Array = jax.Array


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
    shape, dtype = _features(forward, params, calib)
    n = _classes(classes, calib)
    return {'head': {'kernel': jnp.zeros((shape[-1], n), dtype), 'bias': jnp.zeros(n, dtype)}}, {}

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    del state

    def adapted(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
      outputs, head = forward(params, batch, key), theta['head']
      return outputs | {'logits': outputs['features'] @ head['kernel'] + head['bias']}

    return adapted

  def merge(theta: Theta, state: State, params: Params) -> Params:
    del state
    return params | {'head': theta['head']}

  return Method(init, wrap=wrap, merge=merge)


@method
def nearest_mean(distance: Literal['cosine', 'euclidean'] = 'cosine', classes: int = 0) -> Method:
  """Nearest class mean (Mensink et al. 2013; prototypes of Snell et al. 2017, arXiv:1703.05175).

      logits_c = cos(f, mu_c)   or   -|f - mu_c|^2

  The means are state, set in closed form by the fit `prototypes()`: nothing trains.

  >>> nearest_mean().mergeable
  False
  """
  if distance not in ('cosine', 'euclidean'):
    raise FewshotError(f'nearest_mean(distance={distance!r}); there are cosine, euclidean')

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    del key
    shape, dtype = _features(forward, params, calib)
    return {}, {'head': {'means': jnp.zeros((_classes(classes, calib), shape[-1]), dtype)}}

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    del theta

    def adapted(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
      outputs, mu = forward(params, batch, key), state['head']['means']
      f = outputs['features'].astype(mu.dtype)
      if distance == 'cosine':
        f, mu = (
          x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (f, mu)
        )
        return outputs | {'logits': f @ mu.T}
      return outputs | {'logits': -jnp.square(f[:, None] - mu).sum(-1)}

    return adapted

  return Method(init, wrap=wrap)


def _features(forward: Forward, params: Params, calib: Calib) -> tuple[tuple[int, ...], jnp.dtype]:
  outputs = jax.eval_shape(lambda p, b: forward(p, b), params, calib.batch)
  if 'features' not in outputs:
    there = ', '.join(outputs)
    raise FewshotError(
      f"a head reads outputs['features'], which this forward lacks; it has {there}"
    )
  f = outputs['features']
  return f.shape, jnp.promote_types(f.dtype, jnp.float32)


def _classes(classes: int, calib: Calib) -> int:
  n = classes or calib.classes
  if n < 2:
    raise FewshotError(f'a classifier needs at least 2 classes, not {n}; pass classes=')
  if n < calib.classes:
    raise FewshotError(f'a head of {n} classes cannot tell the {calib.classes} of the task apart')
  return n
