"""Rows of fewshot/methods/adapters.py."""

from tests.laws.case import DEPTH, Case, D

CASES = (Case('adapter(width=4)', DEPTH * 2 * (2 * 4 * D + 4 + D), merges=False),)
