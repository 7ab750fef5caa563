"""Laws of every sampler, over pools and protocols of any shape."""

import functools

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot import episodes

SEEDS = st.integers(0, 2**31 - 1)
COUNTS = ((6, 9, 7, 12, 6), (8, 6, 6, 11, 12))
GROUPS = {'class': (), 'group': tuple('aabba')}


@functools.cache
def sampler(protocol, counts, by, *args):
  """The pool and the jitted function from a key to rows; compiled once for all examples."""
  labels = np.repeat(np.arange(len(counts)), counts)
  images = np.zeros((len(labels), 1, 1, 1), np.uint8)
  pool = episodes.make_pool('any', images, labels, [f'c{i}' for i in counts], GROUPS[by])
  sample = getattr(episodes, protocol)(pool, *args, by=by)
  return pool, jax.jit(sample.sample_rows)


SPECS = (
  ('sampler', COUNTS[0], 'class', 2, 1, 3),
  ('sampler', COUNTS[1], 'group', (1, 3), 3, 1),
  ('sampler', COUNTS[0], 'class', (1, 4), (1, 3), 2),
  ('meta_dataset', COUNTS[0], 'class', (2, 50), 20, 3),
  ('meta_dataset', COUNTS[1], 'group', (1, 3), 5, 4),
)
SAMPLERS = st.sampled_from(SPECS).map(lambda spec: sampler(*spec))


def parts(rows):
  """Rows and labels of what is no pad, of support and of query."""
  here, there = np.asarray(rows.support_weights) > 0, np.asarray(rows.query_weights) > 0
  return (
    (np.asarray(rows.support)[here], np.asarray(rows.support_labels)[here]),
    (np.asarray(rows.query)[there], np.asarray(rows.query_labels)[there]),
  )


@settings(max_examples=100, deadline=None)
@given(SAMPLERS, SEEDS)
def test_laws_of_every_episode(made, seed):
  pool, sample_rows = made
  rows = sample_rows(jax.random.key(seed))
  (support, labels), (query, query_labels) = parts(rows)
  drawn = np.concatenate([support, query])
  assert len(set(drawn)) == len(drawn), 'no image twice, so that query never overlaps support'
  classes = np.asarray(rows.classes)
  there = classes[classes >= 0]
  assert len(set(there)) == len(there), 'no class twice'
  of = episodes.labels_of(pool)
  np.testing.assert_array_equal(of[support], classes[labels])
  np.testing.assert_array_equal(of[query], classes[query_labels])
  assert set(labels) == set(query_labels) == set(range(len(there))), 'every class on both sides'
  assert (np.diff(labels) >= 0).all() and (np.diff(query_labels) >= 0).all()
  for weights in (rows.support_weights, rows.query_weights):
    assert set(np.asarray(weights)) <= {0.0, 1.0} and (np.diff(weights) <= 0).all()
  for i in (rows.support, rows.query):
    assert (np.asarray(i) >= 0).all() and (np.asarray(i) < len(pool.images)).all()


@settings(max_examples=20, deadline=None)
@given(SAMPLERS, SEEDS)
def test_the_same_key_gives_the_same_episode(made, seed):
  once, again = (made[1](jax.random.key(seed)) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, once, again)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([1, 4]), st.sampled_from([1, 3]), SEEDS)
def test_full_masks_change_nothing(way, shot, seed):
  key = jax.random.key(seed)
  fixed = sampler('sampler', COUNTS[0], 'class', way, shot, 3)[1](key)
  full = sampler('sampler', COUNTS[0], 'class', (way, way), (shot, shot), 3)[1](key)
  jax.tree.map(np.testing.assert_array_equal, fixed, full)
  assert (full.support_weights == 1).all() and (full.query_weights == 1).all()


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_what_is_no_pad_is_an_episode_of_its_own_way_and_shot(seed):
  key = jax.random.key(seed)
  (support, labels), (query, query_labels) = parts(
    sampler('sampler', COUNTS[0], 'class', (1, 4), (1, 3), 2)[1](key)
  )
  way, shot = len(set(labels)), int(np.bincount(labels)[0])
  fixed = sampler('sampler', COUNTS[0], 'class', 4, shot, 2)[1](key)
  np.testing.assert_array_equal(support, fixed.support[: way * shot])
  np.testing.assert_array_equal(query, fixed.query[: way * 2])
  np.testing.assert_array_equal(query_labels, fixed.query_labels[: way * 2])


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_more_shots_have_the_same_queries_and_the_support_of_fewer(seed):
  key = jax.random.key(seed)
  one, three = (sampler('sampler', COUNTS[0], 'class', 3, k, 2)[1](key) for k in (1, 3))
  np.testing.assert_array_equal(one.query, three.query)
  np.testing.assert_array_equal(one.support, three.support[::3])
