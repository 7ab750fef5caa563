"""Rows of fewshot/methods/likelihoods.py."""

from tests.laws.case import Case

CASES = (
  Case('likelihood(((7,), (9, 12), (3, 4, 5)))', 0, merges=False, on=('gpt2', 'llama', 'bert-mlm')),
)
