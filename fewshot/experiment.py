"""Experiment: from configs to records and a table; what `fewshot run` does."""

import functools
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import numpy as np

from fewshot import (
  __version__,
  engine,
  methods,
  profiling,
  records,
)
from fewshot import config as configs
from fewshot import sweep as sweeps
from fewshot.adapted import Adapted
from fewshot.limits import options
from fewshot.objectives import classification
from fewshot.prepared import Prepared, counted, plan_runs
from fewshot.runs import Run
from fewshot.sweep import Result


def identities(p: Prepared) -> list[dict[str, Any]]:
  """What the records of this experiment will say of themselves, before it runs."""
  return [identity(p, run) for run in plan(p).values()]


def plan(p: Prepared) -> dict[str, Run]:
  """The runs of an experiment by their ids."""
  return {run_id(p, r): r for r in plan_runs(p)}


def run_id(p: Prepared, run: Run) -> str:
  """The hash of what decides a result: config, run, content of data and weights, versions."""
  fields = identity(p, run)
  return records.run_id({k: fields[k] for k in sorted(fields) if k != 'config'} | _decisive(p))


def _decisive(p: Prepared) -> dict[str, Any]:
  keys = ['k', 'dev_k', 'max_length', 'dtype', 'dropout']
  if p.config.unlabelled:
    keys.append('unlabelled')
  return {k: p.config[k] for k in keys}


def identity(p: Prepared, run: Run) -> dict[str, Any]:
  """What a record says of its run before it is computed."""
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


def record(
  p: Prepared, result: Result, peers: Sequence[Result], chosen: bool = True
) -> dict[str, Any]:
  """The record of a run; `peers` are the results of its row that were computed beside it."""
  right = result.predictions == p.data.labels
  scores = {'accuracy': _proportion(float(right.mean()), len(right))}
  if result.dev is not None:
    n = p.config.dev_k * len(p.task.classes)
    scores['dev_accuracy'] = _proportion(result.dev['score'], n)
  status, cause = _status(result, peers, p.data.labels)
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


def failed(p: Prepared, run: Run, cause: str) -> dict[str, Any]:
  """The record of a run that came to nothing, for a reason that is not its own."""
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


def stopped(p: Prepared, run: Run, step: int, dev: Mapping[str, float]) -> dict[str, Any]:
  """The record of a point of a grid that did worse on dev than others and stopped at a step."""
  n = p.config.dev_k * len(p.task.classes)
  return failed(p, run, f'stopped at step {step}: others of the grid did better on dev') | {
    'chosen': False,
    'status': 'stopped',
    'scores': {'dev_accuracy': _proportion(dev['score'], n)},
  }


def _common(p: Prepared, run: Run) -> dict[str, Any]:
  """What a record says of its run, whatever came of it."""
  tuned = configs.grid(p.config) or 'eval_every' in p.fitted
  return {
    'id': run_id(p, run),
    **identity(p, run),
    'tuning': 'dev' if tuned else 'fixed',
    'cut': p.data.cut,
    **({'shown': {r.method: r.fit[run.split] for r in p.rooms}} if p.rooms else {}),
    'trained': p.trained,
    'total': p.total,
  }


def _status(result: Result, peers: Sequence[Result], labels: np.ndarray) -> tuple[str, str | None]:
  """A run that diverged or collapsed is a row of its own kind, never a gap."""
  curve = result.curve
  if curve is not None and not np.isfinite(curve).all():
    return 'failed', f'the loss was not finite at step {int(np.argmin(np.isfinite(curve)))}'
  if not np.isfinite(result.logits).all():
    return 'failed', 'the logits were not finite'
  if any(m.made and m.made.fn is methods.majority for m in result.method.parts or (result.method,)):
    return 'ok', None  # One class for all is what it is for.
  if len(set(result.predictions.tolist())) == 1:
    return 'collapsed', 'every test item got the same class'
  rise = 0.0 if curve is None or len(curve) < 2 else _rise(curve)
  if rise > 1e3:
    return 'collapsed', f'the loss rose to {rise:.3g} times its start'
  own, chance = float((result.predictions == labels).mean()), _chance(labels)
  doubt = 2 * (chance * (1 - chance) / len(labels)) ** 0.5
  if own > chance + doubt:
    return 'ok', None
  if curve is not None and len(curve) >= 10 and rise > 3:
    return 'collapsed', f'the loss rose to {rise:.1f} times its start, and accuracy is at chance'
  scores = [float((r.predictions == labels).mean()) for r in peers]
  if len(scores) > 2 and (median := float(np.median(scores))) > chance + 2 * doubt:
    at = f'accuracy {own:.3f} is at chance ({chance:.3f})'
    return 'collapsed', f'{at}, and the median of the runs beside it is {median:.3f}'
  return 'ok', None


def _chance(labels: np.ndarray) -> float:
  """What the most frequent class alone would score."""
  return float(np.bincount(labels).max() / len(labels))


def _rise(curve: np.ndarray) -> float:
  """The mean loss of the last tenth of the steps over that of the first."""
  n = max(1, len(curve) // 10)
  return float(np.mean(curve[-n:]) / max(float(np.mean(curve[:n])), 1e-6))


def _proportion(value: float, n: int) -> dict[str, Any]:
  """A mean of n zeros and ones, with the standard error that resampling the items has."""
  return {
    'value': round(value, 6),
    'spread': round((value * (1 - value) / n) ** 0.5, 6),
    'kind': 'item-bootstrap',
    'n': n,
  }


def best(results: Sequence[Result]) -> int:
  """Of the results of one split and seed, the position of that which is best on dev."""
  return max(range(len(results)), key=lambda i: merit(results[i].dev or {}))


def merit(dev: Mapping[str, float]) -> tuple[float, float]:
  """What runs are ranked by: the score on dev, then the lower loss; last where none is finite."""
  score, loss = dev.get('score', -1.0), dev.get('loss', np.inf)
  return (score, -loss) if np.isfinite(loss) else (-1.0, -np.inf)


def adapted(p: Prepared, result: Result) -> Adapted:
  """The adapted model of a run."""
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


@functools.cache
def versions() -> dict[str, str]:
  """The code and the libraries that a number depends on."""
  found: Mapping[str, str] = {'fewshot': __version__, 'python': platform.python_version()}
  for package in ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'tokenizers'):
    try:
      found = {**found, package: version(package)}
    except PackageNotFoundError:
      continue
  return {**found, 'backend': jax.default_backend()}


def compiled(
  p: Prepared, todo: Sequence[Run], wanted: engine.Options | None = None
) -> engine.Programs:
  """The programs of an experiment's runs, or of those that share them with others."""
  setup = sweeps.setup(p.model, p.data, p.method, p.fit, len(p.task.classes), p.objective)
  return engine.compile_programs(setup, p.model.params, p.data, todo, wanted or options(p.config))


def cost(programs: engine.Programs) -> dict[str, Any]:
  """Memory, FLOPs, chunk and the engine's choices; nothing is run."""
  return {
    'chunk': programs.chunk,
    'memory_bytes': programs.bytes,
    'step_flops': profiling.cost(programs.advance)['flops'],
    'engine': programs.notes,
  }
