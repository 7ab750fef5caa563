"""Samplers: shapes, protocols and the mistakes that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import episodes
from fewshot.errors import FewshotError


def pool_of(counts, groups=()):
  """A pool whose pixels are the number of the image."""
  labels = np.repeat(np.arange(len(counts)), counts)
  images = np.broadcast_to(np.arange(len(labels)).reshape(-1, 1, 1, 1), (len(labels), 2, 2, 1))
  names = [f'c{i}' for i in range(len(counts))]
  return episodes.make_pool('toy', images.astype(np.uint8), labels, names, groups)


def test_static_shapes_under_jit_and_vmap_and_equal_to_a_loop():
  pool = pool_of([6] * 9)
  for sample in (
    episodes.sampler(pool, 4, 2, 3),
    episodes.sampler(pool, (2, 4), (1, 2), 3),
    episodes.meta_dataset(pool, (2, 4), support=8, query=3),
  ):
    keys = episodes.ledger('shapes', 5)
    many = jax.jit(jax.vmap(sample))(keys)
    assert many.support['x'].shape == (5, 8, 2, 2, 1) and many.query['x'].shape == (5, 12, 2, 2, 1)
    assert many.support['x'].dtype == jnp.uint8 and many.support['labels'].dtype == jnp.int32
    assert many.support['weights'].dtype == jnp.float32 and many.rows.classes.shape == (5, 4)
    for i, key in enumerate(keys):
      one = sample(key)
      jax.tree.map(np.testing.assert_array_equal, one, jax.tree.map(lambda a, i=i: a[i], many))


def test_gathers_the_rows_it_names():
  pool = pool_of([5] * 6)
  sample = episodes.sampler(pool, 3, 2, 2)
  episode = sample(jax.random.key(1))
  for side, rows in ((episode.support, episode.rows.support), (episode.query, episode.rows.query)):
    np.testing.assert_array_equal(side['x'][:, 0, 0, 0], rows)
    classes = episode.rows.classes[side['labels']]
    np.testing.assert_array_equal(episodes.labels_of(pool)[rows], classes)
  features = np.arange(30.0)[:, None] * np.ones(4)
  gathered = episodes.gather(features, sample.sample_rows(jax.random.key(1)))
  np.testing.assert_array_equal(gathered.support['x'][:, 0], episode.rows.support)


def test_a_group_is_left_only_by_nobody():
  groups = ['a'] * 3 + ['b'] * 5 + ['c'] * 4
  sample = episodes.sampler(pool_of([4] * 12, groups), 4, 1, 2, by='group')
  rows = jax.vmap(sample.sample_rows)(episodes.ledger('groups', 200))
  drawn = [{groups[c] for c in classes} for classes in np.asarray(rows.classes)]
  assert all(len(d) == 1 for d in drawn)
  seen = [d.pop() for d in drawn]
  assert set(seen) == {'b', 'c'}, 'the group of 3 is too small for 4 ways'
  assert 70 < seen.count('b') < 130


def test_every_class_and_image_is_as_likely():
  sample = episodes.sampler(pool_of([3, 5, 4, 8]), 2, 1, 1)
  rows = jax.vmap(sample.sample_rows)(episodes.ledger('balance', 4000))
  classes = np.bincount(np.asarray(rows.classes).ravel(), minlength=4) / 8000
  np.testing.assert_allclose(classes, 1 / 4, atol=0.02)
  support = np.bincount(np.asarray(rows.support).ravel(), minlength=20) / 8000
  np.testing.assert_allclose(support[:3], 1 / 12, atol=0.015)
  np.testing.assert_allclose(support[12:], 1 / 32, atol=0.01)


def test_variable_way_and_shot_are_uniform_over_their_ranges():
  sample = episodes.sampler(pool_of([6] * 9), (2, 5), (1, 3), 2)
  rows = jax.vmap(sample.sample_rows)(episodes.ledger('ways', 3000))
  way = np.asarray((rows.classes >= 0).sum(1))
  shot = np.asarray(rows.support_weights.sum(1)) / way
  for drawn, low, high in ((way, 2, 5), (shot, 1, 3)):
    values, n = np.unique(drawn, return_counts=True)
    assert values.tolist() == list(range(low, high + 1))
    np.testing.assert_allclose(n / 3000, 1 / (high - low + 1), atol=0.03)
  np.testing.assert_array_equal(rows.query_weights.sum(1), 2 * way)


def test_meta_dataset_follows_its_equations():
  counts = np.array([4, 30, 12, 200, 9, 60, 41, 8])
  sample = episodes.meta_dataset(pool_of(counts), (3, 50), support=100, query=10)
  rows = jax.vmap(sample.sample_rows)(episodes.ledger('meta', 300))
  ways, totals = set(), set()
  for i in range(300):
    classes = np.asarray(rows.classes[i])
    classes = classes[classes >= 0]
    label = np.asarray(rows.support_labels[i])[np.asarray(rows.support_weights[i]) > 0]
    query = np.asarray(rows.query_labels[i])[np.asarray(rows.query_weights[i]) > 0]
    shots = np.bincount(label, minlength=len(classes))
    q = min(10, (counts[classes] // 2).min())
    assert np.bincount(query, minlength=len(classes)).tolist() == [q] * len(classes)
    assert (shots >= 1).all() and (shots <= counts[classes] - q).all() and shots.sum() <= 100
    ways.add(len(classes))
    totals.add(int(shots.sum()))
    # Shares differ from the class's own by a factor of 2 / (1/2) at most.
    free = shots[shots < counts[classes] - q] - 1
    n = counts[classes][shots < counts[classes] - q]
    if len(free) > 1:
      upper = (free + 1) / n
      assert (free[:, None] / n[:, None] <= 4.01 * upper[None, :]).all()
  assert ways == set(range(3, 9)) and min(totals) < 15 and max(totals) > 60


def test_shapes_are_cut_to_what_there_is():
  groups = ['a'] * 3 + ['b'] * 6
  pool = pool_of([4] * 9, groups)
  assert episodes.sampler(pool, (2, 50), 1, 2).way == 9
  assert episodes.meta_dataset(pool, (2, 50), by='group').way == 6


def test_class_counts_that_differ_never_leave_their_class():
  pool = pool_of([2, 9, 3, 7])
  sample = episodes.sampler(pool, 4, 1, 1)
  rows = jax.vmap(sample.sample_rows)(episodes.ledger('uneven', 100))
  of = episodes.labels_of(pool)
  for labels, drawn in ((rows.support_labels, rows.support), (rows.query_labels, rows.query)):
    want = np.take_along_axis(np.asarray(rows.classes), np.asarray(labels), 1)
    np.testing.assert_array_equal(of[np.asarray(drawn)], want)


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'way': 10}, r'toy has 9 classes, fewer than way=10'),
    ({'shot': 5}, r"class 'c0' has 6 images and an episode takes up to 7; lower shot or query"),
    ({'way': (2, 3, 4)}, r'way=\(2, 3, 4\) is no range; write a number'),
    ({'way': (4, 2)}, r'way=\(4, 2\) runs from high to low; write \(2, 4\)'),
    ({'shot': 0}, r'shot=0 is no whole number of at least 1'),
    ({'query': 0}, r'query=0 is no whole number'),
    ({'by': 'script'}, r"by='script': episodes are drawn by class or by group"),
    ({'by': 'group'}, r"toy has no groups; draw its episodes by='class'"),
  ],
)
def test_refuses(kwargs, message):
  with pytest.raises(FewshotError, match=message):
    episodes.sampler(pool_of([6] * 9), **{'way': 3, 'shot': 1, 'query': 2, **kwargs})


def test_refuses_groups_that_are_too_small_and_a_support_below_the_way():
  pool = pool_of([6] * 4, ['a', 'b', 'b', 'b'])
  with pytest.raises(FewshotError, match=r'3 classes in its largest group, b, fewer than way=4'):
    episodes.sampler(pool, 4, 1, 2, by='group')
  with pytest.raises(FewshotError, match=r'support=3 is less than an image for each of 4 classes'):
    episodes.meta_dataset(pool, (2, 4), support=3)


def test_fixed_trials_come_in_their_order():
  pool = pool_of([2] * 6)
  sample = episodes.sampler(pool, 3, 1, 1).sample_rows
  rows = jax.vmap(sample)(jax.random.split(jax.random.key(3), 5))
  fixed = episodes.fixed(pool, rows, 3, 'trials')
  again = jax.jit(jax.vmap(fixed.sample_rows))(episodes.ledger('trials', 5))
  jax.tree.map(np.testing.assert_array_equal, again, rows)
  assert fixed(episodes.ledger('trials', 5)[2]).query['labels'].tolist() == [0, 1, 2]
