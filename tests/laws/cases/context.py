"""Rows of fewshot/methods/context.py."""

from tests.laws.case import DEPTH, Case, D

EXAMPLES = 'every token attends to the examples'
CASES = (
  Case('demonstrations(shots=2, length=20)', 0, False, False, on=('gpt2', 'llama'), why=EXAMPLES),
  Case('context_tuning(length=8)', DEPTH * 2 * 8 * D, False, False, ('bert', 'gpt2'), why=EXAMPLES),
)
