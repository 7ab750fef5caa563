"""Experiments of episodes: meta-training and test of learners, from a config to records.

Rows that agree on backbone and training share it: it is trained once and resumes after a break.
"""

import contextlib
import functools
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from fewshot import config as configs
from fewshot import learners, meta, methods, records
from fewshot.backbones import Backbone, backbone_of, pool_of, trials_of
from fewshot.data import Trials
from fewshot.episodes import (
  Episode,
  Sampler,
  fixed,
  gather,
  ledger,
  ledger_hash,
  pool_hash,
  sampler,
)
from fewshot.errors import FewshotError, nearest
from fewshot.experiment import versions
from fewshot.learners import learning
from fewshot.learners.base import Learner, Outer
from fewshot.learners.evaluating import setup_of
from fewshot.models import Model

Progress = Callable[[int, float], None]  # (steps done, loss)
MOST_EPISODES = 1_000_000  # Their ledger is made at once.
STATISTICS = ('train', 'always', 'never')


class Experiment(NamedTuple):
  """A row of a config, loaded and checked."""

  config: ConfigDict
  learner: Learner  # Which is tested.
  teacher: Learner | None  # Which the backbone is trained as; None leaves it as it is.
  backbone: Backbone
  train: Sampler | None
  test: Sampler
  hashes: dict[str, str]

  @property
  def training(self) -> str:
    """The name of the training: rows with the same one share it."""
    c = self.config.to_dict()
    parts = {k: c[k] for k in ('model', 'statistics', 'train', 'seed')}
    parts['train'] = {k: v for k, v in parts['train'].items() if k != 'learner'}
    taught = methods.spell(self.teacher) if self.teacher else ''
    return records.run_id(parts | {'learner': taught, 'pool': self.hashes.get('train', '')})

  @property
  def id(self) -> str:
    """The name of the run."""
    shown = ('wandb', 'tensorboard')  # Dashboards do not change a result.
    config = {k: v for k, v in configs.as_dict(self.config).items() if k not in shown}
    return records.run_id({'config': config, 'hashes': self.hashes})


def prepare(todo: Sequence[ConfigDict]) -> list[Experiment]:
  """Loads and checks every row before anything runs; pools and backbones are loaded once."""
  pool, backbone = functools.cache(pool_of), functools.cache(backbone_of)
  digest = functools.cache(lambda text: pool_hash(pool(text)))
  trials = functools.cache(trials_of)
  episodes = lambda t: sampler(pool(t.pool), t.way, t.shot, t.query)  # noqa: E731

  def one(c: ConfigDict) -> Experiment:
    learner = learners.parse(c.learner)
    teacher = None if c.train.steps == 0 else learners.parse(c.train.learner or c.learner)
    _check(c, teacher)
    t = c.train
    train = None
    if teacher:
      train = meta.batches(pool(t.pool), t.images) if t.images else episodes(t)
    published = trials(c.test.pool)
    test = _trials(c, published) if published else episodes(c.test)
    of_test = published.hash if published else digest(c.test.pool)
    hashes = {'test': of_test} | ({'train': digest(t.pool)} if teacher else {})
    hashes['episodes'] = ledger_hash(ledger(c.test.ledger, c.test.episodes))
    e = Experiment(c, learner, teacher, backbone(c.model, c.seed), train, test, hashes)
    _check_classes(e)
    _check_served(e)
    return e

  return [one(c) for c in todo]


def _trials(c: ConfigDict, trials: Trials) -> Sampler:
  """Published trials, taken as they are."""
  t, (runs, way) = c.test, trials.answers.shape
  if (t.way, t.shot, t.query, t.episodes) != (way, 1, 1, runs):
    raise FewshotError(
      f'the published trials are {runs} episodes of {way} ways, 1 shot and 1 query; set test.way, '
      'test.shot, test.query and test.episodes so'
    )
  return fixed(trials.pool(), trials.rows(), way, t.ledger)


def run(
  e: Experiment,
  out: Path,
  minutes: float = 0.0,
  progress: Progress | None = None,
  kept: dict[str, Any] | None = None,
) -> dict[str, Any] | None:
  """Trains what is left to train, tests, and gives the record; None where `minutes` ran out.

  Training resumes: the same call goes on where the last one stopped.  `kept` is filled with what
  the next rows of the same backbone read too: features of the test images, the mean of the train
  images.
  """
  c = e.config.test
  outer, timings = _trained(e, out, minutes, progress)
  if timings['train_steps'] < (e.config.train.steps if e.teacher else 0):
    return None
  start = time.monotonic()
  kept = {} if kept is None else kept
  outer = _serving(e, outer, kept)
  model, test = _tested(e, outer, kept)
  accuracies = meta.evaluate(e.learner, model, outer, test, ledger(c.ledger, c.episodes))
  timings['test_s'] = round(time.monotonic() - start, 2)
  return _record(e, outer, accuracies, timings)


def _check_served(e: Experiment) -> None:
  """Refuses what the training will not serve, by the shapes of all that it learns."""
  outer: Outer = {'statistics': {}}
  key, model = jax.random.key(0), e.backbone.running
  if e.teacher and e.train:
    setup = setup_of(e.teacher, model, e.train.way)
    start = functools.partial(learning.start, setup)
    outer = jax.eval_shape(start, key, model.params, _shapes(e.train).support)
  blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), _shapes(e.test))
  _served(e, outer, blank)


def _shapes(s: Sampler) -> Episode:
  """Those of an episode, without a copy of the pool."""
  images = jax.ShapeDtypeStruct(s.pool.images.shape, s.pool.images.dtype)
  return jax.eval_shape(lambda i, k: gather(i, s.sample_rows(k)), images, jax.random.key(0))


def _check_classes(e: Experiment) -> None:
  """Refuses to test on classes of the same pool that were trained on."""
  if e.train is None or e.train.pool.name != e.test.pool.name:
    return
  if both := sorted(set(e.train.pool.classes) & set(e.test.pool.classes)):
    raise FewshotError(
      f'train.pool and test.pool share classes, such as {both[0]!r}; few-shot classes are new: '
      'give parts of a data set, or subset(image_folder(...), (0, 1, 2)) and subset(..., (3, 4))'
    )


def _check(c: ConfigDict, teacher: Learner | None) -> None:
  if not 0 <= c.seed < 2**31:
    raise FewshotError(f'seed={c.seed} is a whole number from 0 to 2,147,483,647')
  if c.train.meta_batch < 1 or c.test.episodes < 1:
    raise FewshotError(
      f'train.meta_batch={c.train.meta_batch} and test.episodes={c.test.episodes} are at least 1'
    )
  if c.test.episodes > MOST_EPISODES:
    raise FewshotError(f'test.episodes={c.test.episodes:,} is more than {MOST_EPISODES:,}')
  if not 0 < c.train.lr < math.inf or min(c.train.steps, c.train.save_every, c.train.images) < 0:
    raise FewshotError(
      f'train.lr={c.train.lr} is a number above 0; train.steps, train.save_every and train.images '
      f'are at least 0, not {c.train.steps}, {c.train.save_every}, {c.train.images}'
    )
  if c.statistics not in STATISTICS:
    raise FewshotError(f'statistics={c.statistics!r}; {nearest(c.statistics, STATISTICS)}')
  if c.train.schedule not in SCHEDULES:
    raise FewshotError(f'schedule={c.train.schedule!r}; {nearest(c.train.schedule, SCHEDULES)}')
  if teacher is not None and not teacher.outer:
    raise FewshotError(
      f'{methods.spell(teacher)} learns nothing across episodes; name what trains the backbone by '
      'train.learner, or set train.steps=0'
    )


SCHEDULES: dict[str, Callable[[float, int], Any]] = {
  'constant': lambda lr, steps: lr,
  'cosine': lambda lr, steps: optax.cosine_decay_schedule(lr, steps),
  'halved': lambda lr, steps: optax.exponential_decay(lr, 2000, 0.5, staircase=True),
}


def _trained(
  e: Experiment, out: Path, minutes: float, progress: Progress | None
) -> tuple[Outer, dict[str, Any]]:
  """The learned variables and what learning them took; of a whole training if steps are all."""
  if e.teacher is None or e.train is None:
    return {'statistics': {}}, {'train_steps': 0, 'train_s': 0.0}
  c, folder = e.config.train, out / 'training' / e.training
  folder.mkdir(parents=True, exist_ok=True)
  start = time.monotonic()
  try:
    done = meta.train(
      e.teacher,
      e.backbone.running if e.config.statistics == 'never' else e.backbone.batch,
      e.train,
      steps=c.steps,
      meta_batch=c.meta_batch,
      lr=SCHEDULES[c.schedule](c.lr, c.steps),
      seed=e.config.seed,
      folder=folder,
      save_every=c.save_every,
      minutes=minutes,
      progress=progress,
    )
  except BaseException:
    _spent(folder, None, time.monotonic() - start)
    raise
  spent = _spent(folder, done.step, time.monotonic() - start)
  return done.outer, {'train_steps': done.step, 'train_s': round(spent, 1)}


def _spent(folder: Path, step: int | None, seconds: float) -> float:
  """The seconds of all sessions that trained, this one noted; None is one that was interrupted."""
  file, sessions = folder / 'sessions.json', []
  with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # Junk tells no time.
    sessions = [{k: float(s[k]) for k in ('step', 'seconds')} for s in json.loads(file.read_text())]
  last = sessions[-1]['step'] if sessions else 0
  if step is None or not sessions or last < step:
    sessions.append({'step': last if step is None else step, 'seconds': round(seconds, 2)})
    records.replace(file, json.dumps(sessions).encode())
  return sum(s['seconds'] for s in sessions)


def _tested(e: Experiment, outer: Outer, kept: dict[str, Any]) -> tuple[Model, Sampler]:
  """What the learner is tested on: the backbone's features, computed once, where it adapts none."""
  if e.config.statistics == 'always':
    return e.backbone.batch, e.test
  if e.learner.adapts:
    return e.backbone.running, e.test
  name = f'{e.training} {e.hashes["test"]}'
  make = lambda: meta.embedded(e.backbone.running, outer, e.test)  # noqa: E731
  model, embedded = _keep(kept, 'features', name, make)
  return model, e.test._replace(pool=embedded.pool)


def _keep(kept: dict[str, Any], what: str, name: str, make: Callable[[], Any]) -> Any:
  """What was made last under this name, or is made now; of one name at a time."""
  if kept.get(what, ('',))[0] != name:
    kept[what] = (name, make())
  return kept[what][1]


def _check_shared(e: Experiment, outer: Outer) -> None:
  """Refuses a teacher whose weights the tested learner does not read, or that lacks its own."""
  if e.teacher is None:
    return
  uses, has = ({'params', 'theta0'} & set(x) for x in (e.learner.outer, outer))
  odd = uses - has or (has - uses) & {'theta0'}
  if odd:
    raise FewshotError(
      f'{methods.spell(e.learner)} is not served by {methods.spell(e.teacher)}: only one of them '
      f'has {odd.pop()}; train it as itself (train.learner empty)'
    )


def _serving(e: Experiment, outer: Outer, kept: dict[str, Any]) -> Outer:
  """`outer` as the tested learner reads it, with the mean of the train images where it has one."""
  served = _served(e, outer, e.test(jax.random.key(0)))
  if e.train and 'mean' in served.get('fit', {}) and 'mean' not in outer.get('fit', {}):
    model, pool = e.backbone.running, e.train.pool
    mean = lambda: meta.centre(model, served, pool)['fit']['mean']  # noqa: E731
    served['fit'] |= {'mean': _keep(kept, 'mean', e.training, mean)}
  return served


def _served(e: Experiment, outer: Outer, episode: Episode) -> Outer:
  """What the teacher learned, and what starts fixed.

  What the learner would draw at random, and the teacher does not learn, is refused.
  """
  model = e.backbone.running
  setup = setup_of(e.learner, model, e.test.way)
  _check_shared(e, outer)
  fresh, other = (
    learning.start(setup, jax.random.key(i), model.params, episode.support) for i in (0, 1)
  )
  served = fresh | outer
  if 'fit' in e.learner.outer:
    same = lambda a, b: jax.tree.all(jax.tree.map(np.array_equal, a, b))  # noqa: E731
    fixed = {k: v for k, v in fresh['fit'].items() if same(v, other['fit'][k])}
    served['fit'] = fixed | outer.get('fit', {})
    if 'mean' in fixed and not e.train:
      raise FewshotError(
        f'{methods.spell(e.learner)} centres by the training images, and there is no training; '
        "take simpleshot('l2n')"
      )
  try:
    jax.eval_shape(lambda o: learning.respond(setup, model.params, o, episode, None), served)
  except KeyError as missing:
    taught = methods.spell(e.teacher) if e.teacher else 'an untrained backbone'
    raise FewshotError(
      f'{methods.spell(e.learner)} learns {missing}, which {taught} has not; train it as itself '
      '(train.learner empty)'
    ) from None
  return served


def _record(
  e: Experiment, outer: Outer, accuracies: np.ndarray, timings: dict[str, Any]
) -> dict[str, Any]:
  c = e.config
  learned = e.teacher.outer if e.teacher else ()
  sound = all(np.isfinite(x).all() for x in jax.tree.leaves(outer) if x.dtype.kind == 'f')
  if not sound:  # Some kernels make a number of NaN, and then a score.
    accuracies = np.full(len(accuracies), np.nan)
  found = meta.scored(accuracies)
  score = found['scores']['accuracy']
  lost = 'ok' if np.isfinite(accuracies).all() else 'failed'
  off = abs((score['value'] or 0.0) - 1 / c.test.way)
  collapsed = lost == 'ok' and off <= max(score['spread'] or 0, 1e-6)
  return {
    'id': e.id,
    'config': configs.as_dict(c),
    'model': c.model,
    'method': methods.spell(e.learner),
    'task': e.test.pool.name,
    'split': {'k': c.test.shot, 'seed': c.seed, 'way': c.test.way, 'query': c.test.query,
              'episodes': c.test.episodes, 'ledger': c.test.ledger},
    'seed': c.seed,
    'training': {'name': e.training, 'learner': methods.spell(e.teacher) if e.teacher else '',
                 'pool': e.train.pool.name if e.train else '', 'steps': timings['train_steps']},
    **found,
    'trained': methods.count({k: outer[k] for k in learned if k in outer}),
    'total': methods.count(e.backbone.running.params),
    'hashes': e.hashes,
    'timings': timings,
    'machine': {'cores': os.cpu_count(), 'device': jax.devices()[0].device_kind},
    'versions': versions(),
    'status': 'collapsed' if collapsed else lost,
    'tuning': 'fixed',
  }  # fmt: skip
