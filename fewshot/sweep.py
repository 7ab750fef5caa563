"""Sweep: the runs split x init x hyper-parameters as one vmapped axis over a frozen base.

Two programs are compiled, one that fits and one that scores, whatever the number of runs; runs
go in chunks that fit the device's memory.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fewshot import train
from fewshot.errors import FewshotError, nearest
from fewshot.fits.base import Data, Fit
from fewshot.methods.base import Calib, Method, adapt
from fewshot.models.base import Model
from fewshot.objectives import Objective, classification
from fewshot.tasks.encode import Encoded

Progress = Callable[[str, float], None]  # (phase, fraction done of it)


class Run(NamedTuple):
  """Which run: the position of its split, its init seed and its hyper-parameters."""

  split: int
  seed: int
  hyper: dict[str, float]


class Result(NamedTuple):
  """What came of a run."""

  run: Run
  logits: np.ndarray  # [T, C], of the test items in the split's order.
  curve: np.ndarray | None  # [steps], the training loss.
  dev: dict[str, float] | None
  method: Method  # As planned, where its structure depends on data.
  theta: Any
  state: Any
  timings: dict[str, float]
  memory: dict[str, int]

  @property
  def predictions(self) -> np.ndarray:
    """The predicted class of each test item."""
    return self.logits.argmax(-1)


def runs(
  n_splits: int, seeds: Sequence[int] = (0,), grid: Mapping[str, Sequence[float]] | None = None
) -> list[Run]:
  """All runs of a sweep: splits x seeds x the grid's product.

  >>> len(runs(5, seeds=[0, 1], grid={'lr': [1e-3, 1e-2]}))
  20
  """
  grid = grid or {}
  points = [dict(zip(grid, p, strict=True)) for p in itertools.product(*grid.values())]
  return [Run(i, s, h) for i in range(n_splits) for s in seeds for h in points]


def sweep(
  model: Model,
  data: Encoded,
  method: Method,
  fit: Fit,
  *,
  classes: int,
  seeds: Sequence[int] = (0,),
  grid: Mapping[str, Sequence[float]] | None = None,
  objective: Objective | None = None,
  memory: int = 0,
  progress: Progress | None = None,
) -> Iterator[Result]:
  """Fits and scores every run, yielding results chunk by chunk, in the order of `runs`.

  `memory` bounds the bytes of a compiled chunk (0: what the device has free).
  """
  todo = runs(len(data.splits), seeds, grid)
  _check_grid(fit, grid or {})
  if not todo:
    raise FewshotError('there is nothing to run: the splits, the seeds or a grid are empty')
  shared = setup(model, data, method, fit, classes, objective)
  tick = progress or (lambda phase, done: None)
  tick('compile', 0.0)
  programs = compile_programs(shared, model.params, data, todo, memory or free_memory())
  tick('compile', 1.0)
  for start in range(0, len(todo), programs.chunk):
    chunk = todo[start : start + programs.chunk]
    outcome = _fit_and_score(programs, model.params, data, chunk, tick)
    yield from _results(programs, data, chunk, *outcome)


def setup(
  model: Model, data: Encoded, method: Method, fit: Fit, classes: int,
  objective: Objective | None = None,
) -> train.Setup:  # fmt: skip
  """What the runs share; a method whose structure depends on data is planned on the first split."""
  objective = objective or classification()
  highest = max(int(np.max(x)) for x in (data.train['labels'], data.labels) if np.size(x))
  if highest >= classes:
    raise FewshotError(f'a label is {highest}, and there are {classes} classes, 0 to {classes - 1}')
  calib = Calib(_row(data.train, 0), classes, objective.loss)
  if method.plan:
    method = method.plan(model.forward, model.params, calib)
  if 'head' in model.params:
    has_logits(model, method, calib)  # It may be of other classes than the task's.
  return train.Setup(model.forward, method, fit, objective, classes)


class ForeignHead(FewshotError):
  """The logits are those of a head that the model came with, of other classes."""


def has_logits(model: Model, method: Method, calib: Calib) -> bool:
  """Whether the adapted model gives logits of the task's classes.

  Raises `ForeignHead` where they are the model's own, of another number of classes.
  """

  def outputs(key: Any, params: Any) -> Any:
    theta, state = method.init(key, model.forward, params, calib)
    return adapt(method, model.forward, theta, state)(params, calib.batch)

  adapted = jax.eval_shape(outputs, jax.random.key(0), model.params)
  base = jax.eval_shape(lambda p, b: model.forward(p, b), model.params, calib.batch)
  if 'logits' not in adapted or 'logits' not in base:
    return 'logits' in adapted
  own = base['logits'].shape[-1]
  if adapted['logits'].shape[-1] == own != calib.classes:
    raise ForeignHead(
      f'the head that {model.name} came with tells {own} classes apart, and the task has '
      f'{calib.classes}; chain a head behind the method: chain(..., linear())'
    )
  return True


class Programs(NamedTuple):
  """Two compiled programs over `chunk` runs, and what they cost."""

  method: Method
  chunk: int
  advance: Any
  score: Any
  straight: bool
  steps: int
  empty: Any  # Shapes of the carry.
  test: tuple[Any, ...]
  seconds: float
  bytes: int


def compile_programs(
  setup: train.Setup, params: Any, data: Encoded, todo: list[Run], budget: int
) -> Programs:
  """The programs for all runs at once or, where these need more than `budget` bytes, for a part.

  What a run needs is taken from the first compilation: (bytes - params) / runs.
  """
  programs = _compile_chunk(setup, params, data, todo)
  if programs.bytes > budget and len(todo) > 1:
    fixed = _nbytes(params)
    each = max((programs.bytes - fixed) / len(todo), 1)
    chunk = int(max(1, min(len(todo) - 1, (budget - fixed) // each)))
    programs = _compile_chunk(setup, params, data, todo[:chunk])
  return programs


def flops(compiled: Any) -> float:
  """Floating-point operations of a compiled program, a loop's body counted once."""
  analysis = compiled.cost_analysis()
  return float(analysis.get('flops', 0.0)) if analysis else 0.0


def _compile_chunk(setup: train.Setup, params: Any, data: Encoded, chunk: list[Run]) -> Programs:
  start = time.perf_counter()
  inputs = stack(data, chunk)
  straight = train.steps_are_straight(setup, params, _row(data.train, 0))
  begin = jax.vmap(functools.partial(train.begin, setup), in_axes=(None, 0))
  empty = jax.eval_shape(begin, params, inputs)
  t = jax.ShapeDtypeStruct((), jnp.int32)
  advance = jax.vmap(functools.partial(train.advance, setup, straight), (None, 0, 0, None, None))
  fit = jax.jit(advance, donate_argnums=2).lower(params, inputs, empty, t, t).compile()
  test = tuple(jax.tree.map(jnp.asarray, _unlabelled(b.batches)) for b in data.test)
  score = jax.jit(_scored(setup)).lower(params, empty, test, inputs.data.dev).compile()
  seconds = time.perf_counter() - start
  peak = max(_program_bytes(p) for p in (fit, score))
  return Programs(
    setup.method, len(chunk), fit, score, straight, setup.fit.steps, empty, test, seconds, peak
  )


def _scored(setup: train.Setup) -> Callable[..., Any]:
  def score(params: Any, carry: Any, test: Any, dev: Any) -> dict[str, Any]:
    test_logits = jax.vmap(functools.partial(train.predict, setup), (None, 0, None))
    out: dict[str, Any] = {'logits': test_logits(params, carry, test)}
    if dev is not None:
      out['dev'] = jax.vmap(functools.partial(train.score_dev, setup), (None, 0, 0))(
        params, carry, dev
      )
    out['theta'], out['state'] = jax.vmap(setup.fit.finish)(carry)
    return out

  return score


def _fit_and_score(
  programs: Programs, params: Any, data: Encoded, chunk: list[Run], tick: Progress
) -> tuple[Any, Any, dict[str, float]]:
  padded = chunk + chunk[:1] * (programs.chunk - len(chunk))
  inputs = stack(data, padded)
  carry = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), programs.empty)
  start = time.perf_counter()
  stride = 1 if programs.straight else max(1, programs.steps // 10)
  for t in range(0, max(programs.steps, 1), stride):
    end = min(t + stride, programs.steps)
    carry = programs.advance(params, inputs, carry, jnp.int32(t), jnp.int32(end))
    jax.block_until_ready(carry)
    tick('train', end / max(programs.steps, 1))
  fitted = time.perf_counter()
  tick('score', 0.0)
  scored = programs.score(params, carry, programs.test, inputs.data.dev)
  scored['logits'] = np.asarray(scored['logits'])
  tick('score', 1.0)
  done = time.perf_counter()
  curve = carry['curve'] if isinstance(carry, dict) and 'curve' in carry else None
  timings = {
    'seconds': (done - start) / len(padded),
    'chunk_seconds': done - start,
    'chunk_runs': len(padded),
    'fit_seconds': fitted - start,
    'score_seconds': done - fitted,
    'compile_seconds': programs.seconds,
  }
  return scored, curve, timings


def _results(
  programs: Programs, data: Encoded, chunk: list[Run], scored: Any, curve: Any,
  timings: dict[str, float],
) -> Iterator[Result]:  # fmt: skip
  rows = np.concatenate([b.rows for b in data.test])
  order = np.argsort(np.where(rows < 0, len(rows) + 1, rows), kind='stable')[: len(data.labels)]
  memory = {'bytes': programs.bytes, 'runs': programs.chunk}
  for i, run in enumerate(chunk):
    pick = functools.partial(jax.tree.map, lambda x, i=i: x[i])
    dev = {k: float(v[i]) for k, v in scored['dev'].items()} if 'dev' in scored else None
    yield Result(
      run,
      scored['logits'][i][order],
      None if curve is None else np.asarray(curve[i]),
      dev,
      programs.method,
      pick(scored['theta']),
      pick(scored['state']),
      timings,
      memory,
    )


def stack(data: Encoded, chunk: Sequence[Run]) -> train.Inputs:
  """The inputs of several runs, stacked along a leading axis."""
  index = np.array([r.split for r in chunk])
  take = lambda batch: jax.tree.map(lambda x: jnp.asarray(x[index]), batch)  # noqa: E731
  keys = [jax.random.fold_in(jax.random.key(r.seed), data.splits[r.split].seed) for r in chunk]
  hyper = {k: jnp.array([r.hyper[k] for r in chunk]) for k in chunk[0].hyper}
  return train.Inputs(jnp.stack(keys), hyper, Data(take(data.train), take(data.dev)))


def free_memory() -> int:
  """Bytes that a compiled chunk may take: the device's own count, or most of the free RAM."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'bytes_limit' in stats:
    return int(0.9 * (stats['bytes_limit'] - stats.get('bytes_in_use', 0)))
  meminfo = Path('/proc/meminfo')
  if meminfo.exists():
    line = next(x for x in meminfo.read_text().splitlines() if x.startswith('MemAvailable'))
    return int(0.7 * 1024 * int(line.split()[1]))
  return 4 << 30


def _program_bytes(compiled: Any) -> int:
  m = compiled.memory_analysis()
  total = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
  return int(total - m.alias_size_in_bytes)


def _nbytes(tree: Any) -> int:
  return sum(x.nbytes for x in jax.tree.leaves(tree))


def _row(batch: Any, i: int) -> Any:
  return {k: jnp.asarray(v[i]) for k, v in batch.items()}


def _unlabelled(batch: dict[str, Any]) -> dict[str, Any]:
  """Test inputs without their labels: what predicts cannot see the answer."""
  return {k: v for k, v in batch.items() if k != 'labels'}


def _check_grid(fit: Fit, grid: Mapping[str, Any]) -> None:
  for name in grid:
    if name not in fit.varies:
      can = nearest(name, fit.varies) if fit.varies else 'this fit has none that can'
      raise FewshotError(f'a grid cannot vary {name!r} in one compiled sweep; {can}')
