"""Heads that read what a class is called, or learn it: scores at the slots of a cloze text."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.methods.activations import path_of
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
from fewshot.methods.heads import (
  JOINS,
  check_word,
  count_classes,
  hidden_of,
  scored_by,
  shapes_of,
  unit,
)
from fewshot.methods.weights import widen

__all__ = ['label_embeddings', 'soft_verbalizer', 'verbalizer']
Array = jax.Array


@method
def verbalizer(
  words: tuple[tuple[int, ...], ...],
  join: Literal['mean', 'max', 'logsumexp'] = 'mean',
  weights: tuple[tuple[float, ...], ...] | None = None,
) -> Method:
  """Verbalizer (Schick & Schutze 2021, arXiv:2001.07676): classes by the logits of their words.

      logits_c = join_j mean_m token_logits[m, words[c][j]]

  Each class is a tuple of token ids.  m are the `slots` of the batch, where the text has its mask
  tokens; where it names none, the last token of the text, after which a decoder puts the next.
  `logsumexp` adds the probabilities of the words.  With `weights` s, one a word, the mean is
  sum_j s_cj z_cj / sum_j s_cj and logsumexp is log sum_j s_cj exp(z_cj), as for words found by how
  like the class they are (SciPrompt, You et al. 2024, arXiv:2410.01946).  Nothing trains here.

  >>> from fewshot.methods import spell
  >>> spell(verbalizer(((7,), (9, 12)), join='max'))
  "verbalizer(((7,), (9, 12)), join='max')"
  """
  check_word('verbalizer', 'join', join, JOINS)
  used = check_words('verbalizer', words)
  shares = _shares(words, join, weights)

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
    each = [z[:, np.array(w)] for w in words]
    if shares is None:
      return jnp.stack([JOINS[join](x, -1) for x in each], -1)
    if join == 'mean':
      return jnp.stack([x @ (s / s.sum()) for x, s in zip(each, shares, strict=True)], -1)
    return jnp.stack([jax.nn.logsumexp(x, -1, s) for x, s in zip(each, shares, strict=True)], -1)

  return Method(init, wrap=scored_by(logits))


@method
def soft_verbalizer(words: tuple[tuple[int, ...], ...]) -> Method:
  """Soft verbalizer (WARP, Hambardzumyan et al. 2021, arXiv:2101.00121): a trained vector a class.

      logits_c = mean_m h_m . v_c,   v [classes, d] starts at the mean of its words' output vectors

  h_m is what the language-model head multiplies with the vectors of all words at slot m: with one
  word a class the start is that `verbalizer`, but for a masked model's bias.

  >>> soft_verbalizer(((7,), (9, 12))).mergeable
  False
  """
  used = check_words('soft_verbalizer', words)

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    del key
    outputs = _require(forward, params, calib, 'soft_verbalizer', 'token_logits')
    if 'decoder_hidden' in outputs:
      raise FewshotError(
        'soft_verbalizer starts at the output vectors of masked and causal models; an '
        "encoder-decoder's are scaled, take verbalizer"
      )
    leaves = paths.flatten(params)
    own = 'lm_head/kernel' in leaves
    table = leaves['lm_head/kernel'].T if own else leaves['embed/embedding']
    if max(used) >= len(table):
      raise FewshotError(f'there is no token {max(used)}; the model has {len(table)}')
    count_classes(len(words), calib)
    vectors = jnp.stack([widen(table[np.array(w)]).mean(0) for w in words])
    return {'head': {'labels': vectors}}, {}

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    del state

    def adapted(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
      outputs, h = _before_words(forward, params, batch, key)
      labels = theta['head']['labels']
      return outputs | {'logits': h.astype(labels.dtype).mean(1) @ labels.T}

    return adapted

  return Method(init, wrap=wrap)


@method
def label_embeddings(tokens: int = 1, classes: int = 0, prototypes: bool = False) -> Method:
  """Label embeddings (Karimi Mahabadi et al. 2022, arXiv:2204.01172), the classifier of PERFECT.

      logits_c = mean_m z_mc,   z_mc = h_m L_cm,   L [classes, tokens, d]

  h_m is the hidden state at slot m; the z are `slot_logits` [B, tokens, classes], which the
  objective `hinge` reads.  They need no vocabulary.  The slots are those of the batch, as many as
  `tokens`; where it names none, the last `tokens` of the text.  L starts at N(0, 1e-4^2), nearly
  zero.  With `prototypes` the fit `perfect` ends by keeping the mean mu_cm of each class's hidden
  states at each slot, and then a pass without a key, which is no training step, says

      logits_c = max_m -| h_m / |h_m| - mu_cm / |mu_cm| |^2

  >>> label_embeddings(tokens=2).mergeable
  False
  """
  at_least_one('label_embeddings', tokens=tokens)

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    hidden = hidden_of(_require(forward, params, calib, 'label_embeddings', 'hidden'))
    if 'slots' in calib.batch and calib.batch['slots'].shape[1] != tokens:
      slots = calib.batch['slots'].shape[1]
      raise FewshotError(f'label_embeddings(tokens={tokens}), but a text has {slots} slots')
    shape = count_classes(classes, calib), tokens, hidden.shape[-1]
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    labels = jnp.asarray(1e-4, dtype) * jax.random.normal(key, shape, dtype)
    state = {'head': {'slot_means': jnp.zeros(shape, dtype)}} if prototypes else {}
    return {'head': {'labels': labels}}, state

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    def adapted(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
      outputs, labels = forward(params, batch, key), theta['head']['labels']
      slots = batch['slots'] if 'slots' in batch else last_tokens(outputs, tokens)
      h = _at(hidden_of(outputs), slots).astype(labels.dtype)
      z = jnp.einsum('bmd,cmd->bmc', h, labels)
      said = outputs | {'slot_hidden': h, 'slot_logits': z, 'logits': z.mean(1)}
      if prototypes and key is None:
        said['logits'] = _nearest(h, state['head']['slot_means'], z.mean(1))
      return said

    return adapted

  return Method(init, wrap=wrap)


def check_words(name: str, words: tuple[tuple[int, ...], ...]) -> list[int]:
  """All ids of the words of two classes or more; anything else is refused."""
  if len(words) < 2 or not all(isinstance(w, tuple) and w for w in words):
    raise FewshotError(f'{name}({words}) takes token ids of two classes or more: ((7,), (9,))')
  used = [i for w in words for i in w]
  if any(type(i) is not int or i < 0 for i in used):
    raise FewshotError(f'{name}({words}) takes token ids, as the tokenizer gives them')
  return used


def _shares(
  words: tuple[tuple[int, ...], ...], join: str, weights: tuple[tuple[float, ...], ...] | None
) -> list[np.ndarray] | None:
  """The weights of the words of each class, checked."""
  if weights is None:
    return None
  if join == 'max':
    raise FewshotError("verbalizer(join='max') has no weights; join by mean or logsumexp")
  if [len(s) for s in weights] != [len(w) for w in words]:
    raise FewshotError(f'verbalizer(weights={weights}) has not one weight for each of {words}')
  if any(x < 0 for s in weights for x in s) or not all(any(s) for s in weights):
    raise FewshotError(f'verbalizer(weights={weights}): none is below 0, and not all of a class 0')
  return [np.array(s, np.float32) for s in weights]


def _before_words(
  forward: Forward, params: Params, batch: Batch, key: Array | None
) -> tuple[Outputs, Array]:
  """The outputs, and what the language-model head multiplies with words at the slots [B, M, d]."""
  seen: list[Array] = []

  def record(next_fn: Any, args: Any, kwargs: Any, context: Any) -> Any:
    y = next_fn(*args, **kwargs)
    if context.method_name == '__call__' and path_of(context) == 'lm_head/ln':
      seen.append(y)  # Of a masked model: it is at the slots already, where there are some.
    return y

  with nn.intercept_methods(record):
    outputs = forward(params, batch, key)
  if seen:
    return outputs, seen[-1] if 'slots' in batch else _at(seen[-1], last_tokens(outputs, 1))
  slots = batch['slots'] if 'slots' in batch else last_tokens(outputs, 1)
  return outputs, _at(outputs['hidden'], slots)


def _nearest(h: Array, means: Array, otherwise: Array) -> Array:
  """max_m -|h_m - mu_cm|^2 of unit vectors, h [B, M, d], means [C, M, d]: [B, C].

  `otherwise` as long as the means are not filled.
  """
  distance = jnp.square(unit(h)[:, None] - unit(means)).sum(-1)
  return jnp.where(jnp.any(means != 0), -distance.min(-1), otherwise)


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
