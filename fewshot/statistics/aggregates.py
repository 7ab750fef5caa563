"""Aggregates over tasks and runs (Agarwal et al. 2021, arXiv:2108.13264).

The estimators are those of rliable, which the tests hold them to; the intervals are SciPy's
bootstrap, runs resampled within tasks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fewshot.errors import FewshotError, nearest
from fewshot.statistics.intervals import Interval, Results, resampled

Scores = Sequence[Sequence[float]] | np.ndarray  # [runs, tasks]


def iqm(values: Results | np.ndarray, axis: int | None = None) -> Any:
  """The interquartile mean: of the middle half (Agarwal et al. 2021, arXiv:2108.13264).

      (x_(g+1) + ... + x_(n-g)) / (n - 2g),   g = floor(n / 4)

  >>> iqm([0.0, 0.5, 0.75, 9.0])
  0.625
  """
  x = np.asarray(values, np.float64)
  if axis is None:
    x, axis = x.ravel(), -1
  n = x.shape[axis]
  if not n:
    raise FewshotError('there is no result to take the interquartile mean of')
  mean = np.take(np.sort(x, axis), np.arange(n // 4, n - n // 4), axis).mean(axis)
  return mean if np.ndim(mean) else float(mean)


def _over_runs(*tasks: np.ndarray, axis: int = -1) -> Any:
  return iqm(np.concatenate(tasks, axis), axis)


def _over_tasks(*tasks: np.ndarray, axis: int = -1) -> Any:
  return np.mean([x.mean(axis) for x in tasks], 0)


def _middle_task(*tasks: np.ndarray, axis: int = -1) -> Any:
  return np.median([x.mean(axis) for x in tasks], 0)


AGGREGATES = {'iqm': _over_runs, 'mean': _over_tasks, 'median': _middle_task}


def aggregate(scores: Scores, what: str = 'iqm', resamples: int = 2000, seed: int = 0) -> Interval:
  """An aggregate over runs and tasks, with its 95 % interval.

  Args:
    scores: [runs, tasks].
    what: 'iqm' of all runs, or 'mean' or 'median' of the tasks' means.

  >>> found = aggregate([[0.5, 0.9], [0.6, 0.8], [0.7, 0.8], [0.6, 0.7]])
  >>> round(found.value, 3), found.low <= found.value <= found.high, found.n
  (0.7, True, 8)
  """
  if what not in AGGREGATES:
    raise FewshotError(f'there is no aggregate {what!r}; {nearest(what, AGGREGATES)}')
  x = _matrix(scores)
  low, high = resampled(list(x.T), AGGREGATES[what], resamples=resamples, seed=seed)
  return Interval(float(AGGREGATES[what](*x.T)), float(low), float(high), x.size)


def improvement(a: Scores, b: Scores, resamples: int = 2000, seed: int = 0) -> Interval:
  """The probability that a run of `a` beats one of `b`, averaged over tasks, with its interval.

      P(A > B) = 1 / M Σ_m 1 / (N K) Σ_ij (1[a_im > b_jm] + 1/2 1[a_im = b_jm])

  Args:
    a: [runs, tasks].
    b: [runs, tasks]; the runs may be fewer or more.

  >>> improvement([[0.5, 0.9], [0.6, 0.8]], [[0.4, 0.8], [0.7, 0.7]]).value
  0.6875
  """
  x, y = _matrix(a), _matrix(b)
  if x.shape[1] != y.shape[1]:
    raise FewshotError(f'{x.shape[1]} and {y.shape[1]} tasks cannot be compared; give the same')
  of = [*x.T, *y.T]
  low, high = resampled(of, _wins, resamples=resamples, seed=seed)
  return Interval(float(_wins(*of)), float(low), float(high), x.size + y.size)


def _wins(*tasks: np.ndarray, axis: int = -1) -> Any:
  """How often the first half of the samples [..., runs] beats the second; a tie is half a win."""
  del axis  # The last.
  m = len(tasks) // 2
  duels = [a[..., :, None] - b[..., None, :] for a, b in zip(tasks[:m], tasks[m:], strict=True)]
  return np.mean([(np.sign(d).mean((-2, -1)) + 1) / 2 for d in duels], 0)


def profile(
  scores: Scores, thresholds: Results, resamples: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """A performance profile: the share of runs above each of T thresholds, and its interval.

      F(tau) = 1 / (M N) Σ_m Σ_n 1[x_nm > tau]

  Args:
    scores: [runs, tasks].

  Returns:
    The profile [T], and the low and the high ends of its 95 % interval [T].

  >>> curve, low, high = profile([[0.5, 0.9], [0.6, 0.8]], [0.0, 0.55, 1.0])
  >>> curve.tolist(), low.tolist(), high.tolist()
  ([1.0, 0.75, 0.0], [1.0, 0.5, 0.0], [1.0, 1.0, 0.0])
  """
  above = _matrix(scores).T[:, None, :] > np.asarray(thresholds, np.float64)[:, None]
  of = list(above.astype(float))  # Of each task [T, runs].
  low, high = resampled(of, _over_tasks, resamples=resamples, seed=seed)
  return _over_tasks(*of), low, high


def _matrix(scores: Scores) -> np.ndarray:
  x = np.asarray(scores, np.float64)
  if x.ndim != 2 or not x.size or not np.isfinite(x).all():
    raise FewshotError(
      f'scores are finite numbers [runs, tasks], not {x.size} in shape {list(x.shape)}'
    )
  return x
