"""Rows of fewshot/methods/lora_variants.py."""

from tests.laws.case import DEPTH, Case, D

SITES = DEPTH * 2  # Queries and values.
STEP = 'it starts one step of the gradient away'
NEAR = 'its middle matrix starts at random, of the size sigma'

CASES = (
  Case('dora(rank=2)', SITES * (2 * (D + D) + D)),
  Case('lora_xs(rank=2)', SITES * 2 * 2, starts=False, why=NEAR),
  Case('lora_xs(rank=2, sigma=0.0)', SITES * 2 * 2),
  Case('lora_sb(rank=2)', SITES * 2 * 2, starts=False, why=STEP),
  Case('lora_mini(rank=2, width=4)', SITES * 2 * 2 * 4),
  Case('lora_sp(rank=2)', SITES * (D + D)),
  Case('selective_lora(rank=2)', SITES * (2 * (D + D) + 1)),
  Case('pego(rank=2, num=3)', SITES * 3 * 2 * (D + D)),
  Case('pmss(rank=3)', SITES * 3 * 3),
  Case('dsee(rank=2, entries=8)', SITES * (2 * (D + D) + 8)),
)
