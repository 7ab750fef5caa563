"""K-shot splits: what they promise, and what their hashes see."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot import tasks
from fewshot.errors import FewshotError
from fewshot.tasks import splits

TEXTS = [f'text {i}' for i in range(60)]
LABELS = [f'c{i % 3}' for i in range(60)]


def toy(texts=TEXTS, labels=LABELS, **kwargs) -> tasks.Task:
  return tasks.make('toy', texts, labels, **kwargs)


def contents(task, rows) -> set[str]:
  return {task.inputs[i] for i in rows}


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(0, 5), st.integers(0, 40), st.integers(0, 99))
def test_stratified_and_disjoint(k, dev_k, max_test, seed):
  dev_k = min(k, dev_k)
  task = toy()
  (split,) = tasks.kshot(task, k, [seed], dev_k, max_test)
  for rows, n in ((split.train, k), (split.dev, dev_k)):
    assert np.bincount(task.labels[rows], minlength=3).tolist() == [n] * 3
  parts = [contents(task, r) for r in (split.train, split.dev, split.test)]
  assert len(set.union(*parts)) == sum(map(len, parts)) == 3 * k + 3 * dev_k + len(split.test)
  assert len(split.test) == (min(max_test, 30) or 30)
  assert set(split.test) <= set(task.test) and set(split.train) <= set(task.train)


@settings(max_examples=10, deadline=None)
@given(st.randoms())
def test_the_order_of_a_file_changes_nothing(random):
  order = list(range(60))
  random.shuffle(order)
  task, other = toy(), toy([TEXTS[i] for i in order], [LABELS[i] for i in order])
  for max_test in (0, 7):
    for a, b in zip(
      *(tasks.kshot(t, 4, range(3), 2, max_test) for t in (task, other)), strict=True
    ):
      for part in ('train', 'dev', 'test'):
        rows, rows_other = getattr(a, part), getattr(b, part)
        assert [task.inputs[i] for i in rows] == [other.inputs[i] for i in rows_other]
      assert (a.hash, a.test_hash) == (b.hash, b.test_hash)


def test_repeats_of_an_example_stay_on_one_side():
  task = toy(TEXTS * 3, LABELS * 3)
  assert not contents(task, task.train) & contents(task, task.test)
  (split,) = tasks.kshot(task, 5, [0], 5)
  assert len(contents(task, [*split.train, *split.dev])) == 30
  with pytest.raises(FewshotError, match=r"class 'c0' has 10 train examples but 11 are needed"):
    tasks.kshot(task, 11)


def test_a_seed_is_a_draw():
  a, b, again = tasks.kshot(toy(), 4, [0, 1, 0])
  assert a.hash != b.hash and set(a.train) != set(b.train)
  assert a.hash == again.hash and (a.train == again.train).all()
  assert a.test_hash == b.test_hash
  assert (a.seed, b.seed, a.k) == (0, 1, 4)


def test_train_does_not_depend_on_whether_there_is_a_dev_set():
  (a,), (b,) = tasks.kshot(toy(), 4, [3]), tasks.kshot(toy(), 4, [3], dev_k=4)
  assert (a.train == b.train).all() and a.hash != b.hash


@pytest.mark.parametrize('part', ['train', 'dev', 'test'])
@pytest.mark.parametrize('change', ['text', 'label'])
def test_the_hash_changes_with_one_text_or_one_label(part, change):
  """The rows being equal: the hash is of what is there, not of where."""
  task = toy()
  (split,) = tasks.kshot(task, 3, [0], 2)
  rows = getattr(split, part)
  texts, labels = list(TEXTS), list(LABELS)
  if change == 'text':
    texts[rows[0]] += '!'
  else:
    labels[rows[0]] = next(c for c in task.classes if c != labels[rows[0]])
  changed = toy(texts, labels)
  assert splits.content_hash(changed, rows) != splits.content_hash(task, rows)
  others = [getattr(split, p) for p in ('train', 'dev', 'test') if p != part]
  for same in others:
    assert splits.content_hash(changed, same) == splits.content_hash(task, same)


def test_the_split_hash_changes_with_the_task():
  before = tasks.kshot(toy(), 3, [0])[0]
  texts = list(TEXTS)
  texts[before.train[0]] += '!'
  after = tasks.kshot(toy(texts, test=toy().test), 3, [0])[0]
  assert before.hash != after.hash and before.test_hash == after.test_hash


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'k': 11}, "class 'c0' has 10 train examples but 11 are needed; lower k (and dev_k) to"),
    ({'k': 8, 'dev_k': 3}, 'to at most 10 together (3 classes are too small)'),
    ({'k': 2, 'dev_k': 3}, 'dev_k=3 > k=2: choosing on a dev set larger than the train set'),
    ({'k': 0}, 'k is at least 1'),
    ({'k': 1, 'dev_k': -1}, 'dev_k at least 0'),
    ({'k': 1, 'seeds': ()}, 'give at least one'),
    ({'k': 1, 'seeds': (-1,)}, 'none below 0'),
  ],
)
def test_refused(arguments, message):
  with pytest.raises(FewshotError, match=re.escape(message)):
    tasks.kshot(toy(), **arguments)


def test_a_class_that_only_the_test_pool_has():
  task = toy([*TEXTS, 'odd'], [*LABELS, 'zzz'], test=[*range(10), 60])
  with pytest.raises(FewshotError, match="class 'zzz' has 0 train examples but 2 are needed"):
    tasks.kshot(task, 2)


def test_an_empty_test_pool():
  with pytest.raises(FewshotError, match='toy: the test pool is empty'):
    tasks.kshot(toy(test=[]), 2)


def published(**changes) -> tasks.Task:
  """Splits 13 and 21 of 3 classes, 2 + 1 of each; row 36, of test, repeats row 0, of train."""
  texts = [*TEXTS[:18], *TEXTS[30:48], TEXTS[0]]
  labels = [*LABELS[:18], *LABELS[30:48], LABELS[0]]
  given = {13: (range(6), [8, 7, 6]), 21: ([17, 16, 15, 14, 13, 12], range(9, 12))}
  return tasks.make('pub', texts, labels, range(18, 37), **{'given': given, **changes})


def test_given_splits_are_taken_as_they_are():
  task = published()
  b, a = tasks.kshot(task, 2, [21, 13], dev_k=1)
  assert a.train.tolist() == [*range(6)] and a.dev.tolist() == [8, 7, 6]
  assert b.train.tolist() == [17, 16, 15, 14, 13, 12] and b.dev.tolist() == [9, 10, 11]
  assert (a.seed, a.k, b.seed) == (13, 2, 21) and a.test_hash == b.test_hash
  assert 36 in a.test and len(a.test) == 19  # It stands in train too, and stays in both.
  assert a.hash != b.hash
  (bare,) = tasks.kshot(task, 2, [13])
  assert not len(bare.dev) and bare.hash != a.hash and (bare.train == a.train).all()
  (few,) = tasks.kshot(task, 2, [13], max_test=5)
  assert len(few.test) == 5 and set(few.test) <= set(a.test)


def test_the_hash_of_a_given_split_is_of_its_content():
  (before,) = tasks.kshot(published(), 2, [13], 1)
  changed = TEXTS[2] + '!'
  task = published()
  texts = [changed if i == 2 else x for i, x in enumerate(task.inputs)]
  labels = [task.classes[i] for i in task.labels]
  other = tasks.make('pub', texts, labels, task.test, given=task.given)
  (after,) = tasks.kshot(other, 2, [13], 1)
  assert after.hash != before.hash and after.test_hash == before.test_hash
  assert splits.content_hash(task, before.train) != splits.content_hash(other, after.train)


def test_given_splits_of_unequal_classes_have_their_mean_as_k():
  given = {0: ([0, 3, 6, 1, 4, 2, 9, 12], range(0))}
  (split,) = tasks.kshot(published(given=given), 3, [0])
  assert np.bincount(published().labels[split.train]).tolist() == [5, 2, 1]


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'seeds': [0, 13]}, 'pub: no split 0 is given; take the seeds 13, 21'),
    ({'k': 4}, 'train sets hold 6 examples of 3 classes; k=4 is to be 2'),
    ({'dev_k': 2}, 'dev sets hold 3 examples of 3 classes; dev_k=2 is to be 0 or 1'),
    ({'k': 1, 'dev_k': 2}, 'choosing on a dev set larger than the train set'),
  ],
)
def test_what_is_not_given(arguments, message):
  with pytest.raises(FewshotError, match=re.escape(message)):
    tasks.kshot(published(), **{'k': 2, 'seeds': [13], **arguments})


def test_no_dev_set_is_given():
  task = published(given={0: (range(6), [])})
  with pytest.raises(FewshotError, match=r'hold 0 examples of 3 classes; dev_k=1 is to be 0$'):
    tasks.kshot(task, 2, [0], dev_k=1)


def test_unlabelled_rows_are_beside_the_split_and_repeats_of_it_are_left_out():
  texts = [f't{i}' for i in range(20)] + ['t0', 't1']
  task = tasks.make('toy', texts, [i % 2 for i in range(20)] + [0, 1], test=range(15, 20))
  (split,) = tasks.kshot(task, 3, [4], dev_k=1)
  rows = tasks.unlabelled(task, split, 99)
  used = set(task.ids[np.concatenate([split.train, split.dev, split.test])])
  assert len(rows) == 15 - 8 and not used & set(task.ids[rows])
  few = tasks.unlabelled(task, split, 3)
  assert len(few) == 3 and set(few) < set(rows)
  np.testing.assert_array_equal(few, tasks.unlabelled(task, split, 3))
  (whole,) = tasks.kshot(tasks.make('t', texts[:8], [0, 1] * 4, test=[6, 7]), 3, [0])
  with pytest.raises(FewshotError, match='no example beside split 0'):
    tasks.unlabelled(tasks.make('t', texts[:8], [0, 1] * 4, test=[6, 7]), whole, 1)
