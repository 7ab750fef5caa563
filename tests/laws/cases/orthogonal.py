"""Rows of fewshot/methods/orthogonal.py."""

from tests.laws.case import DEPTH, Case, D

SITES = DEPTH * 2  # Queries and values, [D, D] each.

CASES = (
  Case('oft(block_size=8)', SITES * (D // 8) * 28),
  Case('oft(block_size=8, neumann=0)', SITES * (D // 8) * 28),
  Case('gsoft(block_size=8)', SITES * 2 * (D // 8) * 28),
  Case('hra(rank=4)', SITES * 4 * D),
  Case('hra(rank=2, regularization=0.1)', SITES * 2 * D),
  Case('boft()', SITES * (2 * D * 8 + D)),
  Case('road(group_size=8)', SITES * D),
  Case('road(variant=2, group_size=8)', SITES * 2 * D),
  Case('road(variant=4, group_size=8)', SITES * 4 * D),
  # Convolutions of the second stage's last block, [3, 3, 24, 24].
  Case("oft(where='stage_1/block_1/conv_.*', block_size=8)", 2 * 3 * 28, on=('resnet',)),
)
