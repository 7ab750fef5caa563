"""Intervals of a mean: Student's t, and the bootstrap within strata."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fewshot.errors import FewshotError

Results = Sequence[float] | np.ndarray


class Interval(NamedTuple):
  """An estimate from n results and the interval around it."""

  value: float
  low: float
  high: float
  n: int


def student(values: Results, level: float = 0.95) -> Interval:
  """The mean of episodes, splits or seeds with its interval (Student 1908, doi:10.2307/2331554).

      mean ± t_{(1 + level) / 2, n - 1} std / sqrt(n),   std with ddof = 1

  The interval of a single result is infinite.

  Raises:
    FewshotError: there is no result, or one that is not finite.

  >>> [round(x, 4) for x in student([0.5, 0.6, 0.7])]
  [0.6, 0.3516, 0.8484, 3]
  """
  x = _checked(values)
  if len(x) == 1:
    return Interval(float(x[0]), -math.inf, math.inf, 1)
  from scipy.special import stdtrit

  half = float(stdtrit(len(x) - 1, (1 + level) / 2) * x.std(ddof=1) / len(x) ** 0.5)
  return Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, len(x))


def proportion(right: int, n: int, level: float = 0.95) -> Interval:
  """The interval of a share of n items (Wilson 1927, doi:10.1080/01621459.1927.10502953).

      (p + z² / 2n ± z sqrt(p (1 - p) / n + z² / 4n²)) / (1 + z² / n),   p = right / n

  It says what other items would have given to the same trained model.

  >>> [round(x, 3) for x in proportion(9, 10)]
  [0.9, 0.596, 0.982, 10]
  """
  if not 0 <= right <= n or n < 1:
    raise FewshotError(f'{right} of {n} items is no share of them')
  from scipy.special import ndtri

  p, z = right / n, float(ndtri((1 + level) / 2))
  centre, scale = p + z**2 / (2 * n), 1 + z**2 / n
  half = z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
  return Interval(p, (centre - half) / scale, (centre + half) / scale, n)


def bootstrap(
  strata: Sequence[Results],
  statistic: Callable[..., Any] = np.mean,
  level: float = 0.95,
  resamples: int = 2000,
  seed: int = 0,
) -> Interval:
  """The stratified bootstrap by percentiles (Efron 1979, doi:10.1214/aos/1176344552).

  Each stratum (a task, say) is resampled by itself, as Agarwal et al. 2021 (arXiv:2108.13264) do;
  the estimate is the mean of the strata's statistics.

      T* = 1 / M Σ_m statistic(x_m*),   low, high = quantiles (1 ∓ level) / 2 of T*

  Args:
    strata: the results of each of M strata; one for a plain bootstrap.
    statistic: takes `axis`, as numpy's reductions and `iqm` do.

  Raises:
    FewshotError: a stratum is empty or not finite, or none has two results.

  >>> found = bootstrap([[0.5, 0.6, 0.7, 0.6], [0.1, 0.2, 0.1, 0.3]])
  >>> round(found.value, 4), found.low < found.value < found.high, found.n
  (0.3875, True, 8)
  """
  data = [_checked(x) for x in strata]
  n = sum(len(x) for x in data)
  if all(len(x) < 2 for x in data):
    raise FewshotError(f'{n} results of {len(data)} strata leave nothing to resample; give more')
  whole = lambda *xs, axis=-1: sum(statistic(x, axis=axis) for x in xs) / len(xs)  # noqa: E731
  low, high = resampled(data, whole, level, resamples, seed)
  return Interval(float(whole(*data)), float(low), float(high), n)


def resampled(
  samples: Sequence[np.ndarray],
  statistic: Callable[..., Any],
  level: float = 0.95,
  resamples: int = 2000,
  seed: int = 0,
) -> Any:
  """The percentiles of a statistic of several samples, each resampled by itself, by SciPy.

  Args:
    samples: [..., n]; what comes before n is resampled together.
    statistic: of all samples and an `axis`.

  >>> low, high = resampled([np.arange(5.0)], np.mean)
  >>> round(float(low), 1), round(float(high), 1)
  (0.8, 3.2)
  """
  from scipy import stats

  # A sample of one cannot vary; SciPy asks for two.
  data = [np.repeat(x, 2, -1) if x.shape[-1] == 1 else x for x in samples]
  return stats.bootstrap(
    data, statistic, n_resamples=resamples, confidence_level=level, vectorized=True, axis=-1,
    method='percentile', random_state=np.random.default_rng(seed),
  ).confidence_interval  # fmt: skip


def _checked(values: Results) -> np.ndarray:
  x = np.asarray(values, np.float64)
  if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
    raise FewshotError(
      f'an interval is of finite numbers in a row, not of {x.size} in shape {list(x.shape)}; '
      'leave out runs without a result, and count them'
    )
  return x
