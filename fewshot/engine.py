"""The engine: the runs of a sweep as two compiled programs, one that fits and one that scores.

What is decided here changes no result beyond rounding: the form of the loop, how many runs go at
once, on which devices, and which shortcuts training steps take.  Each decision says its reason.
"""

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fewshot import assets, parallel, remat, savings, stopping, train
from fewshot.errors import FewshotError, nearest
from fewshot.profiling import cost, phase
from fewshot.quantized import nbytes
from fewshot.runs import Run, stack
from fewshot.tasks.encode import Encoded

Progress = Callable[[str, float], None]  # (phase, fraction done of it)
CHOICES = {
  'loop': ('auto', 'scan', 'steps'),
  'packing': ('auto', 'on', 'off'),
  'prefix': ('auto', 'on', 'off'),
  'devices': ('auto', *parallel.MODES),
  'remat': ('off', *remat.POLICIES),
}


# Operations of a forward pass of all runs at once beyond which a CPU's caches are too small: of
# 15 runs of 14 x 64 tokens of a 6 x 384 encoder each took 1.3 times as long as of 2 or 4.
CPU_PASS = 8e10
LONGEST_STRIDE = 5.0  # Seconds between two moments at which a run can be saved and ended.


class Keeper(Protocol):
  """Keeps the carry of a chunk while it trains, so that another process can go on from there."""

  spent: float  # Seconds of training before `restore`.

  def restore(self, carry: Any) -> tuple[int, Any]: ...
  def __call__(self, step: int, carry: Any) -> None: ...
  def close(self) -> None: ...


class Options(NamedTuple):
  """How runs are computed, not what.

  memory:  bytes that a compiled chunk may take on a device; 0 for what is free
  runs:    how many go at once, whatever that takes; 0 for as many as memory and caches hold
  loop:    'scan' (all steps inside one program), 'steps' (one dispatch each); 'auto' for steps
           where the forward has convolutions and the backend is a CPU
  packing: texts of a minibatch side by side in fewer rows, see `shortcuts`; 'auto' where it pays
  prefix:  what lies below the first adapted block computed once; 'auto' where it pays
  devices: 'one', or how several share the work, see `parallel`; 'auto' for seeds where there are
           several of both
  remat:   what a block keeps for its backward pass, a key of `remat.POLICIES`; 'off' for all
  keep:    (runs, runs that go at once) -> what keeps the next chunk of a `sweep` while it trains
  """

  memory: int = 0
  runs: int = 0
  loop: str = 'auto'
  packing: str = 'auto'
  prefix: str = 'auto'
  devices: str = 'auto'
  remat: str = 'off'
  keep: Callable[[Sequence[Run], int], Keeper] | None = None


class Programs(NamedTuple):
  """Two compiled programs over `chunk` runs, and what they cost."""

  setup: train.Setup
  data: Encoded
  placement: parallel.Placement
  params: Any
  chunk: int
  advance: Any
  score: Any
  empty: Any  # Shapes of the carry.
  test: tuple[Any, ...]
  seconds: float
  bytes: int  # On a device.
  notes: dict[str, str]  # What was decided, and why.

  @property
  def steps(self) -> int:
    """Of the fit."""
    return self.setup.fit.steps

  @property
  def stride(self) -> int:
    """How many steps a call of `advance` takes: a tenth, so that there is progress to show."""
    return 1 if self.notes['loop'] == 'steps' else max(1, self.steps // 10)

  def padded(self, chunk: Sequence[Any]) -> list[Any]:
    """At most `chunk` runs, or carries of runs, and the first again for those that lack."""
    return [*chunk, *[chunk[0]] * (self.chunk - len(chunk))]

  def blank(self) -> Any:
    """The carry of a chunk that has not begun."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self.empty)


def compile_programs(
  setup: train.Setup, params: Any, data: Encoded, todo: Sequence[Run], options: Options
) -> Programs:
  """The programs for all runs at once or, where these need too much memory, for a part.

  What a run needs is taken from the first compilation: (bytes - params) / runs.
  """
  check(options)
  keep_compiled()
  start = time.perf_counter()
  budget = 2**62 if options.runs else options.memory or free_memory()
  placement = parallel.place(options.devices, len(todo))
  shared, data, notes, most = _decide(setup, params, data, todo, options, placement, budget)
  params = placement.spread(params)
  make = functools.partial(_compile_chunk, shared, params, data, placement, notes)
  todo = todo[: options.runs or _least_padding(len(todo), most, placement.runs)]
  parts = make(todo)
  if parts['bytes'] > budget and len(todo) > 1:
    fixed = nbytes(params)
    each = max((parts['bytes'] - fixed) / len(todo), 1)
    size = int(max(1, min(len(todo) - 1, (budget - fixed) // each)))
    parts = make(todo[: -(-size // placement.runs) * placement.runs])
  if parts['bytes'] > budget:
    takes, has = parts['bytes'] / 2**30, budget / 2**30
    notes['memory'] = (
      f'{parts["chunk"]} run(s) take {takes:.2f} GiB, and {has:.2f} may be used; '
      'sgd(accumulate=...), engine.remat or a shorter max_length take less'
    )
  seconds = time.perf_counter() - start
  return Programs(shared, data, placement, params, seconds=seconds, notes=notes, **parts)


def _decide(
  setup: train.Setup, params: Any, data: Encoded, todo: Sequence[Run], options: Options,
  placement: parallel.Placement, budget: int,
) -> tuple[train.Setup, Encoded, dict[str, str], int]:  # fmt: skip
  """The forwards that programs are made of, the data they need, what was decided why, and how
  many runs at once are too many for the caches of a CPU.
  """
  wanted = {'packing': options.packing, 'prefix': options.prefix}
  found = savings.find(setup, params, data, todo, wanted, placement.share, budget)
  training = placement.forward(found.setup.training or setup.forward)
  if options.remat != 'off':
    training = remat.remat(training, policy=options.remat)
  by_step = options.loop == 'steps'
  if options.loop == 'auto':
    batch = {k: v[0] for k, v in data.train.items()}
    by_step = train.steps_are_straight(setup.forward, params, batch)
  loop, devices = 'steps' if by_step else 'scan', placement.name
  notes = {**found.notes, 'loop': loop, 'devices': devices, 'remat': options.remat}
  forward = placement.forward(setup.forward)
  setup = found.setup._replace(forward=forward, training=training)
  crowded = jax.default_backend() == 'cpu' and found.flops * len(todo) > CPU_PASS
  most = max(1, int(CPU_PASS / found.flops)) if crowded else len(todo)
  return setup, found.data, notes, most


def _least_padding(runs: int, most: int, multiple: int) -> int:
  """The chunk, from half of `most` up, that pads least; the larger of equals.

  >>> _least_padding(15, 4, 1), _least_padding(7, 8, 1), _least_padding(7, 4, 1)
  (3, 7, 4)
  """
  if most >= runs:
    return runs
  sizes = range(max(1, most // 2), most + 1)
  whole = lambda n: -(-n // multiple) * multiple  # noqa: E731
  return min(sizes, key=lambda n: (-(-runs // whole(n)) * whole(n), -n))


def _compile_chunk(
  setup: train.Setup, params: Any, data: Encoded, placement: parallel.Placement,
  notes: dict[str, str], chunk: Sequence[Run],
) -> dict[str, Any]:  # fmt: skip
  straight = notes['loop'] == 'steps'
  compiler = remat.compiler_options()  # Quantised kernels are made float again, too.
  padded = placement.pad(chunk)
  inputs = placement.fold(stack(data, padded))
  advance = functools.partial(train.advance, setup, straight, placement.axis)
  begin = functools.partial(train.begin, setup)
  empty = jax.eval_shape(placement.mapped(begin, (None, 0)), params, inputs)
  t = jax.ShapeDtypeStruct((), jnp.int32)
  stepped = placement.compiled(advance, (None, 0, 0, None, None), donate=(2,))
  fit = stepped.lower(params, inputs, empty, t, t).compile(compiler)
  test = tuple(jax.tree.map(jnp.asarray, _unlabelled(b.batches)) for b in data.test)
  scored = placement.compiled(functools.partial(_score, setup), (None, 0, None, 0))
  score = scored.lower(params, empty, test, inputs.data.dev).compile(compiler)
  return {
    'chunk': len(padded),
    'advance': fit,
    'score': score,
    'empty': empty,
    'test': test,
    'bytes': max(program_bytes(p) for p in (fit, score)),
  }


def _score(setup: train.Setup, params: Any, carry: Any, test: Any, dev: Any) -> dict[str, Any]:
  """What is wanted of one fitted run."""
  out: dict[str, Any] = {'logits': train.predict(setup, params, carry, test)}
  if dev is not None:
    out['dev'] = train.score_dev(setup, params, carry, dev)
  out['theta'], out['state'] = setup.fit.finish(carry)
  return out


def fit_and_score(
  programs: Programs, chunk: Sequence[Run], tick: Progress, keeper: Keeper | None = None
) -> tuple[Any, Any, dict[str, float]]:
  """What `_score` says of each run, their loss curves (None where there are none), the timings."""
  place = programs.placement
  padded = programs.padded(chunk)
  with phase('input'):
    inputs = place.fold(stack(programs.data, padded))
    carry = programs.blank()
    jax.block_until_ready((inputs, carry))
  start = time.perf_counter()
  carry = _advance(programs, inputs, carry, tick, keeper)
  fitted = time.perf_counter()
  tick('score', 0.0)
  with phase('evaluation'):
    scored = programs.score(programs.params, carry, programs.test, inputs.data.dev)
    scored = place.unfold(scored)
    scored['logits'] = np.asarray(scored['logits'])
  tick('score', 1.0)
  done, spent = time.perf_counter(), keeper.spent if keeper else 0.0
  has_curve = isinstance(carry, dict) and 'curve' in carry
  timings = {
    'seconds': (spent + done - start) / len(padded),
    'chunk_seconds': spent + done - start,
    'chunk_runs': len(padded),
    'fit_seconds': spent + fitted - start,
    'score_seconds': done - fitted,
    'compile_seconds': programs.seconds,
    # Of one run, as the compiler counts; the program is that of one device.
    'step_flops': cost(programs.advance)['flops'] * max(place.runs, place.share) / len(padded),
  }
  return scored, np.asarray(place.unfold(carry['curve'])) if has_curve else None, timings


def _advance(
  programs: Programs, inputs: Any, carry: Any, tick: Progress, keeper: Keeper | None
) -> Any:
  """The carry after all steps, a stride at a time, from where the keeper has it."""
  each, t = cost(programs.advance), 0
  if keeper:
    t, carry = keeper.restore(carry)
  stride, steps = programs.stride, max(programs.steps, 1)
  while t < steps:
    begun, end = time.perf_counter(), min(t + stride, steps)
    with phase('step', steps=end - t, **each):
      carry = programs.advance(programs.params, inputs, carry, jnp.int32(t), jnp.int32(end))
      jax.block_until_ready(carry)
    pace = (time.perf_counter() - begun) / (end - t)
    stride = min(programs.stride, max(1, int(LONGEST_STRIDE / pace)))
    t = end
    tick('train', t / steps)
    if keeper:
      keeper(t, carry)
    elif stopping.asked():
      raise stopping.Stopped
  return carry


def keep_compiled() -> None:
  """Keeps compiled programs in the user's cache folder, unless the user chose another or none."""
  chosen: Any = jax.config  # Its flags are attributes that no type names.
  if chosen.jax_compilation_cache_dir or not chosen.jax_enable_compilation_cache:
    return
  folder = assets.cache_dir() / 'xla'
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:  # A read-only cache costs time, not the run.
    return
  jax.config.update('jax_compilation_cache_dir', str(folder))
  # Small programs too: there are dozens before the first step, each compiled in 10 to 30 ms.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def free_memory() -> int:
  """Bytes that a compiled chunk may take: the device's own count, or most of the free RAM."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'bytes_limit' in stats:
    return int(0.9 * (stats['bytes_limit'] - stats.get('bytes_in_use', 0)))
  meminfo = Path('/proc/meminfo')
  if meminfo.exists():
    line = next(x for x in meminfo.read_text().splitlines() if x.startswith('MemAvailable'))
    return int(0.7 * 1024 * int(line.split()[1])) // jax.local_device_count()
  return 4 << 30


def program_bytes(compiled: Any) -> int:
  """What a program takes of a device: arguments, results and temporaries."""
  m = compiled.memory_analysis()
  total = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
  return int(total - m.alias_size_in_bytes)


def _unlabelled(batch: dict[str, Any]) -> dict[str, Any]:
  """Test inputs without their labels: what predicts cannot see the answer."""
  return {k: v for k, v in batch.items() if k != 'labels'}


def check(options: Options) -> None:
  """Raises `FewshotError` for a value that no option has."""
  if options.runs < 0:
    raise FewshotError(f'engine.runs is {options.runs}; give 0, for as many as fit, or how many')
  for name, known in CHOICES.items():
    if (value := getattr(options, name)) not in known:
      raise FewshotError(f'engine.{name} is {value!r}; {nearest(value, known)}')
