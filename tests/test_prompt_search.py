"""Searching for prompts: the planted word is found, and what is chosen is chosen on dev alone."""

import jax
import numpy as np
import pytest
from tokenizers import decoders

from fewshot import fits, methods, models, sweep, tasks
from fewshot.engine import Options
from fewshot.errors import FewshotError
from fewshot.models import bert
from fewshot.programs import prompt_search
from fewshot.tasks import prompts
from tests.tasks.test_templates import bert_like, gpt_like

TEMPLATE = '{text} was {mask}'
PLAIN = Options(packing='off', prefix='off')
FIT = fits.sgd(steps=4, lr=0.02, batch=4)
SAID = ('on', 'then')  # What tells the classes apart.


def task() -> tasks.Task:
  rng = np.random.default_rng(0)
  labels = np.arange(40) % 2
  texts = [' '.join([*rng.choice(['plot', 'a', 'so'], 3), SAID[y]]) for y in labels]
  return tasks.make('toy', texts, [('bad', 'good')[y] for y in labels], test=range(30, 40))


def bag(**pulls) -> models.Model:
  """A model whose slot says the words that the text's tokens pull at: {from_to: logit}."""
  tok = bert_like()
  w = np.zeros((16, 16), np.float32)
  for name, z in pulls.items():
    a, b = name.split('_')
    w[tok.token_to_id(a), tok.token_to_id(b)] = z

  def forward(params, batch, key=None):
    shown = jax.nn.one_hot(batch['tokens'], 16) * batch['mask'][..., None]
    return {'features': shown.sum(1), 'token_logits': shown.sum(1, keepdims=True) @ params['w']}

  return models.Model('bag', forward, {'w': w}, tok)


PLANTED = bag(on_terrible=2, then_great=2, was_film=5)


def split(toy, dev_k=2):
  return tasks.kshot(toy, 3, [0], dev_k=dev_k)[0]


def test_the_planted_words_are_found_beside_one_that_all_classes_like():
  toy = task()
  seen = []
  found = prompt_search.label_words(
    PLANTED, toy, split(toy), TEMPLATE, candidates=2, top=3, progress=lambda *p: seen.append(p)
  )
  assert [w.words for w in found] == [
    ('terrible', 'great'),
    ('film', 'great'),
    ('terrible', 'film'),
  ]
  assert [w.train for w in found] == [1.0, 0.5, 0.5] and found[0].dev is None
  assert prompts.parse(found[0].prompt).words == (('terrible',), ('great',))
  z = np.zeros(16)  # Of a text with 'on': 2 for terrible, 5 for film.
  z[:2] = 2, 5
  assert found[0].likely == pytest.approx(2 * (2 - np.log(np.exp(z).sum())), abs=1e-4)
  assert ('zero-shot', 1.0) in seen and seen[-1] == ('assign', 1.0)


def test_words_are_those_behind_the_template():
  """Behind a line's end no token of a causal model is a whole word; behind a space two are."""
  tok = gpt_like()
  tok.decoder = decoders.ByteLevel()
  found = lambda text: [w for _, w in prompt_search._words(tok, 300, text)]  # noqa: E731
  assert {'good', 'bad'} <= set(found('a was '))
  assert all(len(w) == 1 for w in found('a:\n'))


def test_words_are_whole_and_differ():
  toy = task()
  found = prompt_search.label_words(PLANTED, toy, split(toy), TEMPLATE, top=1000)
  words = {w for row in found for w in row.words}
  assert words == {'it', 'was', 'a', 'great', 'film', 'terrible', 'plot', 'and', 'so', 'on', 'then'}
  assert all(len(set(row.words)) == 2 for row in found) and len(found) == 11 * 10
  assert [w.train for w in found] == sorted((w.train for w in found), reverse=True)


def test_the_best_by_accuracy_are_ranked_again_by_merit():
  toy = task()
  merits, seen = {'film, great': 0.9, 'terrible, great': 0.4}, []
  merit = lambda p: merits.get(', '.join(w for (w,) in prompts.parse(p).words), 0.0)  # noqa: E731
  found = prompt_search.label_words(
    PLANTED, toy, split(toy), TEMPLATE, candidates=2, top=2, merit=merit,
    progress=lambda *p: seen.append(p),
  )  # fmt: skip
  assert [(w.words[0], w.dev) for w in found] == [('film', 0.9), ('terrible', 0.4)]
  assert [p for p in seen if p[0] == 'tune'] == [('tune', 0.0), ('tune', 0.5), ('tune', 1.0)]


def test_merit_is_that_of_the_plain_sweep_and_no_test_item_is_looked_at():
  toy = task()
  config = bert.Config(vocab=16, dim=8, depth=1, heads=2, width=16, positions=32, types=1, lm=True)
  model = models.Model(
    'toy', bert.forward(config), bert.init(config, jax.random.key(0)), bert_like()
  )
  prompt = methods.spell(prompts.cloze(TEMPLATE, 'terrible, great'))
  rows = split(toy)
  blind = rows._replace(test=np.array([10**6]))  # There is no such row.
  got = prompt_search.tuned(model, toy, blind, methods.full(), FIT, options=PLAIN)(prompt)
  shown = prompts.wording(prompts.parse(prompt), model, toy.fields, toy.classes)
  data = tasks.encode(toy, [rows], model.tokenizer, 64, wording=shown)
  head = methods.parse(prompts.head(shown))
  method = methods.chain(methods.full(), head)
  (want,) = sweep.sweep(model, data, method, FIT, classes=2, options=PLAIN)
  assert got == want.dev['score']


def test_templates_are_ranked_by_dev():
  toy = task()
  given = ['{text} so {mask}', TEMPLATE, '{text} so {mask}']
  merit = lambda p: 0.8 if 'was' in p else 0.6  # noqa: E731
  words = 'terrible, great'
  found = prompt_search.rank_templates(PLANTED, toy, split(toy), given, words, merit=merit)
  assert [(t.template, t.dev) for t in found] == [(TEMPLATE, 0.8), ('{text} so {mask}', 0.6)]
  assert found[0].prompt == methods.spell(prompts.cloze(TEMPLATE, words=words))


@pytest.mark.parametrize(('dev_k', 'said'), [(0, 'has 0 dev and 6 train'), (9, '18 dev and 6')])
def test_a_dev_set_is_needed_and_no_larger_than_train(dev_k, said):
  toy = task()
  rows = split(toy)._replace(dev=np.arange(2 * dev_k))
  with pytest.raises(FewshotError, match=said):
    prompt_search.tuned(PLANTED, toy, rows)


def test_a_mistake_is_one_line():
  toy = task()
  with pytest.raises(FewshotError, match=r'read at a {mask} by a language model'):
    prompt_search.label_words(PLANTED, toy, split(toy), '{text} was')
  with pytest.raises(FewshotError, match='no templates to rank'):
    prompt_search.rank_templates(PLANTED, toy, split(toy), [], 'so, on')
  with pytest.raises(FewshotError, match=r'has no {mask}'):
    prompt_search.rank_templates(PLANTED, toy, split(toy), [TEMPLATE, '{text}'], 'so, on')
