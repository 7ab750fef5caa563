"""Rows of fewshot/methods/deep_prompts.py."""

from tests.laws.case import DEPTH, Case, D

WHY = 'every patch attends to the prompts'
CASES = (
  Case('vpt(length=3)', 3 * D, merges=False, starts=False, on=('vit',), why=WHY),
  Case('vpt(length=3, deep=True)', DEPTH * 3 * D, merges=False, starts=False, on=('vit',), why=WHY),
)
