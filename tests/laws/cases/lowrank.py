"""Rows of fewshot/methods/lowrank.py."""

from tests.laws.case import DEPTH, Case, D

PAIR = DEPTH * 2 * 2 * (D + D)  # Of rank 2, at queries and values.

CASES = (
  Case('lora(rank=2)', PAIR),
  Case("lora(rank=2, init='pissa')", PAIR),
  Case("lora(rank=2, init='corda_instruction')", PAIR),
  Case("lora(rank=2, init='lora_ga')", PAIR),
  Case("lora(rank=3, dropout=0.1, ranks=(('.*/value', 1),), freeze='a')", DEPTH * (3 + 1) * D),
  Case('lora_plus(rank=2)', PAIR),
  Case('lora_pro(rank=2)', PAIR),
)
