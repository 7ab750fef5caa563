"""Augmentation of image batches on the device: pure functions of a key, under jit and vmap.

Images come as uint8 from 0 to 255 or as floating numbers from 0 to 1, [B, H, W, C], and leave as
float32 (or what they were) from 0 to 1.  Every image of a batch is changed on its own.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from fewshot.episodes import Episode

Array = jax.Array
GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow.


def to_float(x: Array) -> Array:
  """uint8 from 0 to 255 as float32 from 0 to 1; floating numbers as they are."""
  x = jnp.asarray(x)
  return x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x


def normalise(x: Array, mean: float | Sequence[float], std: float | Sequence[float]) -> Array:
  """(x - mean) / std, a number each or one a channel.

  Mean 1 and std -1 turn Omniglot's ink on paper, 0 on 255, into 1 on 0.

  >>> normalise(jnp.array([[[[0], [255]]]], jnp.uint8), 1, -1).ravel().tolist()
  [1.0, -0.0]
  """
  x = to_float(x)
  return (x - jnp.asarray(mean, x.dtype)) / jnp.asarray(std, x.dtype)


def crop(key: Array, x: Array, padding: int = 4) -> Array:
  """Shifts each image by up to `padding` pixels either way; its edge is mirrored."""
  x = to_float(x)
  wide = jnp.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)], 'reflect')
  corners = jax.random.randint(key, (len(x), 2), 0, 2 * padding + 1)
  cut = lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), x.shape[1:])  # noqa: E731
  return jax.vmap(cut)(wide, corners)


def flip(key: Array, x: Array) -> Array:
  """Mirrors each image, left to right, with probability 1/2."""
  x = to_float(x)
  return jnp.where(jax.random.bernoulli(key, shape=(len(x), 1, 1, 1)), x[:, :, ::-1], x)


def turn(x: Array, quarters: Array) -> Array:
  """Turns square images [B, H, H, C] by so many quarters [B], counter-clockwise; keeps the dtype.

  >>> turn(jnp.arange(4).reshape(1, 2, 2, 1), jnp.array([1]))[0, :, :, 0].tolist()
  [[1, 3], [0, 2]]
  """
  turned = jnp.stack([jnp.rot90(x, k, axes=(1, 2)) for k in range(4)])
  return turned[quarters, jnp.arange(len(x))]


def turn_classes(key: Array, episode: Episode) -> Episode:
  """Turns every class of an episode by random quarters, its support and queries alike.

  What `fewshot.data.rotated` does to a pool, without its memory: where classes are turned, an
  episode has a class in one position at most.
  """
  quarters = jax.random.randint(key, episode.rows.classes.shape, 0, 4)
  side = lambda b: b | {'x': turn(b['x'], quarters[b['labels']])}  # noqa: E731
  return episode._replace(support=side(episode.support), query=side(episode.query))


def colour(
  key: Array, x: Array, brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4
) -> Array:
  """Changes brightness, contrast and saturation by factors from U[1 - s, 1 + s], in this order.

  x' = clip(f x + (1 - f) base)    base: black, the mean grey of the image, its grey pixels
  """
  x = to_float(x)
  strength = jnp.array([brightness, contrast, saturation], x.dtype)
  u = jax.random.uniform(key, (3, len(x), 1, 1, 1), x.dtype, -1, 1)
  f = 1 + strength[:, None, None, None, None] * u
  bases: tuple[Callable[[Array], Array | float], ...] = (
    lambda x: 0.0,
    lambda x: _grey(x).mean((1, 2, 3), keepdims=True),
    _grey,
  )
  for factor, base in zip(f, bases, strict=True):
    x = jnp.clip(factor * x + (1 - factor) * base(x), 0, 1)
  return x


def _grey(x: Array) -> Array:
  """[B, H, W, 1]."""
  return (x @ jnp.array(GREY, x.dtype))[..., None] if x.shape[-1] == 3 else x


def affine(
  key: Array,
  x: Array,
  degrees: float = 10.0,
  shear: float = 0.1,
  scale: float = 0.1,
  shift: float = 0.1,
) -> Array:
  """Turns, shears, scales and shifts each image about its middle, bilinearly.

      A = R(a) [[1, s], [0, 1]] / z    pixel p shows what was at A (p - middle - t) + middle

  a, s, z - 1 and t are uniform up to the arguments either way; shift is a part of the side.
  Beyond the edge the nearest pixel of it goes on.
  """
  x = to_float(x)
  size = jnp.array(x.shape[1:3], x.dtype)
  middle = ((size - 1) / 2)[:, None]
  pixels = jnp.stack(jnp.meshgrid(*map(jnp.arange, x.shape[1:3]), indexing='ij')).reshape(2, -1)

  def move(image: Array, u: Array) -> Array:
    angle = jnp.deg2rad(degrees) * u[0]
    turned = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    a = turned @ jnp.array([[1, shear * u[1]], [0, 1]]) / (1 + scale * u[2])
    at = a @ (pixels - middle - (shift * size * u[3:])[:, None]) + middle
    take = lambda c: map_coordinates(c, list(at), order=1, mode='nearest')  # noqa: E731
    return jax.vmap(take, in_axes=-1, out_axes=-1)(image).reshape(image.shape)

  return jax.vmap(move)(x, jax.random.uniform(key, (len(x), 5), x.dtype, -1, 1))
