"""Generating text: greedy, sampled or by beam search, with any adapted forward.

A model takes part by one protocol, which causal models and encoder-decoders share:

    forward(params, batch | {'room': zeros(n)})  -> 'cache', 'token_logits' at `slots`
    forward(params, {fed: [B, 1], 'cache': ...}) -> 'cache', 'token_logits' [B, 1, V]

`fed` is the entry that new tokens are fed as: `decoder_tokens` where the batch has them (holding
the start token), else `tokens`.  In the cache every array starts with the axis of the batch, but
for scalars.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fewshot import decoding
from fewshot.errors import FewshotError
from fewshot.models.base import Model
from fewshot.tasks import buckets
from fewshot.tasks.encode import tokenize

Array = jax.Array


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
  ends = jnp.asarray([] if eos is None else eos, jnp.int32).reshape(-1)
  _check(new, key, temperature, top_p, beams)
  fed = 'decoder_tokens' if 'decoder_tokens' in batch else 'tokens'

  def step(cache: Any, tokens: Array) -> tuple[Array, Any]:
    out = forward(params, {fed: tokens[:, None], 'cache': cache})
    return out['token_logits'][:, 0], out['cache']

  logits, cache = _prefill(forward, params, batch, fed, new - 1)
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
  if isinstance(texts, str):
    raise FewshotError('continue_texts takes a list of texts, not one text; write [text]')
  if model.tokenizer is None:
    raise FewshotError(f'{model.name} has no tokenizer; call generate with arrays of tokens')
  if not texts:
    return []
  if not all(texts) and not model.tokenizer.num_special_tokens_to_add(False):
    raise FewshotError(f'text {list(texts).index("")} is empty, so there is nothing to continue')
  rows, lengths = tokenize(model.tokenizer, texts, max_length=1 << 30)
  limit = rows['tokens'].shape[1] if model.positions is None else model.positions - new
  if lengths.max() > limit:
    i = int(lengths.argmax())
    raise FewshotError(
      f'text {i} has {lengths[i]} tokens, and {new} new ones do not fit after it into the '
      f'{model.positions} positions of {model.name}; cut it or generate fewer'
    )
  ends = _ids(model, (eos,) if isinstance(eos, str) else tuple(eos))
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


def _check(new: int, key: Any, temperature: float, top_p: float, beams: int) -> None:
  if new < 1 or beams < 1:
    raise FewshotError(f'new={new} and beams={beams} are at least 1')
  if temperature < 0 or not 0 < top_p <= 1:
    raise FewshotError(f'temperature={temperature} is at least 0, and 0 < top_p={top_p} <= 1')
  if beams > 1 and temperature:
    raise FewshotError(f'beams={beams} search and temperature={temperature} draws; choose one')
  if key is not None and not temperature:
    raise FewshotError('a key draws tokens, and temperature=0 takes the likeliest; set one, as 1.0')
  if key is not None and not jnp.issubdtype(getattr(key, 'dtype', int), jax.dtypes.prng_key):
    raise FewshotError(f'key={key!r} is no key; pass key=jax.random.key(seed)')
  if temperature and key is None:
    raise FewshotError(f'temperature={temperature} draws tokens; pass key=jax.random.key(seed)')
  if top_p < 1 and not temperature:
    raise FewshotError(f'top_p={top_p} is of drawn tokens; set a temperature, such as 1.0')


def _prefill(
  forward: Callable[..., dict[str, Any]], params: Any, batch: dict[str, Any], fed: str, room: int
) -> tuple[Array, Any]:
  """The logits [B, V] behind each row's last token, and the cache with room for more."""
  if fed not in batch:
    raise FewshotError(f'generate continues tokens, and the batch has {", ".join(batch)}')
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


def _ids(model: Model, tokens: tuple[str, ...]) -> tuple[int, ...]:
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
