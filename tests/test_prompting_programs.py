"""Programs of prompts: what defines each, on tiny random models and a vocabulary by hand."""

import jax
import numpy as np
import pytest

from fewshot import (
  fits,
  methods,
  models,
  objectives,
  prepared,
  programs,
  stages,
  tasks,
)
from fewshot.config import default
from fewshot.engine import Options
from fewshot.errors import FewshotError
from fewshot.fits.base import Data, Loss
from fewshot.launch import groups, work
from fewshot.methods import paths
from fewshot.models import bert, gpt2
from fewshot.programs import pretraining, prompting, selftraining
from fewshot.tasks import prompts
from tests.tasks.test_templates import bert_like, gpt_like

BERT = bert.Config(vocab=16, dim=8, depth=1, heads=2, width=16, positions=32, types=1, lm=True)
GPT = gpt2.Config(vocab=300, dim=8, depth=1, heads=2, width=16, positions=64)
TWO = prompts.cloze(('{text} was {mask}', 'it {mask} so {text}'), 'terrible, great')
FIT = fits.sgd(steps=3, lr=0.01, batch=4)
PLAIN = Options(packing='off', prefix='off')  # Shortcuts take longer to try than they save.
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
    head = methods.parse(prompts.head(wording))
    calib = methods.Calib({k: v[0] for k, v in data['task'].train.items()}, 2)
    model = model._replace(forward=programs.worded(model.forward, head, model.params, calib))
  return model, data


@pytest.fixture(scope='module')
def place():
  return given()


def run(program, place, **kwargs) -> stages.Outcome:
  program = programs.parse(program) if isinstance(program, str) else program
  program = program if isinstance(program, stages.Program) else stages.program(program)
  return stages.run(program, *place, classes=2, options=PLAIN, **kwargs)


def view(data: tasks.Encoded, v: int):
  """One template's rows, as if the prompt had no other."""
  take = lambda b: {k: x[:, v :: data.views] for k, x in b.items()}  # noqa: E731
  return data._replace(train=take(data.train), dev=None, views=1)


def test_a_text_without_slots_is_read_without_words(place):
  model, data = place
  words = model.forward(model.params, {k: v[0] for k, v in data['task'].train.items()})
  plain = model.forward(model.params, {k: v[0] for k, v in data['plain'].train.items()})
  assert words['logits'].shape[-1] == 2 and 'logits' not in plain and 'features' in plain


def test_words_of_several_tokens_and_calibrated_ones_are_read_in_programs(place):
  _, data = place
  prompt = TWO._replace(score='likelihood')
  model, _ = given(prompt)
  batch = {k: v[0] for k, v in data['task'].train.items()}
  assert model.forward(model.params, batch)['word_logprobs'].shape == (len(batch['tokens']), 2, 1)

  bare = bert.forward(BERT)
  words = methods.verbalizer(((7,), (8,)))
  rows = tuple(map(tuple, batch['tokens'][:1, :4].tolist()))
  head = methods.chain(words, methods.calibrated(rows))
  calib = methods.Calib(batch, 2)
  found = programs.worded(bare, head, model.params, calib)(model.params, batch)['logits']
  free = {'tokens': np.array(rows), 'mask': np.ones((1, 4), bool), 'slots': np.array([[3]])}
  read = lambda b: bare(model.params, b)['token_logits'].mean(1)[:, [7, 8]]  # noqa: E731
  said = jax.nn.log_softmax(read(batch)) - jax.nn.log_softmax(read(free))
  np.testing.assert_allclose(found, said, rtol=1e-5, atol=1e-5)

  with pytest.raises(FewshotError, match='has arrays of its own'):
    programs.worded(bare, methods.soft_verbalizer(((7,), (8,))), model.params, calib)


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
  for lacking, keys in {
    'plain': 'config.prompt$',
    'unlabelled': 'config.unlabelled$',
    'plain_unlabelled': 'config.prompt and config.unlabelled$',
  }.items():
    rest = {k: v for k, v in data.items() if k != lacking}
    with pytest.raises(FewshotError, match=f'no data {lacking!r}; set {keys}'):
      run('pet()', (model, rest))


# Self-training.


def plain_loss(known: int = 1):
  """The loss of a linear classifier of x, and its start: p = (1/2, 1/2) everywhere."""
  forward = lambda params, batch, key=None: {'features': batch['x']}  # noqa: E731
  method = methods.linear()
  theta = {'head': {'kernel': np.zeros((2, 2), np.float32), 'bias': np.zeros(2, np.float32)}}
  return Loss(forward, method, {}, objectives.distillation()), theta


def soft(x, y):
  y = np.array(y, np.int32)
  targets = np.eye(2, dtype=np.float32)[y]
  return {'x': np.array(x, np.float32), 'labels': y, 'targets': targets}


def test_weights_by_hand_and_none_for_what_opposes_the_gradient():
  """<grad l_i, grad L> = <p - e_i, p - e> (x_i . x + 1) = (x_i . x + 1) / 2, < 0 where wrong."""
  loss, theta = plain_loss()
  batch = soft([[1, 0], [3, 0], [0, 1], [1, 0]], [0, 0, 0, 1])
  got = selftraining.agreement(loss, theta, {}, batch, soft([[1, 0]], [0]))
  np.testing.assert_allclose(got, np.array([1, 2, 0.5, 0]) / 3.5, atol=1e-6)
  none = selftraining.agreement(loss, theta, {}, soft([[1, 0]], [1]), soft([[1, 0]], [0]))
  np.testing.assert_array_equal(none, [0])


def test_a_wrong_label_does_not_train_a_weighted_student():
  loss, theta = plain_loss()
  fit = fits.sgd(steps=5, lr=0.1, batch=3, optimizer='sgd')
  pool, known = soft([[1, 0], [1, 0], [-1, 0]], [0, 1, 1]), soft([[1, 0], [-1, 0]], [0, 1])
  both = {k: np.concatenate([pool[k], known[k]]) for k in pool}
  key = jax.random.key(0)
  trained = lambda f, data: f(loss, theta, {}, Data(data), key)[0]['head']['kernel']  # noqa: E731
  weighted = trained(selftraining.taught(fit, 2, True, 0), both)
  right = {k: x[[0, 2]] for k, x in pool.items()}
  np.testing.assert_allclose(weighted, trained(fit, right), atol=1e-6)
  without = trained(selftraining.taught(fit, 2, False, 0), both)
  np.testing.assert_allclose(without, trained(fit, pool), atol=1e-6)
  assert np.abs(weighted - without).max() > 1e-2


def test_the_tail_trains_on_labelled_examples():
  loss, theta = plain_loss()
  fit = fits.sgd(steps=4, lr=0.1, batch=1, optimizer='sgd')
  pool, known = soft([[0, 1]], [0]), soft([[1, 0]], [0])
  both = {k: np.concatenate([pool[k], known[k]]) for k in pool}
  key = jax.random.key(0)
  at = lambda tail: selftraining.taught(fit, 1, False, tail)(loss, theta, {}, Data(both), key)[0]  # noqa: E731
  whole, ended = at(0)['head']['kernel'], at(2)['head']['kernel']
  assert not whole[0].any() and ended[0].any() and np.abs(ended[1]).max() < np.abs(whole[1]).max()


def test_self_training_ends_at_the_last_student(place):
  spelled = 'self_training(full(), sgd(steps=4, lr=0.01, batch=4), sgd(steps=6, lr=0.01, batch=8)'
  out = run(f'{spelled}, sessions=1, tail=2)', place)
  assert out.tested == 'task' and out.logits().shape == (TEST, 2)
  assert len(out.notes[0]['sessions']) == 2
  was, now = paths.flatten(place[0].params), paths.flatten(out.carried['params'])
  assert was.keys() == now.keys() and np.abs(was['lm_head/bias'] - now['lm_head/bias']).max() > 1e-3
  with pytest.raises(FewshotError, match='cannot be merged'):
    run('self_training(soft_prompt(2))', place)
  with pytest.raises(FewshotError, match=r'take sgd\(\.\.\.\)'):
    run('self_training(student=prototypes())', place)


# Prompt-based continued pre-training.


def test_words_are_written_into_the_slots(place):
  tok, data = bert_like(), place[1]['task']
  rows = {k: x[0] for k, x in data.train.items()}
  words = prompting.words_of(rows)[:, 0]
  assert [tok.id_to_token(i) for i in words] == ['terrible', 'great']
  got = pretraining.written(rows, words, tok, 'masks')
  for row, y, slot in zip(got['tokens'], rows['labels'], rows['slots'][:, 0], strict=True):
    assert tok.id_to_token(row[slot]) == ('terrible', 'great')[y]
  special = np.isin(rows['tokens'], [1, 2]) | ~rows['mask']  # [CLS], [SEP]
  np.testing.assert_array_equal(got['fixed'], special)
  assert (got['tokens'] != rows['tokens']).sum() == len(rows['labels'])


def test_masking_leaves_special_tokens_and_masks_the_share():
  seen = {}

  def forward(params, batch, key=None):
    seen.update(batch)
    return {'token_logits': jax.nn.one_hot(jax.numpy.zeros(batch['slots'].shape, int), 50) * 0}

  tokens = np.tile(np.arange(20), (200, 1))
  fixed = np.zeros((200, 20), bool)
  fixed[:, [0, 19]], fixed[1, 2:] = True, True
  batch = {'tokens': tokens, 'mask': ~fixed, 'fixed': fixed}
  out = pretraining.masked(forward, 49, 50, 0.25, 2)({}, batch, jax.random.key(1))
  changed = np.asarray(seen['tokens']) != tokens
  assert not changed[fixed].any() and changed[1].sum() <= 1
  assert changed[2:].sum(1).max() <= 4  # Of 18 tokens a quarter, rounded; of 20 5 places.
  became = np.asarray(seen['tokens'])[changed]
  assert (became == 49).mean() == pytest.approx(0.8 / 0.9, abs=0.06)
  np.testing.assert_allclose(out['lm_loss'], np.log(50), rtol=1e-5)
  again = pretraining.masked(forward, 49, 50, 0.25, 2)({}, batch, jax.random.key(2))
  assert again['lm_loss'].shape == (200,) and (np.asarray(seen['tokens']) != tokens).any()


def test_the_causal_loss_is_that_of_the_next_tokens():
  z = np.random.default_rng(0).normal(size=(1, 4, 5)).astype(np.float32)
  batch = {'tokens': np.array([[1, 3, 2, 0]]), 'mask': np.array([[True, True, True, False]])}
  out = pretraining.causal(lambda p, b, k=None: {'token_logits': z}, 2)({}, batch)
  logp = jax.nn.log_softmax(z[0])
  np.testing.assert_allclose(out['lm_loss'], [-(logp[0, 3] + logp[1, 2]) / 2], rtol=1e-5)


def test_continued_pretraining_lowers_the_masked_language_model_loss(place):
  model, data = place
  stage = pretraining.continued(fits.sgd(steps=30, lr=0.01, batch=12))
  out = run(stages.program(pretraining.label(), stage), place)
  y = out.carried['soft'].argmax(-1)
  assert out.notes[0]['labels'] == np.bincount(y, minlength=2).tolist()
  known = {k: x[0] for k, x in data['task'].train.items()}
  rows = pretraining.written(known, prompting.words_of(known)[:, 0], model.tokenizer, 'masks')
  lm = jax.jit(pretraining.masked(model.forward, 3, 16, 0.3, 2))
  loss = lambda p: float(lm(p, rows)['lm_loss'].mean())  # noqa: E731
  before, after = loss(model.params), loss(out.carried['params'])
  assert after < before - 0.1 and out.notes[1]['texts'] == 2 * (20 + 2 * K)


def test_pcp_of_a_causal_model_writes_the_word_behind_the_text():
  place = given(prompts.cloze('{text} is {mask}', 'bad, good'), gpt2, GPT, gpt_like, count=6)
  rows = {k: x[0] for k, x in place[1]['task'].train.items()}
  got = pretraining.written(rows, prompting.words_of(rows)[:, 0], gpt_like(), 'left')
  ends = got['mask'].sum(-1)
  np.testing.assert_array_equal(ends, rows['mask'].sum(-1) + 1)
  last = np.take_along_axis(got['tokens'], ends[:, None] - 1, 1)[:, 0]
  assert [gpt_like().id_to_token(i) for i in last] == [('Ġbad', 'Ġgood')[y] for y in rows['labels']]
  out = run('pcp(fit=sgd(steps=2), pretrain=sgd(steps=4, lr=0.01))', place)
  assert out.notes[4]['loss'][1] < out.notes[4]['loss'][0] and out.logits().shape == (TEST, 2)


def test_a_model_without_a_language_model_head_is_refused(place):
  bare = bert.Config(**{**vars(BERT), 'lm': False})
  params = bert.init(bare, jax.random.key(0))
  model = place[0]._replace(params=params, forward=bert.forward(bare))
  made = pretraining.continued(FIT)
  s = stages.Setting(model, place[1], 2)
  with pytest.raises(FewshotError, match=r'toy gives .*take a model with a language-model head'):
    made.run(s, {'params': params, 'soft': np.zeros((20, 2))}, 0)
  with pytest.raises(FewshotError, match='words of one token'):
    run(stages.program(pretraining.label(), made), unworded(place))


def unworded(place):
  """The same without answers: a prompt without words."""
  model, data = place
  train = {k: x for k, x in data['task'].train.items() if k != 'answer'}
  return model, data | {'task': data['task']._replace(train=train)}


# Configs.


def test_a_config_runs_a_program_of_prompts(place, tmp_path):
  toy = task()
  rows = [f'{text},{toy.classes[y]}' for text, y in zip(toy.inputs, toy.labels, strict=True)]
  (tmp_path / 'toy.csv').write_text('\n'.join(['text,label', *rows]))
  config = default().unlock()
  config.update(name='x', model='toy', task=str(tmp_path / 'toy.csv'), k=K, splits=(0,))
  config.update(unlabelled=8, max_length=24, prompt=methods.spell(TWO))
  config.program = 'pet(fit=sgd(steps=2), classifier_fit=sgd(steps=2))'
  bare = bert.forward(BERT)
  (p,) = prepared.prepare([config], load=lambda *a, **k: place[0]._replace(forward=bare))
  (record,) = work.execute(groups.group(p), tmp_path, None, lambda *a: None, {})
  assert record['method'] == config.program and record['status'] in ('ok', 'collapsed')
  assert [s['stage'] for s in record['stages']] == ['ensemble', 'distill']
  assert record['scores']['accuracy']['n'] == len(p.data.labels) == len(record['predictions'])
  (again,) = work.execute(groups.group(p), tmp_path, None, lambda *a: None, {})
  assert all(s['cached'] for s in again['stages'])
  assert again['predictions'] == record['predictions']


def test_a_class_of_which_nothing_is_asked_draws_nothing():
  rows, labels = prompting.drawn(np.array([[0.9, 0.1]]), [1, 0], np.random.default_rng(0))
  assert rows.tolist() == [0] and labels.tolist() == [0]
  rows, labels = prompting.drawn(np.array([[0.9, 0.1]]), [0, 0], np.random.default_rng(0))
  assert len(rows) == len(labels) == 0
