"""Which shortcuts the training steps of a sweep may take, found out before they run.

A shortcut is taken where it pays, and only after it was tried: on a minibatch, at a theta moved off
its start, the losses by the short and the long way must agree.  What is not taken has a reason.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fewshot import train
from fewshot.errors import FewshotError
from fewshot.methods.activations import sites
from fewshot.methods.base import adapt
from fewshot.profiling import cost
from fewshot.runs import Run, stack
from fewshot.shortcuts import BLOCK, PREFIX, STACK, Shortcut, outputs_of, rows_needed, shorten
from fewshot.tasks.encode import Encoded

Array = jax.Array
BLOCKS = re.compile(r'(.*/)?(block|stage)_\d+(/block_\d+)?')  # What may be resumed behind.
LEAST_SECONDS = 5.0  # What a shortcut must save: finding and trying it takes a few seconds.
MOST_ROWS = 10**8  # Runs x steps x examples of which the minibatches are looked through.
RATE = {'cpu': 1e11}  # Floating-point operations a second, roughly; of accelerators 5e13.


class Found(NamedTuple):
  """The setup that takes the shortcuts, the data they need, and what was decided why."""

  setup: train.Setup
  data: Encoded
  notes: dict[str, str]
  flops: float = 0.0  # Of a forward pass of one run's minibatch; 0 where there are none.


class _Case(NamedTuple):
  """What the search looks at: the first run, begun, and what all runs will see."""

  setup: train.Setup
  params: Any
  data: Encoded
  run: train.Inputs
  theta: Any
  state: Any
  seen: np.ndarray  # [runs, steps, m, b], the rows of every forward pass.
  split: np.ndarray  # [runs]
  seconds: float  # About how long all steps take.


def find(
  setup: train.Setup, params: Any, data: Encoded, todo: Sequence[Run],
  wanted: Mapping[str, str], share: int = 1, budget: int = 1 << 34,
) -> Found:  # fmt: skip
  """The shortcuts for the runs `todo`; `wanted` says auto, on or off of 'packing' and 'prefix'.

  `share` devices split each minibatch; a prefix may take a tenth of `budget` bytes.
  """
  notes = dict.fromkeys(wanted, 'off')
  asked = [name for name, how in wanted.items() if how != 'off']
  if setup.fit.rows is None:
    return Found(setup, data, notes | dict.fromkeys(asked, 'no: this fit has no minibatches'))
  if len(todo) * setup.fit.steps * _first(data).shape[1] > MOST_ROWS:
    return Found(setup, data, notes | dict.fromkeys(asked, 'no: too many steps to look through'))
  m, b = setup.fit.sizes(_first(data).shape[1])
  flops = _flops(setup, params, data, b // share)
  passes = len(todo) * setup.fit.steps * m * share
  seconds = 3 * flops * passes / RATE.get(jax.default_backend(), 5e13)
  if seconds < LEAST_SECONDS and 'on' not in wanted.values():
    return Found(setup, data, notes | dict.fromkeys(asked, 'no: the training is too short'), flops)
  case = _case(setup, params, data, todo, _schedule(setup, data, todo, share), seconds)
  rows, width, resume = 0, None, ''
  if 'packing' in asked:
    width = _width(case)
    rows, notes['packing'] = _rows(case, width, wanted['packing'] == 'on')
  if 'prefix' in asked:
    resume, notes['prefix'] = _resume(case, wanted['prefix'] == 'on', budget / 10)
  if resume:
    case = case._replace(data=_with_prefix(case, resume))
  taken, failed = _first_that_holds(case, rows, resume)
  for name, found, kept in (('packing', rows, taken.rows), ('prefix', resume, taken.resume)):
    if found and not kept:
      notes[name] = f'no: tried, and {failed}'
  if taken == Shortcut():
    return Found(setup, data, notes, flops)
  setup = setup._replace(training=shorten(setup.forward, taken))
  if taken.rows:
    setup = setup._replace(testing=_packed_tests(case, width or 0))
    flops *= taken.rows / case.seen.shape[-1]
  return Found(setup, case.data if taken.resume else data, notes, flops)


def _first_that_holds(case: _Case, rows: int, resume: str) -> tuple[Shortcut, str]:
  """Both shortcuts, else one, else none; and what was wrong with the last that failed."""
  failed = ''
  for shortcut in dict.fromkeys([Shortcut(rows, resume), Shortcut(0, resume), Shortcut(rows)]):
    if shortcut == Shortcut():
      continue
    difference = _difference(case, shortcut)
    if not difference:
      return shortcut, failed
    failed = difference
  return Shortcut(), failed


def _schedule(setup: train.Setup, data: Encoded, todo: Sequence[Run], share: int) -> np.ndarray:
  """The rows that every forward pass of every run sees [runs, steps, m, b]."""
  assert setup.fit.rows is not None
  rows, steps = setup.fit.rows, jnp.arange(setup.fit.steps)
  shown = stack(data._replace(train={'labels': data.train['labels']}, dev=None), todo)

  def of_run(run: train.Inputs) -> Array:
    return jax.vmap(lambda t: rows(run.data.train['labels'], train.fit_key(run), t))(steps)

  seen = np.asarray(jax.jit(jax.vmap(of_run))(shown))
  return seen.reshape(*seen.shape[:2], seen.shape[2] * share, -1)


def _flops(setup: train.Setup, params: Any, data: Encoded, size: int) -> float:
  """Of a forward pass of `size` examples by the base model."""
  batch = {k: v[0][:size] for k, v in data.train.items()}
  return cost(jax.jit(lambda p, b: setup.forward(p, b)).lower(params, batch))['flops']


def _case(
  setup: train.Setup, params: Any, data: Encoded, todo: Sequence[Run], seen: np.ndarray,
  seconds: float,
) -> _Case:  # fmt: skip
  run = jax.tree.map(lambda x: x[0], stack(data, todo[:1]))
  theta, state = jax.jit(lambda p, r: train.start(setup, p, r))(params, run)
  noise = np.random.default_rng(0)
  moved = lambda x: x + 0.02 * noise.standard_normal(x.shape).astype(x.dtype)  # noqa: E731
  split = np.array([r.split for r in todo])
  return _Case(setup, params, data, run, jax.tree.map(moved, theta), state, seen, split, seconds)


def _rows(case: _Case, width: int | None, insist: bool) -> tuple[int, str]:
  """How many rows of `width` minibatches are packed into, and why; 0 where they are not."""
  mask = case.data.train.get('mask')
  if mask is None or mask.ndim != 3 or 'tokens' not in case.data.train:
    return 0, 'no: the inputs are no texts'
  masks = [mask, *(b.batches['mask'] for b in case.data.test)]
  if any((m[..., 1:] > m[..., :-1]).any() for m in masks):
    return 0, 'no: the padding is not behind the texts'
  if width is None:
    return 0, f'no: the model has no {STACK}/block_<i> called with (x, mask)'
  lengths = mask.sum(-1)[case.split[:, None, None, None], case.seen] + width - mask.shape[-1]
  b, rows = lengths.shape[-1], rows_needed(lengths, width)
  if not insist and case.seconds * (1 - rows / b) < LEAST_SECONDS:
    return 0, f'no: {b} texts fit into {rows} rows, which saves too little'
  if rows >= b:
    return 0, f'no: {b} texts need {rows} rows'
  return rows, f'{b} texts of up to {width} tokens in {rows} rows'


def _packed_tests(case: _Case, width: int) -> tuple[Any, ...]:
  """The forward of each test bucket, its batches packed as those of training are."""
  prompt = width - case.data.train['mask'].shape[-1]
  masks = [b.batches['mask'] for b in case.data.test]
  rows = [rows_needed(m.sum(-1) + prompt, m.shape[-1] + prompt) for m in masks]
  shapes = [(m.shape[1], m.shape[2] + prompt) for m in masks]
  each = zip(rows, shapes, strict=True)
  return tuple(shorten(case.setup.forward, Shortcut(n, shape=s)) for n, s in each)


def _width(case: _Case) -> int | None:
  """The length [T] that the stack sees: the texts', and that of prompts before them.

  None where there are no texts, or where the stack and its blocks are not called with (x, mask).
  """
  if 'tokens' not in case.data.train:
    return None
  forward = adapt(case.setup.method, case.setup.forward, case.theta, case.state)
  try:
    found = sites(forward, case.params, _minibatch(case), f'{STACK}|{BLOCK.pattern}')
  except FewshotError:  # No module is called so.
    return None
  stack = found.pop(STACK, None)
  if stack is None or not found or stack.inputs < 2 or stack.x.ndim != 3:
    return None
  return stack.x.shape[1]


def _resume(case: _Case, insist: bool, budget: float) -> tuple[str, str]:
  """The path of the last block whose output is a constant of each example, and why."""
  seen: dict[str, Any] = {}
  order: list[str] = []

  def outputs(theta: Any, state: Any, key: Any, params: Any, batch: Any) -> Any:
    forward = outputs_of(case.setup.forward, seen)
    adapt(case.setup.method, forward, theta, state)(params, batch, key)
    order[:] = [p for p in seen if BLOCKS.fullmatch(p)]
    return [seen[p] for p in order]

  args = case.theta, case.state, case.run.key, case.params, _minibatch(case)
  traced = jax.make_jaxpr(outputs)(*args)
  moving = len(jax.tree.leaves(args[:3]))
  constant = [p for p, d in zip(order, _depends(traced.jaxpr, moving), strict=True) if not d]
  if not order:
    return '', 'no: the model has no blocks that are called once each'
  if not constant:
    return '', 'no: the first block depends on what is trained, or on dropout'
  path, n = constant[-1], _first(case.data)
  saved = case.seconds / 3 * (order.index(path) + 1) / len(order)
  shape = traced.jaxpr.outvars[order.index(path)].aval
  size = shape.size / shape.shape[0] * n.shape[0] * n.shape[1] * shape.dtype.itemsize
  if size > budget:
    return '', f'no: {path} of all examples takes {size / 2**30:.1f} GiB'
  if saved < LEAST_SECONDS and not insist:
    return '', f'no: {path} would save too little'
  return path, f'{path} of all examples, {size / 2**20:.0f} MiB'


def _depends(jaxpr: Any, moving: int) -> list[bool]:
  """Of each output, whether it may depend on one of the first `moving` inputs."""
  touched = set(jaxpr.invars[:moving])
  known = lambda v: not hasattr(v, 'val') and v in touched  # noqa: E731  # Literals hold a val.
  for eqn in jaxpr.eqns:
    if any(known(v) for v in eqn.invars):
      touched.update(eqn.outvars)
  return [known(v) for v in jaxpr.outvars]


def _with_prefix(case: _Case, path: str) -> Encoded:
  """The data, with the output of a block for every train example."""

  def one(params: Any, batch: Any) -> Array:
    seen: dict[str, Any] = {}
    forward = outputs_of(case.setup.forward, seen)
    batch = {k: v[None] for k, v in batch.items()}
    adapt(case.setup.method, forward, case.theta, case.state)(params, batch)
    return seen[path][0]

  train_ = case.data.train
  flat = {k: jnp.asarray(v).reshape(-1, *v.shape[2:]) for k, v in train_.items()}
  every = jax.jit(lambda p, b: jax.lax.map(lambda x: one(p, x), b, batch_size=64))
  prefix = np.asarray(every(case.params, flat))
  lead = _first(case.data).shape[:2]
  return case.data._replace(train=train_ | {PREFIX: prefix.reshape(*lead, *prefix.shape[1:])})


def _difference(case: _Case, shortcut: Shortcut) -> str:
  """Tries a shortcut: '' where the losses of a minibatch are the same, else what is not.

  With a key, as in training, a method may do more; that draws, so it is traced and not compared.
  """
  setup, batch = case.setup, _minibatch(case)

  def losses(forward: Any, params: Any, batch: Any, key: Any = None) -> Array:
    adapted = adapt(setup.method, forward, case.theta, case.state)
    return setup.objective.loss(adapted(params, batch, key), batch)

  short = shorten(setup.forward, shortcut)
  both = jax.jit(lambda p, b: (losses(setup.forward, p, b), losses(short, p, b)))
  try:
    jax.eval_shape(lambda p, b, k: losses(short, p, b, k), case.params, batch, case.run.key)
    want, got = (np.asarray(x, np.float64) for x in both(case.params, batch))
  except (TypeError, ValueError, FewshotError) as e:
    return ' '.join(f'it fails ({e}'.split())[:100] + ')'
  narrow = any(x.dtype.itemsize < 4 for x in jax.tree.leaves(case.params))
  worst = np.max(np.abs(got - want) / (1 + np.abs(want)))
  return '' if worst <= (3e-2 if narrow else 1e-4) else f'the loss differs by {worst:.1e}'


def _minibatch(case: _Case) -> dict[str, Any]:
  """What the first forward pass of the first run sees."""
  split, rows = case.split[0], case.seen[0, 0, 0]
  return {k: jnp.asarray(v[split][rows]) for k, v in case.data.train.items()}


def _first(data: Encoded) -> np.ndarray:
  return next(iter(data.train.values()))
