"""What intervals cover and how often tests err, on simulated results whose truth is known.

python -m fewshot.statistics.simulation             # the table, in a minute
python -m fewshot.statistics.simulation --write     # and into docs/tables.md
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fewshot import records, statistics

PAGE = Path(__file__).parents[2] / 'docs' / 'tables.md'
BEGIN, END = '<!-- simulation: begin -->', '<!-- simulation: end -->'
Draw = Callable[[np.random.Generator, int], np.ndarray]


class Case(NamedTuple):
  """A statistic on simulated results: `hits` [trials] is what is counted."""

  kind: str  # 'interval': it covers the truth; 'test': it rejects though there is no difference.
  name: str
  setting: str
  hits: Callable[[np.random.Generator, int], np.ndarray]
  power: Callable[[np.random.Generator, int], np.ndarray] | None = None
  effect: str = ''  # For which `power` is.
  share: int = 1  # Slow ones have so many times fewer trials.
  level: float = 0.05  # Of a test.


class Row(NamedTuple):
  """What came of a case."""

  kind: str
  name: str
  setting: str
  nominal: float
  achieved: float
  error: float  # The standard error of `achieved`, if it were nominal.
  power: float | None
  effect: str
  trials: int


def run(cases: Iterable[Case], trials: int, seed: int = 0) -> list[Row]:
  """Simulates each case; a case draws the same numbers whichever others there are.

  >>> (row,) = run([CASES[0]], 50)
  >>> row.name, row.nominal, 0.8 < row.achieved <= 1, row.trials
  ('t', 0.95, True, 50)
  """
  found = []
  for case in cases:
    n = max(1, trials // case.share)
    key = [seed, *f'{case.name} {case.setting}'.encode()]
    nominal = 0.95 if case.kind == 'interval' else case.level
    power = case.power(np.random.default_rng([*key, 1]), n) if case.power else None
    hits = case.hits(np.random.default_rng(key), n)
    error = (nominal * (1 - nominal) / n) ** 0.5
    found.append(
      Row(case.kind, case.name, case.setting, nominal, float(np.mean(hits)), error,
          None if power is None else float(np.mean(power)), case.effect, n)
    )  # fmt: skip
  return found


def episodes(rng: np.random.Generator, trials: int, n: int = 600) -> np.ndarray:
  """Accuracies of n episodes of 75 queries whose difficulty differs; the true mean is 0.8."""
  return rng.binomial(75, rng.beta(16, 4, (trials, n))) / 75


def splits(rng: np.random.Generator, trials: int, n: int = 5) -> np.ndarray:
  """Accuracies on n splits, normal; the true mean is 0.7."""
  return rng.normal(0.7, 0.05, (trials, n))


def collapsing(rng: np.random.Generator, trials: int, n: int = 5) -> np.ndarray:
  """As `splits`, but one run in ten gives one class for all of six: 0.9 x 0.7 + 0.1 / 6."""
  x = rng.normal(0.7, 0.05, (trials, n))
  return np.where(rng.random(x.shape) < 0.1, 1 / 6, x)


def twice(rng: np.random.Generator, trials: int, n: int, gain: float) -> np.ndarray:
  """Differences [trials, n] of two methods on the same splits, hard and easy ones alike."""
  a, b = rng.normal(0.7, 0.03, (2, trials, n)) + rng.normal(0, 0.05, (trials, n))
  return a + gain - b


def contests(rng: np.random.Generator, trials: int, gain: float) -> np.ndarray:
  """Differences [trials, 600] of two learners on the same episodes, in steps of 1/75."""
  easy = rng.beta(16, 4, (trials, 600))
  return (rng.binomial(75, np.minimum(1, easy + gain)) - rng.binomial(75, easy)) / 75


def _covers(
  interval: Callable[[np.ndarray], statistics.Interval], draw: Draw, truth: float
) -> Callable[[np.random.Generator, int], np.ndarray]:
  def hits(rng: np.random.Generator, trials: int) -> np.ndarray:
    found = [interval(x) for x in draw(rng, trials)]
    return np.array([i.low <= truth <= i.high for i in found])

  return hits


def _rejects(test: str, draw: Draw) -> Callable[[np.random.Generator, int], np.ndarray]:
  return lambda rng, trials: np.array(statistics.p_values(list(draw(rng, trials)), test)) < 0.05


def _normal(x: np.ndarray) -> statistics.Interval:
  half = 1.96 * x.std(ddof=1) / len(x) ** 0.5
  return statistics.Interval(x.mean(), x.mean() - half, x.mean() + half, len(x))


def _wilson(x: np.ndarray) -> statistics.Interval:
  return statistics.proportion(int(x.sum()), len(x))


def _strata(rng: np.random.Generator, trials: int, runs: int = 10) -> np.ndarray:
  """[trials, runs, 4] accuracies on four tasks of different difficulty."""
  return rng.normal([0.5, 0.6, 0.8, 0.9], 0.05, (trials, runs, 4))


def _duels(rng: np.random.Generator, trials: int) -> np.ndarray:
  """[trials, 2, 10, 2]: runs of two methods on two tasks; the first is better by one std."""
  x = rng.normal(0.7, 0.05, (trials, 2, 10, 2))
  x[:, 0] += 0.05
  return x


def _answers(rng: np.random.Generator, trials: int, gain: float) -> np.ndarray:
  """[trials, 2]: items, of 300, that only the first and only the second of two got right."""
  hard = rng.random((trials, 300)) < 0.5  # Items on which the two are alike.
  right = rng.random((2, trials, 300)) < np.array([0.7 + 2 * gain, 0.7])[:, None, None]
  a, b = right & ~hard
  return np.stack([(a & ~b).sum(1), (b & ~a).sum(1)], 1)


def _mcnemar(gain: float, rng: np.random.Generator, trials: int) -> np.ndarray:
  return np.array([statistics.mcnemar(*map(int, x)) < 0.05 for x in _answers(rng, trials, gain)])


def _family(
  pairs: str, test: str, n: int, gain: float, rng: np.random.Generator, trials: int
) -> np.ndarray:
  """Whether any of nine equal methods is told from another; with a gain, the first from the last.

  Args:
    pairs: 'all', or 'best' for the best mean against each of the others.
  """
  x = rng.normal(0.7, 0.03, (trials, 9, n)) + rng.normal(0, 0.05, (trials, 1, n))
  x[:, 0] += gain
  found = []
  for methods in x:
    order = np.argsort(-methods.mean(1))
    chosen = list(combinations(order, 2)) if pairs == 'all' else [(order[0], i) for i in order[1:]]
    ps = statistics.holm(statistics.p_values([methods[i] - methods[j] for i, j in chosen], test))
    rejected = {frozenset(map(int, pair)) for pair, p in zip(chosen, ps, strict=True) if p < 0.05}
    found.append(bool(rejected) if not gain else frozenset({0, 8}) in rejected)
  return np.array(found)


def _equivalent(distance: float, rng: np.random.Generator, trials: int) -> np.ndarray:
  means = 98.8 - distance + 0.2 * rng.normal(size=trials)
  return np.array(
    [statistics.equivalence(m, 0.2, 98.8, 1.0).verdict == 'reproduced' for m in means]
  )


def _mean_intervals() -> list[Case]:
  resampling = lambda x: statistics.bootstrap([x], resamples=1000)  # noqa: E731
  crash = 0.9 * 0.7 + 0.1 / 6
  cases = [
    Case('interval', 't', '600 episodes', _covers(statistics.student, episodes, 0.8)),
    Case('interval', '1.96 std / sqrt(n)', '600 episodes', _covers(_normal, episodes, 0.8)),
  ]
  for n in (5, 20):
    draw, bad = partial(splits, n=n), partial(collapsing, n=n)
    cases += [
      Case('interval', 't', f'{n} splits', _covers(statistics.student, draw, 0.7)),
      Case('interval', '1.96 std / sqrt(n)', f'{n} splits', _covers(_normal, draw, 0.7)),
      Case('interval', 'bootstrap', f'{n} splits', _covers(resampling, draw, 0.7), share=4),
      Case('interval', 't', f'{n} splits, 1 in 10 collapses',
           _covers(statistics.student, bad, crash)),
      Case('interval', 'bootstrap', f'{n} splits, 1 in 10 collapses',
           _covers(resampling, bad, crash), share=4),
    ]  # fmt: skip
  for p in (0.7, 0.97):
    items = lambda rng, trials, p=p: rng.random((trials, 300)) < p  # noqa: E731
    setting = f'300 items, {p:.0%} right'
    cases.append(Case('interval', 'Wilson', setting, _covers(_wilson, items, p)))
  return cases


def _task_intervals() -> list[Case]:
  strata = lambda x: statistics.bootstrap(list(x.T), resamples=1000)  # noqa: E731
  # The tasks lie evenly about 0.7, and so does the middle half of their runs.
  iqm = lambda x: statistics.aggregate(x, 'iqm', resamples=1000)  # noqa: E731
  duel = lambda x: statistics.improvement(x[0], x[1], resamples=1000)  # noqa: E731
  setting = '4 tasks x 10 runs'
  return [
    Case('interval', 'bootstrap, stratified', setting, _covers(strata, _strata, 0.7), share=4),
    Case('interval', 'IQM', setting, _covers(iqm, _strata, 0.7), share=4),
    Case('interval', 'performance profile at 0.6', setting,
         _covers(_profile, _strata, _above(0.6)), share=4),
    Case('interval', 'probability of improvement', '2 tasks x 10 runs',
         _covers(duel, _duels, _phi(1 / 2**0.5)), share=4),
  ]  # fmt: skip


def _profile(x: np.ndarray) -> statistics.Interval:
  curve, low, high = statistics.profile(x, [0.6], 1000)
  return statistics.Interval(float(curve[0]), float(low[0]), float(high[0]), x.size)


def _phi(x: float) -> float:
  from scipy.special import ndtr

  return float(ndtr(x))


def _above(tau: float) -> float:
  """The share of runs of `_strata` above tau."""
  return float(np.mean([_phi((m - tau) / 0.05) for m in (0.5, 0.6, 0.8, 0.9)]))


def _tests() -> list[Case]:
  cases = []
  for n, gain in ((5, 0.08), (10, 0.04), (40, 0.02)):
    null, found = partial(twice, n=n, gain=0.0), partial(twice, n=n, gain=gain)
    for test in statistics.TESTS:
      cases.append(
        Case('test', f'paired {test}', f'{n} splits', _rejects(test, null),
             _rejects(test, found), f'{100 * gain:g} points')
      )  # fmt: skip
  for test in statistics.TESTS:
    cases.append(
      Case('test', f'paired {test}', '600 episodes', _rejects(test, partial(contests, gain=0.0)),
           _rejects(test, partial(contests, gain=0.005)), '0.5 points', share=4)
    )  # fmt: skip
  cases.append(
    Case('test', 'McNemar, exact', '300 items', partial(_mcnemar, 0.0), partial(_mcnemar, 0.05),
         '5 points')
  )  # fmt: skip
  return cases


def _families() -> list[Case]:
  cases = []
  for pairs, what in (('all', 'all 36 pairs'), ('best', 'the best against 8')):
    for test, n in (('permutation', 20), ('t', 5)):
      cases.append(
        Case('test', f'paired {test}, Holm, {what}', f'9 methods, {n} splits, any pair',
             partial(_family, pairs, test, n, 0.0), partial(_family, pairs, test, n, 0.1),
             '10 points', share=10 if n > 5 else 2)
      )  # fmt: skip
  cases.append(
    Case('test', 'equivalence (TOST)', 'at the margin, error 0.2 of it',
         partial(_equivalent, 1.0), partial(_equivalent, 0.0), 'no difference')
  )  # fmt: skip
  return cases


CASES = [*_mean_intervals(), *_task_intervals(), *_tests(), *_families()]


def best_of_bias(trials: int, seed: int = 0) -> tuple[float, float]:
  """The true mean of the best of 5 trials, uniform in [0, 1], and that told from 20 of them.

  >>> truth, told = best_of_bias(200)
  >>> round(truth, 4), told < truth
  (0.8333, True)
  """
  draws = np.random.default_rng(seed).random((trials, 20))
  return 5 / 6, float(np.mean([statistics.best_of(x, [5])[0] for x in draws]))


def markdown(rows: Sequence[Row]) -> str:
  """Two tables: intervals by what they cover, tests by how often they err and find."""
  shown = lambda r: f'{100 * r.achieved:.1f} ± {100 * r.error:.1f} %'  # noqa: E731
  lines = [
    '| interval | results | nominal | covers | trials |',
    '| --- | --- | ---: | ---: | ---: |',
  ]
  for r in rows:
    if r.kind == 'interval':
      lines.append(f'| {r.name} | {r.setting} | 95 % | {shown(r)} | {r.trials:,} |')
  lines += [
    '', '| test | results | level | errs | finds | what is there | trials |',
    '| --- | --- | ---: | ---: | ---: | --- | ---: |',
  ]  # fmt: skip
  for r in rows:
    if r.kind == 'test':
      power = '–' if r.power is None else f'{100 * r.power:.0f} %'
      lines.append(
        f'| {r.name} | {r.setting} | {100 * r.nominal:g} % | {shown(r)} | {power} | '
        f'{r.effect} | {r.trials:,} |'
      )
  return '\n'.join(lines)


def section(trials: int) -> str:
  """What stands in docs/tables.md: the tables and how they came about."""
  truth, told = best_of_bias(trials)
  return '\n'.join([
    f'Made by `python -m fewshot.statistics.simulation --write` ({trials:,} trials, slow ones '
    'fewer); ± is the standard error that the nominal rate has at so many trials.',
    '', markdown(run(CASES, trials)), '',
    f'`best_of`: the best of 5 trials is worth {truth:.4f}; told from 20 of them, {told:.4f} on '
    'average.',
  ])  # fmt: skip


def main() -> None:
  """Prints the tables."""
  parser = argparse.ArgumentParser(prog='python -m fewshot.statistics.simulation')
  parser.add_argument('--trials', type=int, default=2000, help='of each case (default 2000)')
  parser.add_argument('--write', action='store_true', help='write them into docs/tables.md')
  parser.add_argument('--json', action='store_true', help='print one JSON value')
  args = parser.parse_args()
  if args.json:
    print(json.dumps([row._asdict() for row in run(CASES, args.trials)]))
    return
  text = section(args.trials)
  print(text)
  if args.write:
    page = PAGE.read_text(encoding='utf-8')
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    records.replace(PAGE, f'{before}{BEGIN}\n{text}\n{END}{after}'.encode())


if __name__ == '__main__':
  main()
