"""Staged programs: plain runs and pure steps in turn, on entries that are carried between them.

A program is a tuple of stages.  A stage declares which entries it reads and which it writes; those
of the start are `base` and `params`, the weights as they were and as they are now.  It is code
outside jit; what trains inside is the ordinary compiled sweep of one run.
"""

import collections
import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from fewshot import __version__, checkpoint
from fewshot.engine import Options
from fewshot.errors import FewshotError, nearest
from fewshot.methods import paths
from fewshot.methods.base import Calib
from fewshot.methods.chosen import Chosen
from fewshot.methods.spelling import Made, spell, spelled
from fewshot.models.base import Model, hash_params
from fewshot.models.weights.hf import read_json
from fewshot.objectives import classification, logits
from fewshot.tasks.encode import Encoded

Carried = Mapping[str, Any]  # Trees of arrays in nested dicts, or what was chosen.
Notes = dict[str, Any]  # What JSON holds.
Keeping = Callable[[str], contextlib.AbstractContextManager[Any]]  # See `run`.
ABOUT, TREES = 'stage.json', 'carried.safetensors'
START = ('base', 'params')


class Setting(NamedTuple):
  """What the stages of a program run on."""

  model: Model
  data: Mapping[str, Encoded]  # By name, of one split.
  classes: int
  options: Options = Options()

  def of(self, name: str) -> Encoded:
    """The data of a name."""
    if name not in self.data:
      keys = [k for k, part in (('prompt', 'plain'), ('unlabelled', 'unlabelled')) if part in name]
      how = f'set config.{" and config.".join(keys)}' if keys else nearest(name, self.data)
      raise FewshotError(f'this program was given no data {name!r}; {how}')
    return self.data[name]

  def calib(self, name: str) -> Calib:
    """The train examples of a name, for scores and plans."""
    batch = {k: jnp.asarray(v[0]) for k, v in self.of(name).train.items()}
    return Calib(batch, self.classes, classification().loss)

  def accuracy(self, params: Any, batch: Mapping[str, Any]) -> float:
    """The mean score of the plain model at `params` on a labelled batch."""
    outputs = _jitted(self.model.forward)(params, dict(batch))
    return float(classification().mean_score(outputs, dict(batch)))

  def logits(self, params: Any, name: str = 'task') -> np.ndarray:
    """The logits [T, C] of the test items of a name, in the split's order."""
    data = self.of(name)
    out: dict[int, np.ndarray] = {}
    for bucket in data.test:
      for i, rows in enumerate(bucket.rows.reshape(len(bucket.batches['labels']), -1)):
        part = {k: v[i] for k, v in bucket.batches.items() if k != 'labels'}
        z = np.asarray(logits(_jitted(self.model.forward)(params, part)))
        out |= {int(r): z[j] for j, r in enumerate(rows) if r >= 0}
    return data.of_items(np.stack([out[i] for i in range(len(out))]))


class Stage(NamedTuple):
  """One step of a program: (setting, what is carried, seed) -> (the entries it writes, notes).

  `data` names the data that it looks at.  What it writes depends on nothing that is not declared.
  `tested` names the data whose test items are scored from then on, where it is no longer 'task'.
  """

  run: Callable[[Setting, Carried, int], tuple[dict[str, Any], Notes]]
  reads: tuple[str, ...] = ('params',)
  writes: tuple[str, ...] = ('params',)
  data: tuple[str, ...] = ()
  tested: str = ''
  made: Made | None = None

  @property
  def name(self) -> str:
    """That of its constructor."""
    return self.made.fn.__name__ if self.made else 'a stage'


class Program(NamedTuple):
  """Stages, in order."""

  stages: tuple[Stage, ...]
  made: Made | None = None


class Outcome(NamedTuple):
  """What came of a program."""

  setting: Setting
  carried: dict[str, Any]
  notes: list[Notes]  # Of each stage: its name, whether it was found in the cache, and its own.
  tested: str = 'task'

  @property
  def model(self) -> Model:
    """The plain model at the last params."""
    return self.setting.model._replace(params=self.carried['params'], hashes={})

  def logits(self, data: str = '') -> np.ndarray:
    """The logits [T, C] of test items at the last params; of `tested` where no data is named."""
    return self.setting.logits(self.carried['params'], data or self.tested)


@spelled
def program(*stages: Stage | Program) -> Program:
  """Stages in turn; a program among them stands for its stages.

  >>> from fewshot import fits, methods
  >>> from fewshot.programs import rewind, train
  >>> spell(program(train(methods.full(), fits.sgd(steps=9)), rewind()))
  'program(train(full(), sgd(steps=9)), rewind())'
  """
  flat = [s for part in stages for s in (part.stages if isinstance(part, Program) else (part,))]
  if not flat:
    raise FewshotError('a program has at least one stage, such as program(train(full(), sgd()))')
  return Program(tuple(flat))


def run(
  program: Program, model: Model, data: Encoded | Mapping[str, Encoded], *, classes: int,
  seed: int = 0, split: int = 0, cache: str | Path | None = None, options: Options | None = None,
  progress: Callable[[str, float], None] | None = None, keeping: Keeping | None = None,
) -> Outcome:  # fmt: skip
  """Runs the stages of a program on one split.

  The first training stage has the seed that is given, so that a program of it alone is the plain
  run; each further one of the same name has a seed of its own.

  Args:
    data: of one task, which is called 'task', or several by name.
    cache: a folder where each finished stage is kept, by the hash of all that it depends on, and
      found again.
    progress: is told which stage begins, 'stage 2 of 5, keep', and which part of all is done.
    keeping: given the name of a stage in the cache, what keeps its trainings until it is finished.

  Raises:
    FewshotError: a stage reads an entry that none before it writes, or data that is not given.
  """
  named = {'task': data} if isinstance(data, Encoded) else dict(data)
  one = {name: only(d, split) for name, d in named.items()}
  setting = Setting(model, one, classes, options or Options())
  check(program, setting)
  carried: dict[str, Any] = dict.fromkeys(START, model.params)
  store = _Store(Path(cache), setting) if cache is not None else None
  notes: list[Notes] = []
  times: collections.Counter[str] = collections.Counter()
  for i, stage in enumerate(program.stages):
    if progress:
      of = len(program.stages)
      progress(f'stage {i + 1} of {of}, {stage.name}', i / of)
    n = times[stage.name]
    times[stage.name] += 1
    own = seed if not n else paths.stable_hash('stage', seed, n) % 2**31
    found = store.find(stage, carried, own) if store else None
    states = keeping(store.name(stage, carried, own)) if store and keeping else None
    with states or contextlib.nullcontext() as keep:
      how = setting.options._replace(keep=keep)
      written, note = found or stage.run(setting._replace(options=how), carried, own)
      if set(written) != set(stage.writes):
        raise FewshotError(f'{stage.name} wrote {sorted(written)} and declares {stage.writes}')
      if store and not found:
        store.keep(stage, carried, own, written, note)
    carried |= written
    notes.append({'stage': stage.name, 'cached': found is not None, **note})
  tested = [stage.tested for stage in program.stages if stage.tested]
  return Outcome(setting, carried, notes, tested[-1] if tested else 'task')


def check(program: Program, setting: Setting) -> None:
  """Refuses a program whose stages read what is not there; before anything runs."""
  there = set(START)
  for i, stage in enumerate(program.stages):
    missing = [name for name in stage.reads if name not in there]
    if missing:
      raise FewshotError(
        f'stage {i + 1}, {stage.name}, reads {missing[0]!r}, which no stage before it writes; '
        f'carried are {", ".join(sorted(there))}'
      )
    for name in (*stage.data, *filter(None, [stage.tested])):
      setting.of(name)
    there |= set(stage.writes)


def only(data: Encoded, split: int) -> Encoded:
  """One split of the data."""
  if not 0 <= split < len(data.splits):
    raise FewshotError(f'there is no split {split}; the data has {len(data.splits)}, from 0 on')
  take = lambda batch: {k: v[split : split + 1] for k, v in batch.items()}  # noqa: E731
  dev = None if data.dev is None else take(data.dev)
  return data._replace(train=take(data.train), dev=dev, splits=data.splits[split : split + 1])


class _Store:
  """Finished stages in a folder: each in one of its own, named by a hash of its inputs."""

  def __init__(self, folder: Path, setting: Setting) -> None:
    self.folder, self.setting = folder, setting
    self.forward = forward_hash(setting)
    self.hashes: dict[str, tuple[Any, str]] = {}  # By entry: the value, and its hash.

  def find(self, stage: Stage, carried: Carried, seed: int) -> tuple[dict[str, Any], Notes] | None:
    """What the stage wrote, if it was finished before on the same inputs."""
    folder = self.folder / self.name(stage, carried, seed)
    if not folder.is_dir():
      return None
    about = read_json(folder / ABOUT)
    try:
      written = unpack(safetensors.numpy.load_file(folder / TREES))
    except (OSError, safetensors.SafetensorError, ValueError, TypeError, AttributeError) as e:
      raise FewshotError(f'{folder / TREES} is missing or damaged ({e}); delete {folder}') from None
    kinds, notes = about.get('writes'), about.get('notes')
    if (
      not isinstance(kinds, dict) or set(kinds) != set(stage.writes) or not isinstance(notes, dict)
    ):
      raise FewshotError(f'{folder / ABOUT} is not as {stage.name} wrote it; delete {folder}')
    for name, kind in kinds.items():
      if kind == 'chosen':
        written[name] = Chosen.load(folder / f'{name}.safetensors')._replace(made=None)
      written.setdefault(name, {})
    return written, notes

  def keep(
    self, stage: Stage, carried: Carried, seed: int, written: dict[str, Any], note: Notes
  ) -> None:
    """Writes what a stage wrote; the folder appears when it is whole."""
    chosen = {f'{k}.safetensors': v for k, v in written.items() if isinstance(v, Chosen)}
    kinds = {k: 'chosen' if isinstance(v, Chosen) else 'tree' for k, v in written.items()}
    trees = {k: v for k, v in written.items() if not isinstance(v, Chosen)}
    about = {'inputs': self._inputs(stage, carried, seed), 'writes': kinds, 'notes': note}

    def fill(tmp: Path) -> None:
      safetensors.numpy.save_file(pack(trees), tmp / TREES)
      for file, value in chosen.items():
        value.save(tmp / file)
      (tmp / ABOUT).write_text(json.dumps(about, indent=1) + '\n')

    own = {ABOUT, TREES, *chosen}
    folder = self.folder / self.name(stage, carried, seed)
    checkpoint.publish(folder, fill, own, 'finished stage')

  def name(self, stage: Stage, carried: Carried, seed: int) -> str:
    """16 hex digits of all that the stage depends on."""
    text = json.dumps(self._inputs(stage, carried, seed), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  def _inputs(self, stage: Stage, carried: Carried, seed: int) -> Notes:
    """All that the result depends on."""
    return {
      'stage': spell(stage),
      'seed': seed,
      'classes': self.setting.classes,
      'forward': self.forward,
      'reads': {name: self._hash(name, carried[name]) for name in stage.reads},
      'data': {name: self._hash(f'data {name}', self.setting.of(name)) for name in stage.data},
      'versions': [__version__, jax.__version__, jax.default_backend()],
    }

  def _hash(self, name: str, value: Any) -> str:
    if isinstance(value, Chosen):
      return value.hash
    if name not in self.hashes or self.hashes[name][0] is not value:
      # Of data, the arrays; splits name examples by their rows in a file.
      tree = value._replace(splits=()) if isinstance(value, Encoded) else value
      self.hashes[name] = (value, hash_params(tree))
    return self.hashes[name][1]


def forward_hash(setting: Setting) -> str:
  """16 hex digits of the computation that the model's forward pass is, weights apart."""
  data = next(iter(setting.data.values()))
  batch = {k: v[0] for k, v in data.train.items()}
  forward = setting.model.forward
  traced = jax.make_jaxpr(lambda p, b, k: forward(p, b, k))(
    setting.model.params, batch, jax.random.key(0)
  )
  text = re.sub(r'0x[0-9a-f]+', '', str(traced))  # Addresses of functions differ between processes.
  digest = hashlib.sha256(text.encode())
  for x in _constants(traced):  # The text names them by their shapes alone.
    digest.update(np.asarray(x).tobytes())
  return digest.hexdigest()[:16]


def _constants(traced: Any) -> list[Any]:
  """The arrays that a computation holds, and those of the computations in it."""
  jaxpr, found = getattr(traced, 'jaxpr', traced), list(getattr(traced, 'consts', ()))
  for eqn in jaxpr.eqns:
    for value in eqn.params.values():
      parts = value if isinstance(value, tuple | list) else (value,)
      for part in parts:
        found += _constants(part) if hasattr(getattr(part, 'jaxpr', part), 'eqns') else []
  return found


def pack(trees: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The arrays of nested dicts by the JSON list of their keys, as safetensors keeps them.

  >>> list(pack({'delta': {'mlp/kernel': {'index': np.zeros(2)}}}))
  ['["delta", "mlp/kernel", "index"]']
  """
  found = {}
  for path, x in jax.tree_util.tree_leaves_with_path(dict(trees)):
    keys = [getattr(k, 'key', None) for k in path]
    if not all(isinstance(k, str | int) for k in keys):
      raise FewshotError(
        f'a cache keeps nested dicts, and {paths.keystr(path)!r} is in another container; leave '
        'cache= out'
      )
    found[json.dumps(keys)] = np.asarray(x)
  return found


def unpack(tensors: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `pack`."""
  trees: dict[str, Any] = {}
  for name, x in tensors.items():
    *above, last = json.loads(name)
    functools.reduce(lambda tree, key: tree.setdefault(key, {}), above, trees)[last] = x
  return trees


@functools.lru_cache(maxsize=8)
def _jitted(forward: Any) -> Any:
  return jax.jit(lambda p, b: forward(p, b))
