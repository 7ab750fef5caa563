"""Pools and ledgers: order, hashes, what is refused."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import episodes
from fewshot.errors import FewshotError

IMAGES = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)


def test_sorted_by_class_and_in_order_within():
  pool = episodes.make_pool('toy', IMAGES, [1, 0, 1, 0, 1], ['a', 'b'], ['g', 'h'])
  assert pool.images.ravel().tolist() == [1, 3, 0, 2, 4]
  assert pool.starts.tolist() == [0, 2] and pool.counts.tolist() == [2, 3]
  assert episodes.labels_of(pool).tolist() == [0, 0, 1, 1, 1]
  on = episodes.on_device(pool)
  assert isinstance(on.images, jax.Array) and on.images.dtype == jnp.uint8


@pytest.mark.parametrize(
  ('images', 'labels', 'classes', 'groups', 'message'),
  [
    (IMAGES / 2, [0] * 5, 'a', '', 'images are float64'),
    (IMAGES[0], [0], 'a', '', r'a pool holds uint8 \[N, H, W, C\]'),
    (IMAGES, [0] * 4, 'a', '', '5 images with 4 labels'),
    (IMAGES, [0] * 5, 'a', 'xy', '1 classes with 2 groups'),
    (IMAGES, [0, 0, 0, 0, 2], 'ab', '', 'labels 0 to 2 of 2 classes'),
    (IMAGES, [0, 0, 0, 0, 2], 'abc', '', "class 'b' has no image"),
    (IMAGES[:0], [], '', '', 'no classes'),
  ],
)
def test_refuses(images, labels, classes, groups, message):
  with pytest.raises(FewshotError, match=message):
    episodes.make_pool('toy', images, labels, classes, groups)


def test_the_hash_sees_pixels_classes_and_groups():
  pool = episodes.make_pool('toy', IMAGES, [0, 0, 1, 1, 1], ['a', 'b'], ['g', 'h'])
  other = IMAGES.copy()
  other[3] = 9
  changed = [
    episodes.make_pool('toy', other, [0, 0, 1, 1, 1], ['a', 'b'], ['g', 'h']),
    episodes.make_pool('toy', IMAGES, [0, 0, 0, 1, 1], ['a', 'b'], ['g', 'h']),
    pool._replace(classes=('a', 'c')),
    pool._replace(groups=('g', 'g')),
    pool._replace(images=pool.images.reshape(5, 1, 1, 1)[::-1]),
  ]
  hashes = [episodes.pool_hash(p) for p in (pool, *changed)]
  assert len(set(hashes)) == len(hashes)
  assert episodes.pool_hash(episodes.on_device(pool)) == hashes[0]


def test_a_ledger_is_its_name_and_index():
  keys = episodes.ledger('omniglot-test', 8)
  np.testing.assert_array_equal(
    jax.random.key_data(keys[:3]), jax.random.key_data(episodes.ledger('omniglot-test', 3))
  )
  other = episodes.ledger('omniglot-val', 8)
  data = np.concatenate([jax.random.key_data(k) for k in (keys, other)])
  assert len(np.unique(data, axis=0)) == 16
  with pytest.raises(FewshotError, match='n=0'):
    episodes.ledger('x', 0)


def test_a_ledger_is_the_same_everywhere():
  """Its keys stand in records: they depend on no setting, process or machine."""
  assert episodes.ledger_hash(episodes.ledger('omniglot-test', 600)) == LEDGER
  code = (
    'import jax; jax.config.update("jax_default_prng_impl", "rbg"); from fewshot import episodes;'
    'print(episodes.ledger_hash(episodes.ledger("omniglot-test", 600)))'
  )
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert out.stdout.strip() == LEDGER


LEDGER = '2ca80b3d5d33a98b'
