"""Programs of prompts: what defines each, on tiny random models and a vocabulary by hand."""

import jax
import numpy as np
import pytest

from fewshot import fits, methods, models, objectives, programs, stages, tasks
from fewshot.errors import FewshotError
from fewshot.models import bert, gpt2
from fewshot.programs import prompting
from fewshot.tasks import prompts
from tests.tasks.test_templates import bert_like

BERT = bert.Config(vocab=16, dim=8, depth=1, heads=2, width=16, positions=32, types=1, lm=True)
GPT = gpt2.Config(vocab=300, dim=8, depth=1, heads=2, width=16, positions=64)
TWO = prompts.cloze(('{text} was {mask}', 'it {mask} so {text}'), 'terrible, great')
FIT = fits.sgd(steps=3, lr=0.01, batch=4)
K, TEST = 2, 6


def task() -> tasks.Task:
  """Texts of a plot that say which class they are."""
  rng = np.random.default_rng(0)
  word = np.array(['film', 'plot', 'a', 'and', 'so'])
  labels = np.arange(46) % 2
  said = np.array(['on', 'then'])[labels]
  texts = [
    ' '.join([*rng.choice(word, 4), w, *rng.choice(word, 1 + i % 3)]) for i, w in enumerate(said)
  ]
  return tasks.make('toy', texts, [('bad', 'good')[i] for i in labels], test=range(40, 46))


def given(prompt=TWO, family=bert, config=BERT, tokenizer=bert_like, count=20):
  """A model that reads the label words, and the data of one split by name."""
  tok, toy = tokenizer(), task()
  params = family.init(config, jax.random.key(0))
  model = models.Model('toy', family.forward(config), params, tok, example=family.example(config))
  wording = prompts.wording(prompt, model, toy.fields, toy.classes)
  split = tasks.kshot(toy, K, [0], dev_k=K)[0]
  rows = tasks.unlabelled(toy, split, count)
  other = split._replace(train=rows, dev=rows[:0], test=rows)
  hidden = toy.__class__(**{**vars(toy), 'labels': np.zeros_like(toy.labels)})
  encode = lambda t, s, w: tasks.encode(t, [s], tok, 24, wording=w)  # noqa: E731
  data = {
    'task': encode(toy, split, wording),
    'plain': encode(toy, split, None),
    'unlabelled': encode(hidden, other, wording),
    'plain_unlabelled': encode(hidden, other, None),
  }
  if prompt.words:
    head = methods.parse(prompts.head(wording, tok, toy, 24))
    model = model._replace(forward=programs.worded(model.forward, head))
  return model, data


@pytest.fixture(scope='module')
def place():
  return given()


def run(program, place, **kwargs) -> stages.Outcome:
  program = programs.parse(program) if isinstance(program, str) else program
  program = program if isinstance(program, stages.Program) else stages.program(program)
  return stages.run(program, *place, classes=2, **kwargs)


def view(data: tasks.Encoded, v: int):
  """One template's rows, as if the prompt had no other."""
  take = lambda b: {k: x[:, v :: data.views] for k, x in b.items()}  # noqa: E731
  return data._replace(train=take(data.train), dev=None, views=1)


def test_a_text_without_slots_is_read_without_words(place):
  model, data = place
  words = model.forward(model.params, {k: v[0] for k, v in data['task'].train.items()})
  plain = model.forward(model.params, {k: v[0] for k, v in data['plain'].train.items()})
  assert words['logits'].shape[-1] == 2 and 'logits' not in plain and 'features' in plain


def test_soft_labels_are_the_mean_of_one_model_a_template(place):
  """Against runs that see one template each."""
  model, data = place
  out = run(prompting.ensemble(methods.full(), FIT, weighting='uniform'), place)
  want = []
  for v in range(2):
    s = stages.Setting(model, data, 2)
    part = view(data['task'], v)
    split = part.splits[0]
    part = part._replace(splits=(split._replace(seed=split.seed + v),), test=data['plain'].test[:0])
    part = part._replace(test=view_test(data['task'], v))
    params = programs.steps.trained(
      s._replace(data={'task': part}), model.params, methods.full(), FIT, 'task', 0
    )[0]['params']
    rows = {k: x[0, v::2] for k, x in data['unlabelled'].train.items()}
    want.append(model.forward(params, rows)['logits'])
  np.testing.assert_allclose(out.carried['soft'], np.mean(want, 0), atol=1e-4)
  assert out.notes[0]['weights'] == [1, 1] and out.notes[0]['sizes'] == [2 * K]
  moved = np.abs(out.carried['soft'] - zero_shot(model, data)).max()
  assert moved > 1e-3  # The models trained.


def view_test(data, v):
  return tuple(
    b._replace(batches={k: x[:1, :1] for k, x in b.batches.items()}, rows=np.zeros(1, int))
    for b in data.test[:1]
  )


def zero_shot(model, data):
  rows = {k: x[0] for k, x in data['unlabelled'].train.items()}
  return np.asarray(model.forward(model.params, rows)['logits']).reshape(-1, 2, 2).mean(1)


@pytest.fixture(scope='module')
def distilled(place):
  return run(
    'pet(fit=sgd(steps=3, lr=0.01, batch=4), classifier_fit=sgd(steps=12, lr=0.01))', place
  )


def test_templates_are_weighed_by_their_accuracy_before_training(place, distilled):
  model, data = place
  out = distilled
  rows = {k: x[0] for k, x in data['task'].train.items()}
  right = np.asarray(model.forward(model.params, rows)['logits']).argmax(-1) == rows['labels']
  assert out.notes[0]['weights'] == [right[0::2].mean(), right[1::2].mean()]
  z = np.arange(8.0).reshape(2, 2, 2)
  np.testing.assert_allclose(prompting.averaged(z, np.array([1, 3])), z[0] * 0.25 + z[1] * 0.75)
  np.testing.assert_allclose(prompting.averaged(z, np.zeros(2)), z.mean(0))


def test_pet_distils_into_a_classifier_of_plain_texts(place, distilled):
  """By hand from the same soft labels: the classifier's loss falls, and it is what is tested."""
  (model, data), out = place, distilled
  assert out.tested == 'plain' and set(out.carried['params']) == {*model.params, 'head'}
  z = out.logits()
  assert z.shape == (TEST, 2)
  np.testing.assert_array_equal(z, out.logits('plain'))
  assert np.abs(z - out.logits('task')).max() > 1e-4
  q = prompting.softened(out.carried['soft'], 2.0)
  rows = {k: x[0] for k, x in data['plain_unlabelled'].train.items()}
  f = np.asarray(model.forward(out.carried['params'], rows)['logits']) / 2
  logp = f - np.log(np.exp(f).sum(-1, keepdims=True))
  assert -4 * (q * logp).sum(-1).mean() < 4 * np.log(2)  # A fresh head starts at log 2.
  assert out.notes[1]['loss'][0] == pytest.approx(4 * np.log(2), abs=1e-4)


def test_distillation_by_hand():
  z, q = np.array([[2.0, 0.0]]), np.array([[0.25, 0.75]])
  got = objectives.distillation(2.0).loss({'logits': z}, {'targets': q})
  want = -4 * (0.25 * np.log(np.e / (np.e + 1)) + 0.75 * np.log(1 / (np.e + 1)))
  np.testing.assert_allclose(got, [want], rtol=1e-5)
  with pytest.raises(FewshotError, match='no targets'):
    objectives.distillation().loss({'logits': z}, {'labels': [0]})


def test_train_sets_grow_by_the_factor_and_stay_balanced(place):
  _, data = place
  labelled = prompting.by_view(data['task'], data['task'].train)
  pool = prompting.by_view(data['unlabelled'], data['unlabelled'].train)
  z = np.random.default_rng(1).normal(size=(2, 20, 2))
  got = prompting.grown(labelled, pool, z, np.ones(2), 1.0, 2, np.random.default_rng(0))
  np.testing.assert_array_equal(
    got['tokens'][:, :4, : labelled['tokens'].shape[-1]], labelled['tokens']
  )
  for v in range(2):
    assert np.bincount(got['labels'][v]).tolist() == [6, 6]
    taught = z[1 - v].argmax(-1)  # Labelled by the other model.
    for row, y in zip(got['tokens'][v, 4:], got['labels'][v, 4:], strict=True):
      where = [
        i for i in range(20) if (pool['tokens'][v, i] == row[: pool['tokens'].shape[-1]]).all()
      ]
      assert where and (taught[where] == y).any()
    words = dict(zip(labelled['labels'][v], labelled['answer'][v, :, 0], strict=True))
    assert got['answer'][v, :, 0].tolist() == [words[y] for y in got['labels'][v]]


def test_the_likelier_are_drawn_and_the_few_repeat():
  p = np.array([[1 - 1e-9, 1e-9]] * 2 + [[0.4, 0.6]] * 3 + [[0.5 + 1e-9, 0.5 - 1e-9]] * 2)
  rng = np.random.default_rng(0)
  first = np.concatenate([prompting.drawn(p, [1, 0], rng)[0] for _ in range(300)])
  share = np.isin(first, [0, 1]).mean()
  assert share == pytest.approx(2 / 3, abs=0.1) and not np.isin(first, [2, 3, 4]).any()
  rows, y = prompting.drawn(p, [0, 6], rng)
  assert sorted(rows) == [2, 2, 3, 3, 4, 4] and y.tolist() == [1] * 6
  rows, _ = prompting.drawn(p[:2], [0, 1], rng)  # None is labelled so: the likeliest.
  assert rows.tolist() == [0]


def test_ipet_ends_as_pet_does(place):
  out = run(f'ipet({methods.spell(methods.full())}, {methods.spell(FIT)}, factor=3.0)', place)
  assert out.notes[0]['sizes'] == [4, 12, 36] and out.logits().shape == (TEST, 2)


@pytest.mark.parametrize(
  ('spelled', 'prompt', 'said'),
  [
    ('ipet()', prompts.cloze('{text} was {mask}', 'so, on'), 'more templates'),
    ('pet()', prompts.cloze('{text} was {mask}'), "take weighting='uniform'"),
    ('pet(classifier=mlp())', TWO, 'cannot be merged'),
    ("pet(weighting='best')", TWO, 'there are accuracy, uniform'),
    ('ipet(factor=1.0)', TWO, 'above 1'),
  ],
)
def test_a_mistake_is_one_line(spelled, prompt, said):
  with pytest.raises(FewshotError, match=said):
    run(spelled, given(prompt))


def test_data_that_is_tested_must_be_given(place):
  model, data = place
  rest = {k: v for k, v in data.items() if k != 'plain'}
  with pytest.raises(FewshotError, match="no data 'plain'"):
    run('pet()', (model, rest))
