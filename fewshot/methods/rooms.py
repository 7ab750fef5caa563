"""Rooms: how many of the examples that a method asks for fit its context, known before a run."""

import inspect
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fewshot.methods.base import Batch, Forward, Method, Params
from fewshot.methods.context import context_tuning, continues, demonstrations
from fewshot.methods.examples import Shown, begins, written


class Room(NamedTuple):
  """How many of the examples that a method asks for fit its length."""

  method: str  # As spelled.
  asked: int
  rows: int  # That there are.
  fit: list[tuple[int, int]]  # Of each split the fewest and the most, by which are drawn.
  needed: int  # The length at which all fit, of every split, whichever are drawn.

  @property
  def said(self) -> str:
    """What is shown other than as asked; '' where nothing is."""
    least, most = min(a for a, _ in self.fit), max(b for _, b in self.fit)
    few = str(most) if least == most else f'{least} to {most}'
    if least < min(self.asked, self.rows):
      return (
        f'{few} of {min(self.asked, self.rows)} examples fit the length of {self.method}; '
        f'length={self.needed} holds all'
      )
    short = self.rows < self.asked
    return f'{self.rows} examples are all that {self.method} has to show' if short else ''


def rooms(
  method: Method, forward: Forward, params: Params, train: Mapping[str, np.ndarray]
) -> list[Room]:
  """What the methods of a chain that show examples can show of the train rows [S, N, ...].

  The examples of a split are S of these; the forward is traced once for all of them.
  """
  found = []
  for made in (p.made for p in method.parts or (method,)):
    if made is None or made.fn not in (demonstrations, context_tuning):
      continue
    called = inspect.signature(made.fn).bind(*made.args, **dict(made.named))
    called.apply_defaults()
    shown = Shown('', *(called.arguments[n] for n in ('shots', 'length', 'separator', 'bos')))
    splits = [{k: v[s] for k, v in train.items()} for s in range(len(next(iter(train.values()))))]
    causal = continues(forward, params, splits[0])
    fit, needed = zip(*(_fit(shown, batch, causal) for batch in splits), strict=True)
    rows = len(splits[0]['tokens'])
    found.append(Room(made.text(), shown.shots or rows, rows, list(fit), max(needed)))
  return found


def _fit(shown: Shown, batch: Batch, causal: bool) -> tuple[tuple[int, int], int]:
  """The fewest and the most that fit, and the length that holds all.

  Longer examples first fill the room with the fewest, shorter ones with the most.
  """
  tokens, mask = written(batch, causal, shown.separator)
  led = np.asarray(begins(shown.bos, tokens, mask))
  sizes = np.sort(np.asarray(mask).sum(1) - led)  # What begins a text stands there once.
  first = int(led.any())
  limit, n = shown.length - first, min(shown.shots or len(sizes), len(sizes))
  fit = lambda s: int((np.cumsum(s[s <= limit]) <= limit).sum())  # noqa: E731
  return (fit(sizes[::-1][:n]), fit(sizes[:n])), int(sizes[-n:].sum()) + first
