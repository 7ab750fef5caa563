"""Tokenizers: from tokenizer.json, or built from the older files and from what GGUF holds."""

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers.processors import TemplateProcessing

from fewshot.errors import FewshotError, nearest
from fewshot.models import sentencepiece as sp
from fewshot.models.weights.files import json_of, regular
from fewshot.models.weights.hf import read_json

# How texts are split before merges apply, by GGUF's names.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r'|\s*[\r\n]+|\s+(?!\S)|\s+'
)
CLIP = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
SPLITS = {
  'gpt-2': GPT2,
  'smollm': GPT2,  # After its digits are parted.
  'llama-bpe': LLAMA3,
  'qwen2': LLAMA3.replace('{1,3}', ''),
}
ENTRIES = 1 << 20  # Of a vocabulary; the largest have a quarter of it.
# Bytes at most.
LARGEST = {
  'tokenizer.json': 128 << 20,
  'vocab.txt': 32 << 20,
  'merges.txt': 32 << 20,
  'spiece.model': sp.LARGEST,
  'tokenizer.model': sp.LARGEST,
}
# What SentencePiece's families put around a text.
AROUND = {
  't5': '$A </s>',
  'mt5': '$A </s>',
  'albert': '[CLS] $A [SEP]',
  'llama': '<s> $A',
  'mistral': '<s> $A',
  'gemma': '<bos> $A',
  'gemma2': '<bos> $A',
  'gemma3_text': '<bos> $A',
}


def read(folder: Path, kind: str) -> tuple[Tokenizer, str] | None:
  """The tokenizer of a folder whose config.json has model_type `kind`, and its hash; or None.

  It neither pads nor cuts.  What is read, the first that is there: tokenizer.json, vocab.txt
  (WordPiece), vocab.json with merges.txt (byte-level BPE), spiece.model or tokenizer.model
  (SentencePiece).

  Raises:
    FewshotError: a file is broken, or `kind` puts around a text what is not known here.
  """
  for name, reader in READERS.items():
    file = folder / name
    if file.exists():
      regular(file, LARGEST[name])
      with _library(f'{folder.name}: {name}'):
        found = _tried(reader(file, kind))
      by_file = name == 'tokenizer.json'
      return found, _short(file.read_bytes()) if by_file else hash_of(found)
  return None


def hash_of(tokenizer: Tokenizer) -> str:
  """16 hex digits of the sha256 of all that a tokenizer is."""
  return _short(tokenizer.to_str().encode())


@contextlib.contextmanager
def _library(where: str) -> Iterator[None]:
  """Says in a line that the library cannot make or use a tokenizer."""
  try:
    yield
  except (FewshotError, KeyboardInterrupt, SystemExit, GeneratorExit):
    raise
  except BaseException as e:  # A panic of the library is no Exception.
    raise FewshotError(f'{where} is not readable: {type(e).__name__}: {e}') from None


def _tried(made: Tokenizer) -> Tokenizer:
  """A tokenizer that neither pads nor cuts, if it encodes a text to ids of its vocabulary."""
  made.no_padding()
  made.no_truncation()
  size = max(made.get_vocab(with_added_tokens=True).values(), default=-1) + 1
  if not size:
    raise FewshotError('the vocabulary of the tokenizer is empty; save it again')
  if (most := max(made.encode('A text, é 漢 1.').ids, default=0)) >= size:
    raise FewshotError(f'a text begins or ends with token {most}, and the vocabulary has {size}')
  return made


def from_gguf(meta: Mapping[str, Any], name: str = 'the GGUF file') -> Tokenizer:
  """The tokenizer in the metadata of a GGUF file, of its kinds 'gpt2' and 'llama'.

  Raises `FewshotError` for another kind, a way to split texts that is not known, or damage.
  """
  with _library(f'the tokenizer of {name}'):
    return _tried(_of_gguf(meta))


def _of_gguf(meta: Mapping[str, Any]) -> Tokenizer:
  get = lambda key, *other: _entry(meta, f'tokenizer.ggml.{key}', *other)  # noqa: E731
  kind, tokens = get('model'), get('tokens')
  if not (tokens and isinstance(tokens, list) and all(isinstance(t, str) for t in tokens)):
    raise FewshotError('the tokenizer of the GGUF file has no tokens of text')
  types = get('token_type', [sp.NORMAL] * len(tokens))
  if kind == 'llama':
    pieces = [sp.Piece(*p) for p in zip(tokens, get('scores'), types, strict=True)]
    unknown = _index(get('unknown_token_id', 0), tokens)  # Some files mark it as a control piece.
    pieces[unknown] = pieces[unknown]._replace(type=sp.UNKNOWN)
    made = sp.build(pieces, sp.Spec(prefix=get('add_space_prefix', True)))
  elif kind == 'gpt2':
    merges = [(m[0] + a, b) for m in get('merges') for a, _, b in [m[1:].partition(' ')]]
    made = _gguf_bytes(get('pre', 'gpt-2'), {t: i for i, t in enumerate(tokens)}, merges)
    marked = list(zip(tokens, types, strict=True))
    made.add_special_tokens([_special(t) for t, type_ in marked if type_ == sp.CONTROL])
    made.add_tokens([AddedToken(t, normalized=False) for t, type_ in marked if type_ == sp.USER])
  else:
    raise FewshotError(f"a tokenizer of kind {kind!r}; GGUF's kinds gpt2 and llama are read")
  begins = get('add_bos_token', kind == 'llama' or get('pre', '') == 'llama-bpe')
  around = [tokens[_index(get('bos_token_id'), tokens)]] if begins else []
  around.append('$A')
  ends = get('add_eos_token', False)
  around += [tokens[_index(get('eos_token_id'), tokens)]] if ends else []
  _surround(made, around)
  return made


def _index(i: Any, tokens: list[str]) -> int:
  if type(i) is not int or not 0 <= i < len(tokens):
    raise FewshotError(f'the GGUF file names token {i!r:.20} of a vocabulary of {len(tokens)}')
  return i


def from_llama2c(file: Path) -> Tokenizer:
  """The tokenizer in llama2.c's tokenizer.bin, which begins a text with <s>."""
  with _library(f'{file.parent.name}/{file.name}'):
    made = sp.build(sp.read_llama2c(file), sp.Spec())
    _surround(made, ['<s>', '$A'])
    return _tried(made)


def _entry(meta: Mapping[str, Any], key: str, *other: Any) -> Any:
  if key not in meta and not other:
    raise FewshotError(f'the GGUF file lacks {key}')
  return meta.get(key, *other)


def _gguf_bytes(split: str, vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
  if split not in SPLITS:
    raise FewshotError(f'texts are split the way of {split!r}; {nearest(split, SPLITS)}')
  made = Tokenizer(models.BPE(vocab, merges))
  digits = [pre.Digits(individual_digits=True)] if split == 'smollm' else []
  made.pre_tokenizer = pre.Sequence([*digits, *_byte_level(SPLITS[split])])
  made.decoder = decoders.ByteLevel()
  if split == 'qwen2':
    made.normalizer = normalizers.NFC()
  return made


def _byte_level(pattern: str) -> list[Any]:
  """Splits by a pattern, then spells each word as bytes."""
  split = pre.Split(Regex(pattern), 'isolated')
  return [split, pre.ByteLevel(add_prefix_space=False, use_regex=False)]


def _wordpiece(file: Path, kind: str) -> Tokenizer:
  words = _lines(file)
  vocab = {word: i for i, word in enumerate(words) if word}
  lower = _config(file.parent).get('do_lower_case', True)
  first, last, unknown = ('<s>', '</s>', '<unk>') if '<s>' in vocab else ('[CLS]', '[SEP]', '[UNK]')
  unknown = '[UNK]' if '[UNK]' in vocab else unknown
  made = Tokenizer(models.WordPiece(vocab, unk_token=unknown))
  made.normalizer = normalizers.BertNormalizer(lowercase=lower)
  made.pre_tokenizer = pre.BertPreTokenizer()
  made.decoder = decoders.WordPiece()
  special = (first, last, unknown, '[PAD]', '[MASK]', '<pad>', '<mask>')
  made.add_special_tokens([_special(t) for t in special if t in vocab])
  _surround(made, [first, '$A', last])
  return made


def _lines(file: Path) -> list[str]:
  """Those of a list of words or merges."""
  data = file.read_bytes()
  if (count := data.count(b'\n')) > ENTRIES:
    raise FewshotError(f'{file.name} has {count} lines; a vocabulary has at most {ENTRIES}')
  return data.decode().split('\n')


def _merges(file: Path, kind: str) -> Tokenizer:
  vocab = read_json(file.parent / 'vocab.json')
  lines = _lines(file)
  pairs = [(a, b) for a, _, b in (x.partition(' ') for x in lines if x[:8] != '#version') if b]
  ends = [t for t in ('<s>', '<pad>', '</s>', '<unk>', '<mask>', '<|endoftext|>') if t in vocab]
  if kind == 'clip':
    return _clip(vocab, pairs)
  if kind not in ('gpt2', 'roberta'):
    raise FewshotError(
      f'merges.txt of a {kind!r}: only of gpt2, roberta and clip; save tokenizer.json'
    )
  made = Tokenizer(models.BPE(vocab, pairs))
  made.pre_tokenizer = pre.Sequence(_byte_level(GPT2))
  made.decoder = decoders.ByteLevel()
  made.add_special_tokens([_special(t) for t in ends])
  if kind == 'roberta':
    _surround(made, ['<s>', '$A', '</s>'])
  return made


def _clip(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
  """CLIP's: lower-cased words that end in </w>."""
  begin, end = '<|startoftext|>', '<|endoftext|>'
  made = Tokenizer(models.BPE(vocab, merges, unk_token=end, end_of_word_suffix='</w>'))
  spaces = normalizers.Replace(Regex(r'\s+'), ' ')
  made.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
  split = pre.Split(Regex(CLIP), 'removed', invert=True)
  made.pre_tokenizer = pre.Sequence([split, pre.ByteLevel(False, use_regex=False)])
  made.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace('</w>', ' ')])
  made.add_special_tokens([_special(begin), _special(end)])
  _surround(made, [begin, '$A', end])
  return made


def _sentencepiece(file: Path, kind: str) -> Tokenizer:
  if kind not in AROUND:
    raise FewshotError(f'{file.name} of a {kind!r}; {nearest(kind, AROUND)}; save tokenizer.json')
  pieces, spec = sp.read_model(file)
  config = _config(file.parent)
  made = sp.build(pieces, spec, _albert(config) if kind == 'albert' else ())
  if kind == 't5':
    count = config.get('extra_ids', 100)
    if type(count) is not int or not 0 <= count <= 10_000:
      raise FewshotError(f'extra_ids {count!r:.20} of tokenizer_config.json is no number of tokens')
    made.add_special_tokens([_special(f'<extra_id_{i}>') for i in reversed(range(count))])
  _surround(made, AROUND[kind].split())
  return made


def _albert(config: Mapping[str, Any]) -> list[Any]:
  quotes = [normalizers.Replace(q, '"') for q in ('``', "''")]
  accents = [] if config.get('keep_accents') else [normalizers.NFKD(), normalizers.StripAccents()]
  lower = [normalizers.Lowercase()] if config.get('do_lower_case', True) else []
  return [*quotes, *accents, *lower]


def _surround(tokenizer: Tokenizer, template: list[str]) -> None:
  """Puts tokens around every text: `template` names them, with $A for the text."""
  marks = [t for t in template if t != '$A']
  if len(template) != len(marks) + 1 or any(t[:1] == '$' or ':' in t for t in marks):
    raise FewshotError(f'tokens called {" ".join(marks)} cannot be put around a text')
  ids = [(t, tokenizer.token_to_id(t)) for t in marks]
  if missing := [t for t, i in ids if i is None]:
    raise FewshotError(f'the vocabulary lacks {", ".join(missing)}')
  if marks:
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=ids)


def _special(text: str) -> AddedToken:
  return AddedToken(text, special=True, normalized=False)


def _config(folder: Path) -> dict[str, Any]:
  file = folder / 'tokenizer_config.json'
  return read_json(file) if file.exists() else {}


def _json(file: Path, kind: str) -> Tokenizer:
  """tokenizer.json; a prefix that not all merges have would end the process inside the library."""
  data = file.read_bytes()
  _check_json(data)
  if re.search(rb'continuing_subword_prefix"\s*:\s*"[^"]|\\u00[4-7]', data):
    model = json_of(data, len(data), object_pairs_hook=_unique).get('model') or {}
    prefix = model.get('continuing_subword_prefix') or ''
    pairs = [m.split(' ') if isinstance(m, str) else m for m in model.get('merges') or ()]
    if pairs and not (prefix.isascii() and all(b.startswith(prefix) for _, b in pairs)):
      raise FewshotError(f'a merge lacks the prefix {prefix!r:.20}; the tokenizer is damaged')
  return Tokenizer.from_buffer(data)


def _check_json(data: bytes) -> None:
  """Refuses what the library would take gigabytes for; merges are pairs, and tokens hold marks."""
  if (count := sum(data.count(mark) for mark in (b',', b'[', b'{'))) > 4 * ENTRIES:
    most = 4 * ENTRIES
    raise FewshotError(f'tokenizer.json has {count} entries; a tokenizer has at most {most}')


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) != len(pairs):
    raise FewshotError('the tokenizer has two entries of one name')
  return found


def _short(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()[:16]


READERS: dict[str, Callable[[Path, str], Tokenizer]] = {
  'tokenizer.json': _json,
  'vocab.txt': _wordpiece,
  'merges.txt': _merges,
  'spiece.model': _sentencepiece,
  'tokenizer.model': _sentencepiece,
}
