"""Rows of fewshot/methods/lora_shared.py."""

from tests.laws.case import DEPTH, Case, D

SITES = 2 * DEPTH
WHY = 'a small random update: pieces of a bank of random vectors, none of them zero'

CASES = (
  Case('vera(rank=4)', SITES * (4 + D)),
  Case('randlora(rank=4, alpha=1.0)', SITES * (D // 4) * (4 + D)),
  Case(
    'vblora(rank=2, num_vectors=6, vector_length=8)',
    6 * 8 + SITES * 2 * 2 * (D // 8) * 6,
    starts=False,
    why=WHY,
  ),
  Case('block_lora(rank=4, blocks=2)', SITES * (2 * D + 4 * D)),
  Case('comp_lora(rank=2, directions=4)', SITES * 2 * (D + D)),
)
