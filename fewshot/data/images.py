"""Sets of photographs, read from folders of their official layout (zips in them are read too)."""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fewshot.data.pools import resized
from fewshot.data.reading import (
  SUFFIXES,
  Tree,
  lines,
  matching,
  opened,
  parsed,
  pool_of,
)
from fewshot.episodes import Pool, make_pool
from fewshot.errors import FewshotError, counts, nearest
from fewshot.folders import home

PARTS = ('train', 'val', 'test')
FILE = r'[^/]+(?i:{})'.format('|'.join(SUFFIXES))
PER_CLASS = 200  # Drawings of Quick, Draw! that are kept, of over 100,000.


def image_folder(folder: str | Path, size: int = 84, mode: str = 'RGB') -> Pool:
  """Any folder of class folders with images: `<folder>/<...>/<class>/<image>`, or zips of such.

  The folder above a class is its group, where there is one.

  Args:
    folder: as above.
    size: images become size x size, their middle square.
    mode: 'RGB' or 'L' (grey).
  """
  counts(size=size)
  if mode not in ('RGB', 'L'):
    raise FewshotError(f'image_folder(mode={mode!r}) is not known; take RGB or L')
  root = home(folder, 'image_folder', 'folders of images, one a class')
  with opened(root) as tree:
    classes: dict[str, list[str]] = {}
    for path in sorted(p for p in tree if '/' in p and p.lower().endswith(SUFFIXES)):
      if _is_hidden(path):
        continue
      classes.setdefault(path.rpartition('/')[0], []).append(path)
    if not classes:
      raise FewshotError(f'{root.name} has no folders of images; give a folder of class folders')
    groups = [c.rpartition('/')[0] for c in classes]
    return pool_of(root.name, tree, classes, size, mode, groups if any(groups) else ())


def _is_hidden(path: str) -> bool:
  """Whether editors, notebooks or archives of macOS put it there: no class of the data."""
  return any(part.startswith(('.', '__MACOSX')) for part in path.split('/'))


def cifar_fs(folder: str | Path | None = None, part: str = 'train', size: int = 32) -> Pool:
  """CIFAR-FS (Bertinetto et al. 2019, arXiv:1805.08136): CIFAR-100 as 64/16/20 classes.

  The folder (by default `$FEWSHOT_DATA/images_cifar100`) has images at `<...>/<class>/<name>.png`,
  of the train and the test set alike, and the lists `split_cifar-fs_<part>.json` of pairs
  [superclass, class].  Groups are superclasses.
  """
  with opened(home(folder, 'images_cifar100', 'CIFAR-100 as PNG and its splits')) as tree:
    pairs = _listed(tree, 'cifar-fs', part)
    return _cifar(tree, f'cifar-fs-{part}', pairs, size)


def fc100(folder: str | Path | None = None, part: str = 'train', size: int = 32) -> Pool:
  """FC100 (Oreshkin et al. 2018, arXiv:1805.10123): CIFAR-100 by superclasses, 60/20/20 classes.

  The folder is that of `cifar_fs`, with `split_fc100_<part>.json` listing superclasses besides.
  """
  with opened(home(folder, 'images_cifar100', 'CIFAR-100 as PNG and its splits')) as tree:
    supers = _listed(tree, 'fc100', part)
    pairs = [pair for p in PARTS for pair in _listed(tree, 'cifar-fs', p) if pair[0] in supers]
    return _cifar(tree, f'fc100-{part}', pairs, size)


def _listed(tree: Tree, split: str, part: str) -> list:
  _known(split, part)
  found = parsed(tree, file := f'split_{split}_{part}.json')
  pairs = isinstance(found, list) and all(_is_pair(x) for x in found)
  if not pairs and not (split == 'fc100' and isinstance(found, list) and _are_texts(found)):
    raise FewshotError(f'{file} is no list of pairs [superclass, class]; fetch it again')
  return found


def _is_pair(value: object) -> bool:
  return isinstance(value, list) and len(value) == 2 and _are_texts(value)


def _are_texts(values: list) -> bool:
  return all(isinstance(x, str) for x in values)


def _cifar(tree: Tree, name: str, pairs: Sequence[Sequence[str]], size: int) -> Pool:
  of = {c: s for s, c in pairs}
  found: dict[str, list[str]] = {}
  for (c,), paths in matching(tree, rf'([^/]+)/{FILE}').items():
    if c in of:
      found[c] = paths
  _all_there(name, found, of)
  return pool_of(name, tree, found, size, groups=[of[c] for c in found])


def caltech101(folder: str | Path | None = None, part: str = 'all', size: int = 84) -> Pool:
  """Caltech-101 (Fei-Fei et al. 2004), 100 classes: without background and the second face class.

  The folder (by default `$FEWSHOT_DATA/images_caltech101`) has `<...>/<Class>/image_NNNN.jpg`.

  Args:
    folder: as above.
    part: 'all', or the images of 'train', 'val' or 'test' in CoOp's `split_zhou_Caltech101.json`
      (Zhou et al. 2022, arXiv:2109.01134), which all have all classes.
    size: images become size x size, their middle square.
  """
  if part not in (parts := ('all', *PARTS)):
    raise FewshotError(f'caltech101 has no part {part!r}; {nearest(part, parts)}')
  with opened(home(folder, 'images_caltech101', '101_ObjectCategories')) as tree:
    found = matching(tree, r'([^/]+)/image_\d+\.jpg')
    classes = {c: p for (c,), p in found.items() if c not in ('BACKGROUND_Google', 'Faces_easy')}
    if part != 'all':
      wanted = _zhou(tree, 'split_zhou_Caltech101.json', part)
      tail = lambda p: '/'.join(p.split('/')[-2:])  # noqa: E731
      classes = {c: [p for p in paths if tail(p) in wanted] for c, paths in classes.items()}
      classes = {c: paths for c, paths in classes.items() if paths}
    return pool_of(f'caltech101-{part}', tree, classes, size)


def _zhou(tree: Tree, file: str, part: str) -> set[str]:
  """The paths of a part in CoOp's lists [path, number, class]."""
  found = parsed(tree, file)
  rows = found.get(part) if isinstance(found, dict) else None
  if not isinstance(rows, list) or not all(isinstance(r, list) and _are_texts(r[:1]) for r in rows):
    raise FewshotError(f'{file} has no list of paths for {part}; fetch it again')
  return {row[0] for row in rows if row}


def mini_imagenet(folder: str | Path | None = None, part: str = 'train', size: int = 84) -> Pool:
  """mini-ImageNet, 64/16/20 classes of 600 images (Ravi and Larochelle 2017).

  The folder (by default `$FEWSHOT_DATA/mini_imagenet`) has `images/<filename>` and their lists
  `train.csv`, `val.csv` and `test.csv` with the columns filename and label.
  """
  _known('mini_imagenet', part)
  with opened(home(folder, 'mini_imagenet', 'images/ and train.csv, val.csv, test.csv')) as tree:
    try:
      table = list(csv.DictReader(lines(tree, f'{part}.csv')))
    except csv.Error as e:
      raise FewshotError(f'mini_imagenet: {part}.csv is no CSV: {e}; fetch it again') from None
    if not table or not all(row.get('filename') and row.get('label') for row in table):
      raise FewshotError(f'mini_imagenet: {part}.csv lacks rows, or the columns filename and label')
    classes: dict[str, list[str]] = {}
    for row in sorted(table, key=lambda r: (r['label'], r['filename'])):
      classes.setdefault(row['label'], []).append(f'images/{row["filename"]}')
    _images_there('mini_imagenet', tree, classes)
    return pool_of(f'mini-imagenet-{part}', tree, classes, size)


def cub(folder: str | Path | None = None, part: str = 'train', size: int = 84) -> Pool:
  """CUB-200-2011, 100/50/50 classes of birds (Wah et al. 2011), split as Chen et al. 2019.

  Of the classes in order, numbered from 0, the even ones are train, and of the odd ones every
  second is val (1, 5, ...) or test (3, 7, ...) (arXiv:1904.04232).  The folder (by default
  `$FEWSHOT_DATA/CUB_200_2011`) has `images/NNN.Name/<image>.jpg`.
  """
  _known('cub', part)
  with opened(home(folder, 'CUB_200_2011', 'images/')) as tree:
    found = matching(tree, rf'images/(\d+\.[^/]+)/{FILE}')
    of = {0: 'train', 1: 'val', 2: 'train', 3: 'test'}
    classes = {c: paths for i, ((c,), paths) in enumerate(found.items()) if of[i % 4] == part}
    return pool_of(f'cub-{part}', tree, classes, size)


def quickdraw(
  folder: str | Path | None = None, part: str = 'train', size: int = 28, per_class: int = PER_CLASS
) -> Pool:
  """Quick, Draw! (Ha and Eck 2017, arXiv:1704.03477): doodles, drawn dark on light as Omniglot.

  The folder (by default `$FEWSHOT_DATA/quickdraw`) has the published bitmaps `<class>.npy`, uint8
  [n, 784].  Of the classes in the order of the sha256 of their names 70 % are train, 15 % val and
  15 % test; these are not the lists of Meta-Dataset.  The first `per_class` of a class are taken.
  """
  _known('quickdraw', part)
  files = sorted(home(folder, 'quickdraw', 'numpy bitmaps <class>.npy').glob('*.npy'))
  files.sort(key=lambda f: hashlib.sha256(f.stem.encode()).hexdigest())
  n = len(files)
  low, high = {'train': (0, 0.7), 'val': (0.7, 0.85), 'test': (0.85, 1)}[part]
  chosen = sorted(files[round(low * n) : round(high * n)])
  if not chosen:
    raise FewshotError(f'quickdraw: {n} files .npy leave none for {part}; fetch all classes')
  drawings = [_bitmaps(f, per_class) for f in chosen]
  labels = np.repeat(np.arange(len(chosen)), [len(d) for d in drawings])
  whole = make_pool(f'quickdraw-{part}', np.concatenate(drawings), labels, [f.stem for f in chosen])
  return resized(whole, size, 1)


def _bitmaps(path: Path, most: int) -> np.ndarray:
  try:
    bitmaps = np.load(path, mmap_mode='r', allow_pickle=False)
  except Exception as e:  # Whatever the header leads to.
    raise FewshotError(f'{path.name} is no array that can be read: {e}') from None
  if bitmaps.ndim != 2 or bitmaps.shape[1] != 784 or bitmaps.dtype != np.uint8:
    raise FewshotError(
      f'{path.name} holds {bitmaps.dtype} {bitmaps.shape}; the bitmaps are uint8 [n, 784]'
    )
  return 255 - np.asarray(bitmaps[:most]).reshape(-1, 28, 28, 1)


def _known(name: str, part: str) -> None:
  if part not in PARTS:
    raise FewshotError(f'{name} has no part {part!r}; {nearest(part, PARTS)}')


def _all_there(name: str, found: Mapping[str, object], wanted: Mapping[str, object]) -> None:
  if missing := sorted(set(wanted) - set(found)):
    raise FewshotError(f'{name}: {len(missing)} classes have no folder of images: {missing[0]} ...')


def _images_there(name: str, tree: Tree, classes: Mapping[str, Sequence[str]]) -> None:
  if missing := [p for paths in classes.values() for p in paths if p not in tree]:
    raise FewshotError(f'{name}: {len(missing)} listed images are not there: {missing[0]} ...')
