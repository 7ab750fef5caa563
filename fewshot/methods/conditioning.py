"""A head that also learns to read a text by its label: ADAPET's label conditioning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

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
from fewshot.methods.likelihoods import likelihood, padded

__all__ = ['label_conditioning']
Array = jax.Array
SLACK = 1e-6  # In log(1 - p), which bounds its gradient where p is 1.


@method
def label_conditioning(
  words: tuple[tuple[int, ...], ...], mask: int, weight: float = 1.0, rate: float = 0.105
) -> Method:
  """Label conditioning (ADAPET, Tam et al. 2021, arXiv:2103.11955), with the head `likelihood`.

  In training each text is read once more, with the word of a class l, drawn uniformly, at its
  slots, and some of its other tokens x_i replaced by the token `mask`:

      penalty = weight mean_i -log p(x_i)          where l is the text's class
                weight mean_i -log(1 - p(x_i))     where it is not

  Of a text of T tokens max(floor(u rate T), 2) - 1 are replaced, u ~ U(0, 1); the texts' means are
  averaged.  A pass without a key, which is no training step, is that of `likelihood(words)`.  The
  authors' loss of labels is the objective `decoupled`.

  >>> label_conditioning(((7,), (9,)), mask=4).mergeable
  False
  """
  head = likelihood(words)
  ids, real = padded(words)
  salt = paths.stable_hash('label_conditioning')
  if mask < 0 or not 0 < rate <= 1 or weight < 0:
    raise FewshotError(
      f'label_conditioning(mask={mask}, weight={weight}, rate={rate}) takes the id of a token, a '
      'weight of at least 0 and a rate above 0, up to 1'
    )

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    theta, state = head.init(key, forward, params, calib)
    if 'masked' not in state:
      raise FewshotError('label_conditioning predicts masked tokens; take a masked language model')
    return theta, state

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    scored = head.wrap(forward, theta, state)

    def adapted(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
      outputs = scored(params, batch, key)
      if key is None or 'labels' not in batch:
        return outputs
      change, draw = jax.random.split(jax.random.fold_in(key, salt))
      altered, known = _altered(change, batch, ids, real, mask, rate)
      logits = forward(params, altered, draw)['token_logits'].astype(jnp.float32)
      return outputs | {'conditioning': _surprise(logits, known)}

    return adapted

  return Method(init, wrap=wrap, penalty=functools.partial(_penalty, weight))


def _penalty(
  weight: float, forward: Forward, theta: Theta, state: State, params: Params, batch: Batch,
  outputs: Outputs, key: Array,
) -> Array:  # fmt: skip
  """weight times the mean of what the texts' second reading cost; 0 where there was none."""
  del forward, theta, state, params, key
  each = outputs.get('conditioning', jnp.zeros(1))
  w = jnp.asarray(batch['weights'], each.dtype) if 'weights' in batch else jnp.ones_like(each)
  return weight * (each * w).sum() / jnp.maximum(w.sum(), 1e-12)


def _altered(
  key: Array, batch: Batch, ids: np.ndarray, real: np.ndarray, mask: int, rate: float
) -> tuple[Batch, dict[str, Array]]:
  """The batch with a word at the slots and K tokens masked, its new slots; and what is known.

  known: the tokens [B, K] that were there, which of the K are masked [B, K], and whether the word
  is that of the text's class [B].
  """
  tokens, seen = jnp.asarray(batch['tokens']), jnp.asarray(batch['mask'], bool)
  (n, width), length = tokens.shape, ids.shape[1]
  drawn, many, order = jax.random.split(key, 3)
  label = jax.random.randint(drawn, (n,), 0, len(ids))
  slots = _slots(batch, seen, length)
  rows = jnp.arange(n)[:, None]
  word = jnp.where(jnp.asarray(real)[label], jnp.asarray(ids)[label], tokens[rows, slots])
  filled = tokens.at[rows, slots].set(word)
  free = seen.at[rows, batch.get('slots', slots)].set(False)
  u = rate * jax.random.uniform(many, (n,))
  count = jnp.maximum(jnp.floor(u * seen.sum(-1)), 2).astype(jnp.int32) - 1
  first = jnp.argsort(jnp.where(free, jax.random.uniform(order, (n, width)), 2.0), -1)
  most = max(int(rate * width), 2) - 1
  places = first[:, :most]
  masked = (jnp.arange(most) < count[:, None]) & free[rows, places]
  there = filled[rows, places]
  altered = filled.at[rows, places].set(jnp.where(masked, mask, there))
  known = {'tokens': there, 'masked': masked, 'right': label == batch['labels']}
  return batch | {'tokens': altered, 'slots': places}, known


def _slots(batch: Batch, seen: Array, length: int) -> Array:
  """Where the word goes [B, length]: the first slots, or else the last real tokens."""
  if 'slots' in batch:
    return jnp.asarray(batch['slots'])[:, :length]
  last = jnp.where(seen, jnp.arange(seen.shape[1]), 0).max(-1, keepdims=True)
  return jnp.maximum(last + np.arange(1 - length, 1), 0)


def _surprise(logits: Array, known: dict[str, Array]) -> Array:
  """The mean over the masked tokens of -log p or -log(1 - p): [B]; 0 where none is masked."""
  logp = jax.nn.log_softmax(logits)
  logp = jnp.take_along_axis(logp, known['tokens'][..., None], -1)[..., 0]
  each = jnp.where(known['right'][:, None], -logp, -jnp.log(1 - jnp.exp(logp) + SLACK))
  return (each * known['masked']).sum(-1) / jnp.maximum(known['masked'].sum(-1), 1)
