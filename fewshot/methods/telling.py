"""Texts to be written: an encoder-decoder learns an answer with its reason, and answers."""

import functools

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
from fewshot.methods.heads import count_classes, shapes_of

__all__ = ['explained']
Array = jax.Array
START = 0  # T5's decoder begins with the token of padding.


@method
def explained(words: tuple[int, ...]) -> Method:
  """Answers with explanations (Marasovic et al. 2022, arXiv:2111.08284), as SparseFit learns them.

      loss = -mean over tokens of log p(target_t | x, target_<t),   logits_c = log p(words[c] | x)

  The batch has `targets` [B, U], the label's words and then its explanation, and `targets_mask`.
  `words` are the first tokens of the classes' names.  The loss is the penalty: the logits tell what
  is answered at the first place and pass no gradient on, so that what trains follows the text
  alone.  Without targets there are the logits alone.  Nothing trains here.

  >>> from fewshot.methods import spell
  >>> spell(explained((10998, 10747)))
  'explained((10998, 10747))'
  """
  if len(words) < 2 or len(set(words)) < len(words) or any(type(i) is not int for i in words):
    raise FewshotError(f'explained({words}) takes a token id of each class, all different')

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    del theta, state
    return functools.partial(_told, words, forward)

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    del key
    start = {'decoder_tokens': np.zeros((1, 1), np.int32)}
    one = {k: calib.batch[k][:1] for k in ('tokens', 'mask') if k in calib.batch}
    seen = one | start if one else calib.batch
    found = shapes_of(forward, params, calib._replace(batch=seen))
    if 'decoder_hidden' not in found:
      raise FewshotError('explained() takes an encoder-decoder, which writes texts, such as T5')
    if max(words) >= found['token_logits'].shape[-1]:
      raise FewshotError(
        f'there is no token {max(words)}; the model has {found["token_logits"].shape[-1]}'
      )
    count_classes(len(words), calib)
    return {}, {}

  return Method(init, wrap=wrap, penalty=_untold)


def _told(
  words: tuple[int, ...], forward: Forward, params: Params, batch: Batch, key: Array | None = None
) -> Outputs:
  """The outputs with the logits of the classes, and log p of each token of the targets [B, U]."""
  start: Batch = {'decoder_tokens': np.full((len(batch['tokens']), 1), START, np.int32)}
  batch = start | batch
  if 'targets' in batch:
    after = lambda x, first: jnp.roll(x, 1, 1).at[:, 0].set(first)  # noqa: E731
    batch['decoder_tokens'] = after(jnp.asarray(batch['targets']), START)
    batch['decoder_mask'] = after(_real(batch), True)
  outputs = forward(params, batch, key)
  z = outputs['token_logits']
  outputs |= {'logits': jax.lax.stop_gradient(z[:, 0, np.array(words)])}
  if 'targets' not in batch:
    return outputs
  log_p = jax.nn.log_softmax(z.astype(jnp.float32))
  told = jnp.take_along_axis(log_p, jnp.asarray(batch['targets'])[..., None], -1)
  return outputs | {'told': jnp.where(_real(batch), told[..., 0], 0)}


def _real(batch: Batch) -> Array:
  """Which tokens of the targets are no padding."""
  return jnp.asarray(batch.get('targets_mask', np.ones(batch['targets'].shape, bool)), bool)


def _untold(
  forward: Forward, theta: Theta, state: State, params: Params, batch: Batch, outputs: Outputs,
  key: Array | None,
) -> Array:  # fmt: skip
  """The mean over real tokens of -log p."""
  del forward, theta, state, params, key
  if 'targets' not in batch:
    return jnp.zeros(())
  return -outputs['told'].sum() / jnp.maximum(_real(batch).sum(), 1)
