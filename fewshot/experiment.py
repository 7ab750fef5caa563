"""Experiment: from configs to records and a table; what `fewshot run` does."""

import functools
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fewshot import __version__, checkpoint, fits, methods, models, records, tasks, train
from fewshot import config as configs
from fewshot import sweep as sweeps
from fewshot.adapted import Adapted
from fewshot.errors import FewshotError
from fewshot.logging import Log
from fewshot.methods import paths
from fewshot.methods.partition import Row
from fewshot.objectives import classification
from fewshot.sweep import Progress, Result, Run, runs, sweep

DTYPES = ('float32', 'bfloat16', 'float16')


class Prepared(NamedTuple):
  """An experiment up to its first step: everything loaded, spelled and checked."""

  config: ConfigDict
  model: models.Model
  task: tasks.Task
  data: tasks.Encoded
  method: methods.Method
  fit: fits.Fit
  rows: list[Row]  # The trained/frozen table.
  total: int = 0  # Parameters of the adapted model: the base and what is added beside it.

  @property
  def calib(self) -> methods.Calib:
    """A batch of the longest that the model will see, for shapes."""
    batches = [self.data.train, *(b.batches for b in self.data.test)]
    longest = max(batches, key=lambda b: b['tokens'].shape[-1] if 'tokens' in b else 0)
    batch = {k: np.asarray(v[0]) for k, v in longest.items()}
    return methods.Calib(batch, len(self.task.classes), classification().loss)

  @property
  def trained(self) -> int:
    """The number of trained parameters."""
    return methods.count([r.leaves for r in self.rows[:-1]])


def prepare(todo: Sequence[ConfigDict]) -> list[Prepared]:
  """Loads and checks every config before anything runs; shared parts are loaded once."""
  loaded: dict[Any, Any] = {}
  return [_prepare(c, loaded) for c in todo]


def _prepare(config: ConfigDict, loaded: dict[Any, Any]) -> Prepared:
  method, fit = methods.parse(config.method), fits.parse(config.fit)
  _check(config, fit)
  model_key = (config.model, config.dtype, config.dropout)
  if model_key not in loaded:
    dtype = jax.numpy.dtype(config.dtype)
    loaded[model_key] = models.load(config.model, dtype=dtype, dropout=config.dropout)
  model = loaded[model_key]
  task_key = (config.task, config.text, config.label)
  if task_key not in loaded:
    loaded[task_key] = _task(config)
  task = loaded[task_key]
  counts = (config.k, config.dev_k, config.splits, config.max_test, config.max_length)
  data_key = (model_key, task_key, counts)
  if data_key not in loaded:
    splits = tasks.kshot(task, config.k, config.splits, config.dev_k, config.max_test)
    loaded[data_key] = tasks.encode(task, splits, model.tokenizer, config.max_length)
  prepared = Prepared(config, model, task, loaded[data_key], method, fit, [])
  prepared = prepared._replace(method=_with_head(prepared))
  method = prepared.method
  table = methods.table(method, model.forward, model.params, prepared.calib)
  own = paths.flatten(model.params)
  added = [x for row in table[:-1] for p, x in row.leaves.items() if p not in own]
  total = methods.count(model.params) + methods.count(added)
  _check_start(prepared)
  return prepared._replace(rows=table, total=total)


def identities(p: Prepared) -> list[dict[str, Any]]:
  """What the records of this experiment will say of themselves, before it runs."""
  return [_identity(p, run) for run in plan(p).values()]


def _check_start(p: Prepared) -> None:
  """Traces the start of a run: that is where a fit refuses a method, or data without a dev set."""
  if p.method.plan:  # What it plans from data costs compute.
    return
  setup = sweeps.setup(p.model, p.data, p.method, p.fit, len(p.task.classes))
  first = sweeps.stack(p.data, list(plan(p).values())[:1])
  begin = jax.vmap(functools.partial(train.begin, setup), (None, 0))
  jax.eval_shape(begin, p.model.params, first)


def _with_head(p: Prepared) -> methods.Method:
  """The method; behind it the config's head, where no logits are of the task's classes."""
  headed = methods.chain(p.method, methods.parse(p.config.head))
  try:
    return p.method if sweeps.has_logits(p.model, p.method, p.calib) else headed
  except sweeps.ForeignHead:
    return headed


def execute(
  prepared: Prepared, out: Path, log: Log, progress: Progress, done: set[str]
) -> Iterator[dict[str, Any]]:
  """Runs an experiment's runs, recording each; those whose id is in `done` are skipped.

  A failure on the way (a device out of memory, say) becomes a record too.
  """
  p, grid = prepared, configs.grid(prepared.config)
  ids = plan(p)
  if done.issuperset(ids):
    return
  results = sweep(
    p.model, p.data, p.method, p.fit, classes=len(p.task.classes), seeds=p.config.seeds,
    grid=grid, memory=int(p.config.memory_gb * 2**30), progress=progress,
  )  # fmt: skip
  written: list[Run] = []
  try:
    for result, chosen in _with_choice(results, bool(grid)):
      record = _record(p, result, chosen)
      if record['id'] not in done:
        if p.config.checkpoints and record['status'] == 'ok':
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


def plan(p: Prepared) -> dict[str, Run]:
  """The runs of an experiment by their ids."""
  todo = runs(len(p.data.splits), p.config.seeds, configs.grid(p.config))
  return {run_id(p, r): r for r in todo}


def run_id(p: Prepared, run: Run) -> str:
  """The hash of what decides a result: config, run, content of data and weights, versions."""
  fields = _identity(p, run)
  return records.run_id({k: fields[k] for k in sorted(fields) if k != 'config'} | _decisive(p))


def _decisive(p: Prepared) -> dict[str, Any]:
  keys = ('k', 'dev_k', 'max_length', 'dtype', 'dropout')
  return {k: p.config[k] for k in keys}


def _identity(p: Prepared, run: Run) -> dict[str, Any]:
  split = p.data.splits[run.split]
  return {
    'config': configs.as_dict(p.config),
    'model': p.model.name,
    'method': methods.spell(p.method),
    'fit': methods.spell(p.fit),
    'task': p.task.name,
    'split': {'k': split.k, 'seed': split.seed},
    'seed': run.seed,
    'hyper': run.hyper,
    'hashes': {**p.model.hashes, 'split': split.hash, 'test': split.test_hash},
    'versions': versions(),
  }


def _record(p: Prepared, result: Result, chosen: bool) -> dict[str, Any]:
  right = result.predictions == p.data.labels
  scores = {'accuracy': _proportion(float(right.mean()), len(right))}
  if result.dev is not None:
    n = p.config.dev_k * len(p.task.classes)
    scores['dev_accuracy'] = _proportion(result.dev['score'], n)
  status, cause = _status(result)
  return _common(p, result.run) | {
    'chosen': chosen,
    'scores': scores,
    'timings': result.timings,
    'memory': result.memory,
    'status': status,
    'cause': cause,
    'predictions': result.predictions.tolist(),
    'curve': None if result.curve is None else [round(float(x), 6) for x in result.curve],
  }


def _failed(p: Prepared, run: Run, cause: str) -> dict[str, Any]:
  return _common(p, run) | {
    'chosen': True,
    'scores': {},
    'timings': {},
    'memory': {},
    'status': 'failed',
    'cause': cause,
    'predictions': None,
    'curve': None,
  }


def _common(p: Prepared, run: Run) -> dict[str, Any]:
  """What a record says of its run, whatever came of it."""
  tuned = configs.grid(p.config) or 'eval_every' in methods.spell(p.fit)
  return {
    'id': run_id(p, run),
    **_identity(p, run),
    'tuning': 'dev' if tuned else 'fixed',
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


def _write(out: Path, log: Log, record: dict[str, Any]) -> dict[str, Any]:
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
  )


def _task(config: ConfigDict) -> tasks.Task:
  if Path(config.task).suffix in ('.csv', '.tsv'):
    return tasks.from_csv(config.task, config.text, config.label)
  return tasks.load(config.task)


def _check(config: ConfigDict, fit: fits.Fit) -> None:
  if config.dtype not in DTYPES:
    raise FewshotError(f'config.dtype is {config.dtype!r}; there are {", ".join(DTYPES)}')
  if not config.splits or not config.seeds:
    raise FewshotError('config.splits and config.seeds hold at least one seed each')
  grid = configs.grid(config)
  varied = {'splits': config.splits, 'seeds': config.seeds}
  varied |= {f'grid.{name}': values for name, values in grid.items()}
  for name, values in varied.items():
    if len(set(values)) < len(values):
      raise FewshotError(f'config.{name} holds a value twice: {list(values)}; each makes one run')
  if grid and not config.dev_k:
    raise FewshotError(
      f'config.grid varies {", ".join(grid)}, but dev_k is 0: hyper-parameters are chosen on a dev '
      'set, never on test; set --config.dev_k, at most k'
    )
  if not 1 <= config.max_length <= 2**20 or config.max_test < 0:
    raise FewshotError('config: max_length is 1 to 1,048,576 tokens, max_test at least 0')
  if not 0 <= config.memory_gb <= 1e6:
    raise FewshotError(f'config.memory_gb is {config.memory_gb}; give 0 (what is free) to 1e6')
  missing = [name for name in grid if name not in fit.varies]
  if missing:
    raise FewshotError(f'{config.fit} has no {missing[0]} that a grid could vary')


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
  """Memory, FLOPs and chunk of an experiment, from its compiled programs; nothing is run."""
  todo = list(plan(p).values())
  setup = sweeps.setup(p.model, p.data, p.method, p.fit, len(p.task.classes))
  budget = int(p.config.memory_gb * 2**30) or sweeps.free_memory()
  programs = sweeps.compile_programs(setup, p.model.params, p.data, todo, budget)
  flops = sweeps.flops(programs.advance)
  return {'chunk': programs.chunk, 'memory_bytes': programs.bytes, 'step_flops': flops}
