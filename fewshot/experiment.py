"""Experiment: from configs to records and a table; what `fewshot run` does."""

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fewshot import (
  __version__,
  checkpoint,
  engine,
  methods,
  profiling,
  programs,
  records,
)
from fewshot import config as configs
from fewshot import sweep as sweeps
from fewshot.adapted import Adapted
from fewshot.engine import Progress
from fewshot.errors import FewshotError
from fewshot.logging import Log
from fewshot.objectives import classification
from fewshot.prepared import Prepared, counted, data_of, options, plan_runs
from fewshot.runs import Run
from fewshot.sweep import Result, sweep


def identities(p: Prepared) -> list[dict[str, Any]]:
  """What the records of this experiment will say of themselves, before it runs."""
  return [_identity(p, run) for run in plan(p).values()]


def execute(
  prepared: Prepared, out: Path, log: Log | None, progress: Progress, done: set[str]
) -> Iterator[dict[str, Any]]:
  """Runs an experiment's runs, recording each; those whose id is in `done` are skipped.

  `log` is None in a process that leaves the records to another.
  A failure on the way (a device out of memory, say) becomes a record too.
  """
  p, grid = prepared, configs.grid(prepared.config)
  ids = plan(p)
  if done.issuperset(ids):
    return
  results = _staged(p, out, done, progress) if p.program else sweep(
    p.model, p.data, p.method, p.fit, classes=len(p.task.classes), seeds=p.config.seeds,
    grid=grid, objective=p.objective, options=options(p.config), progress=progress,
  )  # fmt: skip
  written: list[Run] = []
  try:
    for result, chosen in _with_choice(results, bool(grid)):
      record = _record(p, result, chosen)
      if record['id'] not in done:
        if p.config.checkpoints and record['status'] == 'ok' and log:
          checkpoint.save(_adapted(p, result), out / 'checkpoints' / record['id'])
        yield _write(out, log, record)
      written.append(result.run)
  except FewshotError:
    raise
  except Exception as e:
    cause = f'{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ""}'[:300]
    for id, run in ids.items():
      if run not in written and id not in done:
        yield _write(out, log, _failed(p, run, cause))


def _with_choice(results: Iterator[Result], choose: bool) -> Iterator[tuple[Result, bool]]:
  """Each result with whether it counts; of a grid that is known only when all are there."""
  if not choose:
    yield from ((r, True) for r in results)
    return
  everything = list(results)
  best = _chosen(everything)
  yield from ((r, i in best) for i, r in enumerate(everything))


def _staged(p: Prepared, out: Path, done: set[str], progress: Progress) -> Iterator[Result]:
  """The results of a program, run by run; a finished stage is kept and found again."""
  assert p.program is not None
  for id, run in plan(p).items():
    if id in done:
      continue
    start = time.monotonic()
    outcome = programs.run(
      p.program, p.model, data_of(p, run.split), classes=len(p.task.classes), seed=run.seed,
      cache=out / 'stages', options=options(p.config), progress=progress,
    )  # fmt: skip
    timings = {'seconds': time.monotonic() - start}
    result = Result(run, outcome.logits(), None, None, p.method, {}, {}, timings, {})
    yield result._replace(stages=tuple(outcome.notes))


def plan(p: Prepared) -> dict[str, Run]:
  """The runs of an experiment by their ids."""
  return {run_id(p, r): r for r in plan_runs(p)}


def run_id(p: Prepared, run: Run) -> str:
  """The hash of what decides a result: config, run, content of data and weights, versions."""
  fields = _identity(p, run)
  return records.run_id({k: fields[k] for k in sorted(fields) if k != 'config'} | _decisive(p))


def _decisive(p: Prepared) -> dict[str, Any]:
  keys = ['k', 'dev_k', 'max_length', 'dtype', 'dropout']
  if p.config.unlabelled:
    keys.append('unlabelled')
  return {k: p.config[k] for k in keys}


def _identity(p: Prepared, run: Run) -> dict[str, Any]:
  split = p.data.splits[run.split]
  shown = p.wording.prompt.hashes if p.wording else {}
  return {
    'config': configs.as_dict(p.config),
    'model': p.model.name,
    'method': p.label,
    'fit': p.fitted,
    'task': p.task.name,
    'split': {'k': split.k, 'seed': split.seed},
    'seed': run.seed,
    'hyper': run.hyper,
    'hashes': {**p.model.hashes, 'split': split.hash, 'test': split.test_hash, **shown},
    'versions': versions(),
    **({'prompt': methods.spell(p.wording.prompt)} if p.wording else {}),
    **({} if p.objective == classification() else {'objective': methods.spell(p.objective)}),
  }


def _record(p: Prepared, result: Result, chosen: bool) -> dict[str, Any]:
  right = result.predictions == p.data.labels
  scores = {'accuracy': _proportion(float(right.mean()), len(right))}
  if result.dev is not None:
    n = p.config.dev_k * len(p.task.classes)
    scores['dev_accuracy'] = _proportion(result.dev['score'], n)
  status, cause = _status(result)
  planned = counted(p._replace(method=result.method)) if p.method.plan else p
  stages = {'stages': list(result.stages)} if result.stages else {}
  trained = max((n.get('trained', 0) for n in result.stages), default=planned.trained)
  return (
    _common(p, result.run)
    | stages
    | {
      'trained': trained,
      'total': max(planned.total, trained),  # A program's classifier comes with its first stage.
      'chosen': chosen,
      'scores': scores,
      'timings': result.timings,
      'memory': result.memory,
      'engine': result.engine,
      'status': status,
      'cause': cause,
      'predictions': result.predictions.tolist(),
      'curve': None if result.curve is None else [round(float(x), 6) for x in result.curve],
    }
  )


def _failed(p: Prepared, run: Run, cause: str) -> dict[str, Any]:
  return _common(p, run) | {
    'chosen': True,
    'scores': {},
    'timings': {},
    'memory': {},
    'engine': {},
    'status': 'failed',
    'cause': cause,
    'predictions': None,
    'curve': None,
  }


def _common(p: Prepared, run: Run) -> dict[str, Any]:
  """What a record says of its run, whatever came of it."""
  tuned = configs.grid(p.config) or 'eval_every' in p.fitted
  return {
    'id': run_id(p, run),
    **_identity(p, run),
    'tuning': 'dev' if tuned else 'fixed',
    'cut': p.data.cut,
    'trained': p.trained,
    'total': p.total,
  }


def _status(result: Result) -> tuple[str, str | None]:
  """A run that diverged or says one class for all is a row of its own kind, never a gap."""
  if result.curve is not None and not np.isfinite(result.curve).all():
    return 'failed', f'the loss was not finite at step {int(np.argmin(np.isfinite(result.curve)))}'
  if not np.isfinite(result.logits).all():
    return 'failed', 'the logits were not finite'
  if len(set(result.predictions.tolist())) == 1:
    return 'collapsed', 'every test item got the same class'
  return 'ok', None


def _proportion(value: float, n: int) -> dict[str, Any]:
  """A mean of n zeros and ones, with the standard error that resampling the items has."""
  return {
    'value': round(value, 6),
    'spread': round((value * (1 - value) / n) ** 0.5, 6),
    'kind': 'item-bootstrap',
    'n': n,
  }


def _chosen(results: Sequence[Result]) -> set[int]:
  """Of each (split, seed), the position of the result that is best on dev; ties to lower loss."""
  groups: dict[tuple[int, int], list[int]] = {}
  for i, r in enumerate(results):
    groups.setdefault((r.run.split, r.run.seed), []).append(i)

  def merit(i: int) -> tuple[float, float]:
    dev = results[i].dev or {}
    score, loss = dev.get('score', -1.0), dev.get('loss', np.inf)
    return (score, -loss) if np.isfinite(loss) else (-1.0, -np.inf)

  return {max(members, key=merit) for members in groups.values()}


def _write(out: Path, log: Log | None, record: dict[str, Any]) -> dict[str, Any]:
  if log:
    records.append(out, record)
    log.record(record)
  return record


def _adapted(p: Prepared, result: Result) -> Adapted:
  split = p.data.splits[result.run.split]
  return Adapted(
    p.model,
    result.method,
    result.theta,
    result.state,
    p.task.classes,
    p.config.max_length,
    split.hash,
    p.wording,
  )


def versions() -> dict[str, str]:
  """The code and the libraries that a number depends on."""
  found: Mapping[str, str] = {'fewshot': __version__, 'python': platform.python_version()}
  for package in ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'tokenizers'):
    try:
      found = {**found, package: version(package)}
    except PackageNotFoundError:
      continue
  return {**found, 'backend': jax.default_backend()}


def cost(p: Prepared) -> dict[str, Any]:
  """Memory, FLOPs, chunk and the engine's choices, from the compiled programs; nothing is run."""
  todo = list(plan(p).values())
  setup = sweeps.setup(p.model, p.data, p.method, p.fit, len(p.task.classes), p.objective)
  programs = engine.compile_programs(setup, p.model.params, p.data, todo, options(p.config))
  return {
    'chunk': programs.chunk,
    'memory_bytes': programs.bytes,
    'step_flops': profiling.cost(programs.advance)['flops'],
    'engine': programs.notes,
  }
