"""Rows of fewshot/methods/calibration.py."""

from tests.laws.case import Case

CASES = (Case('calibrated(((7, 9), (4,)))', 0, merges=False, on=('gpt2', 'bert', 'bert-mlm')),)
