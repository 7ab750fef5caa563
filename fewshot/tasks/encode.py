"""From a task and its splits to the arrays that a sweep runs on."""

import functools
from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import jax
import numpy as np

from fewshot.errors import FewshotError
from fewshot.tasks import buckets, prompts
from fewshot.tasks.base import Task
from fewshot.tasks.prompts import Wording
from fewshot.tasks.shown import Likeness, Shots
from fewshot.tasks.splits import Split
from fewshot.tasks.templates import Filled, check_texts, fields_of, padded

Batch = dict[str, np.ndarray]
PER_TOKEN = ('tokens', 'mask', 'types')  # What of a batch is [.., L], a value a token.


class Bucket(NamedTuple):
  """Test examples of one length: arrays [n_batches, B, ...]; `rows` says which test items."""

  batches: Batch
  rows: np.ndarray  # [n_batches * B]; -1 where padded.


class Encoded(NamedTuple):
  """Splits as arrays: train and dev [S, N, ...], test in length buckets shared by all splits.

  Of a prompt with V templates each example makes V rows: its views, side by side.
  """

  train: Batch
  dev: Batch | None
  test: tuple[Bucket, ...]
  labels: np.ndarray  # [T], of the test items in the split's order.
  splits: tuple[Split, ...]
  views: int = 1
  cut: int = 0  # How many of all rows were longer than max_length, or what stands behind them.
  rows: int = 0  # How many there are, of all splits, each once.

  def of_items(self, logits: np.ndarray) -> np.ndarray:
    """The logits [T, C] of items from those of their views [T * V, C]: the mean."""
    return logits.reshape(-1, self.views, logits.shape[-1]).mean(1)


def encode(
  task: Task,
  splits: Sequence[Split],
  tokenizer: Any = None,
  max_length: int = 64,
  tokens_per_batch: int = 0,
  wording: Wording | None = None,
  likeness: Likeness | None = None,
) -> Encoded:
  """Tokenises what the splits use (texts are cut at `max_length`) and pads to few lengths.

  With a `wording` texts are shown in its templates, and train and dev rows, never those of test,
  have the tokens of their class's word as `answer` [N, A], padded with -1.  Demonstrations are of
  one split's train examples, drawn among those that `likeness` says are alike.
  Test batches hold about `tokens_per_batch` tokens; 0 for what suits the backend: enough to fill
  it, and on a CPU, where all runs of a chunk read a batch at once, what its caches hold.
  """
  tokens_per_batch = tokens_per_batch or (1024 if jax.default_backend() == 'cpu' else 16384)
  if not splits:
    raise FewshotError(f'{task.name}: there is no split to encode; kshot(task, k) draws some')
  if any(s.test_hash != splits[0].test_hash for s in splits):
    raise FewshotError(f'{task.name}: the splits of one sweep share their test set')
  used = np.unique(np.concatenate([r for s in splits for r in (s.train, s.dev, s.test)]))
  shots = _shots(task, splits, wording, likeness)
  rows, lengths, cut = _features(task, used, tokenizer, max_length, wording, shots)
  views = wording.views if wording else 1
  at = functools.partial(_places, used, views=views)
  shown = [at([getattr(s, part) for s in splits]) for part in ('train', 'dev')]
  longest = max(lengths[i].max() for i in shown if i.size)
  answered = rows if wording is None else rows | _answers(wording, rows['labels'])
  train, dev = (_take(answered, i, buckets.round_up(int(longest))) for i in shown)
  test = at([splits[0].test])[0]
  return Encoded(
    train,
    dev if shown[1].size else None,
    tuple(_test_buckets(rows, test, lengths[test], tokens_per_batch)),
    rows['labels'][test[::views]],
    tuple(splits),
    views,
    int(cut.sum()),
    len(cut),
  )


def _shots(
  task: Task, splits: Sequence[Split], wording: Wording | None, likeness: Likeness | None
) -> Shots | None:
  """The examples that a prompt's demonstrations are drawn from."""
  if wording is None or not wording.prompt.demonstrations:
    return None
  if len(splits) > 1:
    raise FewshotError(
      f'{task.name}: what a prompt demonstrates are the train examples of one split, and there are '
      f'{len(splits)}; encode one at a time'
    )
  inputs: Any = task.inputs
  fields = [fields_of(inputs[i]) for i in splits[0].train]
  return Shots(fields, task.labels[splits[0].train], splits[0].seed, likeness)


def _places(used: np.ndarray, parts: Sequence[np.ndarray], views: int) -> np.ndarray:
  """Where the views of the examples of each part lie among the rows of `used`: [S, N * views]."""
  places = np.searchsorted(used, np.stack(parts))[..., None] * views + np.arange(views)
  return places.reshape(len(parts), -1)


def _answers(wording: Wording, labels: np.ndarray) -> Batch:
  """The tokens [N, A] of the label word of each row's class, where the prompt has words.

  Where examples have several views, also which `example` [N] a row is of.
  """
  found = {} if wording.answers is None else {'answer': wording.answers[labels]}
  if wording.views > 1:
    found['example'] = np.arange(len(labels), dtype=np.int32) // wording.views
  return found


def tokenize(
  tokenizer: Any, texts: Sequence[str | tuple[str, ...]], max_length: int
) -> tuple[Batch, np.ndarray]:
  """tokens [N, L] and mask [N, L], padded to about the longest, L <= max_length; the lengths.

  Texts of several fields are pairs as the tokenizer makes them: the first field, and the others
  joined by spaces, with types [N, L] that tell the two apart, and the longer of them cut.  A
  tokenizer that puts no token between the two, as those of causal models, reads all fields joined.

  Raises `FewshotError` for what is no text, or a `max_length` without room for one.
  """
  return _tokenize(tokenizer, texts, max_length)[:2]


def _tokenize(tokenizer: Any, texts: Sequence[str | tuple[str, ...]], max_length: int) -> Filled:
  fields = [fields_of(t) for t in texts]
  check_texts([text for f in fields for text in f])
  if not isinstance(max_length, Integral):
    raise FewshotError(f'max_length={max_length!r} is no whole number of tokens')
  special = [tokenizer.num_special_tokens_to_add(pair) for pair in (False, True)]
  paired = special[1] > special[0] and any(len(f) > 1 for f in fields)
  if max_length <= special[paired]:
    raise FewshotError(
      f'max_length={max_length} leaves no room for a text beside {special[paired]} special tokens'
    )
  shown = [(f[0], ' '.join(f[1:])) if paired and len(f) > 1 else ' '.join(f) for f in fields]
  tokenizer.enable_truncation(max_length)
  try:
    encoded = tokenizer.encode_batch(shown)
  finally:
    tokenizer.no_truncation()
  lengths = np.array([max(len(e.ids), 1) for e in encoded])  # An empty text shows one position.
  width = min(buckets.round_up(int(lengths.max())), max_length)  # A model may have no more places.
  batch = {
    'tokens': padded([e.ids for e in encoded], width),
    'mask': np.arange(width) < lengths[:, None],
  }
  if paired:
    batch['types'] = padded([e.type_ids for e in encoded], width)
  return Filled(batch, lengths, np.array([bool(e.overflowing) for e in encoded]))


def _features(
  task: Task, used: np.ndarray, tokenizer: Any, max_length: int, wording: Wording | None,
  shots: Shots | None,
) -> Filled:  # fmt: skip
  """The rows of the examples `used`, with their labels."""
  labels = task.labels[used]
  if isinstance(task.inputs, dict):
    if wording is not None:
      raise FewshotError(f'a prompt is of texts, and {task.name} holds arrays; leave prompt empty')
    rows = {k: v[used] for k, v in task.inputs.items()}
    longest = max((v.shape[1] for k, v in rows.items() if _per_token(k, v)), default=1)
    return Filled(rows | {'labels': labels}, np.full(len(used), longest), np.zeros(len(used), bool))
  if tokenizer is None:
    raise FewshotError(f'{task.name} holds texts, and this model has no tokenizer')
  texts = [task.inputs[i] for i in used]
  if wording is None:
    filled = _tokenize(tokenizer, texts, max_length)
  else:
    filled = prompts.fill(wording, tokenizer, texts, max_length, shots)
    labels = labels.repeat(wording.views)
  return filled._replace(rows=filled.rows | {'labels': labels})


def _take(rows: Batch, index: np.ndarray, length: int) -> Batch:
  """rows[index], with per-token arrays cut at `length`."""
  return {k: _cut(k, v, length)[index] for k, v in rows.items()}


def _cut(name: str, values: np.ndarray, length: int) -> np.ndarray:
  return values[:, :length] if _per_token(name, values) else values


def _per_token(name: str, values: np.ndarray) -> bool:
  return name in PER_TOKEN and values.ndim > 1


def _test_buckets(
  rows: Batch, test: np.ndarray, lengths: np.ndarray, tokens_per_batch: int
) -> list[Bucket]:
  out = []
  # Each bucket is a forward pass more to compile: a third one pays on large test sets only.
  edges = buckets.bounds(lengths, at_most=2 if len(test) < 1000 else 4)
  for low, high in zip([0, *edges[:-1]], edges, strict=True):
    items = np.flatnonzero((lengths > low) & (lengths <= high))
    items = items[np.argsort(lengths[items], kind='stable')]
    n_batches = -(-len(items) * high // tokens_per_batch)
    size = -(-len(items) // n_batches)
    padded = np.full(n_batches * size, -1)
    padded[: len(items)] = items
    index = test[np.where(padded < 0, items[0], padded)].reshape(n_batches, size)
    out.append(Bucket(_take(rows, index, high), padded))
  return out
