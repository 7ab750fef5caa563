"""Sparse updates: a few entries of each weight, kept as indices and values.

What trains and what an optimizer keeps is as large as the budget, never as the weights.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fewshot.errors import FewshotError, nearest
from fewshot.methods import paths
from fewshot.methods.base import Calib, Forward, Method, Params, State, Theta, at_least_one, method
from fewshot.methods.paths import Where
from fewshot.methods.weights import in_weights, split, trained

__all__ = ['neuroada', 'shira', 'sparse']
Array = jax.Array
Entries = dict[str, Array]
SCORES: dict[str, Any] = {  # Of the entries of w, whose gradient is g.
  'magnitude': lambda key, w, g: jnp.abs(w),
  'gradient': lambda key, w, g: jnp.abs(g),
  'snip': lambda key, w, g: jnp.abs(w * g),
  'random': lambda key, w, g: jax.random.uniform(key, w.shape),
}


@method
def sparse(
  where: Where = r'.*/(query|value)/kernel', budget: int | float = 0.01, score: str = 'magnitude'
) -> Method:
  """Sparse fine-tuning (Liu et al. 2024, arXiv:2412.13488) of the entries with the best scores.

      W'[i] = W[i] + v_i   for the n entries i of each weight,   v = 0 [n]

  n is `budget`, or that fraction of the weight.  The scores: 'magnitude' |w|, 'gradient' |g| and
  'snip' |w g| with the gradient g of the loss at the start, or 'random'.  Of equals the first in
  memory is chosen.  The indices [n] are state.

  >>> sparse(budget=100, score='random').mergeable
  True
  """
  if score not in SCORES:
    raise FewshotError(f'sparse(score={score!r}) is not known; {nearest(score, SCORES)}')
  if budget <= 0 or (isinstance(budget, float) and budget > 1):
    raise FewshotError(f'sparse(budget={budget}): a count from 1, or a fraction up to 1.0')

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    found, slopes = trained(params, where), {}
    if score in ('gradient', 'snip'):
      slopes = paths.flatten(calib.gradient(forward, params))
    ts = {}
    for p, w in found.items():
      at = jax.random.fold_in(key, paths.stable_hash(p))
      n = min(w.size, budget if isinstance(budget, int) else math.ceil(budget * w.size))
      _, index = jax.lax.top_k(SCORES[score](at, w, slopes.get(p)).reshape(-1), n)
      ts[p] = _entries(jnp.sort(index), w)
    return split(ts, ('index',))

  return _scattered(where)._replace(init=init)


@method
def shira(where: Where = r'.*/(query|value)/kernel', rank: int = 32) -> Method:
  """SHiRA (Bhardwaj et al. 2024, arXiv:2406.13175): as many random entries as LoRA has numbers.

      W'[i] = W[i] + v_i   for r (d + k) random entries i of W [d, k],   v = 0

  The update has a high rank.  The indices are state.

  >>> shira(rank=4).mergeable
  True
  """
  at_least_one('shira', rank=rank)

  def init(key: Array, w: Array) -> Entries:
    n = rank * (w.size // w.shape[-1] + w.shape[-1])
    if n > w.size:
      raise FewshotError(
        f'rank={rank} asks for {n:,} entries of a weight {list(w.shape)} with {w.size:,}; lower it'
      )
    return _entries(jnp.sort(jax.random.permutation(key, w.size)[:n]), w)

  return _scattered(where, init)


@method
def neuroada(where: Where = r'.*/(attn|mlp)/\w+/kernel', k: int = 1) -> Method:
  """NeuroAda (Zhang et al. 2025, arXiv:2510.18940): the largest input weights of every neuron.

      W'[i, j] = W[i, j] + v_ij   for the k rows i of the largest |W[:, j]|,   v = 0 [k, out]

  Every output unit j so trains k of its connections.  The indices are state.

  >>> neuroada(k=2).mergeable
  True
  """
  at_least_one('neuroada', k=k)

  def init(key: Array, w: Array) -> Entries:
    del key
    units = w.shape[-1]
    rows = jnp.abs(w).reshape(-1, units).T  # [units, inputs]
    if k > rows.shape[1]:
      raise FewshotError(f'k={k} is more than the {rows.shape[1]} inputs of a unit; lower it')
    _, index = jax.lax.top_k(rows, k)
    return _entries((index * units + jnp.arange(units)[:, None]).T, w)

  return _scattered(where, init)


def _entries(index: Array, w: Array) -> Entries:
  """Values 0 for the entries of w, flattened, at `index`."""
  dtype = jnp.promote_types(w.dtype, jnp.float32)
  return {'value': jnp.zeros(index.shape, dtype), 'index': index.astype(jnp.int32)}


def _scattered(where: Where, init: Any = None) -> Method:
  """The method whose t = {value, index} is added to the flattened weight."""

  def weight(t: Entries, w: Array) -> Array:
    flat = jnp.asarray(w, t['value'].dtype).reshape(-1)
    return flat.at[t['index']].add(t['value'], unique_indices=True).reshape(w.shape)

  return in_weights(where, init, weight, ('index',))
