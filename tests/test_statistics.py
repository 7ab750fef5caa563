"""Paired tests hold their error rate and find what is there; equivalence needs more than a miss.

Estimators are those of SciPy and rliable, or of a count of all cases.
"""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot import statistics
from fewshot.errors import FewshotError
from fewshot.statistics import equivalence, holm, letters, paired, simulation


def test_paired_by_hand():
  result = paired([1.0, 0.5, 0.75, 1.0], [0.5, 0.25, 0.5, 0.5])
  assert result.difference == pytest.approx(0.375)
  # All differences are positive: of 16 signs only two are as extreme.
  assert result.p == pytest.approx(2 / 16)
  assert result.spread == pytest.approx(1.96 * np.std([0.5, 0.25, 0.25, 0.5], ddof=1) / 2)


def test_paired_error_rate_and_power():
  rng = np.random.default_rng(0)
  null, found = 0, 0
  for _ in range(200):
    easy = rng.normal(size=40)  # Hard and easy episodes are shared.
    a, b = easy + 0.3 * rng.normal(size=40), easy + 0.3 * rng.normal(size=40)
    null += paired(a, b).p < 0.05
    found += paired(a + 0.2, b).p < 0.05
  assert 2 <= null <= 20  # 10 expected.
  assert found > 150


def test_paired_refuses_other_lengths():
  with pytest.raises(FewshotError, match='3 and 2 cases'):
    paired([1, 2, 3], [1, 2])


def test_holm_is_monotone_and_at_least_the_largest_single_one():
  ps = [0.04, 0.001, 0.5, 0.02]
  corrected = holm(ps)
  assert corrected == pytest.approx([0.08, 0.004, 0.5, 0.06])
  assert holm([]) == []


def test_equivalence_needs_precision():
  assert equivalence(98.5, 0.1, 98.8, 1.0).verdict == 'reproduced'
  assert equivalence(98.5, 0.9, 98.8, 1.0).verdict == 'different'  # Within, but not safely.
  assert equivalence(97.0, 0.1, 98.8, 1.0).verdict == 'different'
  assert equivalence(97.8, 0.0, 98.8, 1.0).verdict == 'different'  # At the margin.


def test_equivalence_error_rate_at_the_margin():
  rng = np.random.default_rng(1)
  means = 98.8 - 1.0 + 0.2 * rng.normal(size=2000)
  accepted = np.mean([equivalence(m, 0.2, 98.8, 1.0).verdict == 'reproduced' for m in means])
  assert 0.03 < accepted < 0.07


def test_equivalence_refuses_no_margin():
  with pytest.raises(FewshotError, match='margin=0'):
    equivalence(1.0, 0.1, 1.0, 0)


def test_nothing_heavy_is_imported_with_it():
  said = 'import sys, fewshot.statistics; print({"scipy", "rliable", "jax"} & {*sys.modules})'
  done = subprocess.run([sys.executable, '-c', said], capture_output=True, text=True, check=True)
  assert done.stdout == 'set()\n'


def test_student_by_hand():
  found = statistics.student([0.5, 0.6, 0.7])
  half = 4.302653 * 0.1 / 3**0.5  # t of two degrees of freedom; the std is 0.1.
  assert found == pytest.approx((0.6, 0.6 - half, 0.6 + half, 3), abs=1e-6)
  assert statistics.student([0.5])[1:3] == (-np.inf, np.inf)


def test_a_proportion_is_that_of_scipy():
  from scipy.stats import binomtest

  for right, n in ((0, 10), (7, 10), (291, 300)):
    theirs = binomtest(right, n).proportion_ci(method='wilson')
    assert statistics.proportion(right, n)[1:3] == pytest.approx(tuple(theirs))


def test_the_bootstrap_resamples_within_strata():
  x, y = np.arange(12.0), 100 + np.arange(6.0)
  rng = np.random.default_rng(1)
  means = [(rng.choice(x, 12).mean() + rng.choice(y, 6).mean()) / 2 for _ in range(4000)]
  found = statistics.bootstrap([x, y], resamples=4000)
  assert found.value == pytest.approx((5.5 + 102.5) / 2) and found.n == 18
  assert found[1:3] == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.1)
  # A stratum of one result, or of equal ones, adds a constant.
  alone = statistics.bootstrap([x, [7.0]])
  assert alone[:3] == pytest.approx([(v + 7) / 2 for v in statistics.bootstrap([x])[:3]], abs=0.1)
  assert statistics.bootstrap([[0.5, 0.5]])[:3] == (0.5, 0.5, 0.5)
  assert statistics.bootstrap([x, y]) == statistics.bootstrap([x, y])


@pytest.mark.parametrize('shape', [(3, 2), (10, 4), (5, 1)])
def test_aggregates_are_those_of_rliable(shape):
  from rliable import metrics

  rng = np.random.default_rng(0)
  a, b = np.round(rng.random((2, *shape)), 1)  # With ties.
  for what in ('iqm', 'mean', 'median'):
    found = statistics.aggregate(a, what, resamples=50)
    assert found.value == pytest.approx(getattr(metrics, f'aggregate_{what}')(a))
  wins = statistics.improvement(a, b, resamples=50)
  assert wins.value == pytest.approx(metrics.probability_of_improvement(a, b))
  assert 0 <= wins.low <= wins.value <= wins.high <= 1
  assert statistics.improvement(b, a, resamples=50).value == pytest.approx(1 - wins.value)
  curve, low, high = statistics.profile(a, [0.25, 0.75], resamples=50)
  assert curve == pytest.approx([(a > 0.25).mean(), (a > 0.75).mean()])
  assert (low <= curve).all() and (curve <= high).all()


def test_paired_tests_are_those_of_scipy():
  from scipy import stats

  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 9)) + np.array([[0.5], [0.0]])
  assert paired(a, b, test='t').p == pytest.approx(stats.ttest_rel(a, b).pvalue)
  exact = stats.permutation_test(
    (a, b), lambda x, y: np.mean(x - y), permutation_type='samples', n_resamples=np.inf
  )
  assert paired(a, b).p == pytest.approx(exact.pvalue)
  assert statistics.mcnemar(3, 12) == pytest.approx(stats.binomtest(3, 15).pvalue)
  assert statistics.mcnemar(0, 0) == 1 and statistics.mcnemar(4, 4) == 1


def test_the_bootstrap_test_moves_the_mean_to_zero():
  d = np.random.default_rng(0).normal(0.1, 1.0, 400)
  z = abs(d.mean()) / (d.std() / 20)
  from scipy.stats import norm

  assert statistics.p_values([d], 'bootstrap')[0] == pytest.approx(2 * norm.sf(z), abs=0.02)


@pytest.mark.parametrize('test', list(statistics.TESTS))
def test_several_tests_give_what_each_gives_alone(test):
  rng = np.random.default_rng(0)
  many = [rng.normal(0.3, 1, n) for n in (5, 30, 5, 30, 1)]
  alone = [statistics.p_values([d], test)[0] for d in many]
  assert statistics.p_values(many, test) == pytest.approx(alone, abs=1e-12)
  assert statistics.p_values([np.zeros(30)], test) == [1.0]


def test_five_splits_show_nothing_by_signs():
  assert paired(np.arange(5) + 1.0, np.zeros(5)).p == statistics.least(5) == 2 / 32
  assert statistics.least(20) == 1 / 10_001


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7).flatmap(lambda n: st.tuples(
  st.just(n), st.sets(st.sampled_from([*itertools.combinations(range(n), 2)] or [(0, 1)]))
)))  # fmt: skip
def test_two_share_a_letter_where_they_are_not_apart(case):
  n, apart = case
  marks = letters(n, [pair for pair in apart if max(pair) < n])
  assert all(marks) and 'a' in marks[0]
  for i, j in itertools.combinations(range(n), 2):
    assert bool(set(marks[i]) & set(marks[j])) == ((i, j) not in apart)


def test_the_best_of_n_is_the_mean_over_all_draws():
  dev, test = [0.2, 0.4, 0.4, 0.9], [0.5, 0.1, 0.3, 0.2]
  for n in (1, 2, 3):
    draws = list(itertools.product(range(4), repeat=n))
    top = [max(dev[i] for i in draw) for draw in draws]
    assert statistics.best_of(dev, [n]) == pytest.approx([np.mean(top)])
    # The test result of what dev chose, ties shared.
    mean = {0.2: 0.5, 0.4: 0.2, 0.9: 0.2}
    assert statistics.best_of(dev, [n], test) == pytest.approx([np.mean([mean[t] for t in top])])


@pytest.mark.parametrize(
  ('call', 'said'),
  [
    (lambda: statistics.student([]), 'of finite numbers in a row, not of 0'),
    (lambda: statistics.student([0.5, np.nan]), 'leave out runs without a result'),
    (lambda: statistics.bootstrap([[0.5], [0.6]]), '2 results of 2 strata leave nothing'),
    (lambda: statistics.proportion(5, 4), '5 of 4 items'),
    (lambda: statistics.iqm([]), 'no result to take'),
    (lambda: statistics.aggregate([[0.5]], 'iqn'), "did you mean 'iqm'"),
    (lambda: statistics.aggregate([0.5]), r'not 1 in shape \[1\]'),
    (lambda: statistics.improvement([[0.5]], [[0.5, 0.6]]), '1 and 2 tasks'),
    (lambda: statistics.paired([1.0], [2.0], test='z'), "no paired test 'z'"),
    (lambda: statistics.mcnemar(-1, 2), '-1 and 2 are no counts'),
    (lambda: statistics.best_of([0.1, 0.2], [3]), 'best of 3 cannot be told from 2 trials'),
    (lambda: statistics.best_of([0.1], [1], [0.1, 0.2]), '1 dev and 2 test results'),
  ],
)
def test_what_cannot_be_computed_is_said(call, said):
  with pytest.raises(FewshotError, match=said):
    call()


def test_simulated_rates_are_nominal_where_they_should_be():
  """Six standard errors: a wrong quantile or a lost tail is beyond, chance is not."""
  exact = ('t', 'Wilson', 'paired permutation', 'paired t', 'equivalence (TOST)')
  cases = [c for c in simulation.CASES if c.name in exact and 'collapses' not in c.setting]
  rows = simulation.run([c for c in cases if 'episodes' not in c.setting], 400)
  assert len(rows) == 11
  for row in rows:
    if row.setting == '5 splits' and row.name == 'paired permutation':
      assert row.achieved == row.power == 0  # It cannot.
    else:
      assert abs(row.achieved - row.nominal) < 6 * row.error, row
      assert row.power is None or row.power > 0.4, row


def test_simulation_shows_what_does_not_hold():
  wanted = {('1.96 std / sqrt(n)', '5 splits'), ('t', '5 splits, 1 in 10 collapses'),
            ('paired bootstrap', '5 splits')}  # fmt: skip
  rows = simulation.run([c for c in simulation.CASES if (c.name, c.setting) in wanted], 400)
  assert len(rows) == 3
  assert all(abs(row.achieved - row.nominal) > 4 * row.error for row in rows)


def test_the_page_has_every_case_of_the_simulation():
  page = simulation.PAGE.read_text(encoding='utf-8')
  inside = page.split(simulation.BEGIN)[1].split(simulation.END)[0]
  for case in simulation.CASES:
    assert f'| {case.name} | {case.setting} |' in inside
  rows = simulation.run([simulation.CASES[0]], 20)
  assert simulation.markdown(rows).splitlines()[2].startswith('| t | 600 episodes | 95 % |')
