"""Sweep: the runs split x init x hyper-parameters as one vmapped axis over a frozen base.

Two programs are compiled, one that fits and one that scores, whatever the number of runs; runs
go in chunks that fit the device's memory.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fewshot import engine, train
from fewshot.engine import Options, Progress
from fewshot.errors import FewshotError, nearest
from fewshot.fits.base import Fit
from fewshot.methods.base import Calib, Method, adapt
from fewshot.models.base import Model
from fewshot.objectives import Objective, classification
from fewshot.profiling import phase
from fewshot.runs import Run, runs
from fewshot.tasks.encode import Encoded


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
  engine: dict[str, str] = {}  # noqa: RUF012  # How it was computed, and why so.
  stages: tuple[dict[str, Any], ...] = ()  # Of a program: what each says of itself.

  @property
  def predictions(self) -> np.ndarray:
    """The predicted class of each test item."""
    return self.logits.argmax(-1)


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
  options: Options | None = None,
  progress: Progress | None = None,
) -> Iterator[Result]:
  """Fits and scores every run, yielding results chunk by chunk, in the order of `runs`.

  Raises `FewshotError` for an empty sweep, a grid that the fit does not vary, unknown options.
  """
  todo = runs(len(data.splits), seeds, grid)
  _check_grid(fit, grid or {})
  if not todo:
    raise FewshotError('there is nothing to run: the splits, the seeds or a grid are empty')
  shared = setup(model, data, method, fit, classes, objective)
  tick, how = progress or (lambda phase, done: None), options or Options()
  tick('compile', 0.0)
  with phase('compile'):
    programs = engine.compile_programs(shared, model.params, data, todo, how)
  tick('compile', 1.0)
  keep = None if programs.placement.name == 'hosts' else how.keep
  for start in range(0, len(todo), programs.chunk):
    chunk = todo[start : start + programs.chunk]
    yield from computed(programs, chunk, tick, keep(chunk, programs.chunk) if keep else None)


def computed(
  programs: engine.Programs, chunk: list[Run], tick: Progress, keeper: engine.Keeper | None = None
) -> Iterator[Result]:
  """The results of at most `programs.chunk` runs, which go at once; the keeper is closed."""
  try:
    found = engine.fit_and_score(programs, chunk, tick, keeper)
  finally:
    if keeper:
      keeper.close()
  yield from _results(programs, chunk, *found)


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
  method = traced_once(method)
  if 'head' in model.params:
    has_logits(model, method, calib)  # It may be of other classes than the task's.
  return train.Setup(model.forward, method, fit, objective, classes)


def traced_once(method: Method) -> Method:
  """The method with an `init` whose trace JAX keeps, for the same forward and shapes.

  The preflight, the shapes of a carry and the program that begins runs all trace it, and most
  methods trace passes of the model there, a fifth of a second each for an encoder of six layers.
  """

  @functools.partial(jax.jit, static_argnums=(1, 4, 5), inline=True)
  def traced(key: Any, forward: Any, params: Any, batch: Any, classes: int, loss: Any) -> Any:
    return method.init(key, forward, params, Calib(batch, classes, loss))

  def init(key: Any, forward: Any, params: Any, calib: Calib) -> Any:
    return traced(key, forward, params, *calib)

  return method._replace(init=init)


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
  if 'logits' not in adapted:
    return False
  base = jax.eval_shape(lambda p, b: model.forward(p, b), model.params, calib.batch)
  if 'logits' not in base:
    return True
  own = base['logits'].shape[-1]
  if adapted['logits'].shape[-1] == own != calib.classes:
    raise ForeignHead(
      f'the head that {model.name} came with tells {own} classes apart, and the task has '
      f'{calib.classes}; chain a head behind the method: chain(..., linear())'
    )
  return True


def _results(
  programs: engine.Programs, chunk: list[Run], scored: Any, curve: Any, timings: dict[str, float]
) -> Iterator[Result]:
  data = programs.data
  rows = np.concatenate([b.rows for b in data.test])
  order = np.argsort(np.where(rows < 0, len(rows) + 1, rows), kind='stable')
  order = order[: len(data.labels) * data.views]
  memory = {'bytes': programs.bytes, 'runs': programs.chunk}
  for i, run in enumerate(chunk):
    pick = functools.partial(jax.tree.map, lambda x, i=i: x[i])
    dev = {k: float(v[i]) for k, v in scored['dev'].items()} if 'dev' in scored else None
    yield Result(
      run,
      data.of_items(scored['logits'][i][order]),
      None if curve is None else curve[i],
      dev,
      programs.setup.method,
      pick(scored['theta']),
      pick(scored['state']),
      timings,
      memory,
      programs.notes,
    )


def _row(batch: Any, i: int) -> Any:
  return {k: jnp.asarray(v[i]) for k, v in batch.items()}


def _check_grid(fit: Fit, grid: Mapping[str, Any]) -> None:
  for name in grid:
    if name not in fit.varies:
      can = nearest(name, fit.varies) if fit.varies else 'this fit has none that can'
      raise FewshotError(f'a grid cannot vary {name!r} in one compiled sweep; {can}')
