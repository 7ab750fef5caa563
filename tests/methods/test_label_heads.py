"""Heads that read slots: the scores of words, and of learned label embeddings."""

import jax
import numpy as np
import pytest

from fewshot import methods, models, objectives
from fewshot.errors import FewshotError
from tests.parity import errors

KEY = jax.random.key(0)
WORDS = ((7,), (9, 12), (3, 4, 5))


@pytest.fixture(scope='module')
def masked() -> models.Model:
  """A tiny BERT with a masked-language-model head."""
  return models.load(str(errors.FIXTURES / 'bert-mlm-tiny'))


@pytest.fixture(scope='module')
def batch() -> dict[str, np.ndarray]:
  mask = np.arange(6) < np.array([6, 4, 3])[:, None]
  tokens = np.where(mask, np.arange(18).reshape(3, 6) + 5, 0).astype(np.int32)
  return {'tokens': tokens, 'mask': mask, 'labels': np.arange(3)}


def slots(*rows: tuple[int, ...]) -> dict[str, np.ndarray]:
  return {'slots': np.array(rows, np.int32)}


def logits(method, model, batch, change=lambda theta: theta):
  """The logits of a head on the model, from theta at its start, changed."""
  theta, state = method.init(KEY, model.forward, model.params, methods.Calib(batch, 3))
  return methods.adapt(method, model.forward, change(theta), state)(model.params, batch)['logits']


@pytest.mark.parametrize(
  ('join', 'over'),
  [('mean', np.mean), ('max', np.max), ('logsumexp', lambda x, axis: np.log(np.exp(x).sum(axis)))],
)
def test_a_verbalizer_scores_the_words_of_a_class_at_the_mask(masked, batch, join, over):
  where = slots((1,), (3,), (0,))
  token_logits = np.asarray(masked.forward(masked.params, batch)['token_logits'])  # [B, T, V]
  at = token_logits[np.arange(3), where['slots'][:, 0]]
  want = np.stack([over(at[:, list(w)], axis=-1) for w in WORDS], -1)
  got = logits(methods.verbalizer(WORDS, join), masked, batch | where)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_one_word_a_class_predicts_the_word_the_model_finds_likeliest(masked, batch):
  """The masked language model, restricted to the label words, is the classifier."""
  where = slots((1,), (3,), (0,))
  at = masked.forward(masked.params, batch | where)['token_logits'][:, 0]
  got = logits(methods.verbalizer(((7,), (9,), (3,))), masked, batch | where)
  restricted = jax.nn.softmax(at, -1)[:, np.array([7, 9, 3])]
  want = restricted / restricted.sum(-1, keepdims=True)
  np.testing.assert_allclose(jax.nn.softmax(got, -1), want, atol=1e-5)


def test_several_masks_are_averaged(masked, batch):
  where = slots((1, 2), (3, 1), (0, 2))
  verbalizer = methods.verbalizer(WORDS)
  each = [logits(verbalizer, masked, batch | slots(*where['slots'][:, i : i + 1])) for i in (0, 1)]
  np.testing.assert_allclose(logits(verbalizer, masked, batch | where), np.mean(each, 0), atol=1e-5)


@pytest.mark.parametrize('method', [methods.verbalizer(WORDS), methods.label_embeddings()])
def test_without_slots_a_decoder_is_read_at_the_last_token(batch, method):
  model = models.load(str(errors.FIXTURES / 'gpt2-tiny'))
  said = slots((5,), (3,), (2,))
  got, want = (logits(method, model, b) for b in (batch, batch | said))
  np.testing.assert_allclose(got, want, atol=1e-6)


SHARES = ((2.0,), (1.0, 3.0), (0.5, 0.0, 0.5))


@pytest.mark.parametrize('join', ['mean', 'logsumexp'])
def test_words_count_by_their_weights(masked, batch, join):
  where = slots((1,), (3,), (0,))
  z = np.asarray(masked.forward(masked.params, batch | where)['token_logits'])[:, 0]
  if join == 'mean':
    want = [z[:, 7], (z[:, 9] + 3 * z[:, 12]) / 4, (z[:, 3] + z[:, 5]) / 2]
  else:
    e = np.exp(z)
    sums = [2 * e[:, 7], e[:, 9] + 3 * e[:, 12], 0.5 * e[:, 3] + 0.5 * e[:, 5]]
    want = [np.log(x) for x in sums]
  got = logits(methods.verbalizer(WORDS, join, weights=SHARES), masked, batch | where)
  np.testing.assert_allclose(got, np.stack(want, -1), atol=1e-4)


@pytest.mark.parametrize('name', ['gpt2-tiny', 'llama-tiny', 'bert-mlm-tiny'])
def test_a_soft_verbalizer_starts_as_the_verbalizer_of_its_words(batch, name):
  """But for the words' biases, which only the head of a masked model has."""
  model = models.load(str(errors.FIXTURES / name))
  for where in (slots((1,), (3,), (0,)), slots((1, 2), (3, 1), (0, 2)), {}):
    full = batch | where
    bias = np.asarray(model.params['lm_head']['bias']) if 'bert' in name else np.zeros(100)
    want = np.asarray(logits(methods.verbalizer(WORDS), model, full))
    want = want - np.array([bias[list(w)].mean() for w in WORDS])
    got = logits(methods.soft_verbalizer(WORDS), model, full)
    np.testing.assert_allclose(got, want, atol=1e-4)
  moved = logits(
    methods.soft_verbalizer(WORDS), model, full, lambda t: jax.tree.map(lambda x: 2 * x, t)
  )
  np.testing.assert_allclose(moved, 2 * got, atol=1e-4)


def test_a_verbalizer_trains_nothing_and_its_model_can_be_tuned(masked, batch):
  """Prompt-based fine-tuning: the gradient of the word scores reaches the model."""
  method = methods.chain(methods.tune('.*/query/kernel'), methods.verbalizer(WORDS))
  full = batch | slots((1,), (3,), (0,))
  calib = methods.Calib(full, 3)
  theta, state = method.init(KEY, masked.forward, masked.params, calib)
  assert jax.tree.leaves(theta[1]) == [] and len(theta[0]) == 2

  def loss(theta):
    adapted = methods.adapt(method, masked.forward, theta, state)
    return objectives.classification().mean(adapted(masked.params, full), full)

  assert all(np.abs(g).max() > 1e-6 for g in jax.tree.leaves(jax.grad(loss)(theta)))


def test_label_embeddings_match_the_hidden_states_at_the_slots(masked, batch):
  where = slots((1, 2), (3, 1), (0, 2))
  labels = np.random.default_rng(0).standard_normal((3, 2, 32)).astype(np.float32)
  hidden = np.asarray(masked.forward(masked.params, batch)['hidden'])
  at = hidden[np.arange(3)[:, None], where['slots']]
  want = np.mean([at[:, m] @ labels[:, m].T for m in (0, 1)], 0)
  got = logits(
    methods.label_embeddings(2), masked, batch | where, lambda t: {'head': {'labels': labels}}
  )
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_label_embeddings_score_each_slot_for_hinge(masked, batch):
  full = batch | slots((1, 2), (3, 1), (0, 2))
  method = methods.label_embeddings(2)
  labels = np.random.default_rng(0).standard_normal((3, 2, 32)).astype(np.float32)
  adapted = methods.adapt(method, masked.forward, {'head': {'labels': labels}}, {})
  outputs = adapted(masked.params, full)
  z = np.stack([outputs['slot_hidden'][:, m] @ labels[:, m].T for m in (0, 1)], 1)
  np.testing.assert_allclose(outputs['slot_logits'], z, atol=1e-4)
  margins = np.maximum(0, 1 + z - z[np.arange(3), :, np.arange(3)][..., None])
  want = (margins.sum(-1) - 1).mean(1) / 3  # The right class is 1 away from itself.
  np.testing.assert_allclose(objectives.hinge().loss(outputs, full), want, rtol=1e-4)


def test_label_embeddings_start_nearly_at_zero_and_read_no_vocabulary(tiny):
  method = methods.label_embeddings(tokens=2)
  theta, _ = method.init(KEY, tiny.forward, tiny.params, tiny.calib)
  labels = np.asarray(theta['head']['labels'])
  assert labels.shape == (3, 2, 32) and 0.5e-4 < labels.std() < 2e-4
  assert 'token_logits' not in tiny.forward(tiny.params, tiny.batch)


def test_a_text_shorter_than_the_tokens_repeats_its_first(tiny):
  """Padding is never read."""
  method = methods.label_embeddings(tokens=4)
  short = {'tokens': np.array([[3, 4]]), 'mask': np.ones((1, 2), bool)}
  padded = {'tokens': np.array([[3, 4, 9, 9, 9]]), 'mask': np.arange(5)[None] < 2}
  theta, state = method.init(KEY, tiny.forward, tiny.params, tiny.calib)
  adapted = methods.adapt(method, tiny.forward, theta, state)
  got, want = (adapted(tiny.params, b)['logits'] for b in (padded, short))
  np.testing.assert_allclose(got, want, atol=1e-8)


def test_a_model_without_a_language_model_head_is_refused(tiny):
  said = r"reads outputs\['token_logits'\], which this forward lacks; it has features.*take a model"
  with pytest.raises(FewshotError, match=said):
    methods.verbalizer(WORDS).init(KEY, tiny.forward, tiny.params, tiny.calib)


@pytest.mark.parametrize(
  ('method', 'name', 'said'),
  [
    (
      methods.soft_verbalizer(((7,), (100,), (3,))),
      'gpt2-tiny',
      'there is no token 100; the model',
    ),
    (methods.soft_verbalizer(WORDS), 'bert-tiny', 'take a model with a language-model head'),
    (methods.label_embeddings(), 'vit-tiny', 'give the batch slots'),
    (methods.label_embeddings(), 'resnet-tiny', 'give the batch slots'),
    (methods.verbalizer(WORDS), 't5-tiny', 'give the batch slots'),
    (methods.verbalizer(((7,), (100,), (3,))), 'gpt2-tiny', 'there is no token 100; the model has'),
    (methods.verbalizer(((7,), (10,))), 'gpt2-tiny', 'a head of 2 classes cannot tell the 3'),
  ],
)
def test_what_a_model_lacks_is_refused(method, name, said):
  model = models.load(str(errors.FIXTURES / name))
  calib = methods.Calib(errors.read(name).batch, 3)
  with pytest.raises(FewshotError, match=said):
    method.init(KEY, model.forward, model.params, calib)


def test_slots_that_are_not_as_many_as_the_tokens_are_refused(masked, batch):
  with pytest.raises(FewshotError, match=r'tokens=3.*, but a text has 1 slots'):
    logits(methods.label_embeddings(3), masked, batch | slots((1,), (3,), (0,)))


@pytest.mark.parametrize(
  ('make', 'said'),
  [
    (lambda: methods.verbalizer(((7,),)), 'token ids of two classes or more'),
    (lambda: methods.verbalizer(((7,), ())), 'token ids of two classes or more'),
    (lambda: methods.verbalizer((7, 9)), 'token ids of two classes or more'),
    (lambda: methods.verbalizer((('good',), ('bad',))), 'takes token ids, as the tokenizer'),
    (lambda: methods.verbalizer(WORDS, 'sum'), 'there are mean, max, logsumexp'),
    (lambda: methods.verbalizer(WORDS, 'max', SHARES), 'has no weights; join by mean'),
    (lambda: methods.verbalizer(WORDS, weights=SHARES[:2]), 'has not one weight for each'),
    (lambda: methods.verbalizer(((7,), (9,)), weights=((1.0,), (-1.0,))), 'none is below 0'),
    (lambda: methods.verbalizer(((7,), (9,)), weights=((1.0,), (0.0,))), 'not all of a class 0'),
    (lambda: methods.soft_verbalizer(((7,),)), 'soft_verbalizer.* takes token ids of two'),
    (lambda: methods.label_embeddings(0), 'tokens is at least 1'),
  ],
)
def test_arguments_that_make_no_head_are_refused(make, said):
  with pytest.raises(FewshotError, match=said):
    make()
