"""Rows of fewshot/methods/subspace.py."""

from tests.laws.case import EVERYWHERE, Case

CASES = (
  Case('intrinsic_dimension(dim=20)', 20, on=EVERYWHERE),
  Case("intrinsic_dimension(dim=40, where='.*/kernel', form='said')", 40, on=EVERYWHERE),
)
