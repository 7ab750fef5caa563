"""Methods that compare features by their angle: the nearest examples, and features of length 1."""

from typing import Any

import jax
import jax.numpy as jnp

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
from fewshot.methods.heads import count_classes, features, scored_by, shapes_of, unit

__all__ = ['neighbours', 'unit_features']
Array = jax.Array


@method
def neighbours(k: int = 5, classes: int = 0) -> Method:
  """The k nearest neighbours (Cover & Hart 1967) among the train examples, by cosine similarity.

      logits_c = sum over the k nearest i with y_i = c of  1 + cos(f, f_i) / 2k

  A class with more votes always wins, and of as many the one that is nearer; all vote where there
  are fewer than k.  The unit features [N, d] and one-hot labels [N, classes] of the examples are
  state, set by the fit `memory()`: nothing trains.

  >>> neighbours(k=3).mergeable
  False
  """
  at_least_one('neighbours', k=k)

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    del key
    d, dtype = features(forward, params, calib)
    n = shapes_of(forward, params, calib)['features'].shape[0]
    # One-hot labels: the number of classes keeps its place in the shape of the state.
    votes = jnp.zeros((n, count_classes(classes, calib)), dtype)
    return {}, {'head': {'features': jnp.zeros((n, d), dtype), 'votes': votes}}

  def logits(theta: Theta, state: State, outputs: Outputs, batch: Batch) -> Array:
    del theta, batch
    kept, votes = (jnp.asarray(state['head'][name]) for name in ('features', 'votes'))
    cosines = unit(outputs['features'].astype(kept.dtype)) @ kept.T
    near, index = jax.lax.top_k(cosines, min(k, len(kept)))
    return ((1 + near / (2 * k))[..., None] * votes[index]).sum(1)

  return Method(init, wrap=scored_by(logits))


@method
def unit_features() -> Method:
  """Features of length 1 (Wang et al. 2019, arXiv:1911.04623): f' = f / |f|, for heads after it.

  Encoders of sentence-transformers that end in a Normalize module have them.  Nothing trains.

  >>> unit_features().mergeable
  False
  """

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    del key
    features(forward, params, calib)  # Refuses a forward without.
    return {}, {}

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    del theta, state

    def adapted(params: Params, batch: Batch, key: Array | None = None) -> dict[str, Any]:
      outputs = forward(params, batch, key)
      f = outputs['features']
      wide = f.astype(jnp.promote_types(f.dtype, jnp.float32))
      return outputs | {'features': unit(wide).astype(f.dtype)}

    return adapted

  return Method(init, wrap=wrap)
