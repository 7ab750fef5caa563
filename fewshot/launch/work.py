"""Work: a group's runs, chunk by chunk, each taken up where a killed process left it."""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from fewshot import (
  checkpoint,
  experiment,
  outputs,
  parallel,
  programs,
  records,
  stopping,
)
from fewshot import sweep as sweeps
from fewshot.console import note
from fewshot.engine import Options, Programs, Progress
from fewshot.errors import FewshotError, cause
from fewshot.launch import halving
from fewshot.launch.attempts import due, first_id, retry_id, retry_of
from fewshot.launch.groups import Group, Planned, retried
from fewshot.launch.keeping import Keeper, kept
from fewshot.launch.plans import JOBS, STAGES
from fewshot.limits import options
from fewshot.prepared import Prepared, data_of
from fewshot.runs import Run
from fewshot.sweep import Result
from fewshot.writers import Log

Record = dict[str, Any]
Batch = list[tuple[Record, Result]]  # What is recorded together.


def execute(
  group: Group, out: Path, log: Log | None, progress: Progress, done: Mapping[str, Record]
) -> Iterator[Record]:
  """Computes the runs of a group that `done` lacks, and records those of a chunk together.

  `log` is None in a process that leaves the records to another.  An unexpected failure becomes a
  record of each run that it cost.

  Raises:
    FewshotError: the records cannot be written, or a user's mistake shows late.
    stopping.Stopped: the process was asked to end; what was computed is saved.
  """
  written: set[str] = set()
  steps = _staged if group.rows[0].program else _swept
  found = steps(group, out, log is not None, progress, done)
  for batch in filter(None, _or_failed(found, group, done, written)):
    new = {r['id'] for r in records.append(out, *batch, once=True)} if log else set()
    written |= {record['id'] for record in batch}
    for record in batch:
      if log and record['id'] in new:
        log.record(record)
      yield record


def _or_failed(
  steps: Iterator[list[Record]], group: Group, done: Mapping[str, Record], written: set[str]
) -> Iterator[list[Record]]:
  """The records of `steps`; what else than a stop ends it is one of each run that is lacking."""
  try:
    yield from steps
  except (FewshotError, stopping.Stopped):
    raise
  except Exception as e:
    yield [
      experiment.failed(planned.row, planned.own, cause(e))
      for id, planned in group.runs.items()
      if id not in written and not records.has_result(done.get(id))
    ]


def remaining(group: Group, done: Mapping[str, Record]) -> list[str]:
  """The ids of the group's runs that have no result yet, with those of the retries that are due."""
  retries = group.rows[0].config.retries
  return [id for first in group.runs for id in due(first, retries, done)]


def _staged(
  group: Group, out: Path, writes: bool, progress: Progress, done: Mapping[str, Record]
) -> Iterator[list[Record]]:
  """The records of a program, run by run; a finished stage is kept and found again.

  Of a stage that is not finished the trainings go on from their last states.
  """
  (p,) = group.rows
  assert p.program is not None
  states = out / JOBS / group.id
  keeping = lambda stage: kept(states / stage, p.config.save_every)  # noqa: E731
  for id in remaining(group, done):
    if stopping.asked():
      raise stopping.Stopped
    run, start = group.runs[id].own, time.monotonic()
    outcome = programs.run(
      p.program, p.model, data_of(p, run.split), classes=len(p.task.classes), seed=run.seed,
      cache=out / STAGES, options=options(p.config), progress=progress,
      keeping=keeping if writes else None,
    )  # fmt: skip
    timings = {'seconds': time.monotonic() - start}
    result = Result(run, outcome.logits(), None, None, p.method, {}, {}, timings, {})
    result = result._replace(stages=tuple(outcome.notes))
    record = experiment.record(p, result, [result])
    if writes:
      outputs.save(out, p, record, result)
    yield [record]
  if writes:
    _forget(states)


def _forget(folder: Path) -> None:
  """Drops what only an unfinished group needs."""
  shutil.rmtree(folder, ignore_errors=True)
  with contextlib.suppress(OSError):  # Others' may be in it.
    folder.parent.rmdir()


def _swept(
  group: Group, out: Path, writes: bool, progress: Progress, done: Mapping[str, Record]
) -> Iterator[list[Record]]:
  """The records of a vmapped axis; dead runs once more from other keys, where the config asks."""
  device = _Device(group, out / JOBS / group.id, progress)
  retries = group.rows[0].config.retries
  kept_apart = group.rows[0].config.checkpoints  # Each takes its time, and a kill may come.
  todo, known = dict(group.runs), dict(done)
  computed = _halved if group.rows[0].config.halving else _recorded
  for attempt in range(retries + 1):
    for batch in computed(device, todo, attempt, known):
      known |= {record['id']: record for record, _ in batch}
      for part in [[one] for one in batch] if kept_apart else [batch]:
        for record, result in part if writes else ():
          _keep(out, todo[record['id']].row, record, result)
        yield [record for record, _ in part]
    dead = {id: known[id] for id in todo if known[id]['status'] != 'ok'}
    if not dead:
      break
    again = [first_id(r) for r in dead.values()]
    n = attempt + 1
    todo = {retry_id(id, n): retried(group.runs[id], n) for id in again}
  if writes:
    device.forget()


def _keep(out: Path, p: Prepared, record: Record, result: Result) -> None:
  """What is kept of a run beside its record: its outputs and, if wanted, what it trained."""
  if record['status'] in ('ok', 'collapsed'):
    outputs.save(out, p, record, result)
  if p.config.checkpoints and record['status'] == 'ok':
    try:
      checkpoint.save(experiment.adapted(p, result), out / 'checkpoints' / record['id'])
    except FewshotError as e:
      note(f'the checkpoint of {record["id"]} is not there: {e}')


def _recorded(
  device: '_Device', todo: Mapping[str, Planned], attempt: int, done: Mapping[str, Record]
) -> Iterator[Batch]:
  """What is recorded of an attempt, chunk by chunk; of a grid a cell when it is whole."""
  if all(records.has_result(done.get(id)) for id in todo):
    return
  ids, cell, whole = list(todo), list[tuple[str, Result, list[Result]]](), _whole(todo, done)
  start, grid = 0, _has_grid(todo)
  while start < len(ids):
    chunk = ids[start : start + device.chunk(len(ids))]
    if all(id in whole for id in chunk):
      start += len(chunk)
      continue
    results = device.compute([todo[id] for id in chunk], f'{attempt}-{start}')
    for id, result in zip(chunk, results, strict=False):  # Fewer where memory was short.
      if grid and cell and _cell(todo[cell[0][0]]) != _cell(todo[id]):
        yield _decided(cell, todo, attempt, done)
        cell = []
      cell.append((id, result, _peers(id, chunk, results, todo)))
    start += len(results)
    if not grid:
      yield _decided(cell, todo, attempt, done)
      cell = []
  yield _decided(cell, todo, attempt, done)


def _halved(
  device: '_Device', todo: Mapping[str, Planned], attempt: int, done: Mapping[str, Record]
) -> Iterator[Batch]:
  """What is recorded of a grid whose worst points stop early; begun anew after a break."""
  if all(records.has_result(done.get(id)) for id in todo):
    return
  planned = list(todo.values())
  eta, cells = planned[0].row.config.halving, [_cell(one) for one in planned]
  results, stopped = device.halve([one.run for one in planned], cells, eta)
  for cell in dict.fromkeys(cells):
    ids = [i for i, c in enumerate(cells) if c == cell]
    last = [i for i in ids if i in results]
    best = last[experiment.best([results[i] for i in last])]
    batch: Batch = []
    for i in ids:
      p, own = planned[i].row, planned[i].own
      if i in stopped:
        result = results[best]._replace(run=own)
        batch.append((experiment.stopped(p, own, *stopped[i]), result))
      else:
        result = results[i]._replace(run=own)
        peers = [results[j] for j in last]
        batch.append((experiment.record(p, result, peers, chosen=i == best), result))
    yield batch


def _whole(todo: Mapping[str, Planned], done: Mapping[str, Record]) -> set[str]:
  """The runs that need not be computed; of a grid those whose whole cell is there."""
  there = {id for id in todo if records.has_result(done.get(id))}
  if not _has_grid(todo):
    return there
  lacking = {_cell(todo[id]) for id in todo if id not in there}
  return {id for id in there if _cell(todo[id]) not in lacking}


def _peers(
  id: str, chunk: Sequence[str], results: Sequence[Result], todo: Mapping[str, Planned]
) -> list[Result]:
  """What the same row came to elsewhere in the chunk, the run itself included."""
  row = todo[id].row
  return [r for other, r in zip(chunk, results, strict=False) if todo[other].row is row]


def _decided(
  cell: Sequence[tuple[str, Result, list[Result]]],
  todo: Mapping[str, Planned], attempt: int, done: Mapping[str, Record],
) -> Batch:  # fmt: skip
  """The records of a cell or a chunk that were not there; of a grid, the best is marked."""
  best = experiment.best([result for _, result, _ in cell]) if cell and _has_grid(todo) else None
  batch: Batch = []
  for i, (id, result, peers) in enumerate(cell):
    if records.has_result(done.get(id)):
      continue
    planned = todo[id]
    own = result._replace(run=planned.own)
    record = experiment.record(planned.row, own, peers, chosen=best in (None, i))
    if attempt:
      retries = planned.row.config.retries
      record |= retry_of(record['id'], attempt, planned.run.seed, retries)
    batch.append((record, own))
  return batch


def _cell(planned: Planned) -> tuple[int, int]:
  return planned.own.split, planned.own.seed


def _has_grid(todo: Mapping[str, Planned]) -> bool:
  return any(planned.own.hyper for planned in todo.values())


class _Device:
  """The group's compiled programs, made when a chunk needs them, and what is kept of chunks."""

  def __init__(self, group: Group, folder: Path, progress: Progress) -> None:
    self._group, self._folder, self._tick = group, folder, progress
    self._programs: Programs | None = None
    wanted = options(group.rows[0].config)
    self._asked = [wanted.runs, wanted.memory]
    self._pinned = _pinned(folder)
    if self._pinned and self._pinned.get('asked') != self._asked:  # In another size: from anew.
      self.forget()
      self._pinned = {}

  def chunk(self, runs: int) -> int:
    """How many runs go at once; the same as before where the folder says so."""
    size = self._pinned.get('runs') or self._compiled().chunk
    return max(1, min(size, runs))

  def compute(self, chunk: Sequence[Planned], name: str) -> list[Result]:
    """The results of a chunk, or of its first half where memory is short: once, and noted."""
    runs = [planned.run for planned in chunk]
    try:
      return self._results(runs, name)
    except jax.errors.JaxRuntimeError as e:
      size = self._pinned.get('runs', len(runs))
      if 'RESOURCE_EXHAUSTED' not in str(e) or self._pinned.get('halved') or size < 2:
        raise
      half = size // 2
      self._pin({'runs': half, 'halved': f'{size} runs at once took more memory than there is'})
      self._programs = None
      return self._results(runs[:half], f'{name}-half')

  def halve(self, runs: Sequence[Run], cells: Sequence[Any], eta: int) -> halving.Outcome:
    """The results of a grid of which only the best on dev go to the end."""
    return halving.halve(self._compiled(), runs, cells, eta, self._tick)

  def forget(self) -> None:
    """Drops what is kept of chunks."""
    _forget(self._folder)

  def _results(self, runs: list[Any], name: str) -> list[Result]:
    compiled = self._compiled()
    keeper = None
    if compiled.placement.name != 'hosts':  # Each process has a part of the state alone.
      about = {'group': self._group.id, 'chunk': name, 'runs': compiled.chunk}
      every = self._group.rows[0].config.save_every
      keeper = Keeper(self._folder / name, about, every)
    return list(sweeps.computed(compiled, runs, self._tick, keeper))

  def _compiled(self) -> Programs:
    if self._programs is None:
      wanted = options(self._group.rows[0].config)
      if size := self._pinned.get('runs'):
        wanted = wanted._replace(runs=size)
      self._programs = self._compile(wanted)
      if halved := self._pinned.get('halved'):
        self._programs.notes['halved'] = halved
      if not self._pinned:
        self._pin({'runs': self._programs.chunk})
    return self._programs

  def _compile(self, wanted: Options) -> Programs:
    p = self._group.rows[0]
    todo = [planned.run for planned in self._group.runs.values()]
    self._tick('compile', 0.0)
    found = experiment.compiled(p, todo, wanted)
    self._tick('compile', 1.0)
    return found

  def _pin(self, about: dict[str, Any]) -> None:
    """A chunk of another size has other rounding, so that resumed runs keep the size."""
    self._pinned = about = about | {'asked': self._asked}
    if not parallel.writes():
      return
    with contextlib.suppress(OSError, FewshotError):
      self._folder.mkdir(parents=True, exist_ok=True)
      records.replace(self._folder / 'chunk.json', json.dumps(about).encode())


def _pinned(folder: Path) -> dict[str, Any]:
  try:
    found = json.loads((folder / 'chunk.json').read_bytes())
    return found if isinstance(found['runs'], int) and found['runs'] > 0 else {}
  except (OSError, ValueError, TypeError, KeyError):
    return {}
