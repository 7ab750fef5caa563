"""A head that scores classes by what they are called, in one token or several."""

from collections.abc import Callable
from typing import Any

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
from fewshot.methods.label_heads import check_words, last_tokens

__all__ = ['likelihood']
Array = jax.Array


@method
def likelihood(words: tuple[tuple[int, ...], ...], normalised: bool = True) -> Method:
  """Likelihood of label words of one token or more (Brown et al. 2020, arXiv:2005.14165).

      logits_c = 1/A_c sum_m log p(words[c][m] | text, words[c][:m]),   A_c = 1 if not normalised

  Each class is the tuple of the token ids of its word; there are A at most.  A decoder reads the
  text once, and each word continues its cache behind the text's last token; so does an
  encoder-decoder, whose output is the word.  A masked language model reads token m at slot m of the
  batch's `slots` (where it names none, at the last A tokens), all in one pass (Schick & Schutze
  2021, arXiv:2009.07118), and so p(words[c][m] | text).  Beside the logits [B, C] there are
  word_logprobs [B, C, A], 0 behind a word's end, and word_mask [C, A].  Nothing trains here.

  >>> from fewshot.methods import spell
  >>> spell(likelihood(((7,), (9, 12)), normalised=False))
  'likelihood(((7,), (9, 12)), normalised=False)'
  """
  used = check_words('likelihood', words)
  ids, real = padded(words)

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    del key
    kind, vocabulary = _kind(forward, params, calib)
    if max(used) >= vocabulary:
      raise FewshotError(f'there is no token {max(used)}; the model has {vocabulary}')
    count_classes(len(words), calib)
    return {}, {kind: {}}  # No array: the key says how the model is read.

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    del theta
    (kind,) = state

    def adapted(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
      outputs, logp = READ[kind](forward, params, batch, key, ids, real)
      logp = jnp.where(real, logp, 0)
      scores = logp.sum(-1) / (real.sum(-1) if normalised else 1)
      return outputs | {'logits': scores, 'word_logprobs': logp, 'word_mask': jnp.asarray(real)}

    return adapted

  return Method(init, wrap=wrap)


def padded(words: tuple[tuple[int, ...], ...]) -> tuple[np.ndarray, np.ndarray]:
  """The ids [C, A], with 0 behind a word's end, and which of them are real [C, A].

  >>> padded(((7,), (9, 12)))[0].tolist()
  [[7, 0], [9, 12]]
  """
  longest = max(map(len, words))
  ids = np.array([(*w, *[0] * (longest - len(w))) for w in words], np.int32)
  return ids, np.arange(longest) < np.array([len(w) for w in words])[:, None]


def _kind(forward: Forward, params: Params, calib: Calib) -> tuple[str, int]:
  """How words are read: one of `READ`; and the size of the vocabulary."""

  def shapes(**more: Any) -> Outputs:
    return shapes_of(forward, params, calib._replace(batch=calib.batch | more))

  outputs, rows = shapes(), len(next(iter(calib.batch.values())))
  kind = 'masked'
  if 'token_logits' not in outputs or 'decoder_hidden' in outputs:
    outputs, kind = shapes(decoder_tokens=jnp.zeros((rows, 1), jnp.int32)), 'encoded'
  if 'token_logits' not in outputs:
    raise FewshotError(
      f"likelihood reads outputs['token_logits'], which this forward lacks; it has "
      f'{", ".join(outputs)}; take a model with a language-model head'
    )
  if kind == 'masked' and 'cache' in shapes(room=jnp.zeros(1)):
    kind = 'decoded'
  return kind, outputs['token_logits'].shape[-1]


def _masked(
  forward: Forward, params: Params, batch: Batch, key: Array | None, ids: np.ndarray, real: Any
) -> tuple[Outputs, Array]:
  """The outputs, and log p [B, C, A] of token m at slot m."""
  del real
  length = ids.shape[1]
  if 'slots' in batch and batch['slots'].shape[1] < length:
    raise FewshotError(
      f'likelihood: a word has {length} tokens, and a text has {batch["slots"].shape[1]} slots; '
      'write as many masks into the template, or take shorter words'
    )
  outputs = forward(params, batch, key)
  z = outputs['token_logits']
  if 'slots' not in batch:
    z = jnp.take_along_axis(z, last_tokens(outputs, length)[..., None], 1)
  return outputs, _log_softmax(z[:, :length])[:, np.arange(length), ids]


def _decoded(
  forward: Forward, params: Params, batch: Batch, key: Array | None, ids: np.ndarray, real: Any
) -> tuple[Outputs, Array]:
  """The outputs, and log p [B, C, A] of the words behind the text's last token."""
  if 'slots' in batch and batch['slots'].shape[1] != 1:
    raise FewshotError(
      f'likelihood: a decoder puts the word behind the text, and the batch has '
      f'{batch["slots"].shape[1]} slots; end the template with its one mask'
    )
  begun = forward(params, batch | _room(ids), key)
  z = begun['token_logits']
  z = z if 'slots' in batch else jnp.take_along_axis(z, last_tokens(begun, 1)[..., None], 1)
  return _continued(forward, params, batch, begun, 'tokens', z[:, 0], key, ids, real)


def _encoded(
  forward: Forward, params: Params, batch: Batch, key: Array | None, ids: np.ndarray, real: Any
) -> tuple[Outputs, Array]:
  """The outputs, and log p [B, C, A] of the words as what is decoded of the text.

  Decoding starts with the first of the batch's `decoder_tokens`; without them with 0, as T5 does.
  """
  start = batch.get('decoder_tokens', jnp.zeros((len(batch['tokens']), 1), jnp.int32))[:, :1]
  rest = {k: x for k, x in batch.items() if k not in ('slots', 'decoder_mask')}
  begun = forward(params, rest | {'decoder_tokens': start} | _room(ids), key)
  z = begun['token_logits'][:, 0]
  return _continued(forward, params, batch, begun, 'decoder_tokens', z, key, ids, real)


READ: dict[str, Callable[..., tuple[Outputs, Array]]] = {
  'masked': _masked,
  'decoded': _decoded,
  'encoded': _encoded,
}


def _room(ids: np.ndarray) -> Batch:
  """Asks for a cache that holds all tokens of a word but the last; of one token there is none."""
  return {'room': jnp.zeros(ids.shape[1] - 1, bool)} if ids.shape[1] > 1 else {}


def _continued(
  forward: Forward, params: Params, read: Batch, begun: Outputs, fed: str, z: Array,
  key: Array | None, ids: np.ndarray, real: np.ndarray,
) -> tuple[Outputs, Array]:  # fmt: skip
  """The outputs of the text's pass, and log p of first tokens by its logits z [B, V], then more.

  Each text's cache is repeated for every word of more than one token, and goes on with it.  The
  batch says in `read` which tokens are in the cache, for methods that tell examples apart.
  """
  (classes, length), n = ids.shape, len(z)
  outputs = {k: x for k, x in begun.items() if k != 'cache'}
  logp = jnp.zeros((n, classes, length)).at[:, :, 0].set(_log_softmax(z)[:, ids[:, 0]])
  if length == 1:
    return outputs, logp
  longer = np.flatnonzero(real[:, 1])
  repeat = lambda x: jnp.repeat(x, len(longer), 0) if jnp.ndim(x) else x  # noqa: E731
  cache, text = jax.tree.map(repeat, (begun['cache'], {k: read[k] for k in ('tokens', 'mask')}))
  tokens = jnp.tile(ids[longer, :-1], (n, 1))  # Row b L + l is word l behind text b.
  batch = {fed: tokens, 'cache': cache, 'read': text}
  key = None if key is None else jax.random.fold_in(key, 1)
  more = _log_softmax(forward(params, batch, key)['token_logits'])
  more = jnp.take_along_axis(more, jnp.tile(ids[longer, 1:], (n, 1))[..., None], -1)[..., 0]
  return outputs, logp.at[:, longer, 1:].set(more.reshape(n, len(longer), length - 1))


def _log_softmax(z: Array) -> Array:
  return jax.nn.log_softmax(z.astype(jnp.float32))
