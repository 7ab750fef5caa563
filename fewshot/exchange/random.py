"""PyTorch's random permutations, for what PEFT draws again from a seed and does not store."""

from typing import Any

import numpy as np


def permutation(seed: int, n: int, first: int) -> np.ndarray:
  """The `first` entries of torch.randperm(n, generator=torch.Generator().manual_seed(seed)).

  Both are the Mersenne twister; place i is exchanged with i + z mod (n - i), z its next number.

  >>> permutation(777, 6, 4).tolist()
  [5, 0, 1, 2]
  """
  places, generator = np.arange(n), np.random.MT19937()
  state: Any = np.random.RandomState(seed).get_state(legacy=False)  # The seed is PyTorch's there.
  generator.state = state
  for i in range(min(first, n - 1)):
    j = i + int(generator.random_raw()) % (n - i)
    places[i], places[j] = places[j], places[i]
  return places[:first]
