"""Pools of images to draw episodes from: published sets out of local folders, and `glyphs`.

Every source gives a `fewshot.episodes.Pool`; `load(name, part, folder)` is one call for all.
"""

from fewshot.data.fonts import glyphs
from fewshot.data.images import (
  caltech101,
  cifar_fs,
  cub,
  fc100,
  image_folder,
  mini_imagenet,
  quickdraw,
)
from fewshot.data.omniglot import Trials, lake_runs, omniglot
from fewshot.data.pools import resized, rotated, subset
from fewshot.data.sources import SOURCES, load

__all__ = [
  'SOURCES',
  'Trials',
  'caltech101',
  'cifar_fs',
  'cub',
  'fc100',
  'glyphs',
  'image_folder',
  'lake_runs',
  'load',
  'mini_imagenet',
  'omniglot',
  'quickdraw',
  'resized',
  'rotated',
  'subset',
]
