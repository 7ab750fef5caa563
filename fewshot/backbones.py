"""Spellings of image pools and of backbones to train on them, as configs of episodes name both."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fewshot import data, methods, models
from fewshot.data import Trials
from fewshot.episodes import Pool
from fewshot.errors import FewshotError, nearest
from fewshot.methods import spelling
from fewshot.models import Model, conv4, resnet12
from fewshot.models.configs import check

LARGEST, DEEPEST = 10**9, 32  # Parameters and blocks of a backbone that starts at random.

POOLS: dict[str, Callable[..., Pool]] = {
  f.__name__: f
  for f in (
    *(data.omniglot, data.cifar_fs, data.fc100, data.mini_imagenet, data.cub, data.caltech101),
    *(data.quickdraw, data.glyphs, data.image_folder, data.rotated, data.resized, data.subset),
  )
}


class Backbone(NamedTuple):
  """One set of weights as two functions."""

  running: Model  # Norms use their running statistics.
  batch: Model  # Norms use the statistics of what they are given.


def trials_of(text: str) -> Trials | None:
  """The published trials that `text` spells, `lake_runs(size=28)`; None where it spells a pool."""
  if not text.startswith('lake_runs('):
    return None
  made: Trials = spelling.parse(text, {'lake_runs': _checked(data.lake_runs)}, 'set of trials')
  return made


def pool_of(text: str) -> Pool:
  """The pool that `text` spells.

  >>> pool_of("rotated(glyphs(part='test', size=8, instances=1))").images.shape[1:]
  (8, 8, 1)
  """
  head = text.partition('(')[0].strip()
  if '-' in head:
    raise FewshotError(f'there is no pool {head!r}; {nearest(head.replace("-", "_"), POOLS)}')
  pool = spelling.parse(text, {name: _checked(f) for name, f in POOLS.items()}, 'pool')
  if not isinstance(pool, Pool):
    raise FewshotError(f"{text!r} spells no pool; write for example omniglot(part='test')")
  return pool


def backbone_of(text: str, seed: int = 0) -> Backbone:
  """The backbone that `text` spells: a fresh one drawn by `seed`, or a pretrained one.

  >>> backbone_of('conv4(width=4, depth=2, image_size=8)').running
  Model('conv4(width=4, depth=2, image_size=8)', 292 parameters in 12 arrays)
  """
  families = {f.__name__.rpartition('.')[2]: _fresh(f, text, seed) for f in (conv4, resnet12)}
  known = {n: _checked(f) for n, f in (families | {'pretrained': pretrained}).items()}
  made = spelling.parse(text, known, 'backbone')
  if not isinstance(made, Backbone):
    raise FewshotError(f"{text!r} spells no backbone; write for example pretrained('vit-b16')")
  return made


def pretrained(name: str, size: int = 0) -> Backbone:
  """A pretrained model (`fewshot models`); images are resized to `size`, or as it was made for.

  Its norms keep their running statistics.
  """
  if type(size) is not int or size < 0:
    raise FewshotError(f'pretrained(size={size!r}) is a number of pixels, 0 for its own')
  model = models.load(name)
  if not model.example or 'image' not in model.example:
    raise FewshotError(f'{name} reads no images; take an image backbone of `fewshot models`')
  side = size or model.example['image'].shape[1]

  def forward(params: Any, batch: dict[str, Any], key: Any = None) -> dict[str, Any]:
    x = batch['image']
    wide = x.astype(jnp.float32) / (255 if x.dtype == jnp.uint8 else 1)
    wide = jnp.broadcast_to(wide, (*x.shape[:3], 3))
    resized = jax.image.resize(wide, (len(x), side, side, 3), 'bilinear')
    return model.forward(params, batch | {'image': resized}, key)

  larger = model._replace(forward=forward)
  return Backbone(larger, larger)


def _fresh(family: Any, text: str, seed: int) -> Callable[..., Backbone]:
  """A constructor of random backbones of a family, with the arguments of its config."""

  def make(**sizes: Any) -> Backbone:
    known = inspect.signature(family.Config).parameters
    if odd := [k for k in sizes if k not in known]:
      raise FewshotError(f'the backbone has no argument {odd[0]!r}; {nearest(odd[0], known)}')
    _check_sizes(sizes)
    config = family.Config(**sizes)
    check(config, 'its arguments')
    shapes = jax.eval_shape(lambda: family.init(config, jax.random.key(seed)))
    if (count := methods.count(shapes)) > LARGEST:
      raise FewshotError(f'the backbone has {count:,} parameters; at most {LARGEST:,} are drawn')
    params = family.init(config, jax.random.key(seed))
    model = Model(text, family.forward(config), params, example=family.example(config))
    return Backbone(model, model._replace(forward=family.forward(config, batch_stats=True)))

  return make


def _check_sizes(sizes: Mapping[str, Any]) -> None:
  """Numbers of pixels, channels and blocks are at least 1."""
  for name, value in sizes.items():
    if name in ('mean', 'std', 'dropout'):
      _check_numbers(name, value)
      continue
    blocks = value if name == 'depth' else len(value) if isinstance(value, tuple) else 1
    if isinstance(blocks, int) and blocks > DEEPEST:
      raise FewshotError(f'{name} makes {blocks} blocks; at most {DEEPEST} are computed')
    for n in value if isinstance(value, tuple) else (value,):
      if type(n) is not int or n < 1:
        raise FewshotError(f'{name}={value!r} is no whole number of at least 1')


def _check_numbers(name: str, value: Any) -> None:
  """Colours are tuples of finite numbers, std none of them 0; dropout is a share."""
  numbers = value if isinstance(value, tuple) and name != 'dropout' else (value,)
  sound = all(type(n) in (int, float) and abs(n) < float('inf') for n in numbers) and numbers
  if not sound or (name == 'std' and 0 in numbers) or (name == 'dropout' and not 0 <= value < 1):
    known = 'a share below 1' if name == 'dropout' else 'a tuple of numbers, one for each channel'
    raise FewshotError(f'{name}={value!r} is to be {known}')


def _checked(make: Callable[..., Any]) -> Callable[..., Any]:
  """The constructor of a pool or a backbone, whose wrong arguments are one line."""

  def call(*args: Any, **kwargs: Any) -> Any:
    try:
      inspect.signature(make).bind(*args, **kwargs)
    except TypeError as e:
      raise FewshotError(f'{make.__name__}{inspect.signature(make)}: {e}') from None
    try:
      return make(*args, **kwargs)
    except FewshotError:
      raise
    except Exception as e:  # Arguments of another kind, files that are not what they are called.
      reason = ' '.join(str(e).split())[:200]
      raise FewshotError(f'{make.__name__}: {type(e).__name__}: {reason}') from None

  return call
