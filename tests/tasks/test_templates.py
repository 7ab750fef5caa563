"""Templates: what they refuse, where their slots are, what is cut, and label words as tokens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from fewshot.errors import FewshotError
from fewshot.tasks import templates

WORDS = ['it', 'was', 'a', 'great', 'film', 'terrible', 'plot', 'and', 'so', 'on', 'then']


def bert_like() -> Tokenizer:
  """Whole words in [CLS] ... [SEP], with a mask token."""
  special = ['[UNK]', '[CLS]', '[SEP]', '[MASK]', '.']
  vocab = {w: i for i, w in enumerate([*special, *WORDS])}
  made = Tokenizer(models.WordLevel(vocab, unk_token='[UNK]'))
  made.add_special_tokens(special[1:4])
  made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  made.post_processor = processors.BertProcessing(('[SEP]', 2), ('[CLS]', 1))
  return made


def gpt_like() -> Tokenizer:
  """Byte-level BPE that merges two words whole, each after a space."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  merges, tokens = [], [*alphabet]
  for word in ('Ġgood', 'Ġbad'):
    have = word[0]
    for c in word[1:]:
      merges.append((have, c))
      have += c
      if have not in tokens:
        tokens.append(have)
  made = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  return made


def words(tokenizer, row):
  return [tokenizer.id_to_token(int(i)) for i in row]


def test_a_masked_template_is_filled_and_its_slots_found():
  tok = bert_like()
  t = templates.parse('{text} . it was {mask} .', ['text'])
  examples = [{'text': 'a great film'}, {'text': 'terrible'}]
  rows, lengths, _ = templates.encode(tok, t, examples, 16, 'masks')
  assert t.fields == ('text',) and t.slots == 1
  shown = words(tok, rows['tokens'][0][: lengths[0]])
  assert shown == ['[CLS]', 'a', 'great', 'film', '.', 'it', 'was', '[MASK]', '.', '[SEP]']
  assert rows['slots'].tolist() == [[7], [5]]
  assert (rows['mask'].sum(1) == lengths).all()


def test_a_causal_template_ends_where_the_model_goes_on():
  tok = gpt_like()
  t = templates.parse('{text} it was {mask}', ['text'])
  rows, lengths, _ = templates.encode(tok, t, [{'text': 'so'}, {'text': 'and so on'}], 32, 'left')
  assert rows['slots'].ravel().tolist() == (lengths - 1).tolist()
  assert ''.join(words(tok, rows['tokens'][0][: lengths[0]])) == 'soĠitĠwas'
  for odd in ('{text} was {mask} it', '{mask} {text}', '{text} {mask} {mask}', '{text}'):
    with pytest.raises(FewshotError, match='is the end of the text'):
      templates.encode(tok, templates.parse(odd, ['text']), [{'text': 'so'}], 32, 'left')


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('{text', r'a single \{'),
    ('text}', r'a single \}'),
    ('{txt} was {mask}', "did you mean 'text'"),
    ('it was {mask}', r'write \{text\} too'),
  ],
)
def test_a_broken_template_is_one_line(text, said):
  with pytest.raises(FewshotError, match=said):
    templates.parse(text, ['text'])


def test_braces_of_an_example_and_of_a_template_are_text():
  t = templates.parse('{{{text}}} {mask}', ['text'])
  assert t.fill({'text': '{mask} {x}'}, '[MASK]') == '{{mask} {x}} [MASK]'


def test_mask_tokens_in_texts_are_refused():
  t = templates.parse('{text} {mask}', ['text'])
  with pytest.raises(
    FewshotError, match=r"has the mask token \[MASK\] in it.* take it out of 'a \[MASK\] \[MASK\]'"
  ):
    templates.encode(bert_like(), t, [{'text': 'a'}, {'text': 'a [MASK]'}], 9, 'masks')


@settings(max_examples=60, deadline=None)
@given(
  st.integers(0, 30), st.integers(0, 30), st.integers(9, 24), st.sampled_from([bert_like, gpt_like])
)
def test_what_is_too_long_is_cut_in_its_longest_field_alone(n, m, room, make):
  """The template's own words and its slot stay; no field is cut below the other's length."""
  tok, masked = make(), make is bert_like
  text = '{a} it {b} was {mask}' if masked else '{a}1{b}2{mask}'
  word = 'film ' if masked else 'f'
  t = templates.parse(text, ['a', 'b'])
  example = {'a': (word * n).strip(), 'b': (word * m).strip()}
  rows, lengths, _ = templates.encode(tok, t, [example], room, 'masks' if masked else 'left')
  own = 5 if masked else 2  # [CLS] it was [MASK] [SEP]
  assert lengths[0] == min(own + n + m, room)
  shown = words(tok, rows['tokens'][0][: lengths[0]])
  middle = shown.index('it' if masked else '1')
  kept_a = middle - masked
  kept_b = int(lengths[0]) - own - kept_a
  assert kept_a == n or kept_a >= kept_b or kept_a == kept_b - 1
  assert kept_b == m or kept_b >= kept_a or kept_b == kept_a - 1
  slot = rows['slots'][0, 0]
  assert shown[slot] == '[MASK]' if masked else slot == lengths[0] - 1


def test_a_template_longer_than_its_room_is_refused():
  t = templates.parse('{text} it was a film and so on {mask}', ['text'])
  with pytest.raises(FewshotError, match='alone is longer than max_length'):
    templates.encode(bert_like(), t, [{'text': 'a'}], 6, 'masks')


def test_slots_are_as_many_as_the_template_says():
  t = templates.parse('{text} {mask}{mask} .', ['text'])
  rows, *_ = templates.encode(bert_like(), t, [{'text': 'film'}], 12, 'masks')
  np.testing.assert_array_equal(rows['slots'], [[2, 3]])


def test_a_character_of_several_tokens_is_cut_whole():
  """Its tokens end together: to leave out one of them is to leave out the character."""
  t = templates.parse('{text} it {mask}', ['text'])
  rows, lengths, cut = templates.encode(gpt_like(), t, [{'text': '🤗' * 9}], 8, 'left')
  assert cut.all() and 3 <= lengths[0] <= 8
  shown = gpt_like().encode('🤗').ids
  assert rows['tokens'][0][: len(shown)].tolist() == shown
