"""Length buckets: few static shapes that waste little padding."""

from collections.abc import Sequence

import numpy as np


def bounds(lengths: Sequence[int] | np.ndarray, at_most: int = 3, multiple: int = 4) -> list[int]:
  """At most so many bucket lengths, multiples of `multiple`, with the least padding in total.

      minimise sum_i b(l_i),   b(l) = the smallest bound >= l

  Dynamic programming over the distinct rounded lengths.

  >>> bounds([3, 5, 7, 30, 31, 64], at_most=2)
  [8, 64]
  >>> bounds([3, 5, 7, 30, 31, 64])
  [8, 32, 64]
  """
  rounded = -(-np.asarray(lengths) // multiple) * multiple
  edges, counts = np.unique(np.maximum(rounded, multiple), return_counts=True)
  cumulative = np.concatenate([[0], np.cumsum(counts)])
  n = len(edges)
  cost = np.full((at_most + 1, n + 1), np.inf)  # cost[k, j]: the first j edges in k buckets.
  cost[:, 0] = 0
  cut = np.zeros((at_most + 1, n + 1), int)
  for k in range(1, at_most + 1):
    for j in range(1, n + 1):
      options = cost[k - 1, :j] + edges[j - 1] * (cumulative[j] - cumulative[:j])
      cut[k, j] = int(np.argmin(options))
      cost[k, j] = options[cut[k, j]]
  k, j, chosen = int(np.argmin(cost[:, n])), n, []
  while j:
    chosen.append(int(edges[j - 1]))
    k, j = k - 1, int(cut[k, j])
  return chosen[::-1]


def round_up(length: int, multiple: int = 4) -> int:
  """The smallest multiple that holds `length`.

  >>> round_up(9)
  12
  """
  return -(-max(length, 1) // multiple) * multiple
