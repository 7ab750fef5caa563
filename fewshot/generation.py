"""Generating text: greedy, sampled or by beam search, with any adapted forward.

A model takes part by one protocol, which causal models and encoder-decoders share:

    forward(params, batch | {'room': zeros(n)})  -> 'cache', 'token_logits' at `slots`
    forward(params, {fed: [B, 1], 'cache': ...}) -> 'cache', 'token_logits' [B, 1, V]

`fed` is the entry that new tokens are fed as: `decoder_tokens` where the batch has them (holding
the start token), else `tokens`.  In the cache every array starts with the axis of the batch, but
for scalars.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fewshot import decoding
from fewshot.errors import FewshotError, counts
from fewshot.models.base import Model
from fewshot.tasks import buckets
from fewshot.tasks.encode import tokenize
from fewshot.tasks.templates import check_texts

Array = jax.Array
COLDEST = 1e-6  # A temperature below it overflows logits.


def generate(
  forward: Callable[..., dict[str, Any]],
  params: Any,
  batch: dict[str, Any],
  new: int,
  *,
  key: Array | None = None,
  temperature: float = 0.0,
  top_p: float = 1.0,
  beams: int = 1,
  eos: int | Sequence[int] | None = None,
) -> dict[str, Array]:
  """Continues each row of a batch by up to `new` tokens; pure, to be jitted as a whole.

  Args:
    forward: of a model with a language-model head, maybe adapted (`methods.adapt`).
    params: its params.
    batch: tokens [B, T] and mask [B, T], padded on the right; for encoder-decoders also
      decoder_tokens [B, U], what the output starts with.
    new: at most so many tokens a row.
    key: draws the tokens; needed where the temperature is not 0.
    temperature: 0 takes the likeliest token; else tokens are drawn from softmax(logits / t).
    top_p: drawn from the fewest likeliest tokens of at least this probability together (nucleus
      sampling, Holtzman et al. 2020, arXiv:1904.09751).
    beams: how many sequences a beam search follows; the one with the best mean log-probability is
      returned.
    eos: the token, or tokens, that end a row.

  Returns:
    tokens [B, new], 0 behind a row's end; mask [B, new], true up to it; lengths [B], the ending
    token counted; scores [B], the sum of the tokens' log-probabilities under the model.

  Raises:
    FewshotError: options contradict each other, or the model does not generate.

  >>> from fewshot.models import gpt2
  >>> tiny = gpt2.Config(vocab=9, dim=8, depth=1, heads=2, width=16, positions=8)
  >>> params = gpt2.init(tiny, jax.random.key(0))
  >>> generate(gpt2.forward(tiny), params, gpt2.example(tiny), 3)['tokens'].shape
  (1, 3)
  """
  _check(new, key, temperature, top_p, beams)
  fed = _check_batch(batch)

  def step(cache: Any, tokens: Array) -> tuple[Array, Any]:
    out = forward(params, {fed: tokens[:, None], 'cache': cache})
    return out['token_logits'][:, 0], out['cache']

  logits, cache = _prefill(forward, params, batch, fed, new - 1)
  _check_tokens(batch, fed, logits.shape[-1])
  ends = _ends(eos, logits.shape[-1])
  if beams > 1:
    return decoding.beam_search(step, logits, cache, new, beams, ends)
  pick = functools.partial(decoding.pick, temperature=temperature, top_p=top_p)
  return decoding.one_by_one(step, pick, logits, cache, new, key, ends)


def continue_texts(
  model: Model,
  texts: Sequence[str],
  new: int,
  *,
  key: Array | None = None,
  temperature: float = 0.0,
  top_p: float = 1.0,
  beams: int = 1,
  eos: str | Sequence[str] = (),
  batch: int = 16,
) -> list[str]:
  """What a model writes after each text; an adapted one as `model._replace(forward=adapted)`.

  Texts run in batches of at most `batch` of about one length.  `eos` are tokens, as the tokenizer
  spells them, that end a text and are not returned; the other options are those of `generate`.

  Raises:
    FewshotError: there is no tokenizer or no such token, or texts and `new` tokens exceed the
      model's positions.
  """
  texts = _listed(model, texts)
  _check(new, key, temperature, top_p, beams)
  counts(batch=batch)
  if not texts:
    return []
  rows, lengths = tokenize(model.tokenizer, texts, max_length=1 << 30)
  limit = rows['tokens'].shape[1] if model.positions is None else model.positions - new
  if lengths.max() > limit:
    i = int(lengths.argmax())
    raise FewshotError(
      f'text {i} has {lengths[i]} tokens, and {new} new ones do not fit after it into the '
      f'{model.positions} positions of {model.name}; cut it or generate fewer'
    )
  ends = _ids(model, eos)
  run = _jitted(model.forward, new, temperature, top_p, beams, ends)
  out = [''] * len(texts)
  for n, (index, width) in enumerate(_batches(lengths, batch)):
    part = {k: jnp.asarray(v[index, : min(width, limit)]) for k, v in rows.items()}
    if 'decoder_tokens' in (model.example or {}):  # The token that outputs start with.
      start = model.example['decoder_tokens'][:1, :1]  # type: ignore[index]
      part['decoder_tokens'] = jnp.broadcast_to(start, (len(index), 1))
    done = run(model.params, part, None if key is None else jax.random.fold_in(key, n))
    tokens, mask = np.asarray(done['tokens']), np.asarray(done['mask'])
    for i, ids, real in zip(index, tokens, mask, strict=True):
      read = [] if 'decoder_tokens' in part else rows['tokens'][i, : lengths[i]].tolist()
      out[i] = _written(model.tokenizer, read, [int(t) for t in ids[real] if t not in ends])
  return out


def _listed(model: Model, texts: Sequence[str]) -> list[str]:
  """The texts, if each can be continued."""
  if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
    raise FewshotError('continue_texts takes a list of texts, not one text; write [text]')
  if model.tokenizer is None:
    raise FewshotError(f'{model.name} has no tokenizer; call generate with arrays of tokens')
  texts = list(texts)
  check_texts(texts)
  if not all(texts) and not model.tokenizer.num_special_tokens_to_add(False):
    raise FewshotError(f'text {texts.index("")} is empty, so there is nothing to continue')
  return texts


def _check(new: int, key: Any, temperature: float, top_p: float, beams: int) -> None:
  counts(new=new, beams=beams)
  for name, value in (('temperature', temperature), ('top_p', top_p)):
    if isinstance(value, bool) or not isinstance(value, Real):
      raise FewshotError(f'{name}={value!r} is no number')
  if temperature and not COLDEST <= temperature < math.inf:
    raise FewshotError(f'temperature={temperature} is 0, or finite and at least {COLDEST}')
  if not 0 < top_p <= 1:
    raise FewshotError(f'top_p={top_p} is a probability, above 0 and at most 1')
  if beams > 1 and temperature:
    raise FewshotError(f'beams={beams} search and temperature={temperature} draws; choose one')
  if key is not None and not temperature:
    raise FewshotError('a key draws tokens, and temperature=0 takes the likeliest; set one, as 1.0')
  typed = jnp.issubdtype(getattr(key, 'dtype', int), jax.dtypes.prng_key)
  if key is not None and not (typed and key.shape == ()):
    raise FewshotError(f'key={key!r} is no key; pass key=jax.random.key(seed)')
  if temperature and key is None:
    raise FewshotError(f'temperature={temperature} draws tokens; pass key=jax.random.key(seed)')
  if top_p < 1 and not temperature:
    raise FewshotError(f'top_p={top_p} is of drawn tokens; set a temperature, such as 1.0')


def _check_batch(batch: dict[str, Any]) -> str:
  """Which entry new tokens are fed as; refuses arrays that are not of one batch."""
  fed = 'decoder_tokens' if 'decoder_tokens' in batch else 'tokens'
  if fed not in batch:
    raise FewshotError(f'generate continues tokens, and the batch has {", ".join(batch)}')
  names = {'tokens', 'decoder_tokens'} & batch.keys()
  arrays = {name: jnp.asarray(batch[name]) for name in names}
  for name, x in arrays.items():
    if x.ndim != 2 or 0 in x.shape or x.shape[:1] != arrays[fed].shape[:1]:
      raise FewshotError(f'{name} is {list(x.shape)}; give [B, T] of one B, neither of them 0')
    if not jnp.issubdtype(x.dtype, jnp.integer):
      raise FewshotError(f'{name} is {x.dtype}; tokens are whole numbers')
    mask = name.replace('tokens', 'mask')
    if mask in batch and np.shape(batch[mask]) != x.shape:
      raise FewshotError(f'{mask} is {list(np.shape(batch[mask]))}, and {name} {list(x.shape)}')
  return fed


def _check_tokens(batch: dict[str, Any], fed: str, vocab: int) -> None:
  """Refuses values that make no sense, where they are known: while a program is traced, none is."""
  for name in {'tokens', 'decoder_tokens', fed.replace('tokens', 'mask')} & batch.keys():
    x = batch[name]
    if isinstance(x, jax.core.Tracer) or not getattr(x, 'is_fully_addressable', True):
      continue
    x = np.asarray(x)
    if 'tokens' in name and not 0 <= x.min() <= x.max() < vocab:
      raise FewshotError(f'{name} are from {x.min()} to {x.max()}; the vocabulary has {vocab}')
    if 'mask' in name and not (x[:, 0].all() and (x[:, 1:] <= x[:, :-1]).all()):
      raise FewshotError(f'{name} has holes, or an empty row; pad rows on the right')


def _ends(eos: Any, vocab: int) -> Array:
  """The tokens that end a row, as an array."""
  ids = np.unique([] if eos is None else eos)
  if ids.size and (ids.dtype.kind not in 'iu' or ids[0] < 0 or ids[-1] >= vocab):
    raise FewshotError(f'eos={eos!r} is no token, or tokens, of a vocabulary of {vocab}')
  return jnp.asarray(ids, jnp.int32)


def _prefill(
  forward: Callable[..., dict[str, Any]], params: Any, batch: dict[str, Any], fed: str, room: int
) -> tuple[Array, Any]:
  """The logits [B, V] behind each row's last token, and the cache with room for more."""
  mask = batch.get(fed.replace('tokens', 'mask'))
  mask = jnp.ones(batch[fed].shape, bool) if mask is None else jnp.asarray(mask, bool)
  last = jnp.where(mask, jnp.arange(mask.shape[1]), 0).max(-1, keepdims=True)
  out = forward(params, batch | {'room': jnp.zeros(room, bool), 'slots': last})
  if 'cache' not in out or 'token_logits' not in out:
    raise FewshotError(
      f'this model does not generate: its outputs are {", ".join(out)}, without token_logits and '
      'cache; load a causal model or an encoder-decoder'
    )
  return out['token_logits'][:, 0], out['cache']


def _batches(lengths: np.ndarray, size: int) -> list[tuple[np.ndarray, int]]:
  """Rows [size] and the width they are cut at; the last rows of a bucket are repeated to fill."""
  found, edges = [], buckets.bounds(lengths)
  for low, high in zip([0, *edges[:-1]], edges, strict=True):
    items = np.flatnonzero((lengths > low) & (lengths <= high))
    for start in range(0, len(items), size):
      at = np.minimum(np.arange(start, start + min(size, len(items))), len(items) - 1)
      found.append((items[at], high))
  return found


def _written(tokenizer: Any, read: list[int], new: list[int]) -> str:
  """The text of the new tokens where it follows the others: alone, it may lose a first space."""
  before, whole = tokenizer.decode(read), tokenizer.decode(read + new)
  return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)


def _ids(model: Model, eos: str | Sequence[str]) -> tuple[int, ...]:
  tokens = tuple(eos) if isinstance(eos, Iterable) and not isinstance(eos, str) else (eos,)
  if not all(isinstance(t, str) for t in tokens):
    raise FewshotError(f'eos={eos!r} is no token as the tokenizer spells it; give text')
  ids = {t: model.tokenizer.token_to_id(t) for t in tokens}
  for token, i in ids.items():
    if i is None:
      special = [a.content for a in model.tokenizer.get_added_tokens_decoder().values()]
      raise FewshotError(
        f'the tokenizer of {model.name} has no token {token!r}; its special tokens are '
        f'{", ".join(special) or "none"}'
      )
  return tuple(ids.values())


@functools.lru_cache(maxsize=8)
def _jitted(
  forward: Any, new: int, temperature: float, top_p: float, beams: int, eos: tuple[int, ...]
) -> Any:
  return jax.jit(
    lambda params, batch, key: generate(
      forward, params, batch, new,
      key=key, temperature=temperature, top_p=top_p, beams=beams, eos=eos,
    )
  )  # fmt: skip
