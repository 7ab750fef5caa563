"""Demonstrations behind a text: one a class, never the text itself, from the half that is alike."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewshot import tasks
from fewshot.errors import FewshotError
from fewshot.tasks import prompts
from fewshot.tasks.prompts import cloze
from fewshot.tasks.shown import Shots
from tests.tasks.test_prompts import causal, model, task

SHOTS = Shots([(f't{i}',) for i in range(8)], np.array([0, 1] * 4), seed=3)


@given(st.integers(0, 7), st.integers(1, 5))
def test_one_of_each_class_and_never_the_text_itself(i, sets):
  drawn = SHOTS.draw([SHOTS.texts[i], ('other',)], sets)
  assert drawn.shape == (2, sets, 2)
  np.testing.assert_array_equal(SHOTS.labels[drawn], np.broadcast_to([0, 1], (2, sets, 2)))
  assert i not in drawn[0]


def test_those_that_are_alike_are_drawn():
  likeness = lambda a, b: np.array([[int(x[1:]) for x in b]] * len(a))  # noqa: E731
  drawn = SHOTS._replace(likeness=likeness).draw([('other',)], 50)
  assert set(drawn[..., 0].ravel()) == {4, 6} and set(drawn[..., 1].ravel()) == {5, 7}


def test_an_example_alone_in_its_class_is_refused():
  with pytest.raises(FewshotError, match='take two train examples a class'):
    Shots([('a',), ('b',)], np.array([0, 1]), 0).draw([('a',)], 1)


def shown(prompt, made=None, seeds=(0,), **kwargs):
  made, toy = made or model(), task()
  wording = prompts.wording(prompt, made, toy.fields, toy.classes)
  splits = tasks.kshot(toy, 2, seeds)
  return tasks.encode(toy, splits, made.tokenizer, 48, wording=wording, **kwargs), toy, made


def test_a_text_is_followed_by_its_demonstrations_with_their_words():
  prompt = cloze('{text} . it was {mask} .', 'terrible, great', demonstrations=3)
  data, toy, made = shown(prompt)
  examples = data.train['example'][0].reshape(-1, 3)  # The views of one have one number.
  assert (examples == examples[:, :1]).all() and len(set(examples[:, 0])) == 4
  assert data.views == 3 and data.train['tokens'].shape[1] == 3 * 4
  split, tok = data.splits[0], made.tokenizer
  labels = {toy.inputs[i]: toy.labels[i] for i in split.train}
  for bucket in data.test:
    for row, mask in zip(
      np.concatenate(bucket.batches['tokens']), np.concatenate(bucket.batches['mask']), strict=True
    ):
      words = [tok.id_to_token(int(i)) for i in row[mask]]
      parts = ' '.join(words[1:-1]).split(' [SEP] ')
      assert len(parts) == 3 and '[MASK]' in parts[0]
      for part, label, word in zip(parts[1:], (0, 1), ('terrible', 'great'), strict=True):
        text, said = part.removesuffix(' .').split(' . it was ')
        assert said == word and labels[text] == label


def test_demonstrations_that_are_cut_are_counted():
  """Each has a third of max_length: 15 // 3 = 5 tokens, three its word, [CLS], [SEP]."""
  made = model()
  wording = prompts.wording(
    cloze('{text} {mask}', 'terrible, great', demonstrations=1), made, ('text',), ('bad', 'good')
  )
  texts = [('a film',), ('a plot',), ('so on',), ('it was a film',)]
  shots = Shots(texts, np.array([0, 0, 1, 1]), seed=0)
  filled = prompts.fill(wording, made.tokenizer, ['film'] * 8, 15, shots)
  said = [
    ' '.join(made.tokenizer.id_to_token(int(i)) for i in row) for row in filled.rows['tokens']
  ]
  long = np.array(['it was great' in s for s in said])  # 'it was a film' and its word are 7.
  assert 0 < long.sum() < 8 and (filled.lengths <= 15).all()
  np.testing.assert_array_equal(filled.cut, long)


def test_what_demonstrations_cannot_be_is_one_line():
  prompt = cloze('{text} {mask}', 'terrible, great', demonstrations=2)
  with pytest.raises(FewshotError, match='of one split, and there are 2'):
    shown(prompt, seeds=(0, 1))
  with pytest.raises(FewshotError, match='take the method demonstrations'):
    shown(cloze('{text} {mask}', 'bad, good', demonstrations=2), causal())
  with pytest.raises(FewshotError, match='examples with their label words'):
    cloze('{text}', demonstrations=2)
  with pytest.raises(FewshotError, match='similar chooses among them'):
    cloze('{text} {mask}', 'a, b', similar='minilm-l6')
  with pytest.raises(FewshotError, match='max_length=6 leaves 2 tokens for a demonstration'):
    toy, made = task(), model()
    wording = prompts.wording(prompt, made, toy.fields, toy.classes)
    tasks.encode(toy, tasks.kshot(toy, 2, [0]), made.tokenizer, 6, wording=wording)
  wording = prompts.wording(prompt, model(), ('text',), ('bad', 'good'))
  with pytest.raises(FewshotError, match='there are none at hand'):
    prompts.fill(wording, model().tokenizer, ['a'], 16)


def test_a_tokenizer_without_special_tokens_parts_by_spaces():
  made = model()
  made.tokenizer.post_processor = None
  data, *_ = shown(cloze('{text} {mask}', 'terrible, great', demonstrations=1), made)
  row = data.train['tokens'][0, 0][data.train['mask'][0, 0]]
  assert '[SEP]' not in [made.tokenizer.id_to_token(int(i)) for i in row]
