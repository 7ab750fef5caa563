"""The worker: takes the jobs of a folder that nobody works on, until all have their records.

Any number of workers may share a folder, on any number of machines; each is the same command.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fewshot import records, stopping
from fewshot.console import note
from fewshot.launch.claims import Claim, Claims

CLAIMS = 'claims'
Done = Mapping[str, dict[str, Any]]  # The last record of each id.


class Job(NamedTuple):
  """What one worker does at once."""

  id: str
  label: str
  ids: tuple[str, ...]  # Of its runs, retries apart.
  missing: Callable[[Done], int]  # How many results are not there yet.
  run: Callable[[Done, Claim], None]  # Computes and records them.
  retries: int = 0  # How often one of them starts anew, where it died.


def work(jobs: Sequence[Job], folder: Path, pause: float = 1.0) -> None:
  """Runs every job that no other process runs, and waits for those that one does.

  A job whose worker was killed is taken over.  Raises `stopping.Stopped` when asked to end.
  """
  claims, tail = Claims(folder / CLAIMS), records.Tail(folder)
  left, told = list(jobs), False
  while left:
    before = len(left)
    for job in list(left):
      if stopping.asked():
        raise stopping.Stopped
      if job.missing(tail.read()):
        with claims.claim(job.id) as held:
          if held is None:
            continue
          job.run(tail.read(), held)
      left.remove(job)
    if len(left) == before:
      if not told:
        note(f'waiting for {len(left)} groups of runs that other processes work on')
        told = True
      time.sleep(pause)
