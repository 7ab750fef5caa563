"""Data that lies: images, archives, lists, texts."""

import gzip
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.robustness.hostile.case import GIB, Case, Cases, directory, file, sparse, zipped


def images() -> Cases:
  """Pictures that unpack to more than they should, and zips that lie."""
  stored, bz2, lzma = zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA
  zeros = lambda n: {'a/1.png': bytes(n)}  # noqa: E731
  found: dict[str, tuple[Callable[[], dict[str, bytes]], int, str]] = {
    '20,000 x 20,000': (lambda: {'a/1.png': png(20_000)}, stored, 'a/1.png'),
    '12,000 x 12,000': (lambda: {'a/1.png': png(12_000)}, stored, 'a/1.png'),
    '9,200 x 9,200': (lambda: {'a/1.png': png(9_200)}, stored, 'a/1.png has 84640000 pixels'),
    '100 MB in 100 kB': (lambda: zeros(100_000_000), zipfile.ZIP_DEFLATED, '1.png has 100000000'),
    'bzip2': (lambda: zeros(50_000_000), bz2, 'a/1.png is packed'),
    'lzma': (lambda: zeros(50_000_000), lzma, 'a/1.png is packed'),
    'a member without a name': (lambda: {'.': b'x', 'a/1.png': b'x'}, stored, "a member '.'"),
    'a link out of it': (lambda: {'a/1.png': b'../../../../etc/passwd'}, stored, 'no image'),
  }
  cases = {
    name: Case(_in_zip(members, method), _pictures, said)
    for name, (members, method, said) in found.items()
  }
  return cases | {
    'a member that lies': Case(_lying, _pictures, '1.png in a zip cannot be read'),
    'a directory of 3 GiB': Case(_directory, _pictures, 'x.zip is no zip that can be read'),
  }


def png(side: int) -> bytes:
  """One of zeros, which pack well; the larger ones have no pixels at all."""
  chunk = lambda k, d: struct.pack('>I', len(d)) + k + d + struct.pack('>I', zlib.crc32(k + d))  # noqa: E731
  packer = zlib.compressobj(1)
  rows = b''.join(packer.compress(bytes(side + 1)) for _ in range(side if side < 10_000 else 1))
  head = chunk(b'IHDR', struct.pack('>2I5B', side, side, 8, 0, 0, 0, 0))
  return b'\x89PNG\r\n\x1a\n' + head + chunk(b'IDAT', rows + packer.flush()) + chunk(b'IEND', b'')


def _pictures(folder: Path) -> Any:
  from fewshot import data

  return data.image_folder(folder / 'pics', size=8)


def _in_zip(members: Callable[[], dict[str, bytes]], method: int) -> Callable[[Path], None]:
  def make(folder: Path) -> None:
    (folder / 'pics').mkdir()
    zipped(folder / 'pics' / 'x.zip', members(), method)

  return make


def _lying(folder: Path) -> None:
  """A member that says it has 10 bytes, and unpacks to 1.5 GiB."""
  (folder / 'pics').mkdir()
  packer = zlib.compressobj(1, wbits=-15)
  packed = b''.join(packer.compress(bytes(1 << 20)) for _ in range(1500)) + packer.flush()
  name, said = b'a/1.png', (len(packed), 10)
  local = struct.pack('<4s5H3L2H', b'PK\3\4', 20, 0, 8, 0, 33, 0, *said, len(name), 0) + name
  rest = (len(name), 0, 0, 0, 0, 0, 0)
  listed = struct.pack('<4s6H3L5H2L', b'PK\1\2', 20, 20, 0, 8, 0, 33, 0, *said, *rest) + name
  at = len(local) + len(packed)
  end = struct.pack('<4s4H2LH', b'PK\5\6', 0, 0, 1, 1, len(listed), at, 0)
  (folder / 'pics' / 'x.zip').write_bytes(local + packed + listed + end)


def _directory(folder: Path) -> None:
  (folder / 'pics').mkdir()
  sparse(folder / 'pics' / 'x.zip', b'PK\3\4', 3 * GIB, directory(3 * GIB - 99))


CIFAR, CALTECH, MINI = 'split_cifar-fs_train.json', 'split_zhou_Caltech101.json', 'train.csv'
LISTS: dict[str, tuple[str, Callable[[], bytes]]] = {
  'deep': (CIFAR, lambda: b'[' * 1_000_000),
  'no JSON': (CIFAR, lambda: b'{'),
  'not UTF-8': (CIFAR, lambda: b'\xff'),
  'numbers': (CIFAR, lambda: b'[1, 2]'),
  'triples': (CIFAR, lambda: b'[["a", "b", "c"]]'),
  'a text': (CIFAR, lambda: b'"ab"'),
  'lists in pairs': (CIFAR, lambda: b'[[["a"], ["b"]]]'),
  'no part': (CALTECH, lambda: b'{}'),
  'a list': (CALTECH, lambda: b'[]'),
  'numbers of Caltech': (CALTECH, lambda: b'{"train": [1]}'),
  'a long cell': (MINI, lambda: b'filename,label\n' + b'a' * 200_000 + b',b\n'),
  'a short row': (MINI, lambda: b'filename,label\nx\ny,z\n'),
}


def lists() -> Cases:
  """Which images belong to a part, by files of their own."""
  return {
    name: Case(_listed(listed, content), _pool(listed), rf'{listed}\b')
    for name, (listed, content) in LISTS.items()
  }


def _listed(name: str, content: Callable[[], bytes]) -> Callable[[Path], None]:
  def make(folder: Path) -> None:
    (folder / 'a').mkdir()
    (folder / 'a' / 'image_1.jpg').write_bytes(b'x')
    (folder / name).write_bytes(content())

  return make


def _pool(listed: str) -> Callable[[Path], Any]:
  def read(folder: Path) -> Any:
    from fewshot import data

    pool = {CIFAR: data.cifar_fs, CALTECH: data.caltech101, MINI: data.mini_imagenet}[listed]
    return pool(folder, 'train')

  return read


def npy() -> Cases:
  """Headers of arrays."""
  shapes = {
    '10^15 rows': '(1000000000000000, 784)', '2^62 rows': f'({2**62}, 784)',
    'less than none': '(-1, 784)', 'text': "('a', 784)", 'deep': '(' * 3000,
  }  # fmt: skip
  return {
    name: Case(_npy(shape), _quickdraw, r'\w\.npy is no array') for name, shape in shapes.items()
  }


def _npy(shape: str) -> Callable[[Path], None]:
  head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".encode()
  start = b'\x93NUMPY\x01\x00' + struct.pack('<H', len(head)) + head
  return lambda folder: [sparse(folder / f'{c}.npy', start, 4096) for c in 'abcdefgh']


def _quickdraw(folder: Path) -> Any:
  from fewshot import data

  return data.quickdraw(folder)


def texts() -> Cases:
  """Tables of texts."""
  columns = lambda: b','.join(b'c%d' % i for i in range(200_000)) + b'\na' * 200  # noqa: E731
  commas = lambda: b'text,label\n' + b',' * 999_999  # noqa: E731
  quoted = lambda: b'text,label\n"' + b'a\n' * 10**6  # noqa: E731
  found: dict[str, tuple[Callable[[], bytes], int, str]] = {
    'a cell of 1 GB': (lambda: b'text,label\n', GIB, 'x.csv is no CSV'),
    'a header of 1 GB': (lambda: b'', GIB, 'x.csv is no CSV'),
    '200,000 columns': (columns, 0, 'x.csv has 200000 columns|x.csv is no CSV'),
    'a million cells': (commas, 0, 'x.csv: line 2 lacks a text or a label'),
    'a quote that never ends': (quoted, 0, 'x.csv is no CSV'),
  }
  return {
    name: Case(file('x.csv', content, size), _csv, said)
    for name, (content, size, said) in found.items()
  } | {
    'a gzip of 2 GB': Case(_gzipped, _set, 'set/x.tsv cannot be read'),
    '4 GiB': Case(_sparse, _set, 'set/x.tsv cannot be read'),
  }


def _csv(folder: Path) -> Any:
  from fewshot import tasks

  return tasks.load(str(folder / 'x.csv'))


def _gzipped(folder: Path) -> None:
  """The same member again and again: 2 MB of them."""
  (folder / 'set').mkdir()
  (folder / 'set' / 'x.tsv.gz').write_bytes(gzip.compress(bytes(50_000_000)) * 40)


def _sparse(folder: Path) -> None:
  (folder / 'set').mkdir()
  sparse(folder / 'set' / 'x.tsv', b'', 4 * GIB)


def _set(folder: Path) -> Any:
  from fewshot.tasks import files

  os.environ['FEWSHOT_DATA'] = str(folder)
  return files.tabbed('set', 'x.tsv')
