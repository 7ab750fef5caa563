"""Rows of fewshot/methods/conditioning.py."""

from tests.laws.case import Case

CASES = (
  Case('label_conditioning(((7,), (9, 12), (3, 4, 5)), 2)', 0, merges=False, on=('bert-mlm',)),
)
