"""Statistics of results: intervals, paired tests, aggregates over tasks, budgets of tuning.

What needs numpy alone imports nothing else; SciPy is imported where it is called.
`python -m fewshot.statistics.simulation` says what each interval covers and each test mistakes.
"""

from fewshot.statistics.aggregates import aggregate, improvement, iqm, profile
from fewshot.statistics.comparisons import (
  LEVEL,
  SHUFFLES,
  TESTS,
  Equivalence,
  Paired,
  equivalence,
  holm,
  least,
  letters,
  mcnemar,
  p_values,
  paired,
)
from fewshot.statistics.intervals import Interval, bootstrap, proportion, student
from fewshot.statistics.tuning import best_of

__all__ = [
  'LEVEL', 'SHUFFLES', 'TESTS', 'Equivalence', 'Interval', 'Paired', 'aggregate', 'best_of',
  'bootstrap', 'equivalence', 'holm', 'improvement', 'iqm', 'least', 'letters', 'mcnemar',
  'p_values', 'paired', 'profile', 'proportion', 'student',
]  # fmt: skip
