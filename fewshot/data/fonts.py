"""glyphs: characters of many scripts, rendered from the fonts that matplotlib ships.

A stand-in for Omniglot that needs no download: classes are characters, their images faces (DejaVu
Sans, Serif and Mono, STIX; upright, bold and slanted) under affine jitter, dark on light.  All of
it is a function of the fonts, of FreeType and of the numbers below.
"""

import functools
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewshot.data.pools import subset
from fewshot.data.reading import cached, pillow
from fewshot.episodes import Pool
from fewshot.errors import FewshotError, counts, nearest

FAMILIES = {
  'DejaVuSans': ('', '-Bold', '-Oblique', '-BoldOblique'),
  'DejaVuSerif': ('', '-Bold', '-Italic', '-BoldItalic'),
  'DejaVuSansMono': ('', '-Bold', '-Oblique', '-BoldOblique'),
  'STIXGeneral': ('', 'Bol', 'Italic', 'BolIta'),
}
FACES = tuple(family + style for family, styles in FAMILIES.items() for style in styles)
# The first words of the names of letters and signs; what begins with none of them is left out,
# or falls under one of the last three.
SCRIPTS = {
  'train': (
    'LATIN', 'CYRILLIC', 'CANADIAN SYLLABICS', 'BRAILLE PATTERN', 'BOX DRAWINGS', 'HEXAGRAM',
    'TETRAGRAM', 'DOMINO TILE', 'PLAYING CARD', 'MATHEMATICS', 'ARROWS', 'SIGNS',
  ),
  'val': ('ARABIC', 'COPTIC', 'GREEK', 'OLD ITALIC'),
  'test': ('ARMENIAN', 'GEORGIAN', 'HEBREW', 'LAO', 'LISU', 'NKO', 'OGHAM', 'TIFINAGH'),
}  # fmt: skip
CANVAS, FONT, LARGEST = 56, 42, 50  # Pixels of the drawing, of the font, of a character at most.
BLANK = 0.004  # Of the canvas: less ink is no character.
ALIKE = 0.04  # Of the ink of both: characters that differ by less are one class.


def glyphs(part: str = 'train', size: int = 28, instances: int = 20) -> Pool:
  """Characters as classes, scripts as groups; [N, size, size, 1], ink 0 on paper 255.

  Scripts are in one part only.  Characters that are another with an accent, a compatibility form,
  nearly blank, missing in a font or nearly the same as an earlier one are left out.  The first
  call draws (some seconds), later ones read the cache.

  Args:
    part: 'train', 'val', 'test' or 'all'.
    size: of the images.
    instances: images of each class.

  Raises:
    FewshotError: there is no such part, or matplotlib or Pillow is not installed.
  """
  if part not in ('all', *SCRIPTS):
    raise FewshotError(f'glyphs has no part {part!r}; {nearest(part, ("all", *SCRIPTS))}')
  counts(size=size, instances=instances)
  fonts, pil = _fonts(), pillow()
  made_by = f'{pil.__version__} {pil.features.version("freetype2")} {[f.stem for f in fonts]}'
  # This file is part of the recipe: a cache never answers for another way to draw.
  recipe = (
    f'{size} {instances} {made_by} {unicodedata.unidata_version}\n{Path(__file__).read_text()}'
  )
  whole = cached('glyphs', recipe, lambda: _drawn(fonts, size, instances))
  if part == 'all':
    return whole
  wanted = {script.lower() for script in SCRIPTS[part]}
  kept = subset(whole, [i for i, g in enumerate(whole.groups) if g in wanted])
  return kept._replace(name=f'glyphs-{part}')


def _fonts() -> list[Path]:
  try:
    import matplotlib
  except ImportError:
    raise FewshotError(
      'glyphs are drawn from the fonts of matplotlib, which is not installed; '
      'pip install "fewshot[data]"'
    ) from None
  folder = Path(matplotlib.get_data_path(), 'fonts', 'ttf')
  return [path for face in FACES if (path := folder / f'{face}.ttf').exists()]


def script_of(character: str) -> str | None:
  """The group of a character, in lower case; None if it is not taken.

  >>> [script_of(c) for c in 'aλ⣿→∀é']
  ['latin', 'greek', 'braille pattern', 'arrows', 'mathematics', None]
  """
  kind, name = unicodedata.category(character), unicodedata.name(character, '')
  if kind[0] in 'CZM' or _changes(character):
    return None
  for script in (s for scripts in SCRIPTS.values() for s in scripts):
    if name.startswith(script + ' '):
      return script.lower()
  if kind[0] in 'L':
    return None
  if 'ARROW' in name or 'HARPOON' in name:
    return 'arrows'
  return 'mathematics' if kind == 'Sm' else 'signs'


def _changes(character: str) -> bool:
  """Whether it is another character with an accent, or a compatibility form of one."""
  nfd, nfkc = (unicodedata.normalize(f, character) for f in ('NFD', 'NFKC'))
  return not character == nfd == nfkc


def _drawn(fonts: Sequence[Path], size: int, instances: int) -> Pool:
  faces = _faces(fonts)
  glyph = {c: [g for font in of if (g := _render(c, font)) is not None] for c, of in faces.items()}
  kept = _distinct({c: g for c, g in glyph.items() if g})
  images = np.empty((len(kept), instances, size, size, 1), np.uint8)
  for i, c in enumerate(kept):
    # Philox is specified, so that jitter depends on the character alone.
    uniform = np.random.Generator(np.random.Philox(key=ord(c))).uniform(-1, 1, (instances, 6))
    for j in range(instances):
      images[i, j, :, :, 0] = _jitter(glyph[c][j % len(glyph[c])], uniform[j], size)
  n = np.full(len(kept), instances, np.int32)
  groups = tuple(str(script_of(c)) for c in kept)
  names = tuple(f'{g}/{unicodedata.name(c).lower()}' for g, c in zip(groups, kept, strict=True))
  starts = (np.cumsum(n) - n).astype(np.int32)
  return Pool('glyphs', images.reshape(-1, size, size, 1), starts, n, names, groups)


def _faces(fonts: Sequence[Path]) -> dict[str, list[Any]]:
  """The faces that have each character, in order of the characters."""
  from matplotlib.ft2font import FT2Font

  pil = pillow()
  found: dict[str, list[Any]] = {}
  for path in fonts:
    # Without HarfBuzz, which not every Pillow has.
    basic = pil.ImageFont.Layout.BASIC
    font = pil.ImageFont.truetype(str(path), FONT, layout_engine=basic)
    for code, index in FT2Font(str(path)).get_charmap().items():
      if index and script_of(chr(code)):  # Glyph 0 is the box that stands for a missing one.
        found.setdefault(chr(code), []).append(font)
  return dict(sorted(found.items()))


def _render(character: str, font: Any) -> Any | None:
  """Ink 255 on 0, in the middle of the canvas; None if there is hardly any, or the missing box."""
  pil = pillow()
  left, top, right, bottom = font.getbbox(character)
  if right <= left or bottom <= top:
    return None
  image = pil.Image.new('L', (right - left, bottom - top))
  pil.ImageDraw.Draw(image).text((-left, -top), character, fill=255, font=font)
  if np.array_equal(np.asarray(image), _missing(font)):
    return None
  image.thumbnail((LARGEST, LARGEST), pil.Image.Resampling.BOX)
  canvas = pil.Image.new('L', (CANVAS, CANVAS))
  canvas.paste(image, ((CANVAS - image.width) // 2, (CANVAS - image.height) // 2))
  return canvas if np.asarray(canvas).mean() / 255 >= BLANK else None


@functools.cache
def _missing(font: Any) -> np.ndarray:
  """What the face draws in place of a character that it does not have."""
  pil = pillow()
  left, top, right, bottom = font.getbbox('\U0010ffff')
  image = pil.Image.new('L', (right - left, bottom - top))
  pil.ImageDraw.Draw(image).text((-left, -top), '\U0010ffff', fill=255, font=font)
  return np.asarray(image)


def _distinct(glyph: dict[str, list[Any]]) -> list[str]:
  """The characters whose first face differs from that of all characters kept before them."""
  pil = pillow()
  small = [
    np.asarray(g[0].resize((28, 28), pil.Image.Resampling.BOX), np.float32).ravel() / 255
    for g in glyph.values()
  ]
  x = np.stack(small)
  squares = (x**2).sum(1)
  both = squares[:, None] + squares
  alike = both - 2 * x @ x.T < ALIKE * both
  kept: list[int] = []
  for i, near in enumerate(alike):
    if not near[kept].any():
      kept.append(i)
  characters = list(glyph)
  return [characters[i] for i in kept]


def _jitter(canvas: Any, u: np.ndarray, size: int) -> np.ndarray:
  """Turned by up to 12 degrees, sheared by 0.15, scaled by 0.2, shifted by 8 % of the canvas."""
  pil = pillow()
  angle, shear = u[0] * np.pi / 15, 0.15 * u[1]
  turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
  a = turn @ np.array([[1, shear], [0, 1]]) / (1 + 0.2 * u[2:4])
  middle = np.full(2, CANVAS / 2)
  b = middle - a @ (middle + 0.08 * CANVAS * u[4:6])
  table = (a[0, 0], a[0, 1], b[0], a[1, 0], a[1, 1], b[1])
  moved = canvas.transform(
    canvas.size, pil.Image.Transform.AFFINE, table, pil.Image.Resampling.BILINEAR
  )
  return 255 - np.asarray(moved.resize((size, size), pil.Image.Resampling.BOX))
