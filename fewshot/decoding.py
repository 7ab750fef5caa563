"""Decoding loops over any model that gives the next token's logits: one by one, or beams.

`Next` is the model: (cache, tokens [B]) -> (logits [B, V], cache); in the cache every array starts
with the axis of the batch, but for scalars.  All is pure and may be jitted.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Next = Callable[[Any, Array], tuple[Array, Any]]
NEVER = -1e9  # The score of what is no sequence yet.


def one_by_one(
  step: Next,
  pick: Callable[[Array, Array | None], Array],
  logits: Array,
  cache: Any,
  new: int,
  key: Array | None,
  ends: Array,
) -> dict[str, Array]:
  """Each row by itself: picks a token, feeds it, until all rows have one of `ends` or `new` tokens.

  `pick` takes logits [B, V] and a key to tokens [B]; `logits` are the first.
  """
  rows = logits.shape[0]

  def write(i: Any, logits: Array, state: dict[str, Array]) -> dict[str, Array]:
    token = pick(logits, None if key is None else jax.random.fold_in(key, i)).astype(jnp.int32)
    live = ~state['ended']
    score = jnp.take_along_axis(_log_softmax(logits), token[:, None], 1)[:, 0]
    return {
      'tokens': state['tokens'].at[:, i].set(jnp.where(live, token, 0)),
      'mask': state['mask'].at[:, i].set(live),
      'scores': state['scores'] + jnp.where(live, score, 0),
      'ended': state['ended'] | (token[:, None] == ends).any(-1),
    }

  def body(carry: Any) -> Any:
    i, state, cache = carry
    logits, cache = step(cache, state['tokens'][:, i - 1])
    return i + 1, write(i, logits, state), cache

  state = {
    'tokens': jnp.zeros((rows, new), jnp.int32),
    'mask': jnp.zeros((rows, new), bool),
    'scores': jnp.zeros(rows, jnp.float32),
    'ended': jnp.zeros(rows, bool),
  }
  going = lambda carry: (carry[0] < new) & ~carry[1]['ended'].all()  # noqa: E731
  start = jnp.ones((), jnp.int32), write(0, logits, state), cache
  _, state, _ = jax.lax.while_loop(going, body, start)
  return {k: state[k] for k in ('tokens', 'mask', 'scores')} | {'lengths': state['mask'].sum(-1)}


def pick(logits: Array, key: Array | None, temperature: float, top_p: float) -> Array:
  """The next token [B]: the likeliest at temperature 0, else drawn from the nucleus of top_p."""
  if not temperature:
    return logits.argmax(-1)
  logits = logits.astype(jnp.float32) / temperature
  if top_p < 1:
    ordered = jnp.sort(logits, -1, descending=True)
    p = jax.nn.softmax(ordered, -1)
    inside = p.cumsum(-1) - p < top_p  # Less than top_p lies in likelier tokens.
    least = jnp.where(inside, ordered, jnp.inf).min(-1, keepdims=True)
    logits = jnp.where(logits >= least, logits, -jnp.inf)
  assert key is not None
  return jax.random.categorical(key, logits)


class Beams(NamedTuple):
  """Sequences: tokens [B, K, new], scores [B, K], lengths [B, K]."""

  tokens: Array
  scores: Array
  lengths: Array

  def at(self, index: Array) -> 'Beams':
    """Those at index [B, K']."""
    take = lambda x: jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), 1)  # noqa: E731
    return Beams(*map(take, self))


class Search(NamedTuple):
  """A beam search between two tokens."""

  running: Beams  # Scored by the sum of log-probabilities.
  finished: Beams  # Scored by their mean.
  open: Array  # [B], whether a better sequence is to be hoped for.
  parents: Array  # [B, K], which beam each running one continues.


def beam_search(
  step: Next, logits: Array, cache: Any, new: int, k: int, ends: Array
) -> dict[str, Array]:
  """The best of K beams by mean log-probability; `logits` [B, V] are the first.

  A row's search ends when no running beam, judged at its present length, is better than all K
  finished ones.
  """
  rows = logits.shape[0]

  def body(carry: Any) -> Any:
    i, state, cache = carry
    parents = (state.parents + jnp.arange(rows)[:, None] * k).reshape(-1)
    cache = jax.tree.map(lambda x: x[parents] if x.ndim else x, cache)
    logits, cache = step(cache, state.running.tokens[:, :, i - 1].reshape(-1))
    return i + 1, _extend(i, logits, state, ends), cache

  empty, zeros = jnp.zeros((rows, k, new), jnp.int32), jnp.zeros((rows, k), jnp.int32)
  none = jnp.full((rows, k), NEVER, jnp.float32)
  first = Beams(empty, none.at[:, 0].set(0), zeros)  # All are one beam.
  state = Search(first, Beams(empty, none, zeros), jnp.ones(rows, bool), zeros)
  spread = lambda x: jnp.repeat(x, k, 0) if x.ndim else x  # noqa: E731
  state = _extend(0, spread(logits), state, ends)
  going = lambda carry: (carry[0] < new) & carry[1].open.any()  # noqa: E731
  start = jnp.ones((), jnp.int32), state, jax.tree.map(spread, cache)
  best = jax.lax.while_loop(going, body, start)[1].finished
  mask = jnp.arange(new) < best.lengths[:, :1]
  return {
    'tokens': jnp.where(mask, best.tokens[:, 0], 0),
    'mask': mask,
    'scores': best.scores[:, 0] * best.lengths[:, 0],
    'lengths': best.lengths[:, 0],
  }


def _extend(i: Any, logits: Array, state: Search, ends: Array) -> Search:
  """Adds token i: of the likeliest continuations, those that end finish and K others run on."""
  rows, k, new = state.running.tokens.shape
  logp = state.running.scores[..., None] + _log_softmax(logits).reshape(rows, k, -1)
  # K run on even where every beam ends in every way.
  ahead = min(max(2, 1 + len(ends)) * k, logp.shape[1] * logp.shape[2])
  scores, flat = jax.lax.top_k(logp.reshape(rows, -1), ahead)
  parents, token = flat // logp.shape[-1], (flat % logp.shape[-1]).astype(jnp.int32)
  tokens = state.running.at(parents).tokens.at[:, :, i].set(token)
  longer = Beams(tokens, scores, jnp.full_like(parents, i + 1))
  ended = (token[..., None] == ends).any(-1) | (i + 1 == new)
  going = longer._replace(scores=jnp.where(ended, scores + NEVER, scores))
  on = jax.lax.top_k(going.scores, k)[1]
  running = going.at(on)
  # A sequence that ends further down than rank K is not among the best, and is forgotten.
  counts = ended & (jnp.arange(ahead) < k) & state.open[:, None]
  ranked = longer._replace(scores=jnp.where(counts, scores / (i + 1), NEVER))
  both = Beams(*(jnp.concatenate(pair, 1) for pair in zip(state.finished, ranked, strict=True)))
  finished = both.at(jax.lax.top_k(both.scores, k)[1])
  hope = running.scores[:, 0] / (i + 1) > finished.scores.min(-1)
  return Search(running, finished, state.open & hope, jnp.take_along_axis(parents, on, 1))


def _log_softmax(logits: Array) -> Array:
  return jax.nn.log_softmax(logits.astype(jnp.float32))
