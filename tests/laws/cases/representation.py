"""Rows of fewshot/methods/representation.py."""

from tests.laws.case import DEPTH, Case, D

CASES = (
  Case('loreft(rank=2)', DEPTH * (2 * 2 * D + 2), merges=False),
  Case('loreft(rank=2, first=1, last=2)', DEPTH * (2 * 2 * D + 2), merges=False),
  Case('red()', DEPTH * 2 * D),
  Case('lofit()', DEPTH * D),
  Case('bias_steering()', DEPTH * D, merges=False),
  Case(
    'bias_steering(alpha=0.5)',
    DEPTH * D,
    merges=False,
    starts=False,
    why='the difference of two classes is added at the start',
  ),
)
