"""Rows of fewshot/methods/zeroshot.py."""

from tests.laws.case import Case

CASES = (Case('class_texts(((3, 5, 7), (2, 6), (4, 9, 8, 1)))', 0, merges=False, on=('clip',)),)
