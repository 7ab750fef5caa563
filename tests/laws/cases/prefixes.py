"""Rows of fewshot/methods/prefixes.py."""

from tests.laws.case import DEPTH, TRANSFORMERS, Case, D

WHY = 'every token attends to the prefix'
MLP = 3 * D + D * 5 + 5 + DEPTH * (5 * 2 * D + 2 * D)  # Embedding, W_1, b_1, and W_2, b_2 a core.
CASES = (
  Case('prefix(length=3)', DEPTH * 2 * 3 * D, merges=False, starts=False, why=WHY),
  Case('prefix(length=3, width=5)', MLP, merges=False, starts=False, why=WHY),
  Case('llama_adapter(length=3)', DEPTH * (3 * D + 1), merges=False, on=TRANSFORMERS),
)
