"""Rows of fewshot/methods/reduction.py."""

from tests.laws.case import Case

CASES = (
  Case(
    'fuse_tokens(keep=0.5, blocks=(0,))', 0, merges=False, starts=False, on=('vit',),
    why='the function of fewer tokens',
  ),
)  # fmt: skip
