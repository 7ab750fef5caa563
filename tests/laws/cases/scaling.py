"""Rows of fewshot/methods/scaling.py."""

from tests.laws.case import DEPTH, WIDTH, Case, D

CASES = (Case('ia3()', DEPTH * (D + D + WIDTH)),)
