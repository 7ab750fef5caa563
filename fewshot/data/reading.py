"""Files to pixels: a folder with its zips as one tree, images by Pillow, a cache of pools.

Nothing is unpacked: members of an archive are read where they are.
"""

import contextlib
import hashlib
import io
import math
import os
import re
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from fewshot import assets
from fewshot.episodes import Pool
from fewshot.errors import FewshotError
from fewshot.models.weights.files import json_of
from fewshot.models.weights.files import members as zipped

LARGEST = 1 << 26  # Bytes of a file that is read; images of data sets are far smaller.
PIXELS = 1 << 25  # Of an image; unpacked they take four bytes each, and more on the way.
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
FORMATS = ('PNG', 'JPEG', 'BMP', 'GIF', 'WEBP')
SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.gif', '.webp')


class Entry(NamedTuple):
  """A file, its bytes when called for, and what changes when its content does."""

  read: Callable[[], bytes]
  stamp: str


Tree = Mapping[str, Entry]


@contextlib.contextmanager
def opened(folder: str | Path) -> Iterator[dict[str, Entry]]:
  """Every file under a folder and in the zips that lie right in it, by its path from there.

  Raises:
    FewshotError: a zip is damaged, or a path in it is absolute or leads out of it.
  """
  root = Path(folder)
  tree: dict[str, Entry] = {}
  with contextlib.ExitStack() as stack:
    for path in sorted(root.rglob('*')):
      if path.suffix == '.zip' and path.parent == root:
        tree |= _members(path, stack)
      elif path.is_file():
        stat = path.stat()
        tree[path.relative_to(root).as_posix()] = Entry(
          _reader(path), f'{stat.st_size} {stat.st_mtime_ns}'
        )
    yield tree


def _reader(path: Path) -> Callable[[], bytes]:
  def read() -> bytes:
    _small(path.name, path.stat().st_size)
    return path.read_bytes()

  return read


def _members(path: Path, stack: contextlib.ExitStack) -> dict[str, Entry]:
  try:
    archive = stack.enter_context(zipped(stack.enter_context(path.open('rb'))))
  except (zipfile.BadZipFile, OSError) as e:
    raise FewshotError(f'{path.name} is no zip that can be read: {e}; fetch it again') from None
  found = {}
  for info in archive.infolist():
    name = PurePosixPath(info.filename.replace('\\', '/'))
    if not name.parts or name.is_absolute() or '..' in name.parts or ':' in name.parts[0]:
      raise FewshotError(f'{path.name} has a member {info.filename!r}, a path that leads out of it')
    if not info.is_dir():
      found[name.as_posix()] = Entry(_member(archive, info), f'{info.file_size} {info.CRC}')
  return found


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], bytes]:
  def read() -> bytes:
    _small(info.filename, info.file_size)
    if info.compress_type not in PACKED:
      raise FewshotError(f'{info.filename} is packed in a way that is not read; pack it by deflate')
    try:
      with archive.open(info) as file:  # In pieces: what is there may be more than what it says.
        return b''.join(iter(lambda: file.read(1 << 20), b''))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as e:
      raise FewshotError(f'{info.filename} in a zip cannot be read: {e}; fetch it again') from None

  return read


def _small(name: str, size: int) -> None:
  if size > LARGEST:
    raise FewshotError(f'{name} has {size} bytes, more than an image or a list has; take it away')


def lines(tree: Tree, path: str) -> list[str]:
  """The lines of a text in the tree that are not blank."""
  try:
    return [line for line in _content(tree, path).decode().splitlines() if line.strip()]
  except UnicodeDecodeError as e:
    raise FewshotError(f'{path} is no text in UTF-8: {e}; fetch it again') from None


def parsed(tree: Tree, path: str) -> Any:
  """The JSON value of a file in the tree."""
  try:
    return json_of(_content(tree, path), LARGEST >> 6)
  except ValueError as e:
    raise FewshotError(f'{path} is no JSON that can be read: {e}; fetch it again') from None


def _content(tree: Tree, path: str) -> bytes:
  if path not in tree:
    raise FewshotError(f'there is no {path} in the folder; put it there')
  return tree[path].read()


def matching(tree: Tree, pattern: str) -> dict[tuple[str, ...], list[str]]:
  """Paths by the groups of `pattern`, which must match the end of a path; both in order."""
  found: dict[tuple[str, ...], list[str]] = {}
  compiled = re.compile(r'(?:.*/)?' + pattern)
  for path in sorted(tree):
    if match := compiled.fullmatch(path):
      found.setdefault(match.groups(), []).append(path)
  return dict(sorted(found.items()))


def pillow() -> Any:
  """The package PIL with the modules that are used; one line where it is not installed."""
  try:
    import PIL
    from PIL import Image, ImageDraw, ImageFont, ImageOps, features
  except ImportError:
    raise FewshotError(
      'images are read by Pillow, which is not installed; pip install "fewshot[data]"'
    ) from None
  del Image, ImageDraw, ImageFont, ImageOps, features  # Now attributes of PIL.
  return PIL


def decode(data: bytes, name: str, size: int, mode: str = 'RGB') -> np.ndarray:
  """[size, size, C] uint8 of an encoded image: the middle square, by Lanczos; mode RGB or L."""
  pil = pillow()
  bombs = pil.Image.DecompressionBombError, pil.Image.DecompressionBombWarning
  try:
    with warnings.catch_warnings(action='error', category=bombs[1]):
      image = pil.Image.open(io.BytesIO(data), formats=FORMATS)
    if (pixels := math.prod(image.size)) > PIXELS:
      raise FewshotError(f'{name} has {pixels} pixels; at most {PIXELS} are read, make it smaller')
    if image.mode.startswith('I'):  # 16 bits, which `convert` would cut at 255.
      wide = np.asarray(image).astype(np.float32) / 257
      image = pil.Image.fromarray(wide.round().clip(0, 255).astype(np.uint8))
    image = image.convert(mode)
  except FewshotError:
    raise
  except (OSError, ValueError, SyntaxError, *bombs) as e:
    raise FewshotError(f'{name} is no image that can be read: {e}; fetch it again') from None
  if image.size != (size, size):
    image = pil.ImageOps.fit(image, (size, size), pil.Image.Resampling.LANCZOS)
  array = np.asarray(image)
  return array if mode == 'RGB' else array[..., None]


def pool_of(
  name: str,
  tree: Tree,
  members: Mapping[str, Sequence[str]],
  size: int,
  mode: str = 'RGB',
  groups: Sequence[str] = (),
) -> Pool:
  """The pool of classes whose images are these members of the tree; read once, then cached."""
  if not members:
    raise FewshotError(f'{name}: there are no classes of images in the folder')
  paths = [path for of_class in members.values() for path in of_class]
  listed = '\n'.join(f'{c} {p} {tree[p].stamp}' for c, of in members.items() for p in of)

  def make() -> Pool:
    images = np.empty((len(paths), size, size, len(mode)), np.uint8)
    for i, path in enumerate(paths):
      images[i] = decode(tree[path].read(), path, size, mode)
    counts = np.array([len(of_class) for of_class in members.values()], np.int32)
    starts = (np.cumsum(counts) - counts).astype(np.int32)
    return Pool(name, images, starts, counts, tuple(members), tuple(groups))

  return cached(name, f'{size} {mode}\n{listed}\n{list(groups)}', make)


# What a file that is no cache of ours leads to; then it is made again.
DAMAGE = (OSError, ValueError, KeyError, TypeError, MemoryError, zipfile.BadZipFile, zlib.error)


def _kept(name: str, path: Path) -> Pool:
  """The pool of a cache; one whose parts do not fit each other is damaged."""
  with np.load(path, allow_pickle=False) as saved:
    counts, images = saved['counts'], saved['images']
    starts = (np.cumsum(counts) - counts).astype(np.int32)
    classes, groups = (tuple(map(str, saved[k])) for k in ('classes', 'groups'))
  whole = counts.ndim == 1 and counts.dtype == np.int32 and (counts > 0).all()
  fits = len(classes) == len(counts) and len(groups) in (0, len(classes))
  if not (whole and fits and images.ndim == 4 and counts.sum() == len(images)):
    raise ValueError('its parts do not fit each other')
  return Pool(name, images, starts, counts, classes, groups)


def cached(name: str, recipe: str, make: Callable[[], Pool]) -> Pool:
  """The pool that `make` gives, from the cache where the same recipe was made before."""
  key = hashlib.sha256(recipe.encode()).hexdigest()[:16]
  path = assets.cache_dir() / 'pools' / f'{name}-{key}.npz'
  with contextlib.suppress(*DAMAGE):
    return _kept(name, path)
  pool = make()
  with contextlib.suppress(OSError):  # What is not kept is only made again.
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.stage-', dir=path.parent) as tmp:
      staged = Path(tmp, path.name)
      arrays = {'images': pool.images, 'counts': pool.counts}
      np.savez(staged, **arrays, classes=pool.classes, groups=pool.groups)  # type: ignore[arg-type]
      os.replace(staged, path)
  return pool
