"""Tokenizers built from the older files and from GGUF, against the ids of the references."""

import itertools
import json
import shutil
import struct
from pathlib import Path

import pytest
import tokenizers as library
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot.errors import FewshotError
from fewshot.models import sentencepiece as sp
from fewshot.models import tokenizers

FIXTURES = Path(__file__).parents[1] / 'parity' / 'fixtures' / 'tokenizers'
KINDS = ('gpt2', 'roberta', 'clip', 't5', 'llama')


@pytest.mark.parametrize('kind', KINDS)
def test_the_ids_are_those_of_the_reference(kind):
  want = json.loads((FIXTURES / kind / 'expected.json').read_text())
  found = tokenizers.read(FIXTURES / kind, kind)
  assert found is not None
  tokenizer, digest = found
  got = {text: tokenizer.encode(text).ids for text in want['texts']}
  assert got == dict(zip(want['texts'], want['ids'], strict=True))
  assert len(digest) == 16 and digest == tokenizers.hash_of(tokenizer)


@pytest.mark.parametrize('kind', ['gpt2', 'roberta', 'llama'])
def test_decoding_gives_the_text_back(kind):
  tokenizer, _ = tokenizers.read(FIXTURES / kind, kind)
  for text in json.loads((FIXTURES / kind / 'expected.json').read_text())['texts']:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_t5_has_its_sentinels_behind_the_pieces():
  tokenizer, _ = tokenizers.read(FIXTURES / 't5', 't5')
  size = tokenizer.get_vocab_size()
  assert tokenizer.token_to_id('<extra_id_0>') == size - 1
  parts = [tokenizer.encode(t, add_special_tokens=False).ids for t in ('the', 'mat')]
  assert tokenizer.encode('the <extra_id_1> mat').ids == [*parts[0], size - 2, *parts[1], 1]


def test_wordpiece_from_vocab_txt(tmp_path):
  words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'the', 'cat', 'un', '##able', 'cafe', '.']
  (tmp_path / 'vocab.txt').write_text('\n'.join(words) + '\n')
  tokenizer, _ = tokenizers.read(tmp_path, 'bert')
  encode = lambda text: tokenizer.encode(text).tokens  # noqa: E731
  assert encode('The CAFÉ.') == ['[CLS]', 'the', 'cafe', '.', '[SEP]']
  assert encode('unable [MASK] dog') == ['[CLS]', 'un', '##able', '[MASK]', '[UNK]', '[SEP]']
  (tmp_path / 'tokenizer_config.json').write_text('{"do_lower_case": false}')
  tokenizer, _ = tokenizers.read(tmp_path, 'bert')
  assert tokenizer.encode('The cat').tokens == ['[CLS]', '[UNK]', 'cat', '[SEP]']


def test_wordpiece_of_mpnet_puts_its_own_tokens_around(tmp_path):
  (tmp_path / 'vocab.txt').write_text('<s>\n<pad>\n</s>\n<unk>\n[UNK]\ncat\n<mask>\n')
  tokenizer, _ = tokenizers.read(tmp_path, 'mpnet')
  assert tokenizer.encode('cat dog').tokens == ['<s>', 'cat', '[UNK]', '</s>']


def test_tokenizer_json_comes_first_and_a_folder_without_any_has_none(tmp_path):
  assert tokenizers.read(tmp_path, 'bert') is None
  shutil.copy(FIXTURES / 'gpt2' / 'vocab.json', tmp_path)
  assert tokenizers.read(tmp_path, 'gpt2') is None  # Of no use without its merges.
  model = library.models.WordLevel({'a': 0}, unk_token='a')
  library.Tokenizer(model).save(str(tmp_path / 'tokenizer.json'))
  (tmp_path / 'vocab.txt').write_text('[UNK]\n')
  tokenizer, _ = tokenizers.read(tmp_path, 'bert')
  assert tokenizer.get_vocab_size() == 1


@pytest.mark.parametrize(
  'name, content, kind, said',
  [
    ('spiece.model', b'', 'xlnet', "spiece.model of a 'xlnet'; .*save tokenizer.json"),
    ('spiece.model', b'\x0a\xff\xff', 't5', 'not readable|damaged'),
    ('spiece.model', b'', 't5', 'no Unigram or BPE model'),
    ('vocab.txt', b'the\n', 'bert', r'the vocabulary lacks \[CLS\], \[SEP\]'),
    ('merges.txt', b'a b\n', 'gpt2', 'vocab.json is missing'),
    ('tokenizer.json', b'{', 'bert', 'tokenizer.json is not readable'),
  ],
)
def test_what_is_broken_or_not_known_is_said_in_a_line(tmp_path, name, content, kind, said):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(FewshotError, match=said) as e:
    tokenizers.read(tmp_path, kind)
  assert '\n' not in str(e.value)


def test_merges_of_another_family_are_refused(tmp_path):
  for name in ('vocab.json', 'merges.txt'):
    shutil.copy(FIXTURES / 'gpt2' / name, tmp_path)
  with pytest.raises(FewshotError, match=r"merges.txt of a 'phi': only of gpt2, roberta and clip"):
    tokenizers.read(tmp_path, 'phi')


def greedy(text: str, pieces: list[sp.Piece]) -> list[str]:
  """The definition: merge the neighbours of the best score, the leftmost of equals, to the end."""
  scores = {p.text: p.score for p in pieces if p.type == sp.NORMAL}
  parts = list(text)
  while True:
    neighbours = enumerate(itertools.pairwise(parts))
    pairs = [(scores[a + b], -i) for i, (a, b) in neighbours if a + b in scores]
    if not pairs:
      break
    i = -max(pairs)[1]
    parts[i : i + 2] = [parts[i] + parts[i + 1]]
  known = lambda p: [p] if p in scores else [f'<0x{b:02X}>' for b in p.encode()]  # noqa: E731
  return [token for part in parts for token in known(part)]


WORDS = ('▁a', 'ab', 'ba', 'ca', '▁ca', 'abc', 'cab', '▁ab', 'bc', 'abab', '▁▁')


def vocabulary(order: list[str]) -> list[sp.Piece]:
  special = [sp.Piece('<unk>', 0, sp.UNKNOWN), sp.Piece('<s>', 0, sp.CONTROL)]
  special.append(sp.Piece('</s>', 0, sp.CONTROL))
  numbers = [sp.Piece(f'<0x{i:02X}>', 0, sp.BYTE) for i in range(256)]
  words = [sp.Piece(t, -float(i)) for i, t in enumerate(order)]
  letters = [sp.Piece(t, -99.0 - i) for i, t in enumerate('▁abc')]
  return [*special, *numbers, *words, *letters]


@settings(max_examples=200, deadline=None)
@given(order=st.permutations(WORDS), text=st.text('abc é', max_size=20))
def test_merges_by_score_are_those_of_the_definition(order, text):
  pieces = vocabulary(order)
  want = greedy('▁' + text.replace(' ', '▁') if text else '', pieces)
  assert sp.build(pieces, sp.Spec()).encode(text).tokens == want


def tokenizer_bin(path: Path, pieces: list[sp.Piece]) -> Path:
  """As llama2.c writes it: some versions write bytes as themselves, and the end after a newline."""
  texts = [p.text.replace('▁', ' ').encode() for p in pieces]
  texts[3:259] = [chr(i).encode() for i in range(256)]
  texts[1:3] = [b'\n<s>\n', b'\n</s>\n']
  rows = (struct.pack('<fi', p.score, len(t)) + t for p, t in zip(pieces, texts, strict=True))
  path.write_bytes(struct.pack('<i', max(map(len, texts))) + b''.join(rows))
  return path


def test_llama2c_tokenizer(tmp_path):
  pieces = vocabulary(list(WORDS))
  tokenizer = tokenizers.from_llama2c(tokenizer_bin(tmp_path / 'tokenizer.bin', pieces))
  for text in ('ab cab é', 'a\nb', 'cabab  c'):
    encoded = tokenizer.encode(text)
    want = greedy('▁' + text.replace(' ', '▁'), pieces)
    assert encoded.tokens == ['<s>', *want] and tokenizer.decode(encoded.ids) == text
  assert tokenizer.token_to_id('▁ab') == [p.text for p in pieces].index('▁ab')


@pytest.mark.parametrize('keep', [6, 20, -1])
def test_a_truncated_llama2c_tokenizer(tmp_path, keep):
  path = tokenizer_bin(tmp_path / 'tokenizer.bin', vocabulary(list(WORDS)))
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(FewshotError, match=r'tokenizer.bin is damaged'):
    tokenizers.from_llama2c(path)


def gguf(**changes) -> dict:
  """The metadata of a SentencePiece vocabulary in GGUF, with two tokens of the user's."""
  pieces = [
    *vocabulary(list(WORDS)),
    sp.Piece('\n\n', -1e3, sp.USER),
    sp.Piece('<b>', -1e3, sp.USER),
  ]
  meta = {
    'model': 'llama',
    'tokens': [p.text for p in pieces],
    'scores': [p.score for p in pieces],
    'token_type': [sp.CONTROL if p.type == sp.UNKNOWN else p.type for p in pieces],
    'bos_token_id': 1,
    'eos_token_id': 2,
    'unknown_token_id': 0,
  }
  return {f'tokenizer.ggml.{k}': v for k, v in (meta | changes).items()}


def test_gguf_llama_kind():
  tokenizer = tokenizers.from_gguf(gguf(add_space_prefix=False))
  assert tokenizer.encode('ab\n\n\ncab<b>').tokens == ['<s>', 'ab', '\n\n', '<0x0A>', 'cab', '<b>']
  assert tokenizers.from_gguf(gguf()).encode('ab').tokens == ['<s>', '▁ab']
  ends = gguf(add_bos_token=False, add_eos_token=True)
  assert tokenizers.from_gguf(ends).encode('ab').tokens == ['▁ab', '</s>']


@pytest.mark.parametrize(
  'pre, digits',
  [
    ('smollm', ['1', '2', '3', '4']),
    ('gpt-2', ['1234']),
    ('qwen2', ['1', '2', '3', '4']),
    ('llama-bpe', ['123', '4']),
  ],
)
def test_gguf_gpt2_kind_splits_as_it_says(pre, digits):
  alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
  merges = ['1 2', '12 3', '123 4', 'Ġ a']
  meta = {
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': pre,
    'tokenizer.ggml.tokens': [*alphabet, '12', '123', '1234', 'Ġa', '<|end|>'],
    'tokenizer.ggml.token_type': [1] * (len(alphabet) + 4) + [3],
    'tokenizer.ggml.merges': merges,
    'tokenizer.ggml.bos_token_id': len(alphabet) + 4,
  }
  tokenizer = tokenizers.from_gguf(meta)
  first = ['<|end|>'] if pre == 'llama-bpe' else []
  assert tokenizer.encode('1234 a<|end|>').tokens == [*first, *digits, 'Ġa', '<|end|>']
  assert tokenizer.decode(tokenizer.encode('é 1234 a').ids) == 'é 1234 a'


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'model': 'bert'}, "kind 'bert'; GGUF's kinds gpt2 and llama are read"),
    ({'model': 'gpt2', 'merges': [], 'pre': 'qwen3'}, "way of 'qwen3'; did you mean 'qwen2'"),
    ({'model': 'gpt2'}, r'the GGUF file lacks tokenizer.ggml.merges'),
  ],
)
def test_gguf_tokenizers_that_are_refused(changes, said):
  with pytest.raises(FewshotError, match=said):
    tokenizers.from_gguf(gguf(**changes))


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'tokens': 'abc'}, 'has no tokens of text'),
    ({'tokens': [1, 2]}, 'has no tokens of text'),
    ({'tokens': []}, 'has no tokens of text'),
    ({'scores': [0.5]}, 'the tokenizer of the GGUF file is not readable: ValueError'),
    ({'scores': ['a'] * 276}, 'the tokenizer of the GGUF file is not readable: TypeError'),
    ({'bos_token_id': 500}, 'names token 500 of a vocabulary of 276'),
    ({'bos_token_id': -1}, 'names token -1 of'),
    ({'unknown_token_id': 'x'}, "names token 'x' of"),
    ({'model': 'gpt2', 'merges': [1]}, 'not readable: TypeError'),
    ({'model': 'gpt2', 'merges': ['']}, 'not readable: IndexError'),
    ({'model': 'gpt2', 'merges': [], 'pre': ['a']}, 'not readable: TypeError'),
  ],
)
def test_damaged_gguf_tokenizers(changes, said):
  with pytest.raises(FewshotError, match=said):
    tokenizers.from_gguf(gguf(**changes))


@pytest.mark.parametrize('name', ['$A', '$B:1', 'a:b'])
def test_tokens_that_a_template_would_take_for_its_own(name):
  meta = gguf()
  meta['tokenizer.ggml.tokens'][1] = name
  with pytest.raises(FewshotError, match='cannot be put around a text'):
    tokenizers.from_gguf(meta)


def template(i: int, listed: bool = True) -> dict:
  """Puts token i before every text."""
  first = {'SpecialToken': {'id': 'X', 'type_id': 0}}
  text = [{'Sequence': {'id': name, 'type_id': 0}} for name in 'AB']
  known = {'X': {'id': 'X', 'ids': [i], 'tokens': ['X']}} if listed else {}
  return {'type': 'TemplateProcessing', 'single': [first, text[0]], 'pair': text} | {
    'special_tokens': known
  }


BPE = {'type': 'BPE', 'vocab': {'a': 0, 'b': 1, 'ab': 2}, 'merges': [['a', 'b']]}
JUNK = {'type': 'Precompiled', 'precompiled_charsmap': 'AAAA'}


@pytest.mark.parametrize(
  'changes, said',
  [
    # The library ends the process, where the right of a merge is shorter than the prefix.
    ({'model': BPE | {'continuing_subword_prefix': '####'}}, "a merge lacks the prefix '####'"),
    ({'model': BPE | {'continuing_subword_prefix': 'é'}}, "a merge lacks the prefix 'é'"),
    ({'model': BPE | {'vocab': {}, 'merges': []}}, 'the vocabulary of the tokenizer is empty'),
    ({'post_processor': template(99)}, 'begins or ends with token 99, and the vocabulary has 3'),
    ({'post_processor': template(0, listed=False)}, 'not readable: PanicException'),
    ({'normalizer': JUNK}, 'not readable: PanicException'),
    ({'model': {'type': 'WordLevel', 'vocab': {'a': 0}, 'unk_token': 'u'}}, r'Missing \[UNK\]'),
  ],
)
def test_tokenizer_json_that_cannot_encode(tmp_path, changes, said):
  for change in ({}, changes):
    raw = {'version': '1.0', 'added_tokens': [], 'model': BPE, **change}
    text = json.dumps(raw).replace('prefix', '\\u0070refix')  # As JSON may spell it.
    (tmp_path / 'tokenizer.json').write_text(text)
    if not change:
      assert tokenizers.read(tmp_path, 'bert')[0].encode('ab').ids == [2]
  with pytest.raises(FewshotError, match=said):
    tokenizers.read(tmp_path, 'bert')


def test_a_prefix_that_merges_have(tmp_path):
  model = {'type': 'BPE', 'vocab': {'a': 0, '##b': 1, 'ab': 2}, 'merges': [['a', '##b']]}
  raw = {'added_tokens': [], 'model': model | {'continuing_subword_prefix': '##'}}
  (tmp_path / 'tokenizer.json').write_text(json.dumps({'version': '1.0', **raw}))
  assert tokenizers.read(tmp_path, 'bert')[0].encode('ab').ids == [2]


@pytest.mark.parametrize('count', [200_000_000, -1, 2.5, '9', True])
def test_absurd_numbers_of_sentinels(tmp_path, count):
  shutil.copy(FIXTURES / 't5' / 'spiece.model', tmp_path)
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'extra_ids': count}))
  with pytest.raises(FewshotError, match=r'extra_ids .* is no number of tokens'):
    tokenizers.read(tmp_path, 't5')


def test_numbers_without_end_in_a_sentencepiece_model(tmp_path):
  (tmp_path / 'spiece.model').write_bytes(b'\x08' + b'\xff' * 100_000 + b'\x01')
  with pytest.raises(FewshotError, match='the SentencePiece model is damaged'):
    tokenizers.read(tmp_path, 't5')


@pytest.mark.parametrize('piece', [sp.Piece('a' * 100_000, 0.0), sp.Piece('a', float('nan'))])
def test_pieces_that_are_none(piece):
  with pytest.raises(FewshotError, match='a piece is longer than 1000 or scores NaN'):
    sp.build([*vocabulary(list(WORDS)), piece], sp.Spec())


@pytest.mark.parametrize('name', ['tokenizer.json', 'vocab.txt', 'spiece.model'])
def test_tokenizers_that_are_no_files(tmp_path, name):
  (tmp_path / name).mkdir()
  with pytest.raises(FewshotError, match=f'{name} is no file but a folder, pipe or device'):
    tokenizers.read(tmp_path, 't5')
