"""Sentence embeddings: the pooled features of texts, in batches of few shapes."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fewshot.errors import FewshotError, counts
from fewshot.models.base import Model
from fewshot.tasks import buckets
from fewshot.tasks.encode import tokenize


def embed(
  model: Model,
  texts: Sequence[str],
  batch: int = 32,
  normalise: bool = True,
  max_length: int = 256,
) -> np.ndarray:
  """The features of each text as float32 [N, D], in the order of the texts.

  Texts of about one length share a forward pass, so that little padding is computed and few shapes
  are compiled.  With `normalise` a row has length one, e / |e|, and `e @ e.T` holds the cosines.

  Args:
    model: a text model with a tokenizer, see `models.load`.
    texts: the sentences; each stands for itself, whatever is beside it.
    batch: the most texts in one forward pass.
    normalise: whether rows are scaled to length one.
    max_length: in tokens; longer texts are cut, at the model's positions if those are fewer.

  Raises:
    FewshotError: the model reads no text, or `texts` is no list of texts.

  >>> import tokenizers
  >>> from fewshot.models import bert
  >>> config = bert.Config(vocab=9, dim=8, depth=1, heads=2, width=16, positions=8, types=1)
  >>> vocab = {'<unk>': 0, 'a': 1, 'man': 2, 'plays': 3}
  >>> words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token='<unk>'))
  >>> words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  >>> params = bert.init(config, jax.random.key(0))
  >>> model = Model('tiny', bert.forward(config), params, words, positions=config.positions)
  >>> e = embed(model, ['a man plays', 'a man', 'a man plays'])
  >>> e.shape, bool(e[0] @ e[2] > 0.999), bool(e[0] @ e[1] > 0.999)
  ((3, 8), True, False)
  """
  texts = _check(model, texts, batch)
  counts(max_length=max_length)
  longest = min(max_length, model.positions or max_length)
  rows, lengths = tokenize(model.tokenizer, texts, longest)
  forward = _jitted(model.forward)
  parts, order = [], []
  for index, size, length in _batches(lengths, batch):
    padded = np.resize(index, size)  # Rows repeated up to the bucket's one shape.
    part = {k: v[padded, : min(length, longest)] for k, v in rows.items()}
    parts.append(np.asarray(forward(model.params, part))[: len(index)])
    order.append(index)
  found = np.concatenate(parts)[np.argsort(np.concatenate(order))]
  norms = np.linalg.norm(found, axis=-1, keepdims=True)
  return found / np.maximum(norms, np.finfo(np.float32).tiny) if normalise else found


def _check(model: Model, texts: Sequence[str], batch: int) -> list[str]:
  if model.tokenizer is None:
    raise FewshotError(f'{model.name} has no tokenizer; embed takes a model that reads texts')
  if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
    raise FewshotError('embed takes a list of texts, not one text; write embed(model, [text])')
  texts = list(texts)
  if not texts:
    raise FewshotError('embed takes at least one text, and the list is empty')
  counts(batch=batch)
  return texts


def _batches(lengths: np.ndarray, batch: int) -> Iterator[tuple[np.ndarray, int, int]]:
  """(the texts, the batch's size, its length): all batches of a bucket have one shape."""
  # Each bucket is a forward pass more to compile: more of them pay on many texts only.
  edges = buckets.bounds(lengths, at_most=2 if len(lengths) < 1000 else 4)
  for low, high in zip([0, *edges[:-1]], edges, strict=True):
    items = np.flatnonzero((lengths > low) & (lengths <= high))
    size = -(-len(items) // -(-len(items) // batch))  # As even as the number of batches lets them.
    for start in range(0, len(items), size):
      yield items[start : start + size], size, high


@functools.lru_cache(maxsize=8)
def _jitted(forward: Callable[..., Any]) -> Callable[..., jax.Array]:
  """Only the features: no other head is computed.  Kept, so that later calls compile nothing."""
  return jax.jit(lambda params, batch: forward(params, batch)['features'].astype(jnp.float32))
