"""Examples as a context: the model reads them once, and every text is read after them.

Which examples, and how they stand there: see examples.py.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fewshot.errors import FewshotError
from fewshot.methods import paths
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
from fewshot.methods.examples import Shown, begins, check_texts, checked, fingerprint, laid_out
from fewshot.methods.paths import Where
from fewshot.methods.prefixes import CORES, INPUTS, at_cores, attended, counting, prefixed
from fewshot.methods.weights import SHARED, widen

__all__ = ['context_tuning', 'demonstrations']
Array = jax.Array


@method
def demonstrations(
  shots: int = 8, length: int = 512, separator: tuple[int, ...] = (), bos: int | None = None
) -> Method:
  """In-context learning (Brown et al. 2020, arXiv:2005.14165): a decoder reads examples first.

      y = f([x_1 a_1 s ... x_n a_n s x])   at the places of x,   n <= shots

  The examples are rows that the run starts from, drawn and ordered by its key.  The model, as it is
  then, reads them once, and each pass goes on from that cache (see models/cache.py): a row costs
  its own tokens alone, and windows and positions are those of the joint text.  Nothing trains; a
  soft prompt chained behind it is not read, as in each pass that goes on: take `prefix` there.

  Raises `FewshotError` for a model without such a cache, and behind a soft prompt.

  >>> demonstrations(shots=4, separator=(198,)).mergeable
  False
  """
  shown = checked(Shown('demonstrations', shots, length, separator, bos))

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    check_texts(shown, calib.batch, params)
    if not continues(forward, params, calib.batch):
      raise FewshotError(
        'demonstrations are read before a text, so nothing in them may depend on it, and this '
        'model reads both ways or keeps no cache; load a causal language model'
      )
    text, _ = laid_out(key, shown, calib.batch, causal=True)
    cache = forward(params, text | {'room': jnp.zeros(0, bool)})['cache']
    if _slots(cache) != length:
      raise FewshotError('a soft prompt before demonstrations could not train; take prefix() there')
    return {}, {SHARED: cache}

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    def adapted(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
      if 'cache' in batch:  # The examples are in it.
        return forward(params, batch, key)
      rows, length = batch['tokens'].shape
      more = length + (len(batch['room']) if 'room' in batch else 0)
      own, begun = _passed_over(bos, batch)
      own = {n: x for n, x in own.items() if n != 'room'}
      own['cache'] = _grown(state[SHARED], rows, more)
      outputs = dict(_earlier(forward, begun)(params, own, key))
      return outputs if 'room' in batch else {n: x for n, x in outputs.items() if n != 'cache'}

    return adapted

  return Method(init, wrap=wrap)


@method
def context_tuning(
  shots: int = 0,
  length: int = 512,
  separator: tuple[int, ...] = (),
  bos: int | None = None,
  dropout: float = 0.05,
  where: Where = CORES,
) -> Method:
  """Context tuning, CT-KV (Lu et al. 2025, arXiv:2507.04221): a prefix that starts as the examples.

  The frozen model reads examples as `demonstrations` does; K and V [length, G, D] of every core
  are what it attends to then, and train:

      y = softmax(q [K; k]^T) [V; v]

  So a decoder starts as `demonstrations` with the same arguments and key, but that every token sees
  the whole context, in a model with windows too.  In training (when the forward pass has a key) a
  row does not see its own example, and each token of the context is hidden with the probability
  `dropout`.  For CT-Prompt see `soft_prompt`.

  >>> context_tuning(length=8).mergeable
  False
  """
  shown = checked(Shown('context_tuning', shots, length, separator, bos))
  if not 0 <= dropout < 1:
    raise FewshotError(f'context_tuning(dropout={dropout}) is no probability below 1')
  salt = paths.stable_hash('context_tuning')

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    check_texts(shown, calib.batch, params)
    causal = continues(forward, params, calib.batch)
    text, state = laid_out(key, shown, calib.batch, causal)
    read = attended(forward, params, text, where)
    theta = {p: {'keys': widen(k[0]), 'values': widen(v[0])} for p, (k, v) in read.items()}
    return theta | counting(forward, params, calib.batch), {SHARED: state}

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    context = state[SHARED]

    def adapted(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
      seen, (own, begun) = context['seen'][None], _passed_over(bos, batch)
      if key is not None:
        mine = fingerprint(batch.get('read', batch))[:, None] == context['owner']
        kept = jax.random.bernoulli(jax.random.fold_in(key, salt), 1.0 - dropout, mine.shape)
        seen = seen & kept & ~mine
      return prefixed(forward, theta, seen, context['seen'].sum() - begun)(params, own, key)

    return adapted

  return Method(init, wrap=wrap, draws_as='demonstrations')


def continues(forward: Forward, params: Params, batch: Batch) -> bool:
  """Whether tokens can be read after others that were read alone: a decoder with a cache."""
  if 'decoder_tokens' in batch:  # The texts are its encoder's.
    return False
  text = {n: jnp.asarray(batch[n])[:1] for n in ('tokens', 'mask')}
  text['room'] = jnp.zeros(0, bool)
  return 'cache' in jax.eval_shape(lambda p, b: forward(p, b), params, text)


def _passed_over(bos: int | None, batch: Batch) -> tuple[Batch, Array]:
  """The batch whose rows are not seen to begin with `bos`, and which did [B, 1]."""
  if bos is None or 'cache' in batch:
    return batch, jnp.zeros((1, 1), jnp.int32)
  mask = jnp.asarray(batch['mask'], bool)
  led = begins(bos, batch['tokens'], mask)
  return batch | {'mask': mask.at[:, 0].set(mask[:, 0] & ~led)}, led[:, None].astype(jnp.int32)


def _earlier(forward: Forward, by: Array) -> Forward:
  """The forward whose tokens stand `by` [B, 1] places earlier."""

  def call(t: Any, f: Any, x: Array, mask: Array, positions: Array, *rest: Array) -> Any:
    del t
    return f(x, mask, positions - by, *rest)

  return at_cores(call).wrap(forward, {INPUTS: {}}, {})


def _slots(cache: Any) -> int:
  """How many tokens a cache holds."""
  return next(x.shape[1] for x in jax.tree.leaves(cache) if x.ndim)


def _grown(cache: Any, rows: int, more: int) -> Any:
  """The cache of one row as that of many, with room for more tokens."""
  held = _slots(cache)

  def leaf(x: Array) -> Array:
    if not x.ndim:  # The next slot, as a number that the compiler knows.
      return jnp.asarray(held, x.dtype)
    x = jnp.broadcast_to(x, (rows, *x.shape[1:]))
    return jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2))

  return jax.tree.map(leaf, cache)
