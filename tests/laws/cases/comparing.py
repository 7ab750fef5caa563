"""Rows of fewshot/methods/comparing.py."""

from tests.laws.case import EVERYWHERE, Case

CASES = (
  Case('neighbours(k=3)', 0, merges=False, on=EVERYWHERE),
  Case(
    'unit_features()',
    0,
    merges=False,
    starts=False,
    on=EVERYWHERE,
    why='The features are brought to length 1.',
  ),
)
