"""Task: examples with stable ids, their labels, and which of them train and which test."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fewshot.errors import FewshotError


@dataclasses.dataclass(frozen=True)
class Task:
  """Classification examples: `inputs` is a list of texts, or arrays with one row an example.

  `train` and `test` are the pools that splits draw from, as row numbers.
  """

  name: str
  inputs: Sequence[str] | dict[str, np.ndarray]
  labels: np.ndarray  # [N] int32.
  classes: tuple[str, ...]
  ids: np.ndarray  # [N] hex of the content: the same example, the same id.
  train: np.ndarray
  test: np.ndarray

  @property
  def is_text(self) -> bool:
    """Whether the inputs are texts, which a tokenizer turns into arrays."""
    return not isinstance(self.inputs, dict)


def make(
  name: str,
  inputs: Sequence[str] | np.ndarray | dict[str, Any],
  labels: Sequence[Any] | np.ndarray,
  test: Sequence[int] | np.ndarray | None = None,
  held_out: float = 0.5,
) -> Task:
  """A task from inputs and labels; without `test`, a fraction of each class is held out.

  >>> task = make('toy', ['a', 'b', 'c', 'd'], ['x', 'y', 'x', 'y'])
  >>> task.classes, len(task.train), len(task.test)
  (('x', 'y'), 2, 2)
  """
  names = [str(v) for v in labels]
  inputs = _checked(name, inputs)
  size = len(next(iter(inputs.values()))) if isinstance(inputs, dict) else len(inputs)
  if len(names) != size:
    raise FewshotError(f'{name}: {size} examples but {len(names)} labels')
  classes = tuple(sorted(set(names), key=_natural))
  if len(classes) < 2:
    raise FewshotError(f'{name}: a classification task needs 2 classes, there is {len(classes)}')
  y = np.array([classes.index(v) for v in names], np.int32)
  ids = np.array([_content_id(inputs, i, names[i]) for i in range(size)])
  held = _hold_out(y, ids, held_out) if test is None else _rows(test)
  if len(held) and (held.min() < 0 or held.max() >= size):
    raise FewshotError(f'{name}: test rows run from {held.min()} to {held.max()} of {size}')
  train = np.setdiff1d(np.arange(size), held)
  return Task(name, inputs, y, classes, ids, train, held)


def _checked(name: str, inputs: Any) -> list[str] | dict[str, np.ndarray]:
  """Texts as a list, arrays of numbers as they are; anything else is refused."""
  if not isinstance(inputs, dict):
    odd = next((x for x in inputs if not isinstance(x, str)), None)
    if odd is not None:
      raise FewshotError(
        f'{name}: inputs are texts, but there is a {type(odd).__name__}; arrays of numbers go '
        'through from_arrays'
      )
    return [str(x) for x in inputs]
  arrays = {k: np.asarray(v) for k, v in inputs.items()}
  for k, v in arrays.items():
    if not v.ndim or v.dtype.kind in 'OSU':
      raise FewshotError(
        f'{name}: {k!r} is an array of {v.dtype}, shape {v.shape}; arrays hold numbers [N, ...], '
        'and texts are a list'
      )
  if not arrays or len({len(v) for v in arrays.values()}) > 1:
    raise FewshotError(
      f'{name}: arrays of unequal length, or none: { {k: len(v) for k, v in arrays.items()} }'
    )
  return arrays


def _rows(test: Any) -> np.ndarray:
  """Row numbers from row numbers or from a boolean mask."""
  test = np.asarray(test)
  return np.flatnonzero(test) if test.dtype == bool else test.astype(int)


def _hold_out(labels: np.ndarray, ids: np.ndarray, fraction: float) -> np.ndarray:
  """By id: a file's order does not matter, and repeats of an example stay on one side."""
  rng = np.random.default_rng(0)
  drawn = (rng.permutation(np.unique(ids[labels == c])) for c in np.unique(labels))
  held = np.concatenate([d[: int(len(d) * fraction)] for d in drawn])
  return np.flatnonzero(np.isin(ids, held))


def _content_id(inputs: Any, i: int, label: str) -> str:
  digest = hashlib.sha256(label.encode() + b'\0')
  if isinstance(inputs, dict):
    for k in sorted(inputs):
      digest.update(f'{k} {inputs[k].dtype}'.encode() + inputs[k][i].tobytes())
  else:
    digest.update(inputs[i].encode())
  return digest.hexdigest()[:16]


def _natural(name: str) -> tuple[int, float, str]:
  """Numbers by value, then names: so that labels 0..10 keep their order."""
  try:
    value = float(name)
  except ValueError:
    value = math.nan
  return (0, value, name) if math.isfinite(value) else (1, 0.0, name)
