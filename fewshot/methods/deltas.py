"""Sparse updates: a few entries of each weight, kept as indices and values.

What trains and what an optimizer keeps is as large as the budget, never as the weights.
"""

import collections
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from fewshot.errors import FewshotError, nearest
from fewshot.methods import paths, scoring
from fewshot.methods.activations import in_activations
from fewshot.methods.base import (
  Batch,
  Forward,
  Method,
  Outputs,
  Params,
  State,
  Theta,
  at_least_one,
  method,
)
from fewshot.methods.choices import Top, check_budget, partial
from fewshot.methods.chosen import Chosen
from fewshot.methods.paths import Where
from fewshot.methods.scoring import Score
from fewshot.methods.selecting import top
from fewshot.methods.views import View
from fewshot.methods.weights import in_weights

__all__ = ['neuroada', 'shira', 'sparse']
Array = jax.Array
Entries = dict[str, Array]
WORDS = {
  'magnitude': scoring.magnitude,
  'gradient': scoring.gradient,
  'snip': scoring.snip,
  'random': scoring.random,
}


@method
def sparse(
  where: Where | Top | Chosen = r'.*/(query|value)/kernel',
  budget: int | float = 0.01,
  score: str | Score = 'magnitude',
  gathered: bool = False,
) -> Method:
  """Sparse fine-tuning (Liu et al. 2024, arXiv:2412.13488) of the entries with the best scores.

      W'[i] = W[i] + v_i   for the n entries i of each weight,   v = 0 [n]

  n is `budget`, or that fraction of each weight.  The scores: 'magnitude' |w|, 'gradient' |g| and
  'snip' |w g| with the gradient g of the loss at the start, 'random', or any other such as
  `fisher()`.  Of equals the first in memory is chosen.  The indices [n] are state.

  `where` may be `top(...)` or a `Chosen`: its rows, columns, heads or tiles are the i.

  Where `gathered`, no gradient of the size of W is formed: of linear maps y = x W',

      dL/dv_i = sum over tokens of x_r dL/dy_c   for the entry i = (r, c),

  which costs in proportion to n.  See `tune` for values that start as the weights.

  >>> sparse(budget=100, score='random').mergeable
  True
  """
  if isinstance(where, Top | Chosen):
    if (budget, score) != (0.01, 'magnitude'):
      raise FewshotError('sparse(top(...)) has its budget and score in top(...); give them there')
    choice: Top | Chosen = where
  else:
    if isinstance(score, str) and score not in WORDS:
      raise FewshotError(f'sparse(score={score!r}) is not known; {nearest(score, WORDS)}')
    check_budget('sparse', budget)
    by = WORDS[score]() if isinstance(score, str) else score
    choice = top(by, budget, scope='tensor', where=where)
  merged = partial(choice, start=False)
  return _gathered(choice, merged) if gathered else merged


def _gathered(choice: Top | Chosen, merged: Method) -> Method:
  """The same function, whose gradient is computed at the chosen entries of linear maps alone."""

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    def adapted(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
      flat, run, alike = paths.flatten(params), forward, collections.defaultdict(list)
      for p, t in theta.items():
        if not p.endswith('/kernel') or flat[p].ndim != 2:
          raise FewshotError(
            f'a gathered form is of linear maps, which {p!r} is not; choose kernels of two axes by '
            'where=, or leave gathered out'
          )
        view = choice.view(p, flat[p].shape, math.prod(t['value'].shape[1:]))
        alike[view].append(p.removesuffix('/kernel'))
      for view, sites in alike.items():
        at = lambda tree, sites=sites: {s: tree[f'{s}/kernel'] for s in sites}  # noqa: E731
        call = functools.partial(_called, view)
        run = in_activations('.*', dict, call).wrap(run, at(theta), at(state))
      return run(merged.weights(jax.lax.stop_gradient(theta), state, params), batch, key)

    return adapted

  return Method(merged.init, wrap=wrap, merge=merged.weights, innermost=True)


def _called(view: View, t: Entries, f: Any, x: Array) -> Array:
  """f(x), whose kernel has the values in it already; they get their gradient here."""
  return _attached(view, f(x), x, t['index'], t['value'])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attached(view: View, y: Array, x: Array, index: Array, v: Array) -> Array:
  """y = x W'; back from dy comes that of v, x^T dy at the units `index` of W' alone."""
  del view, x, index, v
  return y


def _attached_fwd(view: View, y: Array, x: Array, index: Array, v: Array) -> tuple[Array, Any]:
  del view
  return y, (x, index, v)


def _attached_bwd(view: View, kept: Any, dy: Array) -> tuple[Array, None, None, Array]:
  x, index, v = kept
  r, c = jnp.divmod(index, view.columns)
  x, g = (z.reshape(-1, z.shape[-1]) for z in (x, dy))
  if view.columns == 1:  # Rows: one small matrix product.
    dv = x.reshape(-1, view.rows, view.height)[:, r].reshape(len(x), -1).T @ g
  elif view.rows == 1:
    dv = x.T @ g.reshape(-1, view.columns, view.width)[:, c].reshape(len(x), -1)
    dv = dv.reshape(view.height, -1, view.width).swapaxes(0, 1)
  else:
    x, g = x.reshape(-1, view.rows, view.height), g.reshape(-1, view.columns, view.width)
    dv = jnp.einsum('nih,niw->ihw', x[:, r], g[:, c])
  return dy, None, None, dv.reshape(v.shape)


_attached.defvjp(_attached_fwd, _attached_bwd)


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
