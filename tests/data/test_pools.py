"""Pools out of pools."""

import numpy as np
import pytest

from fewshot import data, episodes
from fewshot.errors import FewshotError


def toy(size=4, channels=1):
  images = np.random.default_rng(0).integers(0, 256, (7, size, size, channels), np.uint8)
  return episodes.make_pool('toy', images, [0, 0, 1, 1, 1, 2, 2], 'abc', 'xxy')


def test_subset_keeps_images_with_their_class():
  pool = toy()
  some = data.subset(pool, [2, 0])
  assert some.classes == ('c', 'a') and some.groups == ('y', 'x')
  assert some.starts.tolist() == [0, 2] and some.counts.tolist() == [2, 2]
  np.testing.assert_array_equal(some.images, pool.images[[5, 6, 0, 1]])


def test_rotated_four_times_is_the_pool_again():
  pool = toy()
  turned = data.rotated(pool)
  assert len(turned.classes) == 12 and turned.groups == tuple('xxxxxxxxyyyy')
  for c in range(3):
    for k in range(4):
      at = turned.starts[4 * c + k]
      images = turned.images[at : at + turned.counts[4 * c + k]]
      here = pool.images[pool.starts[c] : pool.starts[c] + pool.counts[c]]
      np.testing.assert_array_equal(np.rot90(images, -k, (1, 2)), here)
  with pytest.raises(FewshotError, match='cannot be turned; square them'):
    data.rotated(pool._replace(images=pool.images[:, :2]))


def test_two_pools_fit_one_backbone():
  grey, colour = toy(4, 1), toy(6, 3)
  for pool in (grey, colour):
    for channels in (1, 3):
      fit = data.resized(pool, 5, channels)
      assert fit.images.shape == (7, 5, 5, channels) and fit.images.dtype == np.uint8
      assert fit.classes == pool.classes
  assert data.resized(grey, 4, 1) is grey
  np.testing.assert_array_equal(data.resized(grey, 4, 3).images, grey.images.repeat(3, -1))
  with pytest.raises(FewshotError, match='1 channels to 2; only 1'):
    data.resized(grey, 4, 2)
