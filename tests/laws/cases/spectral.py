"""Rows of fewshot/methods/spectral.py."""

from tests.laws.case import DEPTH, Case, D

SITES = DEPTH * 2  # Queries and values, [D, D] each.

CASES = (
  Case('svf()', SITES * D),
  Case('svfit(rank=4)', SITES * 4),
  Case('svft()', SITES * (5 * D - 6)),
  Case('svft(off_diag=0)', SITES * D),
  Case("svft(pattern='random', off_diag=1)", SITES * (3 * D - 2)),
  Case("svft(pattern='top_k', off_diag=1)", SITES * (3 * D - 2)),
  Case('loldu(rank=8)', SITES * (8 + 1)),
  Case('fourierft(n_frequency=20)', SITES * 20),
  Case('c3a(block_size=8)', SITES * D * D // 8),
  Case('loca(n_frequency=20)', SITES * 3 * 20),
  Case("svf(where='.*/conv_.*/kernel')", 8 + (2 * 16 + 8) + (4 * 24 + 16), on=('resnet',)),
)
