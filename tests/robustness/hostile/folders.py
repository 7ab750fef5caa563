"""What lies beside weights: JSON and tokenizers."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.robustness.hostile.case import Case, Cases, file, load, model, sparse

JSON: dict[str, tuple[Callable[[], bytes], int]] = {
  'deep': (lambda: b'[' * 10_000_000, 0),
  'deep objects': (lambda: b'{"a":' * 1_000_000, 0),
  'wide': (lambda: b'{"a":[' + b'[],' * 15_000_000 + b'1]}', 0),
  'a long number': (lambda: b'{"hidden_size":' + b'9' * 5_000_000 + b'}', 0),
  '10 GB': (lambda: b'{', 10 << 30),
  'a list': (lambda: b'[1]', 0),
  'not UTF-8': (lambda: b'{"\xff": 1}', 0),
  'cut': (lambda: b'{"a": "', 0),
}
FILES = ('config.json', 'model.safetensors.index.json', 'tokenizer_config.json', 'tokenizer.json')


def json() -> Cases:
  """Each file of a folder as a bomb."""
  return {
    f'{name}: {how}': Case(
      lambda f, n=name, c=content, s=size: _beside(f, n, c(), s),
      load, rf'{name.replace(".", "[.]")}\b.*(readable|holds|has)',
    )
    for name in FILES
    for how, (content, size) in JSON.items()
  } | {
    'dimensions of 2^31': Case(
      lambda f: model(f, hidden_size=2**31 - 1, intermediate_size=2**31 - 1, num_attention_heads=1),
      load, 'do not belong together',
    )
  }  # fmt: skip


def _beside(folder: Path, name: str, content: bytes, size: int) -> None:
  model(folder)
  if name == 'tokenizer_config.json':
    (folder / 'vocab.txt').write_text('[CLS]\n[SEP]\n[UNK]\n')
  sparse(folder / name, content, size)


def tokenizers() -> Cases:
  """The older files."""
  piece = lambda text: struct.pack('<fi', 0.0, len(text)) + text  # noqa: E731
  long = lambda: bytes(4) + piece(b'ab' * 499) * 30_000  # noqa: E731
  found: dict[str, tuple[str, str, Callable[[], bytes], int]] = {
    'of 400 MB': ('vocab.txt', 'bert', lambda: b'a\n', 400_000_000),
    'of newlines': ('vocab.txt', 'bert', lambda: b'\n' * 12_000_000, 0),
    'of merges': ('merges.txt', 'gpt2', lambda: b'a b\n' * 4_000_000, 0),
    'of fields': ('spiece.model', 't5', lambda: b'\x20\x01' * 8_000_000, 0),
    'of a field': ('spiece.model', 't5', lambda: b'\n\x80\x80\x80\4' + b' \1' * (4 << 20), 0),
    'of 400 MB of zeros': ('spiece.model', 't5', lambda: b'', 400_000_000),
    'of 400 MB too': ('tokenizer.bin', 'llama2c', lambda: b'', 400_000_000),
    'of nothings': ('tokenizer.bin', 'llama2c', lambda: b'', 16_000_000),
    'of long pieces': ('tokenizer.bin', 'llama2c', long, 0),
  }  # fmt: skip
  return {
    f'{name} {how}': Case(
      _made(name, content, size), _read(kind), rf'{name.replace(".", "[.]")}\b|SentencePiece model'
    )
    for how, (name, kind, content, size) in found.items()
  }


def _made(name: str, content: Callable[[], bytes], size: int) -> Callable[[Path], None]:
  def make(folder: Path) -> None:
    (folder / 'vocab.json').write_text('{"a": 0}')
    file(name, content, size)(folder)

  return make


def _read(kind: str) -> Callable[[Path], Any]:
  def read(folder: Path) -> Any:
    from fewshot.models import tokenizers

    if kind == 'llama2c':
      return tokenizers.from_llama2c(folder / 'tokenizer.bin')
    return tokenizers.read(folder, kind)

  return read
