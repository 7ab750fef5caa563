"""Likelihoods of label words against one pass for each word, written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import methods, models, objectives
from fewshot.errors import FewshotError
from fewshot.methods import likelihoods
from fewshot.methods.examples import fingerprint
from tests.parity import errors

KEY = jax.random.key(0)
WORDS = ((7, 11), (9,), (3, 4, 5))


@pytest.fixture(scope='module', autouse=True)
def quick_compilation():
  """These programs compile for seconds and run for milliseconds."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@functools.cache
def load(name: str) -> models.Model:
  return models.load(str(errors.FIXTURES / name))


def batch() -> dict[str, np.ndarray]:
  mask = np.arange(6) < np.array([6, 4, 3])[:, None]
  tokens = np.where(mask, np.arange(18).reshape(3, 6) + 5, 0).astype(np.int32)
  return {'tokens': tokens, 'mask': mask, 'labels': np.arange(3, dtype=np.int32)}


def adapted(method, model, batch, change=lambda theta: theta):
  theta, state = method.init(KEY, model.forward, model.params, methods.Calib(batch, 3))
  return methods.adapt(method, model.forward, change(theta), state)


def run(method, model, batch, **kwargs):
  forward = adapted(method, model, batch, **kwargs)
  return jax.jit(lambda p, b: forward(p, b))(model.params, batch)


def by_hand(forward, params, batch, words=WORDS) -> jax.Array:
  """log p [B, C, A] of each token, a whole pass for each word behind its text, without a cache."""
  mask, longest = batch['mask'], max(map(len, words))
  n, lengths = len(mask), mask.sum(1)
  run, found = jax.jit(lambda p, b: forward(p, b)['token_logits']), []
  for word in words:
    ids = np.array((*word, *[0] * (longest - len(word))), np.int32)
    if 'decoder_tokens' in batch:
      start = np.zeros((n, 1), np.int32)
      rows = np.concatenate([start, np.tile(ids[:-1], (n, 1))], 1)
      fed, first = (
        {'tokens': batch['tokens'], 'mask': mask, 'decoder_tokens': rows},
        np.zeros(n, int),
      )
    else:
      tokens = np.pad(batch['tokens'], ((0, 0), (0, longest)))
      for row, length in zip(tokens, lengths, strict=True):
        row[length : length + len(word)] = word
      behind = np.arange(tokens.shape[1]) < (lengths + len(word))[:, None]
      fed, first = {'tokens': tokens, 'mask': behind}, lengths - 1
    logp = jax.nn.log_softmax(run(params, fed), -1)
    at = logp[np.arange(n)[:, None], first[:, None] + np.arange(longest), ids]
    found.append(at * (np.arange(longest) < len(word)))
  return jnp.stack(found, 1)


def check(outputs, want, normalised=True):
  np.testing.assert_allclose(outputs['word_logprobs'], want, atol=2e-4)
  lengths = np.array([len(w) for w in WORDS]) if normalised else 1
  np.testing.assert_allclose(outputs['logits'], want.sum(-1) / lengths, atol=3e-4)
  assert outputs['word_mask'].tolist() == [[i < len(w) for i in range(3)] for w in WORDS]
  assert 'cache' not in outputs


@pytest.mark.parametrize('name, normalised', [('gpt2-tiny', True), ('llama-tiny', False)])
def test_a_decoder_continues_its_text_with_each_word(name, normalised):
  model, method = load(name), methods.likelihood(WORDS, normalised=normalised)
  outputs = run(method, model, batch())
  check(outputs, by_hand(model.forward, model.params, batch()), normalised=normalised)


def test_the_slot_of_a_decoder_is_the_last_token():
  model, method = load('llama-tiny'), methods.likelihood(WORDS)
  said = batch() | {'slots': np.array([[5], [3], [2]], np.int32)}
  got, want = (run(method, model, b)['word_logprobs'] for b in (said, batch()))
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_an_encoder_decoder_writes_each_word():
  """Slots of the text are not places of the output, so they are not read."""
  model, text = load('t5-tiny'), batch()
  outputs = run(methods.likelihood(WORDS), model, text | {'slots': np.full((3, 1), 4)})
  check(outputs, by_hand(model.forward, model.params, text | {'decoder_tokens': None}))
  started = text | {'decoder_tokens': np.zeros((3, 1), np.int32)}
  same = run(methods.likelihood(WORDS), model, started)
  np.testing.assert_allclose(same['logits'], outputs['logits'], atol=1e-5)
  longer = started | {'decoder_tokens': np.array([[6, 1]] * 3, np.int32)}
  other = run(methods.likelihood(WORDS), model, longer)['logits']
  assert np.abs(other - outputs['logits']).max() > 1e-2  # It starts with 6 instead.


@pytest.mark.parametrize('name', ['bert-mlm-tiny', 'roberta-mlm-tiny'])
def test_a_masked_model_reads_each_token_at_its_slot(name):
  model, slots = load(name), np.array([[1, 2, 4], [3, 1, 0], [0, 2, 1]], np.int32)
  outputs = run(methods.likelihood(WORDS), model, batch() | {'slots': slots})
  logits = jax.jit(model.forward)(model.params, batch())['token_logits']
  logp = np.asarray(jax.nn.log_softmax(logits, -1))
  want = np.zeros((3, 3, 3))
  for c, word in enumerate(WORDS):
    for m, token in enumerate(word):
      want[:, c, m] = logp[np.arange(3), slots[:, m], token]
  check(outputs, want)


def test_without_slots_a_masked_model_is_read_at_the_last_tokens():
  said = batch() | {'slots': np.array([[3, 4, 5], [1, 2, 3], [0, 1, 2]], np.int32)}
  model, method = load('bert-mlm-tiny'), methods.likelihood(WORDS)
  got, want = (run(method, model, b)['word_logprobs'] for b in (batch(), said))
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize('name', ['gpt2-tiny', 'bert-mlm-tiny'])
def test_words_of_one_token_are_a_verbalizer_but_for_a_constant_of_each_row(name):
  words, where = ((7,), (9,), (3,)), batch() | {'slots': np.array([[5], [3], [2]], np.int32)}
  a, b = (
    np.asarray(run(head(words), load(name), where)['logits'])
    for head in (methods.likelihood, methods.verbalizer)
  )
  np.testing.assert_allclose(a - a[:, :1], b - b[:, :1], atol=1e-4)
  assert np.abs(a - b).max() > 1e-2


@pytest.mark.parametrize('name', ['llama-tiny', 't5-tiny'])
@pytest.mark.parametrize('spelling', ['lora(rank=2)', 'prefix(length=2)'])
def test_an_adapted_model_is_adapted_in_every_pass(name, spelling, perturb):
  """Against the adapted model without the head, one word at a time."""
  model, part = load(name), methods.parse(spelling)
  method, text = methods.chain(part, methods.likelihood(WORDS)), batch()
  outputs = run(method, model, text, change=lambda theta: perturb(theta, scale=0.1))
  theta, state = method.init(KEY, model.forward, model.params, methods.Calib(text, 3))
  alone = methods.adapt(part, model.forward, perturb(theta, scale=0.1)[0], state[0])
  fed = text | ({'decoder_tokens': None} if name == 't5-tiny' else {})
  check(outputs, by_hand(alone, model.params, fed))
  assert (
    np.abs(outputs['logits'] - run(methods.likelihood(WORDS), model, text)['logits']).max() > 1e-3
  )


def test_a_soft_prompt_is_in_the_cache(perturb):
  model, part = load('gpt2-tiny'), methods.soft_prompt(length=3)
  method, text = methods.chain(part, methods.likelihood(WORDS)), batch()
  outputs = run(method, model, text)
  theta, state = method.init(KEY, model.forward, model.params, methods.Calib(text, 3))
  alone = methods.adapt(part, model.forward, theta[0], state[0])
  check(outputs, by_hand(alone, model.params, text))


def test_the_gradient_through_the_cache_is_that_of_single_passes():
  """T-Few: its loss reaches (IA)^3 by every token of every word."""
  model, text = load('llama-tiny'), batch()
  method = methods.chain(methods.ia3(), methods.likelihood(WORDS))
  theta, state = method.init(KEY, model.forward, model.params, methods.Calib(text, 3))
  o = objectives.t_few()

  def cached(theta):
    forward = methods.adapt(method, model.forward, theta, state)
    return o.mean(forward(model.params, text), text)

  def single(theta):
    forward = methods.adapt(methods.ia3(), model.forward, theta[0], state[0])
    logp = by_hand(forward, model.params, text)
    mask = [[i < len(w) for i in range(3)] for w in WORDS]
    return o.mean({'word_logprobs': logp, 'word_mask': np.array(mask)}, text)

  (value, got), (same, want) = (jax.jit(jax.value_and_grad(f))(theta) for f in (cached, single))
  np.testing.assert_allclose(value, same, rtol=1e-4)
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(g, w, atol=1e-3)
  assert max(np.abs(g).max() for g in jax.tree.leaves(got)) > 1e-2


def test_in_training_a_context_hides_the_own_example_from_every_token_of_a_word():
  """Whatever stands in the prefix at the own example, nothing of it is read."""
  model, text = load('gpt2-tiny'), {k: x[:1] for k, x in batch().items()}
  method = methods.chain(methods.context_tuning(length=24, dropout=0.0), methods.likelihood(WORDS))
  theta, state = method.init(KEY, model.forward, model.params, methods.Calib(batch(), 3))
  run = jax.jit(lambda t, k: methods.adapt(method, model.forward, t, state)(model.params, text, k))
  own = state[0]['*']['owner'] == fingerprint(text)
  assert own.sum() == 6  # The tokens of text 0.
  moved = jax.tree.map(lambda x: x + own[:, None, None], theta[0]), theta[1]
  got, want = (run(t, KEY)['word_logprobs'] for t in (moved, theta))
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert np.abs(run(moved, None)['word_logprobs'] - want).max() > 1e-2


def test_the_text_is_read_once():
  """The passes of the stack: the text [B, T], then the longer words [2 B, 2], whatever C is."""
  seen = []
  model = load('gpt2-tiny')

  def forward(params, batch, key=None):
    seen.append(batch['tokens'].shape)
    return model.forward(params, batch, key)

  text, method = batch(), methods.likelihood(WORDS)
  theta, state = method.init(KEY, model.forward, model.params, methods.Calib(text, 3))
  methods.adapt(method, forward, theta, state)(model.params, text)
  assert seen == [(3, 6), (6, 2)]
  seen.clear()
  single = methods.likelihood(((7,), (9,), (3,)))
  assert 'cache' not in methods.adapt(single, forward, theta, state)(model.params, text)
  assert seen == [(3, 6)]


@pytest.mark.parametrize(
  ('name', 'slots', 'said'),
  [
    ('bert-mlm-tiny', 2, 'a word has 3 tokens, and a text has 2 slots; write as many masks'),
    ('gpt2-tiny', 2, 'the batch has 2 slots; end the template with its one mask'),
  ],
)
def test_slots_that_do_not_hold_the_words_are_refused(name, slots, said):
  where = {'slots': np.zeros((3, slots), np.int32)}
  with pytest.raises(FewshotError, match=said):
    run(methods.likelihood(WORDS), load(name), batch() | where)


@pytest.mark.parametrize(
  ('words', 'name', 'said'),
  [
    (WORDS, 'bert-tiny', "likelihood reads outputs.'token_logits'., which this forward lacks"),
    (((7,), (100,), (3,)), 'gpt2-tiny', 'there is no token 100; the model has 100'),
    (((7,), (9,)), 'gpt2-tiny', 'a head of 2 classes cannot tell the 3'),
    (((7,) * 36, (9,), (3,)), 'gpt2-tiny', 'an input of 6 tokens .* and 35 more to generate'),
  ],
)
def test_what_a_model_lacks_is_refused(words, name, said):
  with pytest.raises(FewshotError, match=said):
    run(methods.likelihood(words), load(name), batch())


@pytest.mark.parametrize('words', [((7,),), ((7,), ()), (7, 9), ((7,), (-1,)), (('a',), ('b',))])
def test_what_are_no_words_is_refused(words):
  with pytest.raises(FewshotError, match=r'likelihood.* takes token ids'):
    methods.likelihood(words)


def test_every_way_of_reading_has_a_name():
  assert set(likelihoods.READ) == {'masked', 'decoded', 'encoded'}
