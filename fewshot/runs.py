"""Runs: what a sweep's axis is made of, and their inputs stacked along it."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fewshot.fits.base import Data
from fewshot.tasks.encode import Encoded
from fewshot.train import Inputs


class Run(NamedTuple):
  """Which run: the position of its split, its init seed and its hyper-parameters."""

  split: int
  seed: int
  hyper: dict[str, float]


def runs(
  n_splits: int, seeds: Sequence[int] = (0,), grid: Mapping[str, Sequence[float]] | None = None
) -> list[Run]:
  """All runs of a sweep: splits x seeds x the grid's product.

  >>> len(runs(5, seeds=[0, 1], grid={'lr': [1e-3, 1e-2]}))
  20
  """
  grid = grid or {}
  points = [dict(zip(grid, p, strict=True)) for p in itertools.product(*grid.values())]
  return [Run(i, s, h) for i in range(n_splits) for s in seeds for h in points]


def stack(data: Encoded, chunk: Sequence[Run]) -> Inputs:
  """The inputs of several runs, stacked along a leading axis."""
  index = np.array([r.split for r in chunk])
  take = lambda batch: jax.tree.map(lambda x: jnp.asarray(x[index]), batch)  # noqa: E731
  keys = [jax.random.fold_in(jax.random.key(r.seed), data.splits[r.split].seed) for r in chunk]
  hyper = {k: jnp.array([r.hyper[k] for r in chunk]) for k in chunk[0].hyper}
  return Inputs(jnp.stack(keys), hyper, Data(take(data.train), take(data.dev)))
