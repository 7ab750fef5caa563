"""Figures of predictions: what is taken for what, and whether probabilities mean what they say."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fewshot.errors import FewshotError
from fewshot.figures import style

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Values = Sequence[float] | np.ndarray
NAMED = 24  # Classes of which each has its name at the axes, and cells their counts.


class Calibration(NamedTuple):
  """Bins of predictions by their confidence."""

  ece: float
  number: np.ndarray  # [bins] of predictions.
  confidence: np.ndarray  # [bins] mean; NaN where there is none.
  accuracy: np.ndarray  # [bins].


def ece(confidence: Values, right: Values, bins: int = 15) -> Calibration:
  """The expected calibration error (Guo et al. 2017, arXiv:1706.04599).

      ECE = sum_m |B_m| / n |acc(B_m) - conf(B_m)|,   B_m = {i: conf_i in ((m - 1) / M, m / M]}

  Args:
    confidence: [n], the probability of each predicted class.
    right: [n], whether the prediction is right.
    bins: M, of equal width.

  Raises `FewshotError` for lengths that differ, or no prediction.

  >>> round(ece([0.9, 0.8, 0.6, 0.6], [True, True, True, False], bins=2).ece, 6)
  0.025
  """
  c, hit = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
  if c.shape != hit.shape or c.ndim != 1 or not len(c):
    raise FewshotError(f'{c.size} confidences and {hit.size} outcomes; give one each a prediction')
  # A hair less: 0.2 x 15 is above 3 in floating point, and belongs to the third bin.
  at = np.clip(np.ceil(c * bins - 1e-9).astype(int) - 1, 0, bins - 1)
  count = np.bincount(at, minlength=bins)
  with np.errstate(invalid='ignore'):
    mean = np.bincount(at, c, bins) / count
    accuracy = np.bincount(at, hit, bins) / count
  gaps = np.where(count > 0, abs(accuracy - mean), 0.0)
  return Calibration(float((count * gaps).sum() / len(c)), count, mean, accuracy)


def probabilities(logits: np.ndarray) -> np.ndarray:
  """The softmax of logits [..., C].

  >>> probabilities(np.zeros((1, 4)))
  array([[0.25, 0.25, 0.25, 0.25]])
  """
  e = np.exp(logits - logits.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


@style.styled
def reliability(confidence: Values, right: Values, note: str) -> 'Figure':
  """A reliability diagram: accuracy by confidence in 15 bins, its ECE, how many are in each.

  `note` says what the predictions are of, such as '5 runs of 300 items'.
  """
  c = ece(confidence, right)
  bins = len(c.number)
  left, width = np.arange(bins) * 100 / bins, 100 / bins
  ratios = {'height_ratios': [3, 1]}
  figure, (axes, below) = style.new(3.5, 2, sharex=True, gridspec_kw=ratios)
  shown = np.where(c.number > 0, 100 * c.accuracy, 0)
  axes.bar(left, shown, width, align='edge', color=style.SKY, edgecolor='white', lw=0.6)
  axes.plot([0, 100], [0, 100], color=style.GREY, ls='--', lw=1)
  there = c.number > 0
  axes.plot(100 * c.confidence[there], shown[there], 'o-', color=style.BLUE, ms=3.5, lw=1.2)
  axes.set_ylabel('accuracy (%)')
  axes.set_ylim(0, 100)
  style.note(axes, f'ECE {100 * c.ece:.1f} % in {bins} bins, n = {c.number.sum():,}: {note}')
  below.bar(left, c.number, width, align='edge', color=style.GREY, edgecolor='white', lw=0.6)
  below.set_ylabel('predictions')
  below.set_xlabel('confidence: probability of the predicted class (%)')
  below.set_xlim(0, 100)
  return figure


def counts(labels: Values, predictions: Values, classes: int) -> np.ndarray:
  """How often each true class (down) was given each class (across), [C, C].

  >>> counts([0, 0, 1], [0, 1, 1], 2).tolist()
  [[1, 1], [0, 1]]
  """
  flat = np.asarray(labels) * classes + np.asarray(predictions)
  return np.bincount(flat, minlength=classes**2).reshape(classes, classes)


@style.styled
def confusion(matrix: np.ndarray, classes: Sequence[str], note: str) -> 'Figure':
  """A confusion matrix: shades are per cent of a true class, figures are counts.

  Args:
    matrix: [C, C] as `counts` gives it.
    note: what the predictions are of, such as '5 runs of 300 items'.
  """
  n, named = len(classes), len(classes) <= NAMED
  shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
  figure, (axes,) = style.new(1.3 + min(2.7, 0.42 * n))
  axes.grid(False)
  image = axes.imshow(shares, cmap='Blues', vmin=0, vmax=100, aspect='auto', interpolation='none')
  names = [style.wrapped(c, 16, 1) for c in classes]
  if named:
    axes.set_xticks(range(n), names, rotation=40, ha='right', rotation_mode='anchor')
    axes.set_yticks(range(n), names)
    for (i, j), x in np.ndenumerate(matrix):
      shade = '#ffffff' if shares[i, j] > 55 else '#000000'
      axes.text(j, i, f'{x:,}', ha='center', va='center', fontsize=8 if n < 9 else 5, color=shade)
  axes.set_xlabel('predicted class' + ('' if named else ' (number)'))
  axes.set_ylabel('true class' + ('' if named else ' (number)'))
  style.note(axes, f'n = {matrix.sum():,}: {note}')
  figure.colorbar(image, ax=axes, pad=0.02).set_label('% of the true class')
  return figure
