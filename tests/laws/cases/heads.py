"""Rows of fewshot/methods/heads.py."""

from tests.laws.case import CLASSES, EVERYWHERE, HEAD, Case, D

CASES = (
  Case('linear()', HEAD, on=EVERYWHERE),
  Case('mlp(width=8)', 8 * D + 8 + 8 * CLASSES + CLASSES, merges=False, on=EVERYWHERE),
  Case('cosine()', D * CLASSES + 1, merges=False, on=EVERYWHERE),
  Case('majority()', 0, merges=False, on=EVERYWHERE),
  Case('nearest_mean()', 0, merges=False, on=EVERYWHERE),
  Case(
    "learned_prototypes(count=2, join='logsumexp')",
    CLASSES * 2 * D + 1,
    merges=False,
    on=EVERYWHERE,
  ),
)
