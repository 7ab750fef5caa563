"""Comparisons of results: paired tests, their correction, groups, equivalence to a number."""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from fewshot.errors import FewshotError, nearest
from fewshot.statistics.intervals import Results

SHUFFLES = 10_000
LEVEL = 0.05  # Of a test, after correction.
LETTERS = 'abcdefghijklmnopqrstuvwxyz'


class Paired(NamedTuple):
  """a - b on the same episodes, splits or items."""

  difference: float  # Of the means.
  spread: float  # Half the 95 % interval of the difference, 1.96 std / sqrt(n).
  p: float  # Two-sided.
  n: int


def paired(a: Results, b: Results, seed: int = 0, test: str = 'permutation') -> Paired:
  """Compares two results on the same n cases, by default by a permutation test of signs.

      permutation  p = (1 + #{s: |mean(s d)| >= |mean(d)|}) / (1 + 10,000),  s in {-1, 1}^n
      bootstrap    p = (1 + #{b: |mean(d_b) - mean(d)| >= |mean(d)|}) / (1 + 10,000)
      t            p = P(|T_{n - 1}| >= |mean(d)| sqrt(n) / std(d)),             d = a - b

  All 2^n signs are taken where they are no more than that.  The permutation test (Pitman 1937,
  doi:10.2307/2984124) holds its level whatever n is, but finds nothing where n < 6 (see `least`);
  the bootstrap (Efron and Tibshirani 1993, ISBN 0-412-04231-2, chapter 16) is for many cases; t
  takes differences for normal.

  Raises:
    FewshotError: the lengths differ, there is nothing to compare or no such test.

  >>> paired([1.0, 0.5, 0.75], [0.5, 0.25, 0.5]).p
  0.25
  """
  x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if x.shape != y.shape or x.ndim != 1 or not len(x):
    raise FewshotError(f'results of {x.size} and {y.size} cases cannot be paired; give the same')
  d = x - y
  n = len(d)
  spread = 1.96 * d.std(ddof=1) / n**0.5 if n > 1 else math.inf
  return Paired(float(d.mean()), float(spread), p_values([d], test, seed)[0], n)


def p_values(
  differences: Sequence[Results], test: str = 'permutation', seed: int = 0
) -> list[float]:
  """The p-values of several paired tests; those of as many cases share their random draws.

  Raises:
    FewshotError: there is no such test.

  >>> p_values([[1.0, 2.0, 3.0], [1.0, -1.0]])
  [0.25, 1.0]
  """
  if test not in TESTS:
    raise FewshotError(f'there is no paired test {test!r}; {nearest(test, TESTS)}')
  given = [np.asarray(d, np.float64) for d in differences]
  found = np.ones(len(given))
  for n in dict.fromkeys(len(d) for d in given):
    at = [i for i, d in enumerate(given) if len(d) == n]
    for some in (at[k : k + 1000] for k in range(0, len(at), 1000)):  # In parts, for memory.
      found[some] = TESTS[test](np.stack([given[i] for i in some], 1), seed)
  return [float(p) for p in found]


def _p_of_signs(d: np.ndarray, seed: int) -> np.ndarray:
  """Of each column of differences [n, m]."""
  n, observed = len(d), abs(d.sum(0)) - 1e-12 * len(d)
  if 2**n <= SHUFFLES:
    signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    return _beyond(signs @ d, observed) / 2**n
  rng = np.random.default_rng(seed)
  extreme = np.zeros(d.shape[1], int)
  for _ in range(10):  # In parts, for memory.
    signs = 1 - 2 * rng.integers(0, 2, (SHUFFLES // 10, n), np.int8)
    extreme += _beyond(signs @ d, observed)
  return (1 + extreme) / (1 + SHUFFLES)


def _p_of_resamples(d: np.ndarray, seed: int) -> np.ndarray:
  """Of each column of differences [n, m]: how far resampling moves a mean, against the mean."""
  n, observed = len(d), abs(d.sum(0)) - 1e-12 * len(d)
  rng, centred = np.random.default_rng(seed), d - d.mean(0)
  extreme = np.zeros(d.shape[1], int)
  for _ in range(10):
    times = rng.multinomial(n, np.full(n, 1 / n), SHUFFLES // 10)  # How often each case is drawn.
    extreme += _beyond(times @ centred, observed)
  return (1 + extreme) / (1 + SHUFFLES)


def _beyond(sums: np.ndarray, observed: np.ndarray) -> np.ndarray:
  """How many of the sums [draws, m] are at least as far from 0 as what was observed [m]."""
  return np.count_nonzero(np.abs(sums, out=sums) >= observed, axis=0)


def _p_of_t(d: np.ndarray, seed: int) -> np.ndarray:
  """Of each column of differences [n, m]; 1 where there is one case or no difference at all.

  Differences that are all the same, as one test item makes them, have no spread to be held against:
  they say what their n signs say.
  """
  from scipy.special import stdtr

  del seed
  n, mean = len(d), abs(d.mean(0))
  if n < 2:
    return np.ones(d.shape[1])
  error = d.std(0, ddof=1) / n**0.5
  t = np.divide(mean, error, out=np.zeros_like(mean), where=error > 1e-12)
  same = np.where(mean > 1e-12, 2.0 ** (1 - n), 1.0)
  return np.where(error > 1e-12, 2 * stdtr(n - 1, -t), same)


TESTS = {'permutation': _p_of_signs, 'bootstrap': _p_of_resamples, 't': _p_of_t}


def least(n: int, test: str = 'permutation') -> float:
  """The smallest p that a test of n pairs can give: five splits show no difference at 0.05.

  >>> least(5), least(6), least(5, 't')
  (0.0625, 0.03125, 0.0)
  """
  if test == 't':
    return 0.0 if n > 1 else 1.0
  return 2 / 2**n if 2**n <= SHUFFLES and test == 'permutation' else 1 / (1 + SHUFFLES)


def mcnemar(only_a: int, only_b: int) -> float:
  """p that two classifiers are right equally often on the same items, exact (McNemar 1947,
  doi:10.1007/BF02295996).

      p = min(1, 2 P(X <= min(b, c))),   X ~ Binomial(b + c, 1 / 2)

  It is about other items and these two trained models, not about other splits.

  Args:
    only_a: how many items a alone got right, b above.
    only_b: how many b alone, c above.

  >>> mcnemar(1, 9)
  0.021484375
  """
  if only_a < 0 or only_b < 0:
    raise FewshotError(f'{only_a} and {only_b} are no counts of items')
  from scipy.special import bdtr

  n = only_a + only_b
  return min(1.0, 2 * float(bdtr(min(only_a, only_b), n, 0.5))) if n else 1.0


def holm(ps: Sequence[float]) -> list[float]:
  """p-values corrected for how many there are (Holm 1979, doi:10.2307/4615733).

      p'_(i) = max_{j <= i} min(1, (m - j + 1) p_(j))

  >>> holm([0.01, 0.04, 0.03])
  [0.03, 0.06, 0.06]
  """
  order = np.argsort(ps, kind='stable')
  factors = len(ps) - np.arange(len(ps))
  rising = np.maximum.accumulate(np.minimum(1.0, np.asarray(ps, np.float64)[order] * factors))
  corrected = np.empty(len(ps))
  corrected[order] = rising
  return [float(p) for p in corrected]


def letters(n: int, apart: Collection[tuple[int, int]]) -> list[str]:
  """What cannot be told apart shares a letter: a compact letter display, by insertion and
  absorption (Piepho 2004, doi:10.1198/1061860043515).

      i and j share a letter  <=>  the pair (i, j) is not in `apart`

  Args:
    n: how many rows; the best comes first, and so has an a.
    apart: the pairs of rows that differ after correction.

  >>> letters(3, [(0, 2)])
  ['a', 'ab', 'b']
  """
  groups = [frozenset(range(n))]
  for pair in apart:
    hit = [g for g in groups if g.issuperset(pair)]
    groups = [g for g in groups if not g.issuperset(pair)]
    for part in dict.fromkeys(g - {i} for g in hit for i in pair):
      if not any(part <= other for other in groups):
        groups = [*(g for g in groups if not g < part), part]
  marks = [''] * n
  for i, group in enumerate(sorted(groups, key=sorted)):
    for row in group:
      marks[row] += LETTERS[i % 26] + "'" * (i // 26)
  return marks


class Equivalence(NamedTuple):
  """A measured mean beside a published one."""

  difference: float
  p: float  # Of the larger of the two one-sided tests.
  verdict: str  # 'reproduced' or 'different'.


def equivalence(value: float, error: float, published: float, margin: float) -> Equivalence:
  """Two one-sided tests, TOST (Schuirmann 1987, doi:10.1007/BF01068419), at level 0.05.

      p = max(Phi((d - m) / e), Phi((-d - m) / e)),   d = value - published

  A difference that is beyond the margin m or not safely within it is not reproduced.

  Args:
    error: the standard error of `value`; that of the published number is seldom known, so 0.

  >>> equivalence(0.985, 0.001, 0.988, 0.01).verdict
  'reproduced'
  >>> equivalence(0.97, 0.001, 0.988, 0.01).verdict
  'different'
  """
  if error < 0 or margin <= 0:
    raise FewshotError(f'error={error} is at least 0 and margin={margin} above 0')
  d = value - published
  phi = lambda x: 0.5 * (1 + math.erf(x / 2**0.5))  # noqa: E731
  tests = [(d - margin), (-d - margin)]
  p = max(phi(t / error) if error else float(t >= 0) for t in tests)
  return Equivalence(d, p, 'reproduced' if p < 0.05 else 'different')
