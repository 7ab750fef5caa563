"""SentencePiece models (Kudo and Richardson 2018, arXiv:1808.06226) as fast tokenizers.

A vocabulary is a list of pieces with scores.  A BPE model merges, again and again, the two
neighbours whose union scores highest; a Unigram model takes the segmentation of the largest sum.
"""

import itertools
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from fewshot.errors import FewshotError
from fewshot.models.weights.files import regular

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)  # Types of pieces.
LARGEST = 16 << 20  # Bytes of a tokenizer's file; those of 256,000 pieces have 5 MB.
ENTRIES = 5 << 18  # Fields of a model; those of 256,000 pieces have a million.
LETTERS = 4 << 20  # Of all pieces, among which merges are looked for.
SPACE = '▁'
LONGEST = 1000  # Characters of a piece; to look for merges takes the square.


class Piece(NamedTuple):
  """An entry of the vocabulary."""

  text: str
  score: float
  type: int = NORMAL


class Spec(NamedTuple):
  """What a model file says beside its pieces."""

  unigram: bool = False
  prefix: bool = True  # A space is put before the text.
  collapse: bool = False  # Runs of spaces become one, and the text's ends are stripped.
  charsmap: bytes = b''  # Rewrites characters, as the library compiled it.


def build(pieces: Sequence[Piece], spec: Spec, first: Sequence[Any] = ()) -> Tokenizer:
  """The tokenizer of these pieces; `first` are normalizers that go before the model's own.

  >>> pieces = [Piece('<unk>', 0, UNKNOWN), *(Piece(t, -i) for i, t in enumerate('▁ab'))]
  >>> build([*pieces, Piece('▁a', 2), Piece('ab', 1)], Spec()).encode('ab b').tokens
  ['▁a', 'b', '▁', 'b']
  """
  unknown = next((i for i, p in enumerate(pieces) if p.type == UNKNOWN), None)
  if unknown is None:
    raise FewshotError('the vocabulary has no unknown piece; the file is damaged')
  if any(len(p.text) > LONGEST or p.score != p.score for p in pieces):
    raise FewshotError(f'a piece is longer than {LONGEST} or scores NaN; the file is damaged')
  if not spec.unigram and sum(len(p.text) for p in pieces) > LETTERS:
    raise FewshotError(f'the pieces have more than {LETTERS} letters; the file is damaged')
  fallback = any(p.type == BYTE for p in pieces)
  if spec.unigram:
    model: Any = models.Unigram([(p.text, p.score) for p in pieces], unknown, fallback)
  else:
    model = models.BPE(
      {p.text: i for i, p in enumerate(pieces)},
      list(merges(pieces)),
      unk_token=pieces[unknown].text,
      fuse_unk=True,
      byte_fallback=fallback,
    )
  made = Tokenizer(model)
  made.normalizer = normalizers.Sequence([*first, *_normalizers(spec)])
  strip = [decoders.Strip(' ', 1, 0)] if spec.prefix else []
  made.decoder = decoders.Sequence(
    [decoders.Replace(SPACE, ' '), decoders.ByteFallback(), decoders.Fuse(), *strip]
  )
  special = [p.text for p in pieces if p.type in (CONTROL, UNKNOWN)]
  made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
  made.add_tokens([AddedToken(p.text, normalized=True) for p in pieces if p.type == USER])
  return made


def _normalizers(spec: Spec) -> list[Any]:
  found: list[Any] = [normalizers.Precompiled(spec.charsmap)] if spec.charsmap else []
  if spec.collapse:
    found += [normalizers.Strip(), normalizers.Replace(Regex(' {2,}'), ' ')]
  if spec.prefix:
    found.append(normalizers.Prepend(SPACE))
  return [*found, normalizers.Replace(' ', SPACE)]


def merges(pieces: Sequence[Piece]) -> Iterator[tuple[str, str]]:
  """The merges that scores stand for, the first to apply first: all ways to form each piece.

  >>> list(merges([Piece('a', 0), Piece('b', 0), Piece('ab', -2), Piece('aba', -1)]))
  [('ab', 'a'), ('a', 'b')]
  """
  usual = {p.text for p in pieces if p.type == NORMAL}
  for piece in sorted((p for p in pieces if p.type == NORMAL), key=lambda p: -p.score):
    for i in range(1, len(piece.text)):
      left, right = piece.text[:i], piece.text[i:]
      if left in usual and right in usual:
        yield left, right


def read_model(path: Path) -> tuple[list[Piece], Spec]:
  """The pieces of a spiece.model or tokenizer.model, and how its text is prepared."""
  pieces, trainer, normalizer = [], {}, {}
  left = itertools.count(-ENTRIES)
  for field, value in _fields(path.read_bytes(), left):
    if field == 1:
      entry = dict(_fields(value, left))
      pieces.append(Piece(entry[1].decode(), _float(entry.get(2, bytes(4))), entry.get(3, NORMAL)))
    elif field == 2:
      trainer = dict(_fields(value, left))
    elif field == 3:
      normalizer = dict(_fields(value, left))
  kind = trainer.get(3, 1)
  if not pieces or kind not in (1, 2):
    raise FewshotError(f'{path.parent.name}/{path.name} is no Unigram or BPE model')
  return pieces, Spec(
    unigram=kind == 1,
    prefix=bool(normalizer.get(3, 1)),
    collapse=bool(normalizer.get(4, 1)),
    charsmap=normalizer.get(2, b''),
  )


def _fields(data: bytes, left: Iterator[int]) -> Iterator[tuple[int, Any]]:
  """The fields of a protocol buffer, numbers as int, all else as bytes; while some are left."""
  at = 0

  def number() -> int:
    nonlocal at
    value = shift = 0
    while True:
      if shift > 63:
        raise FewshotError('the SentencePiece model is damaged')
      byte = data[at]
      value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
      if byte < 128:
        return value

  while at < len(data):
    if next(left) >= 0:
      raise FewshotError(f'the SentencePiece model has more than {ENTRIES} fields')
    tag = number()
    field, wire = tag >> 3, tag & 7
    if wire == 0:
      yield field, number()
      continue
    size = {1: 8, 5: 4}.get(wire) or (number() if wire == 2 else -1)
    if size < 0 or at + size > len(data):
      raise FewshotError('the SentencePiece model is damaged')
    yield field, data[at : at + size]
    at += size


def _float(data: bytes) -> float:
  return struct.unpack('<f', data)[0]


def read_llama2c(path: Path) -> list[Piece]:
  """The pieces of llama2.c's tokenizer.bin: of each its score, its length and its text.

  It does not say their types: unknown, begin and end come first, then the 256 bytes.
  """
  data = regular(path, LARGEST).read_bytes()
  pieces: list[Piece] = []
  at = 4  # The first four bytes are the longest length.
  try:
    while at < len(data):
      score, size = struct.unpack_from('<fi', data, at)
      at += 8 + size
      if size < 0 or at > len(data) or len(pieces) >= ENTRIES >> 2:
        raise ValueError
      pieces.append(Piece(data[at - size : at].decode().replace(' ', SPACE), score))
    if len(pieces) < 259:
      raise ValueError
  except (struct.error, ValueError):
    raise FewshotError(f'{path.parent.name}/{path.name} is damaged') from None
  special = zip(('<unk>', '<s>', '</s>'), (UNKNOWN, CONTROL, CONTROL), strict=True)
  numbers = (Piece(f'<0x{i:02X}>', 0.0, BYTE) for i in range(256))
  return [*(Piece(text, 0.0, type_) for text, type_ in special), *numbers, *pieces[259:]]
