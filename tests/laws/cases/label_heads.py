"""Rows of fewshot/methods/label_heads.py."""

from tests.laws.case import CLASSES, Case, D

WORDS = '((7,), (9, 12), (3, 4, 5))'
CASES = (
  Case('label_embeddings(tokens=2)', CLASSES * 2 * D, merges=False, on=('bert', 'gpt2')),
  Case('label_embeddings(tokens=2, prototypes=True)', CLASSES * 2 * D, merges=False, on=('gpt2',)),
  Case(f'soft_verbalizer({WORDS})', CLASSES * D, merges=False, on=('gpt2', 'bert-mlm', 'llama')),
  Case(f"verbalizer({WORDS}, join='max')", 0, merges=False, on=('gpt2', 'bert-mlm')),
)
