"""`fewshot run` of a config of episodes: training with its progress, tests, records, the table."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewshot import config as configs
from fewshot import episode_tables, methods, records, stopping
from fewshot.console import note, stdout
from fewshot.episodic import Experiment, prepare, run
from fewshot.errors import FewshotError
from fewshot.launch import plans, worker
from fewshot.launch.claims import Claim
from fewshot.writers import Log, open_log


def run_all(todo: Sequence[Any], folder: Path, fresh: bool, as_json: bool, minutes: float) -> int:
  """Trains and tests every row that has no record yet, within `minutes` where they are given."""
  records.prepare(folder)
  earlier = records.read_if_any(folder)
  if earlier and not episode_tables.of_episodes(earlier):
    raise FewshotError(f'{folder} has records of splits; give another folder by --out')
  experiments = prepare(todo)
  if fresh and (aside := records.set_aside(folder)):
    note(f'earlier records are now {folder}/{aside}; trainings go on from where they are')
  note(f'{todo[0].name}: {len(experiments)} rows, records in {folder}', style='bold')
  end = time.monotonic() + 60 * minutes if minutes else None
  there = set() if fresh else {r['id'] for r in earlier}
  for e in experiments:
    if e.id in there:
      note(f'{_title(e)}: recorded before')
  log = open_log(folder, todo)
  jobs = _jobs(experiments, folder, end, log)
  try:
    with stopping.on_signal():
      plans.write(folder, jobs)
      worker.work(jobs, folder)
    return show(folder, as_json, log)
  except KeyboardInterrupt:
    note('interrupted: the same command goes on from the last saved step')
    return 130
  except stopping.Stopped:
    late = end is not None and time.monotonic() >= end
    why = f'the {minutes:g} minutes are over' if late else 'asked to end'
    note(f'{why}; the same command goes on from there')
    if as_json:
      print(json.dumps(episode_tables.as_json(episode_tables.cells(records.read_if_any(folder)))))
    return stopping.UNFINISHED
  finally:
    log.close()


def _jobs(
  experiments: Sequence[Experiment], folder: Path, end: float | None, log: Log
) -> list[worker.Job]:
  """A job for the rows of each training, for they share its folder."""
  kept: dict[str, Any] = {}
  rows: dict[str, list[Experiment]] = {}
  for e in experiments:
    rows.setdefault(e.training, []).append(e)

  def job(training: str, members: list[Experiment]) -> worker.Job:
    ids = tuple(e.id for e in members)

    def run_members(done: worker.Done, held: Claim) -> None:
      for e in members:
        if e.id not in done:
          _run_one(e, folder, end, kept, held, log)

    label = ', '.join(dict.fromkeys(methods.spell(e.learner) for e in members))
    missing = lambda done: sum(id not in done for id in ids)  # noqa: E731
    return worker.Job(training, label, ids, missing, run_members)

  return [job(training, members) for training, members in rows.items()]


def _run_one(
  e: Experiment, folder: Path, end: float | None, kept: dict[str, Any], held: Claim, log: Log
) -> None:
  """Trains, tests and records a row; raises `Stopped` where the time is over, or a signal came."""
  left = max((end - time.monotonic()) / 60, 1e-3) if end else 0.0
  record = run(e, folder, left, _Ticker(e, held, log), kept)
  if record is None:
    raise stopping.Stopped
  if records.append(folder, record, once=True):
    log.record(record)
  s = record['scores']['accuracy']
  got = record['status']
  if s['value'] is not None:
    got = f'{100 * s["value"]:.2f} ± {100 * (s["spread"] or 0):.2f} %'
  note(f'{_title(e)}: {got}')


def dry_run(todo: Sequence[Any], as_json: bool) -> int:
  """Loads and checks every row, and says what would be trained and tested."""
  rows = [
    {
      'learner': methods.spell(e.learner),
      'model': e.config.model,
      'training': e.training if e.teacher else None,
      'teacher': methods.spell(e.teacher) if e.teacher else None,
      'steps': e.config.train.steps if e.teacher else 0,
      'test': _title(e),
      'episodes': e.config.test.episodes,
      'trained': methods.count(e.backbone.running.params) if e.teacher else 0,
    }
    for e in prepare(todo)
  ]
  if as_json:
    print(json.dumps({'config': configs.as_dict(todo[0]), 'rows': rows}))
    return 0
  stdout.print(json.dumps(configs.as_dict(todo[0]), indent=1))
  for row in rows:
    taught = f'{row["teacher"]} for {row["steps"]:,} steps' if row['teacher'] else 'no training'
    stdout.print(f'{row["test"]}: {taught}, then {row["episodes"]:,} episodes')
  return 0


def show(folder: Path, as_json: bool, log: Log | None = None) -> int:
  """Writes table.md anew from the records, and prints and logs the table."""
  found = episode_tables.write(folder)
  if log:
    log.table(episode_tables.as_json(found), episode_tables.render_markdown(found))
  if as_json:
    print(json.dumps(episode_tables.as_json(found)))
  else:
    episode_tables.render_terminal(found, stdout)
    note(f'written: {folder}/{{records.jsonl, table.md}}')
  return int(any(c.status == 'failed' for c in found))


def _title(e: Experiment) -> str:
  c = e.config.test
  return f'{methods.spell(e.learner)} on {e.test.pool.name}, {c.way}-way {c.shot}-shot'


class _Ticker:
  """Logs a training's loss; says every half minute how far it is and when it ends."""

  def __init__(self, e: Experiment, held: Claim, log: Log) -> None:
    self._log, self._run = log, f'training {e.training[:6]}'
    self._steps, self._title, self._held = e.config.train.steps, _title(e), held
    self._start = self._said = time.monotonic()
    self._first: int | None = None

  def __call__(self, step: int, loss: float) -> None:
    self._log.scalars(self._run, step, {'loss': loss})
    now = time.monotonic()
    self._held.says = f'step {step:,} of {self._steps:,}'
    if self._first is None:  # It compiled and resumed until now.
      self._first, self._start = step, now
    elif now - self._said > 30 or step == self._steps:
      pace = (now - self._start) / max(step - self._first, 1)
      left = pace * (self._steps - step)
      at = f'step {step:,} of {self._steps:,}, loss {loss:.3f}'
      note(f'{self._title}: {at}, {left / 60:.1f} min left')
      self._said = now
