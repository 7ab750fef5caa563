"""Rows of fewshot/methods/lowrank.py."""

from tests.laws.case import DEPTH, Case, D

CASES = (Case('lora(rank=2)', DEPTH * 2 * 2 * (D + D)),)
