"""Rows of fewshot/methods/kronecker.py."""

from tests.laws.case import DEPTH, Case, D

SITES = 2 * DEPTH

CASES = (
  Case('lokr(rank=2)', SITES * (4 * 4 + 2 * (D // 4) * 2)),  # 32 = 4 x 8.
  # 16 = 4 x 4, of which nothing is decomposed at rank 2, and twice 24 = 4 x 6.
  Case(
    "lokr(where='.*conv_1/kernel', rank=2)",
    (4 * 4 + 9 * 4 * 4) + 2 * (4 * 4 + 2 * (9 * 6 + 6)),
    on=('resnet',),
  ),
  Case('loha(rank=2)', SITES * 2 * 2 * (D + D)),
  Case('miss(rank=8)', SITES * 8 * D),
)
