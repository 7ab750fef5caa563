"""Heads that read what a class is called, or learn it: scores at the slots of a cloze text."""

from typing import Literal

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
  at_least_one,
  method,
)
from fewshot.methods.heads import JOINS, check_word, count_classes, scored_by, shapes_of

__all__ = ['label_embeddings', 'verbalizer']
Array = jax.Array


@method
def verbalizer(
  words: tuple[tuple[int, ...], ...], join: Literal['mean', 'max', 'logsumexp'] = 'mean'
) -> Method:
  """Verbalizer (Schick & Schutze 2021, arXiv:2001.07676): classes by the logits of their words.

      logits_c = join_j mean_m token_logits[m, words[c][j]]

  Each class is a tuple of token ids.  m are the `slots` of the batch, where the text has its mask
  tokens; where it names none, the last token of the text, after which a decoder puts the next.
  `logsumexp` adds the probabilities of the words.  Nothing trains here.

  >>> from fewshot.methods import spell
  >>> spell(verbalizer(((7,), (9, 12)), join='max'))
  "verbalizer(((7,), (9, 12)), join='max')"
  """
  check_word('verbalizer', 'join', join, JOINS)
  used = check_words('verbalizer', words)

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    del key
    outputs = _require(forward, params, calib, 'verbalizer', 'token_logits')
    if max(used) >= outputs['token_logits'].shape[-1]:
      raise FewshotError(
        f'there is no token {max(used)}; the model has {outputs["token_logits"].shape[-1]}'
      )
    count_classes(len(words), calib)
    return {}, {}

  def logits(theta: Theta, state: State, outputs: Outputs, batch: Batch) -> Array:
    del theta, state
    z = outputs['token_logits']
    z = (z if 'slots' in batch else _at(z, last_tokens(outputs, 1))).mean(1)
    return jnp.stack([JOINS[join](z[:, np.array(w)], -1) for w in words], -1)

  return Method(init, wrap=scored_by(logits))


@method
def label_embeddings(tokens: int = 1, classes: int = 0) -> Method:
  """Label embeddings (Karimi Mahabadi et al. 2022, arXiv:2204.01172), the classifier of PERFECT.

      logits_c = mean_m h_m L_cm,   h_m the hidden state at slot m,   L [classes, tokens, d]

  They need no vocabulary.  The slots are those of the batch, as many as `tokens`; where it names
  none, the last `tokens` of the text.  L starts at N(0, 1e-4^2), nearly zero.

  >>> label_embeddings(tokens=2).mergeable
  False
  """
  at_least_one('label_embeddings', tokens=tokens)

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    hidden = _require(forward, params, calib, 'label_embeddings', 'hidden')['hidden']
    if 'slots' in calib.batch and calib.batch['slots'].shape[1] != tokens:
      slots = calib.batch['slots'].shape[1]
      raise FewshotError(f'label_embeddings(tokens={tokens}), but a text has {slots} slots')
    shape = count_classes(classes, calib), tokens, hidden.shape[-1]
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    return {'head': {'labels': jnp.asarray(1e-4, dtype) * jax.random.normal(key, shape, dtype)}}, {}

  def logits(theta: Theta, state: State, outputs: Outputs, batch: Batch) -> Array:
    del state
    labels = theta['head']['labels']
    slots = batch['slots'] if 'slots' in batch else last_tokens(outputs, tokens)
    h = _at(outputs['hidden'], slots).astype(labels.dtype)
    return jnp.einsum('bmd,cmd->bc', h, labels) / tokens

  return Method(init, wrap=scored_by(logits))


def check_words(name: str, words: tuple[tuple[int, ...], ...]) -> list[int]:
  """All ids of the words of two classes or more; anything else is refused."""
  if len(words) < 2 or not all(isinstance(w, tuple) and w for w in words):
    raise FewshotError(f'{name}({words}) takes token ids of two classes or more: ((7,), (9,))')
  used = [i for w in words for i in w]
  if any(type(i) is not int or i < 0 for i in used):
    raise FewshotError(f'{name}({words}) takes token ids, as the tokenizer gives them')
  return used


def _require(forward: Forward, params: Params, calib: Calib, name: str, what: str) -> Outputs:
  """The shapes of the outputs; refuses a forward without `what` [B, T or M, ...], or its places."""
  outputs = shapes_of(forward, params, calib)
  if what not in outputs:
    raise FewshotError(
      f'{name} reads outputs[{what!r}], which this forward lacks; it has {", ".join(outputs)}'
      + ('; take a model with a language-model head' if what == 'token_logits' else '')
    )
  mask = outputs.get('mask')
  if 'slots' not in calib.batch and (mask is None or mask.shape != outputs[what].shape[:-1]):
    raise FewshotError(
      f'{name} reads outputs[{what!r}] {list(outputs[what].shape)} at the last token of a text, '
      'and no mask of that length says which; give the batch slots [B, M]'
    )
  return outputs


def _at(x: Array, slots: Array) -> Array:
  """x [B, T, D] at slots [B, M]: [B, M, D]."""
  return jnp.take_along_axis(x, slots[..., None], 1)


def last_tokens(outputs: Outputs, count: int) -> Array:
  """The positions [B, count] of the last tokens of each text; a shorter text repeats its first."""
  mask = outputs['mask']
  place = jnp.arange(mask.shape[1])
  first = jnp.where(mask, place, mask.shape[1] - 1).min(-1, keepdims=True)
  last = jnp.where(mask, place, 0).max(-1, keepdims=True)
  return jnp.clip(last + np.arange(1 - count, 1), jnp.minimum(first, last), last)
