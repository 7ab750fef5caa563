"""glyphs: parts share no script, nothing is blank, missing or twice, and all of it repeats."""

import hashlib

import numpy as np
import pytest
from PIL import features

from fewshot import data, episodes
from fewshot.data import fonts
from fewshot.errors import FewshotError

FACES = ('DejaVuSansMono', 'STIXGeneral')


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """A cache that holds what two of the faces give, so that only one test draws."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('FEWSHOT_CACHE', str(tmp_path_factory.mktemp('cache')))
    patch.setattr(fonts, 'FACES', FACES)
    yield


@pytest.fixture(scope='module')
def pools(cache):
  return {part: data.glyphs(part, instances=2) for part in ('train', 'val', 'test', 'all')}


def test_parts_share_no_script_and_make_the_whole(pools):
  scripts = [set(pools[part].groups) for part in ('train', 'val', 'test')]
  assert not (scripts[0] & scripts[1] or scripts[0] & scripts[2] or scripts[1] & scripts[2])
  names = [c for part in ('train', 'val', 'test') for c in pools[part].classes]
  assert sorted(names) == sorted(pools['all'].classes) and len(set(names)) == len(names)
  assert len(names) > 1000 and all(len(pools[p].classes) > 50 for p in ('val', 'test'))
  assert set(pools['all'].counts.tolist()) == {2}


def test_drawn_dark_on_light_and_never_blank(pools):
  images = pools['all'].images
  assert images.shape[1:] == (28, 28, 1) and images.dtype == np.uint8
  ink = 1 - images.reshape(len(images), -1) / 255
  assert 0.03 < ink.mean() < 0.3 and ink.mean(1).min() > 0.001
  assert np.median(images) == 255, 'paper is light'


def test_nothing_is_drawn_twice(pools):
  faces = fonts._faces(fonts._fonts())
  canvases = {c: fonts._render(c, faces[c][0]) for c in 'ABΑБВИИ'}
  assert fonts._distinct({c: [g] for c, g in canvases.items()}) == ['A', 'B', 'Б', 'И']


def test_the_letters_that_look_alike_are_one_class(pools):
  names = set(pools['all'].classes)
  assert 'latin/latin capital letter a' in names
  assert 'greek/greek capital letter alpha' not in names
  assert 'cyrillic/cyrillic capital letter a' not in names
  assert 'greek/greek small letter lamda' in names


def test_missing_characters_give_no_box(cache):
  (font, *_) = fonts._faces(fonts._fonts())['a']
  assert fonts._render('a', font) is not None
  assert fonts._render('\U0010ffff', font) is None, 'the box of a missing character'
  assert fonts._render(' ', font) is None


@pytest.mark.parametrize('character', ['é', 'ﬁ', '𝐀', ' ', '\u0301', '\ue000', '中'])
def test_accents_compatibility_forms_marks_and_other_scripts_are_left_out(character):
  assert fonts.script_of(character) is None


def test_drawing_again_gives_the_same(pools):
  again = fonts._drawn(fonts._fonts(), 28, 2)
  assert episodes.pool_hash(again) == episodes.pool_hash(pools['all'])


def test_one_glyph_is_pinned():
  """FreeType decides the pixels: they hold for this version of it."""
  if features.version('freetype2') != FREETYPE:
    pytest.skip(f'the pixels were written down for FreeType {FREETYPE}')
  (font,) = (f for f in fonts._fonts() if f.stem == 'DejaVuSansMono')
  canvas = fonts._render('ж', fonts._faces([font])['ж'][0])
  uniform = np.random.Generator(np.random.Philox(key=ord('ж'))).uniform(-1, 1, 6)
  assert hashlib.sha256(fonts._jitter(canvas, uniform, 28).tobytes()).hexdigest()[:16] == PINNED


def test_refuses(cache):
  with pytest.raises(FewshotError, match="glyphs has no part 'tests'; did you mean 'test'"):
    data.glyphs('tests')
  with pytest.raises(FewshotError, match='instances=0'):
    data.glyphs(instances=0)


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'matplotlib', None)
  with pytest.raises(FewshotError, match=r'pip install "fewshot\[data\]"'):
    data.glyphs()


FREETYPE = '2.14.3'
PINNED = '64c10e1e9d4aa65e'
