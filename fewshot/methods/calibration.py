"""Calibration: what a prompt favours whatever the text is, taken off the logits."""

import math

import jax
import jax.numpy as jnp
import numpy as np

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
from fewshot.methods.heads import shapes_of

__all__ = ['calibrated']
Array = jax.Array


@method
def calibrated(free: tuple[tuple[int, ...], ...], mask: int | None = None) -> Method:
  """Contextual calibration (Zhao et al. 2021, arXiv:2102.09690): logits without the prompt's bias.

      logits'_c = log p(c | x) - log mean_j p(c | free_j)

  p is the softmax of the logits that this method is chained behind.  Each of `free` is the token
  ids of an input without content in the same template: 'N/A', '[MASK]' and nothing in that paper;
  random words of the task in domain-context calibration (Fei et al. 2023, arXiv:2305.19148).  Its
  slots are the places of the token `mask`, or its last token where that is None; its types are 0.
  Of an encoder-decoder it is what the encoder reads, and decoding starts as in the batch.

  It is of evaluation: in training (when the forward pass has a key) the logits stay as they are.
  It calls what it is chained behind twice, so it stands last in a chain.

  >>> calibrated(((7, 9), (9,))).mergeable
  False
  """
  rows = _rows(free, mask)

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    del key
    outputs = shapes_of(forward, params, calib)
    if 'logits' not in outputs or 'tokens' not in calib.batch:
      what, there = ('logits', outputs) if 'logits' not in outputs else ('tokens', calib.batch)
      raise FewshotError(
        f'calibrated needs {what}, and there are {", ".join(there)}; chain it behind a head on a '
        'model of texts, as in chain(verbalizer(...), calibrated(...))'
      )
    words = outputs['token_logits'].shape[-1] if 'token_logits' in outputs else np.inf
    if rows['tokens'].max() >= words:
      raise FewshotError(f'there is no token {rows["tokens"].max()}; the model has {words}')
    return {}, {}

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    def adapted(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
      outputs = forward(params, batch, key)
      if key is not None:
        return outputs
      alone = jax.nn.log_softmax(forward(params, _beside(batch, rows))['logits'])
      bias = jax.nn.logsumexp(alone, 0) - math.log(len(free))
      return outputs | {'logits': jax.nn.log_softmax(outputs['logits']) - bias}

    return adapted

  return Method(init, wrap=wrap)


def _beside(batch: Batch, rows: dict[str, np.ndarray]) -> Batch:
  """The rows as a batch of the same kind."""
  n, more = len(rows['tokens']), {}
  if 'types' in batch:
    more['types'] = jnp.zeros(rows['tokens'].shape, jnp.int32)
  if 'decoder_tokens' in batch:
    more['decoder_tokens'] = jnp.repeat(batch['decoder_tokens'][:1, :1], n, 0)
    more['slots'] = jnp.zeros((n, 1), jnp.int32)
  return rows | more


def _rows(free: tuple[tuple[int, ...], ...], mask: int | None) -> dict[str, np.ndarray]:
  """tokens, mask [F, L] and slots [F, M] of the inputs; what is none is refused."""
  if not free or not all(isinstance(f, tuple) and f for f in free):
    raise FewshotError(f'calibrated({free}) takes token ids of one input or more: ((7, 9), (9,))')
  if any(type(i) is not int or i < 0 for f in free for i in f):
    raise FewshotError(f'calibrated({free}) takes token ids, as the tokenizer gives them')
  slots = [
    [len(f) - 1] if mask is None else [i for i, t in enumerate(f) if t == mask] for f in free
  ]
  counts = {len(s) for s in slots}
  if len(counts) > 1 or 0 in counts:
    raise FewshotError(
      f'calibrated: each input has as many mask tokens, and one at least; {mask} is there '
      f'{", ".join(str(len(s)) for s in slots)} times'
    )
  lengths = np.array([len(f) for f in free])
  seen = np.arange(lengths.max()) < lengths[:, None]
  tokens = np.zeros(seen.shape, np.int32)
  tokens[seen] = [i for f in free for i in f]
  return {'tokens': tokens, 'mask': seen, 'slots': np.array(slots, np.int32)}
