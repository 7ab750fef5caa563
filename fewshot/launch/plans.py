"""The plan of a folder: which jobs there are, and where each stands."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewshot import leaks, records
from fewshot.errors import FewshotError
from fewshot.launch.attempts import attempts
from fewshot.launch.claims import Claims
from fewshot.launch.worker import CLAIMS, Job
from fewshot.sound import malformed

NAME, JOBS, STAGES = 'plan.json', 'jobs', 'stages'


def write(folder: Path, jobs: Sequence[Job]) -> None:
  """Writes plan.json; jobs of earlier commands in the folder stay in it."""
  new = {
    j.id: {'id': j.id, 'label': j.label, 'retries': j.retries, 'runs': list(j.ids)} for j in jobs
  }
  leaks.check(new)
  with Claims(folder / CLAIMS).waited('plan'):  # Another may write it at the same time.
    old = {j['id']: j for j in read(folder)}
    plan = {'jobs': [*(v for k, v in old.items() if k not in new), *new.values()]}
    records.replace(folder / NAME, (json.dumps(plan, indent=1) + '\n').encode())


def forget(folder: Path) -> None:
  """Drops what earlier commands planned and would be found again: states and finished stages."""
  (folder / NAME).unlink(missing_ok=True)
  for name in (JOBS, STAGES):
    shutil.rmtree(folder / name, ignore_errors=True)


def read(folder: Path) -> list[dict[str, Any]]:
  """The jobs of the plan; none where there is no plan that can be read."""
  try:
    return [j for j in json.loads((folder / NAME).read_bytes())['jobs'] if _is_job(j)]
  except (OSError, ValueError, TypeError, KeyError, RecursionError):
    return []


def _is_job(job: Any) -> bool:
  texts = [job['id'], job['label'], *job['runs']]
  retries = job.get('retries', 0)
  whole = isinstance(job['runs'], list) and isinstance(retries, int) and retries >= 0
  return whole and all(isinstance(text, str) for text in texts)


class Watch:
  """Where a folder stands, asked again and again: records that were read are not read anew."""

  def __init__(self, folder: Path) -> None:
    self._folder, self._tail = folder, records.Tail(folder)
    self._claims = Claims(folder / CLAIMS)  # It knows which of other machines stand still.

  def status(self) -> dict[str, Any]:
    """Where each job stands, how much is done and failed, what is left and for how long.

    Raises `FewshotError` where there is neither a plan nor a record.
    """
    if not (self._folder / NAME).exists() and not (self._folder / records.NAME).exists():
      raise FewshotError(
        f'{self._folder} has no plan and no records; give the folder of a run (--out)'
      )
    latest = {k: r for k, r in self._tail.read().items() if not malformed(r)}
    return _status(read(self._folder), latest, self._claims.held())


def _status(
  jobs: Sequence[dict[str, Any]], latest: dict[str, Any], held: dict[str, str]
) -> dict[str, Any]:
  rows = [_job(j, latest, held) for j in jobs]
  done = [r for r in latest.values() if records.has_result(r)]
  left = sum(row['runs'] - row['done'] for row in rows)
  seconds = [s for r in done if isinstance(s := r['timings'].get('seconds'), int | float)]
  workers = max(1, len(held))
  return {
    'runs': len(done) + left,
    'done': len(done),
    'running': sum(row['state'] == 'running' for row in rows),
    'failed': sum(r['status'] == 'failed' for r in latest.values()),
    'collapsed': sum(r['status'] == 'collapsed' for r in latest.values()),
    'eta_seconds': round(left * sum(seconds) / len(seconds) / workers, 1) if seconds else None,
    'best': _best(done),
    'jobs': rows,
  }


def _job(job: dict[str, Any], latest: dict[str, Any], held: dict[str, str]) -> dict[str, Any]:
  """Where a job stands; a retry counts as a run of it from when it is due."""
  retries = job.get('retries', 0)
  ids = [id for first in job['runs'] for id in attempts(first, retries, latest)]
  found = [latest[id] for id in ids if id in latest]
  done = sum(records.has_result(r) for r in found)
  state = 'done' if done == len(ids) else 'waiting'
  if state == 'waiting' and len(found) > done:
    state = 'failed'
  if job['id'] in held:
    state = 'running'
  return {
    'id': job['id'],
    'label': job['label'],
    'state': state,
    'runs': len(ids),
    'done': done,
    'says': held.get(job['id'], ''),
    'best': _best(found),
  }


def _best(found: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
  """The record of the highest accuracy so far."""
  scored = [(r['scores'].get('accuracy') or {}).get('value') for r in found]
  pairs = [(s, r) for s, r in zip(scored, found, strict=True) if s is not None]
  if not pairs:
    return None
  value, record = max(pairs, key=lambda pair: pair[0])
  return {'id': record['id'], 'method': record['method'], 'task': record['task'], 'accuracy': value}
