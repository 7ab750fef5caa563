"""Successive halving: of a grid, the points that do worst on dev stop early.

With G points and 1/eta of them kept, rung k of K = floor(log_eta G) is at step T / eta^(K - k).
All points that reach a rung have had the same steps (Jamieson & Talwalkar 2016, arXiv:1502.07943).
The runs that are left go into fewer chunks of the same compiled program.
"""

import collections
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fewshot import stopping, train
from fewshot.engine import Programs, Progress
from fewshot.errors import FewshotError
from fewshot.experiment import merit
from fewshot.runs import Run, stack
from fewshot.sweep import Result, computed


class Rung(NamedTuple):
  """The step at which a run stopped, with its score and loss on dev there."""

  step: int
  dev: dict[str, float]


def rungs(points: int, steps: int, eta: int) -> list[int]:
  """The steps at which points are dropped.

  >>> rungs(8, 80, eta=2), rungs(8, 80, eta=3), rungs(1, 80, eta=2)
  ([10, 20, 40], [26], [])
  """
  k = 0
  while eta ** (k + 1) <= points:
    k += 1
  found = [steps // eta**i for i in range(k, 0, -1)]
  return [t for t in dict.fromkeys(found) if 0 < t < steps]


class Outcome(NamedTuple):
  """By the position of a run: the results of those that went to the end, where others stopped."""

  results: dict[int, Result]
  stopped: dict[int, Rung]


def halve(
  programs: Programs, runs: Sequence[Run], cells: Sequence[Any], eta: int, tick: Progress
) -> Outcome:
  """Fits the runs, of which those with the same entry of `cells` are compared on dev.

  Raises `FewshotError` where the runs are laid out over several devices.
  """
  if programs.placement.name != 'one':
    raise FewshotError("config.halving is of one device; set engine.devices='one', or halving=0")
  alive, stopped, carries = list(range(len(runs))), dict[int, Rung](), dict[int, Any]()
  before, score, begun = 0, _dev_scorer(programs), time.perf_counter()
  points = max(collections.Counter(cells).values())
  for t in rungs(points, programs.steps, eta):
    devs: dict[int, dict[str, float]] = {}
    for chunk in _chunks(alive, programs.chunk):
      stacked = _stacked([carries[i] for i in chunk], programs) if before else programs.blank()
      carry, dev = _advanced(programs, score, [runs[i] for i in chunk], stacked, before, t)
      tick('halving', t / programs.steps)
      for j, i in enumerate(chunk):
        carries[i] = jax.tree.map(lambda x, j=j: x[j], carry)
        devs[i] = {name: float(v[j]) for name, v in dev.items()}
    best = _best(alive, cells, devs, eta)
    stopped |= {i: Rung(t, devs[i]) for i in alive if i not in best}
    alive, before = [i for i in alive if i in best], t
  results, spent = dict[int, Result](), time.perf_counter() - begun
  for chunk in _chunks(alive, programs.chunk):
    share = spent * len(chunk) / len(runs)  # All of the rungs is paid for by all of the runs.
    at = _At(before, _stacked([carries[i] for i in chunk], programs), share) if before else None
    found = computed(programs, [runs[i] for i in chunk], tick, at)
    results |= dict(zip(chunk, found, strict=True))
  return Outcome(results, stopped)


class _At:
  """A keeper that gives what the rungs left, and keeps nothing."""

  def __init__(self, step: int, carry: Any, spent: float) -> None:
    self._step, self._carry, self.spent = step, carry, spent

  def restore(self, carry: Any) -> tuple[int, Any]:
    del carry
    return self._step, self._carry

  def __call__(self, step: int, carry: Any) -> None:
    del step, carry
    if stopping.asked():
      raise stopping.Stopped

  def close(self) -> None:
    """Nothing is open."""


def _best(
  alive: Sequence[int], cells: Sequence[Any], devs: Mapping[int, Mapping[str, float]], eta: int
) -> set[int]:
  """The best 1/eta of each cell's runs; ties to the lower loss, then to the first."""
  best: set[int] = set()
  for cell in set(cells):
    of = sorted((i for i in alive if cells[i] == cell), key=lambda i: merit(devs[i]), reverse=True)
    best |= set(of[: max(1, len(of) // eta)])
  return best


def _chunks(alive: Sequence[int], size: int) -> Iterator[Sequence[int]]:
  for start in range(0, len(alive), size):
    yield alive[start : start + size]


def _stacked(carries: Sequence[Any], programs: Programs) -> Any:
  """The carries of runs as those of a chunk."""
  return jax.tree.map(lambda *xs: jnp.stack(xs), *programs.padded(carries))


def _advanced(
  programs: Programs, score: Any, runs: list[Run], carry: Any, t0: int, t1: int
) -> tuple[Any, Any]:
  """The carries of a chunk after step t1, and their scores on dev."""
  inputs = stack(programs.data, programs.padded(runs))
  for start, end in _stops(t0, t1, programs.stride):
    carry = programs.advance(programs.params, inputs, carry, jnp.int32(start), jnp.int32(end))
    if stopping.asked():
      raise stopping.Stopped
  return carry, jax.tree.map(np.asarray, score(programs.params, carry, inputs.data.dev))


def _stops(t0: int, t1: int, stride: int) -> Iterator[tuple[int, int]]:
  for t in range(t0, t1, stride):
    yield t, min(t + stride, t1)


def _dev_scorer(programs: Programs) -> Any:
  setup = programs.setup
  over_runs = jax.vmap(lambda p, c, d: train.score_dev(setup, p, c, d), (None, 0, 0))
  return jax.jit(over_runs)
