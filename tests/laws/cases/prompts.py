"""Rows of fewshot/methods/prompts.py."""

from tests.laws.case import Case, D

WHY = 'every token attends to the prompt'
PROMPT, LOW_RANK = 3 * D, 9 * 2 + 2 * D
MLP = (D + 1) * 4 + 5 * 4 + 5 * D
LSTM = 2 * ((D + 1) * 16 + 5 * 16) + 9 * 8 + 9 * D


def row(spelling: str, count: int) -> Case:
  return Case(spelling, count, merges=False, starts=False, on=('bert', 'gpt2'), why=WHY)


CASES = (
  row('soft_prompt(length=3)', PROMPT),
  row("soft_prompt(length=3, init='random')", PROMPT),
  row("soft_prompt(length=3, init='examples')", PROMPT),
  row("soft_prompt(length=3, init='domain')", PROMPT),
  row('soft_prompt(length=3, tokens=(1, 2))', PROMPT),
  row('scaled_prompt(length=3)', PROMPT + D),
  row('p_tuning(length=3, width=4)', PROMPT + MLP),
  row("p_tuning(length=3, encoder='lstm', width=4, layers=1)", PROMPT + LSTM),
  row('dept(length=3, rank=2, max_length=9)', PROMPT + LOW_RANK),
  row('ept(length=3, rank=2, spaces=2, max_length=9)', PROMPT + LOW_RANK + 2 * 4 * D + 2 * D),
)
