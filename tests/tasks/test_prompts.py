"""Prompts: label words as tokens, several templates as views, calibration, what is refused."""

import jax
import numpy as np
import pytest

from fewshot import methods, models, tasks
from fewshot.errors import FewshotError
from fewshot.models import bert, gpt2, t5
from fewshot.tasks import prompts
from fewshot.tasks.prompts import cloze
from tests.tasks.test_templates import bert_like, gpt_like

CLASSES = ('bad', 'good')
TEXTS = ['great film', 'terrible', 'a great plot and so on', 'a plot', 'so on', 'it was a film'] * 2
BERT = bert.Config(vocab=16, dim=8, depth=1, heads=2, width=16, positions=32, types=1, lm=True)


def model(family=bert, config=BERT, tokenizer=bert_like):
  params = family.init(config, jax.random.key(0))
  return models.Model(
    'toy', family.forward(config), params, tokenizer(), example=family.example(config)
  )


def causal():
  config = gpt2.Config(vocab=300, dim=8, depth=1, heads=2, width=16, positions=64)
  return model(gpt2, config, gpt_like)


def task(fields=('text',)):
  texts = TEXTS if len(fields) == 1 else [(t, 'and') for t in TEXTS]
  labels = ['bad', 'good'] * 6
  return tasks.make('toy', texts, labels, test=range(8, 12), fields=fields)


def encoded(prompt, fields=('text',), made=None, **kwargs):
  made, toy = made or model(), task(fields)
  wording = prompts.wording(prompt, made, toy.fields, toy.classes)
  splits = tasks.kshot(toy, 2, [0, 1])
  return tasks.encode(toy, splits, made.tokenizer, 16, wording=wording, **kwargs), wording


def test_label_words_are_tokens_and_train_rows_alone_have_answers():
  data, wording = encoded(cloze('{text} . it was {mask} .', 'terrible|so, great'))
  tok = bert_like().token_to_id
  assert wording.words == (((tok('terrible'),), (tok('so'),)), ((tok('great'),),))
  labels = data.train['labels']
  np.testing.assert_array_equal(data.train['answer'][..., 0], wording.answers[labels][..., 0])
  slots = np.take_along_axis(data.train['tokens'], data.train['slots'], -1)
  assert (slots == tok('[MASK]')).all()
  for bucket in data.test:
    assert 'answer' not in bucket.batches and 'slots' in bucket.batches


def test_each_template_is_a_view_and_a_test_item_is_their_mean():
  one, _ = encoded(cloze('{text} was {mask}', 'terrible, great'))
  two, wording = encoded(cloze(('{text} was {mask}', 'it {mask} so {text}'), 'terrible, great'))
  assert wording.views == two.views == 2 and len(two.labels) == len(one.labels)
  np.testing.assert_array_equal(two.train['labels'][:, ::2], one.train['labels'])
  width = one.train['tokens'].shape[-1]
  np.testing.assert_array_equal(two.train['tokens'][:, ::2, :width], one.train['tokens'])
  rows = np.concatenate([b.rows for b in two.test])
  assert sorted(rows[rows >= 0]) == list(range(2 * len(one.labels)))
  logits = np.arange(16.0).reshape(8, 2)
  np.testing.assert_array_equal(two.of_items(logits)[0], [1.0, 2.0])


def test_a_causal_model_reads_the_word_after_the_text():
  data, wording = encoded(cloze('{text} is {mask}', 'bad, good'), made=causal())
  assert wording.reads == 'left'
  last = data.train['mask'].sum(-1, keepdims=True) - 1
  np.testing.assert_array_equal(data.train['slots'], last)


def test_an_encoder_decoder_starts_its_answer():
  config = t5.Config(vocab=16, dim=8, depth=1, decoder_depth=1, heads=2, head_dim=4, width=16)
  data, wording = encoded(cloze('{text} it was {mask}', 'terrible, great'), made=model(t5, config))
  assert wording.reads == 'decoder'
  start = np.asarray(t5.example(config)['decoder_tokens'])[0, 0]
  assert (data.train['decoder_tokens'] == start).all() and not data.train['slots'].any()


def test_texts_of_several_fields_and_how_many_were_cut():
  data, _ = encoded(cloze('{a} {mask} {b} .', 'terrible, great'), ('a', 'b'))
  assert data.cut == 0
  toy, made = task(), model()
  splits = tasks.kshot(toy, 2, [0])
  wording = prompts.wording(cloze('{text} it was {mask} .', 'so, on'), made, ('text',), CLASSES)
  data = tasks.encode(toy, splits, made.tokenizer, 8, wording=wording)
  used = np.concatenate([splits[0].train, splits[0].test])
  assert data.cut == sum(len(toy.inputs[i].split()) > 2 for i in used) > 0
  plain = tasks.encode(toy, splits, made.tokenizer, 5)
  assert plain.cut == sum(len(toy.inputs[i].split()) > 3 for i in used) > 0


@pytest.mark.parametrize(
  ('prompt', 'said'),
  [
    (cloze('{text} {mask}', 'bad'), 'words for 1 classes, and the task has 2, .*bad, good'),
    (cloze('{text} it', 'so, on'), 'has no {mask} for its label words'),
    (
      cloze('{text} {mask}', 'so, wonderful'),
      r"'wonderful' is no word .* but \[UNK\]; take another",
    ),
    (cloze('{text} {mask}', 'so, great film'), r"'great film' is 2 tokens \(great, film\)"),
    (cloze('{text} {mask}', 'so, so'), "'so' and 'so' are the same token"),
    (cloze(('{text} {mask}', '{text} {mask}{mask}'), 'so, on'), r'not \[1, 2\]'),
    (cloze('{text} {mask}', 'so, [SEP]'), r"'\[SEP\]' is no word .* but \[SEP\]"),
    (cloze('{text} {mask}', 'so, [MASK]'), r'no word to this tokenizer but \[MASK\]'),
    (cloze('{text} {mask}', '  \u200b , so'), r'no word to this tokenizer but'),
    (cloze('{text} [MASK] {mask}', 'so, on'), r'has the mask token \[MASK\] in it; write {mask}'),
    (
      cloze('{text} {mask}', 'so, great film', score='likelihood'),
      r"'great film' is 2 tokens, and a template of this prompt has 1 {mask}; write as many",
    ),
  ],
)
def test_words_that_are_not_what_they_seem_are_one_line(prompt, said):
  with pytest.raises(FewshotError, match=said):
    prompts.wording(prompt, model(), ('text',), CLASSES)


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ("cloze('{text} {mask}', 'bad,')", 'an empty word'),
    ("cloze('{text} {mask}', 'a, b', score='best')", "score='best'"),
    ("cloze('{text} {mask}', score='likelihood')", 'there are none'),
    ("cloze('{text} {mask}', 'a|b, c', score='likelihood')", 'one word a class'),
    ("cloze('{text} {mask}', 'a, b', score='soft', join='max')", 'joins none'),
    ("cloze(('a', 'a'))", 'several that differ'),
    ("'{text}'", 'spells no prompt'),
    (
      '{text} It was {mask}.',
      r"spells no prompt; write cloze\('{text} It was {mask}.', 'bad, good'",
    ),
    ('cloze', 'spells no prompt; write cloze'),
    (3, 'spells no prompt; write cloze'),
    ("clause('{text}')", "unknown prompt 'clause'; known: cloze"),
  ],
)
def test_a_prompt_that_spells_nothing_is_one_line(text, said):
  with pytest.raises(FewshotError, match=said):
    prompts.parse(text)


def test_a_prompt_is_of_texts():
  toy = tasks.make('x', {'x': np.eye(8)}, [0, 1] * 4, test=[6, 7])
  wording = prompts.wording(cloze('{text} {mask}'), model(), ('text',), ('0', '1'))
  with pytest.raises(FewshotError, match='holds arrays; leave prompt empty'):
    tasks.encode(toy, tasks.kshot(toy, 1, [0]), wording=wording)


def test_the_head_reads_the_words():
  made, toy = model(), task()
  spelled = lambda p: prompts.head(prompts.wording(p, made, toy.fields, toy.classes))  # noqa: E731
  tok = bert_like().token_to_id
  ids = ((tok('so'),), (tok('on'), tok('it')))
  found = methods.parse(spelled(cloze('{text} {mask}', 'so, on|it', join='max')))
  assert methods.spell(found) == methods.spell(methods.verbalizer(ids, join='max'))
  soft = spelled(cloze('{text} {mask}', 'so, on|it', score='soft'))
  assert soft == methods.spell(methods.soft_verbalizer(ids))
  several = spelled(cloze('{text} {mask}{mask}', 'so on, great film', score='likelihood'))
  pairs = (tok('so'), tok('on')), (tok('great'), tok('film'))
  assert several == methods.spell(methods.likelihood(pairs))


def test_a_word_is_the_tokens_that_follow_its_template():
  """Behind a space it is another token than behind a line's end, and no two at once."""
  made = causal()
  words = lambda *t: prompts.wording(cloze(t, 'bad, good'), made, ('text',), CLASSES).words  # noqa: E731
  tok = made.tokenizer.token_to_id
  assert words('{text} it was {mask}') == words('{text}{mask}')
  assert words('{text} it was {mask}') == (((tok('Ġbad'),),), ((tok('Ġgood'),),))
  with pytest.raises(FewshotError, match=r"'bad' is 3 tokens \(b, a, d\)"):
    words('{text}\n{mask}')
  with pytest.raises(FewshotError, match=r'b, a, d and Ġbad; write a space before each {mask}'):
    words('{text}\n{mask}', '{text} {mask}')
  masked = prompts.wording(cloze('{text}({mask})', 'so, on'), model(), ('text',), CLASSES)
  assert masked.words == (((bert_like().token_to_id('so'),),), ((bert_like().token_to_id('on'),),))


def test_texts_without_content_are_in_the_template():
  made, toy = causal(), task()
  wording = prompts.wording(cloze('{text} is {mask}', 'bad, good'), made, toy.fields, toy.classes)
  found = {
    kind: prompts.free_of_content(wording, made.tokenizer, toy, 64, kind)
    for kind in prompts.CALIBRATIONS[1:]
  }
  assert found['contextual'] == tuple(
    tuple(made.tokenizer.encode(text).ids) for text in ('N/A is', ' is')
  )
  words = {w for text in TEXTS[:8] for w in text.split()}
  text = lambda ids: ''.join(map(made.tokenizer.id_to_token, ids)).replace('Ġ', ' ')  # noqa: E731
  shown = [text(ids).removesuffix(' is').split() for ids in found['domain']]
  assert len(shown) == prompts.DRAWN and {w for text in shown for w in text} <= words


def test_a_text_without_a_token_shows_one_position():
  made, toy = causal(), task()
  wording = prompts.wording(cloze('{text} {mask}', 'bad, good'), made, toy.fields, toy.classes)
  filled = prompts.fill(wording, made.tokenizer, ['', 'so on'], 16)
  assert (
    filled.lengths[0] == 1 and filled.rows['slots'][0] == 0 and filled.rows['mask'][0].sum() == 1
  )


def test_hashes_tell_templates_and_words_apart():
  base = cloze('{text} {mask}', 'so, on').hashes
  other = cloze('{text} {mask}', 'on, so').hashes
  assert base['template'] == other['template'] and base['words'] != other['words']
  assert cloze('{text} . {mask}', 'so, on').hashes['template'] != base['template']
  assert 'words' not in cloze('{text} {mask}').hashes


def test_an_unknown_number_of_fields_is_refused():
  wording = prompts.wording(cloze('{text} {mask}'), model(), ('text',), CLASSES)
  with pytest.raises(FewshotError, match='of 1 fields, text, and one has 2'):
    prompts.fill(wording, bert_like(), [('a', 'b')], 16)


def test_a_model_without_tokenizer_takes_no_prompt():
  bare = model()._replace(tokenizer=None)
  with pytest.raises(FewshotError, match='toy has no tokenizer'):
    prompts.wording(cloze('{text}'), bare, ('text',), CLASSES)
