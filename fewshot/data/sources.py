"""The named pools, all behind one call, and what `fewshot tasks` says of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fewshot.data import images
from fewshot.data.fonts import glyphs
from fewshot.data.omniglot import omniglot
from fewshot.episodes import Pool
from fewshot.errors import FewshotError, nearest

PARTS = ('train', 'val', 'test')


class Source(NamedTuple):
  """How a named pool is read: (folder, part, size) -> Pool, of square images of `size`."""

  read: Callable[[str | Path | None, str, int], Pool]
  parts: tuple[str, ...]
  size: int
  classes: int | None  # Of all parts together; None where that depends.
  layout: str  # What the folder holds.


def _omniglot(split: str) -> Callable[[str | Path | None, str, int], Pool]:
  return lambda folder, part, size: omniglot(folder, split, part, rotations=False, size=size)


def _glyphs(folder: str | Path | None, part: str, size: int) -> Pool:
  del folder
  return glyphs(part, size)


def _folder(folder: str | Path | None, part: str, size: int) -> Pool:
  del part
  if folder is None:
    raise FewshotError('image-folder needs a folder of class folders with images')
  return images.image_folder(folder, size)


SOURCES = {
  'omniglot': Source(
    _omniglot('vinyals'), PARTS, 28, 1623, 'images_{background,evaluation}.zip, splits_vinyals/'
  ),
  'omniglot-lake': Source(
    _omniglot('lake'), ('background', 'evaluation'), 28, 1623,
    'images_{background,evaluation}.zip',
  ),
  'cifar-fs': Source(images.cifar_fs, PARTS, 32, 100, '<class>/*.png, split_cifar-fs_*.json'),
  'fc100': Source(
    images.fc100, PARTS, 32, 100, '<class>/*.png, split_cifar-fs_*.json, split_fc100_*.json'
  ),
  'mini-imagenet': Source(images.mini_imagenet, PARTS, 84, 100, 'images/, {train,val,test}.csv'),
  'cub': Source(images.cub, PARTS, 84, 200, 'CUB_200_2011: images/'),
  'caltech101': Source(images.caltech101, ('all',), 84, 100, '101_ObjectCategories'),
  'quickdraw': Source(images.quickdraw, PARTS, 28, 345, 'numpy bitmaps: <class>.npy'),
  'glyphs': Source(_glyphs, PARTS, 28, None, 'the fonts of matplotlib'),
  'image-folder': Source(_folder, ('all',), 84, None, '<class>/<image>'),
}  # fmt: skip


def load(
  name: str, part: str = 'train', folder: str | Path | None = None, size: int | None = None
) -> Pool:
  """A pool by name: a part of one of `SOURCES`.

  >>> load('glyfs')
  Traceback (most recent call last):
  fewshot.errors.FewshotError: there is no pool 'glyfs'; did you mean 'glyphs'?
  """
  source = find(name)
  if part not in source.parts:
    raise FewshotError(f'{name} has no part {part!r}; {nearest(part, source.parts)}')
  return source.read(folder, part, size or source.size)


def find(name: str) -> Source:
  """The source of that name."""
  if name not in SOURCES:
    raise FewshotError(f'there is no pool {name!r}; {nearest(name, SOURCES)}')
  return SOURCES[name]


def rows() -> list[dict[str, Any]]:
  """What `fewshot tasks` prints of them: name, kind, classes, sources.

  >>> rows()[0]['kind']
  'few-shot-images'
  """
  return [
    {'name': n, 'kind': 'few-shot-images', 'classes': s.classes, 'sources': [s.layout]}
    for n, s in SOURCES.items()
  ]
