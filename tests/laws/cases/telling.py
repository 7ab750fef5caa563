"""Rows of fewshot/methods/telling.py."""

from tests.laws.case import Case

CASES = (Case('explained((3, 7, 5))', 0, merges=False, on=('t5',)),)
