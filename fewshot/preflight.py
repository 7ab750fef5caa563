"""Preflight: what is looked at before the first step, beside what `prepared` checks."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewshot import experiment
from fewshot.errors import FewshotError
from fewshot.prepared import Prepared

RECORD = 20_000  # Bytes of a record, without its predictions.
STATES = 3 * 3  # Three states of a chunk are kept, each of theta and two moments.


def disk(prepared: Sequence[Prepared], folder: Path) -> dict[str, int]:
  """The bytes that are free where the records go, and the most that the runs may write.

  Raises `FewshotError` where these do not fit.

  >>> disk([], Path('.'))['needed_bytes']
  0
  """
  needed = sum(_needed(p) for p in prepared)
  there = next(f for f in (folder.absolute(), *folder.absolute().parents) if f.exists())
  free = shutil.disk_usage(there).free
  if needed > free:
    raise FewshotError(
      f'the runs may write {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free in '
      f'{folder}; give another --out, or leave config.checkpoints at False'
    )
  return {'free_bytes': free, 'needed_bytes': needed}


def _needed(p: Prepared) -> int:
  runs = len(experiment.plan(p))
  record = RECORD + 10 * len(p.data.labels)
  kept = 4 * p.trained if p.config.checkpoints else 0
  return runs * (record + kept + 4 * STATES * p.trained)


def hashes(p: Prepared) -> dict[str, Any]:
  """What the records will say the results are of: weights, test set, each split, the prompt."""
  said = [experiment.identity(p, run)['hashes'] for run in experiment.plan(p).values()]
  return {k: list(dict.fromkeys(h[k] for h in said)) for k in said[0]}
