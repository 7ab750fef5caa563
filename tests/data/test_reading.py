"""Reading folders and zips: nothing escapes, nothing damaged passes, the cache never lies."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from fewshot.data import image_folder, reading
from fewshot.errors import FewshotError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('FEWSHOT_CACHE', str(tmp_path / 'cache'))


def png(value, size=4):
  out = io.BytesIO()
  Image.new('RGB', (size, size), (value, 0, 9)).save(out, 'PNG')
  return out.getvalue()


def zipped(path, members):
  path.parent.mkdir(exist_ok=True)
  with zipfile.ZipFile(path, 'w') as archive:
    for name, data in members.items():
      archive.writestr(name, data)
  return path.parent


@pytest.mark.parametrize(
  'name', ['../a/x.png', '/a/x.png', 'a/../../x.png', '..\\x.png', 'C:/x.png']
)
def test_a_zip_that_leads_out_of_its_folder_is_refused(tmp_path, name):
  folder = zipped(tmp_path / 'set' / 'evil.zip', {name: png(1)})
  before = sorted(tmp_path.rglob('*'))
  with pytest.raises(FewshotError, match=r'evil\.zip has a member .*, a path that leads out of it'):
    image_folder(folder)
  assert sorted(tmp_path.rglob('*')) == before


def test_zips_and_folders_are_one_tree_and_nothing_is_unpacked(tmp_path):
  folder = zipped(tmp_path / 'set' / 'more.zip', {'b/2.png': png(20), 'a/3.png': png(30)})
  (folder / 'a').mkdir()
  (folder / 'a' / '1.png').write_bytes(png(10))
  pool = image_folder(folder, size=4)
  assert pool.classes == ('a', 'b') and pool.counts.tolist() == [2, 1] and pool.groups == ()
  assert pool.images[:, 0, 0].tolist() == [[10, 0, 9], [30, 0, 9], [20, 0, 9]]
  assert sorted(p.name for p in folder.rglob('*')) == ['1.png', 'a', 'more.zip']


def test_the_folder_above_a_class_is_its_group(tmp_path):
  folder = zipped(tmp_path / 'set' / 'x.zip', {'g/a/1.png': png(1), 'h/b/1.png': png(2)})
  pool = image_folder(folder, size=4, mode='L')
  assert pool.classes == ('g/a', 'h/b') and pool.groups == ('g', 'h')
  assert pool.images.shape == (2, 4, 4, 1)


def test_what_editors_and_archives_leave_is_no_class(tmp_path):
  names = ('a/1.png', '.ipynb_checkpoints/1.png', 'a/._1.png', '__MACOSX/a/1.png')
  folder = zipped(tmp_path / 'set' / 'x.zip', {n: png(1) for n in names})
  pool = image_folder(folder, size=4, mode='L')
  assert pool.classes == ('a',) and len(pool.images) == 1


def test_the_middle_square_is_taken(tmp_path):
  wide = np.zeros((4, 12, 3), np.uint8)
  wide[:, 4:8] = 200
  out = io.BytesIO()
  Image.fromarray(wide).save(out, 'PNG')
  assert (reading.decode(out.getvalue(), 'wide', 4) == 200).all()


def test_a_changed_file_is_read_again_and_a_damaged_cache_is_made_again(tmp_path, monkeypatch):
  folder = zipped(tmp_path / 'set' / 'x.zip', {'a/1.png': png(1), 'b/1.png': png(2)})
  first = image_folder(folder, size=4)
  decoded = []
  decode = reading.decode
  monkeypatch.setattr(reading, 'decode', lambda *a: decoded.append(a[1]) or decode(*a))
  np.testing.assert_array_equal(image_folder(folder, size=4).images, first.images)
  assert not decoded
  zipped(tmp_path / 'set' / 'x.zip', {'a/1.png': png(7), 'b/1.png': png(2)})
  assert image_folder(folder, size=4).images[0, 0, 0, 0] == 7 and len(decoded) == 2
  for saved in (tmp_path / 'cache' / 'pools').iterdir():
    saved.write_bytes(saved.read_bytes()[:200])
  assert image_folder(folder, size=4).images[0, 0, 0, 0] == 7 and len(decoded) == 4


def test_a_cache_with_a_pickle_in_it_is_not_loaded(tmp_path):
  folder = zipped(tmp_path / 'set' / 'x.zip', {'a/1.png': png(1)})
  image_folder(folder, size=4)
  (saved,) = (tmp_path / 'cache' / 'pools').iterdir()
  np.savez(saved, images=np.array([Bomb()]), counts=np.array([1]), classes=['a'], groups=[])
  assert image_folder(folder, size=4).images.dtype == np.uint8


class Bomb:
  def __reduce__(self):
    return (pytest.fail, ('a pickle was loaded',))


@pytest.mark.parametrize(
  ('members', 'message'),
  [
    ({'a/1.png': b'no image'}, r'a/1\.png is no image that can be read'),
    ({'a/1.png': png(1)[:40]}, r'a/1\.png is no image that can be read'),
    ({'1.png': png(1)}, r'set has no folders of images; give a folder of class folders'),
  ],
)
def test_refuses_what_is_no_image(tmp_path, members, message):
  folder = zipped(tmp_path / 'set' / 'x.zip', members)
  with pytest.raises(FewshotError, match=message):
    image_folder(folder)


def test_refuses_damaged_zips_huge_files_and_missing_folders(tmp_path, monkeypatch):
  folder = zipped(tmp_path / 'set' / 'x.zip', {'a/1.png': png(1)})
  monkeypatch.setattr(reading, 'LARGEST', 10)
  with pytest.raises(FewshotError, match=r'a/1\.png has \d+ bytes, more than an image'):
    image_folder(folder)
  (folder / 'x.zip').write_bytes(b'PK no zip')
  with pytest.raises(FewshotError, match=r'x\.zip is no zip that can be read'):
    image_folder(folder)
  with pytest.raises(FewshotError, match=r'there is no folder .*nowhere'):
    image_folder(tmp_path / 'nowhere')


def test_without_pillow_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'PIL', None)
  with pytest.raises(FewshotError, match=r'pip install "fewshot\[data\]"'):
    reading.decode(b'', 'x', 4)


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path):
  data = io.BytesIO()
  Image.fromarray((np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)).save(data, 'PNG')
  pixels = reading.decode(data.getvalue(), 'wide', 8, 'L')[..., 0]
  np.testing.assert_array_equal(pixels, np.round(np.arange(64).reshape(8, 8) * 1000 / 257))
