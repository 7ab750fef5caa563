"""Rows of fewshot/methods/heads.py."""

from tests.laws.case import EVERYWHERE, HEAD, Case

CASES = (
  Case('linear()', HEAD, on=EVERYWHERE),
  Case('nearest_mean()', 0, merges=False, on=EVERYWHERE),
)
