"""Rows of fewshot/methods/scaling.py."""

from tests.laws.case import DEPTH, EVERYWHERE, WIDTH, Case, D

CASES = (
  Case('ia3()', DEPTH * (D + D + WIDTH)),
  Case(
    'ssf()',
    DEPTH * 2 * (4 * D + WIDTH + D + 2 * D) + 2 * D,
    on=EVERYWHERE,
    blind='.*/key/beta',  # All scores of a query shift alike.
  ),
  Case('film()', (1 + 2 * DEPTH) * 2 * D, on=EVERYWHERE),
  Case('abnn()', (1 + 2 * DEPTH) * 2 * D, on=EVERYWHERE),
  Case('gain()', DEPTH * (4 * D + WIDTH + D), on=EVERYWHERE),
)
