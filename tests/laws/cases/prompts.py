"""Rows of fewshot/methods/prompts.py."""

from tests.laws.case import Case, D

WHY = 'every token attends to the prompt'
CASES = (
  Case('soft_prompt(length=3)', 3 * D, merges=False, starts=False, on=('bert', 'gpt2'), why=WHY),
)
