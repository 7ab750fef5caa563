"""Augmentation: what each function leaves alone, under jit and vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from fewshot import episodes
from fewshot.data import augment

KEY = jax.random.key(3)


def images(n=6, size=8, channels=3):
  return np.random.default_rng(0).integers(0, 256, (n, size, size, channels), np.uint8)


RANDOM = (augment.crop, augment.flip, augment.colour, augment.affine)


@pytest.mark.parametrize('f', RANDOM, ids=lambda f: f.__name__)
@pytest.mark.parametrize('channels', [1, 3])
def test_under_vmap_and_jit_as_in_a_loop(f, channels):
  x = images(channels=channels)
  keys = jax.random.split(KEY, 2)
  many = jax.jit(jax.vmap(f, in_axes=(0, None)))(keys, x)
  assert many.shape == (2, *x.shape) and many.dtype == jnp.float32
  assert many.min() >= 0 and many.max() <= 1
  for i, key in enumerate(keys):
    np.testing.assert_allclose(many[i], f(key, x), atol=1e-5)
  assert not np.allclose(many[0], many[1])
  of_float = f(keys[0], x.astype(np.float32) / 255)
  np.testing.assert_allclose(of_float, many[0], atol=1e-5)


@pytest.mark.parametrize('f', RANDOM, ids=lambda f: f.__name__)
def test_each_image_is_changed_on_its_own(f):
  out = np.asarray(f(KEY, np.repeat(images(1), 16, 0)))
  assert len(np.unique(out.round(4), axis=0)) >= 2
  if f is augment.flip:
    assert len(np.unique(out, axis=0)) == 2


@pytest.mark.parametrize(
  'f',
  [
    lambda x: augment.crop(KEY, x, padding=0),
    lambda x: augment.colour(KEY, x, 0, 0, 0),
    lambda x: augment.affine(KEY, x, 0, 0, 0, 0),
    lambda x: augment.normalise(x, 0, 1),
  ],
)
def test_no_strength_changes_nothing(f):
  np.testing.assert_allclose(f(images()), images() / np.float32(255), atol=1e-6)


def test_crop_shifts_by_whole_pixels():
  x = images(20)
  out = np.asarray(augment.crop(KEY, x, padding=2))
  wide = np.pad(x / np.float32(255), [(0, 0), (2, 2), (2, 2), (0, 0)], 'reflect')
  found = set()
  for image, around in zip(out, wide, strict=True):
    at = [
      (i, j) for i in range(5) for j in range(5)
      if np.allclose(image, around[i : i + 8, j : j + 8])
    ]  # fmt: skip
    assert len(at) == 1
    found.add(at[0])
  assert len(found) > 5


def test_affine_is_its_equation():
  """scipy's affine_transform shows at p what was at matrix @ p + offset."""
  x, size = images(3, 9, 1), 9
  out = np.asarray(augment.affine(KEY, x, 40, 0.3, 0.2, 0.1))
  for image, pixels, u in zip(out, x, jax.random.uniform(KEY, (3, 5), minval=-1), strict=True):
    angle, shear, scale, *shift = (np.asarray(u) * [np.deg2rad(40), 0.3, 0.2, 0.9, 0.9]).tolist()
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    a = turn @ [[1, shear], [0, 1]] / (1 + scale)
    middle = np.full(2, (size - 1) / 2)
    offset = middle - a @ (middle + shift)
    expected = ndimage.affine_transform(pixels[..., 0] / 255.0, a, offset, order=1, mode='nearest')
    np.testing.assert_allclose(image[..., 0], expected, atol=1e-4)


def test_colour_keeps_grey_grey_and_clips():
  grey = np.repeat(images(4, channels=1), 3, -1)
  out = np.asarray(augment.colour(KEY, grey, 0, 0, 0.9))
  np.testing.assert_allclose(out, grey / 255, atol=2e-3)
  bright = np.asarray(augment.colour(KEY, images(30), 0.9, 0, 0))
  assert bright.max() == 1 and bright.min() >= 0


def test_turn_is_rot90():
  x = images(4)
  turned = augment.turn(x, jnp.arange(4))
  assert turned.dtype == jnp.uint8
  for k in range(4):
    np.testing.assert_array_equal(turned[k], np.rot90(x[k], k))


def test_a_class_of_an_episode_is_turned_as_one():
  x = np.repeat(np.arange(4), 5)
  pixels = np.zeros((20, 3, 3, 1), np.uint8)
  pixels[:, 0, 0, 0] = 1 + x  # At one corner, so that a turn shows.
  pool = episodes.make_pool('toy', pixels, x, 'abcd')
  sample = episodes.sampler(pool, 4, 2, 3)
  turned = jax.jit(lambda k: augment.turn_classes(k, sample(k)))
  seen = set()
  for key in jax.random.split(KEY, 4):
    episode = turned(key)
    corners = {}
    for side in (episode.support, episode.query):
      assert side['x'].dtype == jnp.uint8
      for image, label in zip(np.asarray(side['x']), np.asarray(side['labels']), strict=True):
        corners.setdefault(int(label), set()).add(tuple(np.argwhere(image[..., 0])[0].tolist()))
    assert all(len(c) == 1 for c in corners.values())
    seen |= set.union(*corners.values())
  assert len(seen) == 4
