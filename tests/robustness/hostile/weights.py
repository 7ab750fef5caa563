"""Weights that lie: PyTorch's files, safetensors, GGUF."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.robustness.hostile.case import (
  DAMAGED,
  GIB,
  Case,
  Cases,
  directory,
  laid_out,
  load,
  model,
  safetensors,
  sparse,
  tensor,
  zipped,
)

MANY = (16 << 20) - 16
PARAMETER = b'ctorch._utils\n_rebuild_parameter\n'
LONGEST = b'\xff\xff\xff\xff\xff\xff\xff\x7f'


def torch() -> Cases:
  """Programs that would take the time or the memory; those that call are in test_torch_file.py."""
  text = lambda n: b'X' + struct.pack('<I', n) + b'a' * n  # noqa: E731
  calls = lambda: b'(' + text(8 << 20) + b'q\x000' + (PARAMETER + b'h\x00R0') * 50_000 + b't.'  # noqa: E731
  programs: dict[str, tuple[Callable[[], bytes], str]] = {
    'lists': (lambda: b']' * MANY + b'.', r'more than [\d,]+ operations'),
    'marks': (lambda: b'(' * MANY + b'.', r'more than [\d,]+ operations'),
    'memo': (lambda: b'}' + b'\x94' * MANY + b'.', r'more than [\d,]+ operations'),
    'calls of a long text': (calls, 'calls torch._utils._rebuild_parameter with a str'),
    'digits': (lambda: b'L' + b'9' * MANY + b'L\n.', DAMAGED),
    'frames': (lambda: (b'\x95' + LONGEST) * 1000 + b'.', DAMAGED),
    'a long of minus bytes': (lambda: b'\x8b\xff\xff\xff\xff.', DAMAGED),
    'text beyond the end': (lambda: b'\x8d' + LONGEST + b'.', DAMAGED),
    'a list in itself': (lambda: b']q\x00h\x00a.', 'holds no dict of tensors'),
    'extensions of copyreg': (lambda: b'\x82\x01.', 'uses EXT1, which no state dict does'),
    'objects': (lambda: b'(cos\nsystem\nX\x01\0\0\0xo.', 'uses OBJ, which no state dict does'),
    'names in text': (lambda: b'Px\n.', 'uses PERSID, which no state dict does'),
    'sets': (lambda: b'(\x91.', 'uses FROZENSET, which no state dict does'),
    'buffers of others': (lambda: b'\x97.', 'uses NEXT_BUFFER, which no state dict does'),
  }
  cases = {
    name: Case(
      lambda f, p=program: zipped(f / 'x.pth', {'a/data.pkl': b'\x80\x05' + p()}), read_torch, said
    )
    for name, (program, said) in programs.items()
  }
  cases['a directory of 3 GiB'] = Case(
    lambda f: sparse(f / 'x.pth', b'PK\3\4', 3 * GIB, directory(3 * GIB - 99)), read_torch, DAMAGED
  )
  return cases


def read_torch(folder: Path) -> Any:
  """The names in a file of PyTorch's."""
  from fewshot.models.weights import torch_file

  return torch_file.tensors(folder / 'x.pth')


def headers() -> Cases:
  """Safetensors whose header and bytes do not agree."""
  entry = json.dumps(tensor([2], 0, 8)).encode()
  junk = lambda: b'{"__metadata__": {%s}}' % b','.join(b'"%d":""' % i for i in range(2_000_000))  # noqa: E731
  found: dict[str, tuple[Callable[[], Any], int, int | None]] = {
    'overlap': (lambda: {'a': tensor([2], 0, 8), 'b': tensor([2], 4, 12)}, 12, None),
    'beyond the end': (lambda: {'a': tensor([4], 0, 16)}, 8, None),
    'negative': (lambda: {'a': tensor([2], -8, 0)}, 8, None),
    'a hole': (lambda: {'a': tensor([2], 0, 8), 'b': tensor([2], 16, 24)}, 24, None),
    'backwards': (lambda: {'a': tensor([2], 8, 0)}, 8, None),
    'more numbers than bytes': (lambda: {'a': tensor([3], 0, 8)}, 8, None),
    'a product beyond 64 bits': (lambda: {'a': tensor([2**32, 2**32, 2], 0, 8)}, 8, None),
    'a shape of text': (lambda: {'a': tensor(['2'], 0, 8)}, 8, None),
    'a dtype that is none': (lambda: {'a': tensor([2], 0, 8, 'F31')}, 8, None),
    'two of one name': (lambda: b'{"a": %s, "a": %s}' % (entry, entry), 16, None),
    'a list': (lambda: [1, 2], 0, None),
    'bytes after the end': (lambda: {'a': tensor([2], 0, 8)}, 5 * GIB, None),
    'a header of 2^63 bytes': (lambda: {}, 0, 1 << 63),
    'a header of 90 MB': (lambda: b'{' + b' ' * 90_000_000 + b'}', 0, None),
    'a header of two million names': (junk, 0, None),
    'deep': (lambda: b'{"a":' * 100_000, 0, None),
  }
  cases = {
    name: Case(
      lambda f, h=header, s=size, n=length: safetensors(f / 'model.safetensors', h(), s, n),
      read_header, DAMAGED,
    )
    for name, (header, size, length) in found.items()
  }  # fmt: skip
  cases['a tensor of 32 GB where the config has a small one'] = Case(
    _other_shape, load, r'embed/embedding is \(1000000000, 8\) in the weights but'
  )
  return cases


def read_header(folder: Path) -> Any:
  """The tensors of a folder."""
  from fewshot.models.weights import hf

  return hf.tensors(folder)


def _other_shape(folder: Path) -> None:
  from fewshot.models.weights import hf

  shapes = {n: list(t.shape) for n, t in hf.tensors(model(folder)).items()}
  shapes['embeddings.word_embeddings.weight'] = [10**9, 8]
  safetensors(folder / 'model.safetensors', *laid_out(shapes))


def gguf() -> Cases:
  """Sizes that no file has."""
  string = lambda text: struct.pack('<Q', len(text)) + text  # noqa: E731
  array = lambda kind, n: string(b'k') + struct.pack('<IIQ', 9, kind, n)  # noqa: E731

  def entry(*shape: int, kind: int = 0, offset: int = 0) -> bytes:
    return string(b'x') + struct.pack(f'<I{len(shape)}QIQ', len(shape), *shape, kind, offset)

  huge = struct.pack('<Q', (1 << 31) - 1)
  found: dict[str, tuple[bytes, int, int, int, str]] = {
    '2^63 tensors': (b'', 1 << 63, 0, 3 * GIB, DAMAGED),
    '2^63 pairs': (b'', 0, 1 << 63, 3 * GIB, DAMAGED),
    'two million pairs': (b'', 0, 2_000_000, 3 * GIB, DAMAGED),
    'two million tensors': (b'', 2_000_000, 0, 3 * GIB, DAMAGED),
    'a text of 2 GiB': (huge, 0, 1, 3 * GIB, DAMAGED),
    '2^40 numbers': (array(0, 1 << 40), 0, 1, 3 * GIB, DAMAGED),
    '2^30 numbers': (array(0, 1 << 30), 0, 1, 3 * GIB, DAMAGED),
    '2^60 texts': (array(8, 1 << 60), 0, 1, 3 * GIB, DAMAGED),
    '2^60 arrays': (array(9, 1 << 60), 0, 1, 3 * GIB, DAMAGED),
    'deep': (string(b'k') + struct.pack('<I', 9) + struct.pack('<IQ', 9, 1) * 99_999, 0, 1, 0,
             DAMAGED),
    '2^32 axes': (string(b'x') + b'\xff' * 4, 1, 0, GIB, DAMAGED),
    'a product beyond 64 bits': (entry(1 << 63, 1 << 63), 1, 0, 3 * GIB, DAMAGED),
    'an offset beyond the end': (entry(4, offset=(1 << 64) - 1), 1, 0, 999, DAMAGED),
    'nothing by 2^63': (entry(0, 1 << 63), 1, 0, 999, DAMAGED),
    'half a block': (entry(31, kind=2), 1, 0, 999, DAMAGED),
    'a packing that is none': (entry(4, kind=77), 1, 0, 999, 'packed as 77'),
  }  # fmt: skip

  def made(body: bytes, tensors: int, pairs: int, size: int) -> Callable[[Path], None]:
    head = b'GGUF' + struct.pack('<IQQ', 3, tensors, pairs) + body
    return lambda folder: sparse(folder / 'x.gguf', head, size)

  return {name: Case(made(*rest), read_gguf, said) for name, (*rest, said) in found.items()}


def read_gguf(folder: Path) -> Any:
  """Metadata and tensors."""
  from fewshot.models.weights import gguf

  return gguf.read(folder / 'x.gguf')
