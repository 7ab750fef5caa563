"""Keeping: the carry of a chunk of runs, saved while it trains."""

import contextlib
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewshot import records, stopping
from fewshot.errors import cause
from fewshot.runs import Run
from fewshot.states import States


class Keeper:
  """Saves the carry of a chunk every so often and when the process is asked to end."""

  def __init__(
    self, folder: Path, about: Mapping[str, Any], every: float,
    clock: Callable[[], float] = time.monotonic,
  ) -> None:  # fmt: skip
    self._folder, self._about, self._clock = folder, about, clock
    self._every = every
    self._states: States | None = None
    self._last = self._begun = clock()
    self.spent = 0.0  # Seconds that earlier processes trained.

  def restore(self, carry: Any) -> tuple[int, Any]:
    """The step to go on from, and the carry there."""
    self._begun = self._clock()
    if not self._folder.is_dir():
      return 0, carry
    found = self._opened().restore({'carry': carry, 'spent': np.zeros((), np.float32)})
    if found is None:
      return 0, carry
    self.spent = float(found[1]['spent'])
    return found[0], found[1]['carry']

  def __call__(self, step: int, carry: Any) -> None:
    """Keeps the carry after `step` steps if it is time; raises `Stopped` if asked to end."""
    if stopping.asked():
      self._save(step, carry)
      self.close()
      raise stopping.Stopped
    if self._clock() - self._last >= self._every:
      self._save(step, carry)
      self._last = self._clock()

  def close(self) -> None:
    """Waits for what is being written, also a second time."""
    if self._states:
      with contextlib.suppress(Exception):  # Reported when it was saved; the results are there.
        self._states.close()

  def _save(self, step: int, carry: Any) -> None:
    """A full disk costs the state, never the run."""
    try:
      spent = np.float32(self.spent + self._clock() - self._begun)
      self._opened().save(step, {'carry': carry, 'spent': spent}, _dev_score(carry))
    except Exception as e:  # No room is left to what only saves time: records come first.
      warnings.warn(f'the state of step {step} could not be saved ({cause(e)})', stacklevel=3)
      self.close()
      self._states, self._every = None, math.inf
      shutil.rmtree(self._folder, ignore_errors=True)

  def _opened(self) -> States:
    if self._states is None:
      self._folder.mkdir(parents=True, exist_ok=True)
      self._states = States(self._folder, self._about)
    return self._states


@contextlib.contextmanager
def kept(folder: Path, every: float) -> Iterator[Callable[[Sequence[Run], int], Keeper]]:
  """What keeps each chunk of the sweeps that are made within, in turn; all is dropped at the end.

  Whoever computes the same again makes the same sweeps in the same order.  A chunk is named by a
  hash of itself and all before it, so that after a change of sizes it finds no other's state.
  """
  last = ''

  def keep(chunk: Sequence[Run], at_once: int) -> Keeper:
    nonlocal last
    last = records.run_id({'after': last, 'runs': chunk, 'at_once': at_once})
    return Keeper(folder / last, {'chunk': last}, every)

  yield keep
  shutil.rmtree(folder, ignore_errors=True)


def _dev_score(carry: Any) -> float | None:
  """The mean of the best dev scores so far, where a fit keeps them."""
  if not isinstance(carry, dict) or 'best' not in carry:
    return None
  score = float(np.mean(np.asarray(carry['best']['score'])))
  return score if np.isfinite(score) else None
