"""What tuning is worth: the expected result of the best of n trials."""

from collections.abc import Sequence

import numpy as np

from fewshot.errors import FewshotError
from fewshot.statistics.intervals import Results


def best_of(dev: Results, budgets: Sequence[int], test: Results | None = None) -> list[float]:
  """What the best of n random trials is expected to give, for each n (Dodge et al. 2019,
  arXiv:1909.03004).

      E[V_n] = Σ_v v (P(V <= v)^n - P(V < v)^n),   P the empirical law of the N trials

  With `test`, the trial is chosen by `dev` and its test result is what counts; equal dev results
  share their weight.  The estimate lies below the truth for n near N, yet has a smaller squared
  error than the unbiased one (Dodge et al. 2021, arXiv:2110.00613).  Methods are compared at the
  same n: that is an equal budget.

  Raises:
    FewshotError: there is no trial, `test` is not one result a trial, or a budget is below 1 or
      above the number of trials.

  >>> best_of([1, 2, 3, 4], [1, 2, 4])
  [2.5, 3.125, 3.6171875]
  >>> best_of([0.1, 0.2], [2], test=[0.8, 0.4])
  [0.5]
  """
  d = np.asarray(dev, np.float64)
  t = d if test is None else np.asarray(test, np.float64)
  if d.ndim != 1 or not len(d) or t.shape != d.shape or not np.isfinite([d, t]).all():
    raise FewshotError(f'{d.size} dev and {t.size} test results are no trials; give one of each')
  if bad := [n for n in budgets if not 1 <= n <= len(d)]:
    raise FewshotError(f'the best of {bad[0]} cannot be told from {len(d)} trials; give 1 to that')
  _, group = np.unique(d, return_inverse=True)
  upto = np.cumsum(np.bincount(group)) / len(d)
  means = np.bincount(group, t) / np.bincount(group)
  powers = [np.diff(upto**n, prepend=0.0) for n in budgets]
  return [float(p @ means) for p in powers]
