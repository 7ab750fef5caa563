"""K-shot splits: drawn by seed, stratified, and named by a hash of their content."""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from fewshot.errors import FewshotError
from fewshot.tasks.base import Given, Task


class Split(NamedTuple):
  """Rows of a task for one few-shot problem; `hash` changes when any example or label does."""

  seed: int
  k: int
  train: np.ndarray  # [C * k], k of each class.
  dev: np.ndarray  # [C * dev_k].
  test: np.ndarray
  hash: str  # Of train, dev and test.
  test_hash: str


def kshot(
  task: Task,
  k: int = 16,
  seeds: Iterable[int] = range(5),
  dev_k: int = 0,
  max_test: int = 0,
) -> list[Split]:
  """One split a seed: k train and dev_k dev examples of each class from the train pool.

  Test is the same for all: the test pool, or `max_test` of its rows drawn once.  dev_k > k is
  refused: a dev set larger than train is not few-shot (Perez et al. 2021, arXiv:2105.11447).

  The splits of a task that has `given` ones are taken as they are, an example that stands in two
  of their parts included: `seeds` are among theirs, `k` is their train examples a class (of classes
  of unequal size the mean, rounded), and `dev_k` is 0 or that of their dev examples.

  >>> from fewshot import tasks
  >>> toy = tasks.make('toy', [f't{i}' for i in range(20)], [i % 2 for i in range(20)])
  >>> [len(s.train) for s in kshot(toy, k=3, seeds=[0, 1])]
  [6, 6]
  """
  if k < 1 or dev_k < 0:
    raise FewshotError(f'k={k}, dev_k={dev_k}: k is at least 1 and dev_k at least 0')
  if dev_k > k:
    raise FewshotError(
      f'dev_k={dev_k} > k={k}: choosing on a dev set larger than the train set is not few-shot'
    )
  seeds = [int(s) for s in seeds]
  if not seeds or min(seeds) < 0:
    raise FewshotError(f'the seeds of the splits are {seeds}; give at least one, none below 0')
  if task.given is None:
    _check_classes(task, k + dev_k)
  else:
    _check_given(task, k, seeds, dev_k)
  test = _test_rows(task, max_test)
  if not len(test):
    raise FewshotError(f'{task.name}: the test pool is empty')
  rows = _draw if task.given is None else _taken
  return [_split(task, k, seed, rows(task, k, seed, dev_k), test) for seed in seeds]


def unlabelled(task: Task, split: Split, count: int) -> np.ndarray:
  """The rows of at most `count` other examples of the train pool, drawn by the split's seed.

  Whoever takes them looks at no label: none of what they show is in the split's train, dev or test.
  """
  used = np.concatenate([split.train, split.dev, split.test])
  rows = _by_id(task, task.train[~np.isin(task.ids[task.train], task.ids[used])])
  if not len(rows):
    raise FewshotError(f'{task.name}: its train pool holds no example beside split {split.seed}')
  return np.sort(np.random.default_rng(split.seed).permutation(rows)[:count])


def _draw(task: Task, k: int, seed: int, dev_k: int) -> Given:
  """k train and dev_k dev examples of each class, in the order of a shuffle."""
  rng = np.random.default_rng(seed)
  train, dev = [], []
  for c in range(len(task.classes)):
    drawn = rng.permutation(_by_id(task, task.train[task.labels[task.train] == c]))
    train.append(drawn[:k])
    dev.append(drawn[k : k + dev_k])
  return Given(np.concatenate(train), np.concatenate(dev))


def _taken(task: Task, k: int, seed: int, dev_k: int) -> Given:
  """The given split of that seed, without its dev rows where dev_k is 0."""
  del k
  assert task.given is not None
  given = task.given[seed]
  return given if dev_k else given._replace(dev=given.dev[:0])


def _split(task: Task, k: int, seed: int, rows: Given, test: np.ndarray) -> Split:
  parts = [content_hash(task, part) for part in (rows.train, rows.dev, test)]
  whole = hashlib.sha256(' '.join(parts).encode()).hexdigest()[:16]
  return Split(seed, k, rows.train, rows.dev, test, whole, parts[2])


def content_hash(task: Task, rows: np.ndarray) -> str:
  """16 hex digits over the ids (texts and labels) of these rows, in order."""
  return hashlib.sha256(' '.join(task.ids[rows]).encode()).hexdigest()[:16]


def _by_id(task: Task, rows: np.ndarray) -> np.ndarray:
  """Rows in the order of their ids, repeats dropped: what is drawn of them depends on the
  examples and not on the order of a file, and train and dev share no example.
  """
  return rows[np.unique(task.ids[rows], return_index=True)[1]]


def _test_rows(task: Task, max_test: int) -> np.ndarray:
  by_id = task.test[np.argsort(task.ids[task.test], kind='stable')]
  if not 0 < max_test < len(by_id):
    return by_id
  return by_id[np.sort(np.random.default_rng(0).choice(len(by_id), max_test, replace=False))]


def _check_classes(task: Task, need: int) -> None:
  different = _by_id(task, task.train)
  counts = np.bincount(task.labels[different], minlength=len(task.classes))
  short = [(task.classes[i], int(n)) for i, n in enumerate(counts) if n < need]
  if short:
    name, n = min(short, key=lambda s: s[1])
    raise FewshotError(
      f'{task.name}: class {name!r} has {n} train examples but {need} are needed; '
      f'lower k (and dev_k) to at most {int(counts.min())} together'
      + (f' ({len(short)} classes are too small)' if len(short) > 1 else '')
    )


def _check_given(task: Task, k: int, seeds: list[int], dev_k: int) -> None:
  assert task.given is not None
  odd = [s for s in seeds if s not in task.given]
  if odd:
    known = ', '.join(map(str, task.given))
    raise FewshotError(f'{task.name}: no split {odd[0]} is given; take the seeds {known}')
  given, classes = task.given[seeds[0]], len(task.classes)
  n, have = len(given.train), round(len(given.train) / classes)
  if k != have:
    raise FewshotError(
      f'{task.name}: the given train sets hold {n} examples of {classes} classes; k={k} is to be '
      f'{have}'
    )
  n, have = len(given.dev), round(len(given.dev) / classes)
  if dev_k not in (0, have):
    or_all = f' or {have}' if have else ''
    raise FewshotError(
      f'{task.name}: the given dev sets hold {n} examples of {classes} classes; dev_k={dev_k} is '
      f'to be 0{or_all}'
    )
