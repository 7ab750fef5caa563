"""Demonstrations in the text: behind an example stand train examples with their label words."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fewshot.errors import FewshotError

# How alike each of N texts is to each of n others: [N, n].
Likeness = Callable[[Sequence[str], Sequence[str]], np.ndarray]


class Shots(NamedTuple):
  """The train examples of one split, from which demonstrations are drawn."""

  texts: list[tuple[str, ...]]  # By field.
  labels: np.ndarray  # [n]
  seed: int
  likeness: Likeness | None = None  # Those of the half that is more alike are drawn.

  def draw(self, texts: Sequence[tuple[str, ...]], sets: int) -> np.ndarray:
    """Which examples stand behind each text in each set, one of every class: [N, sets, C].

    No text stands behind itself.

    >>> shots = Shots([('a',), ('b',), ('c',), ('d',)], np.array([0, 0, 1, 1]), seed=0)
    >>> shots.draw([('a',)], sets=3)[0, :, 0].tolist()
    [1, 1, 1]
    """
    joined = lambda rows: [' '.join(t) for t in rows]  # noqa: E731
    alike = self.likeness(joined(texts), joined(self.texts)) if self.likeness else None
    classes = [np.flatnonzero(self.labels == c) for c in range(int(self.labels.max()) + 1)]
    rng, out = np.random.default_rng(self.seed), []
    for i, text in enumerate(texts):
      scores = None if alike is None else alike[i]
      out.append([rng.choice(self._others(text, of, scores), sets) for of in classes])
    return np.array(out).transpose(0, 2, 1)

  def _others(
    self, text: tuple[str, ...], of_class: np.ndarray, scores: np.ndarray | None
  ) -> np.ndarray:
    """The examples of a class that may stand behind a text."""
    others = np.array([j for j in of_class if self.texts[j] != text], int)
    if not len(others):
      raise FewshotError(
        'a demonstration of each class stands behind a text, itself excepted; take two train '
        'examples a class or more'
      )
    if scores is None:
      return others
    return others[np.argsort(-scores[others], kind='stable')][: -(-len(others) // 2)]
