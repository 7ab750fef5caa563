"""Rows of fewshot/methods/lora_more.py."""

from tests.laws.case import DEPTH, Case, D

SITES = DEPTH * 2  # Queries and values.

CASES = (
  Case('adalora(init_r=3, target_r=2)', SITES * 3 * (D + D + 1)),
  Case('roselora(rank=2)', SITES * 2 * (D + D)),
)
