"""Rows of fewshot/methods/adapters.py."""

from tests.laws.case import DEPTH, Case, D

NORMS = 2 * D * (1 + 2 * DEPTH)
LENGTH, N, K = 3, 4, 8  # Of the prefix, of the rules; of the salient channels.
BOTTLENECK = 2 * 4 * D + 4 + D  # Of width 4.
PREFIX = 2 * LENGTH * D
PHM = N * (D // N + 1) + 4 + N * (1 + D // N) + D
GATE = D + 1

CASES = (
  Case('adapter(width=4)', DEPTH * 2 * BOTTLENECK, merges=False),
  Case('houlsby(width=4)', DEPTH * 2 * BOTTLENECK + NORMS, merges=False),
  Case('pfeiffer(width=4)', DEPTH * BOTTLENECK, merges=False),
  Case('compacter(width=4)', DEPTH * 2 * PHM + N**3 + NORMS, merges=False),
  Case(
    'unipelt(rank=2, length=3, width=4)',
    DEPTH * (2 * 2 * 2 * D + PREFIX + BOTTLENECK + 4 * GATE),
    merges=False,
    starts=False,
    why='queries attend to the prefix, by half',
  ),
  Case(f'sct(channels={K})', DEPTH * (K * K + K), merges=False),
  Case('adamix(width=4, experts=2)', DEPTH * (2 * (4 * D + 4) + 4 * D + D), merges=False),
)
