"""Generation: the cached loop against the whole text at every step, beams against all sequences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors import safe_open

from fewshot import methods, models
from fewshot.errors import FewshotError
from fewshot.generation import continue_texts, generate
from fewshot.models import t5
from tests.models.decoders import FAMILIES, Decoder, greedy, tiny
from tests.parity.errors import FIXTURES, read

KEY = jax.random.key(0)
MARKOV = np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32) * 1.5
START = {'tokens': np.array([[2], [0]]), 'mask': np.ones((2, 1), bool)}


def markov(params, batch, key=None):
  """A model whose next token depends on the last alone; its cache holds where a row began."""
  logits = params[jnp.asarray(batch['tokens'])]
  if 'slots' in batch:
    logits = jnp.take_along_axis(logits, batch['slots'][..., None], 1)
  return {'token_logits': logits, 'cache': batch.get('cache', {'first': batch['tokens'][:, 0]})}


def run(forward, params, batch, new, **options):
  out = jax.jit(lambda p, b: generate(forward, p, b, new, **options))(params, batch)
  return jax.tree.map(np.asarray, out)


@pytest.mark.parametrize(
  'family, spelling',
  [
    *((family, 'soft_prompt(length=3)') for family in FAMILIES),
    ('gpt2', 'chain(soft_prompt(length=2), soft_prompt(length=1))'),
    ('llama', 'lora(rank=2)'),
    ('gemma', 'ia3()'),
    ('gpt2', 'adapter(width=4)'),
    ('llama', "chain(lora('.*/key', rank=2), soft_prompt(length=2), linear())"),
  ],
)
def test_adapted_models_generate_what_the_whole_text_says(perturb, family, spelling):
  model, method = tiny(family), methods.parse(spelling)
  calib = methods.Calib(model.batch, 3)
  theta, state = method.init(KEY, model.forward, model.params, calib)
  adapted = methods.adapt(method, model.forward, perturb(theta, scale=0.5), state)
  want = greedy(adapted, model.params, model.batch, 5)
  got = run(adapted, model.params, model.batch, 5)
  np.testing.assert_array_equal(got['tokens'], want)
  assert got['mask'].all() and (got['lengths'] == 5).all()
  assert (want != greedy(model.forward, model.params, model.batch, 5)).any()


def test_scores_are_log_probabilities_under_the_model():
  model = tiny('gpt2')
  got = run(model.forward, model.params, model.batch, 4)
  for i, length in enumerate((6, 3, 1)):
    tokens = np.concatenate([model.batch['tokens'][i, :length], got['tokens'][i]])[None]
    batch = {'tokens': tokens, 'mask': np.ones(tokens.shape, bool)}
    logits = model.forward(model.params, batch)['token_logits'][0]
    logp = jax.nn.log_softmax(logits)[length - 1 : -1]
    want = logp[np.arange(4), got['tokens'][i]].sum()
    np.testing.assert_allclose(got['scores'][i], want, atol=1e-4)


def test_rows_stop_where_they_end():
  model = tiny('gemma')
  free = run(model.forward, model.params, model.batch, 6)
  eos = int(free['tokens'][0, 2])
  got = run(model.forward, model.params, model.batch, 6, eos=eos)
  for tokens, row, mask, length in zip(
    free['tokens'], got['tokens'], got['mask'], got['lengths'], strict=True
  ):
    at = np.flatnonzero(tokens == eos)
    want = at[0] + 1 if at.size else 6
    assert length == want and mask.tolist() == [True] * want + [False] * (6 - want)
    np.testing.assert_array_equal(row, np.where(mask, tokens, 0))
  assert got['lengths'][0] < 6
  either = run(model.forward, model.params, model.batch, 6, eos=(eos, int(free['tokens'][1, 0])))
  assert either['lengths'][1] == 1 and either['lengths'][0] <= got['lengths'][0]


def test_one_token_needs_no_cache_and_eager_is_jitted():
  model = tiny('llama')
  want = greedy(model.forward, model.params, model.batch, 1)
  np.testing.assert_array_equal(
    generate(model.forward, model.params, model.batch, 1)['tokens'], want
  )


def test_theta_of_several_runs_by_vmap(perturb):
  model = tiny('gemma')
  method = methods.soft_prompt(length=2)
  theta, state = method.init(KEY, model.forward, model.params, methods.Calib(model.batch))
  each = [perturb(theta, seed=s) for s in (0, 1)]

  def tokens(theta):
    adapted = methods.adapt(method, model.forward, theta, state)
    return generate(adapted, model.params, model.batch, 3)['tokens']

  got = jax.jit(jax.vmap(tokens))(jax.tree.map(lambda *x: np.stack(x), *each))
  np.testing.assert_array_equal(got, [tokens(t) for t in each])


def drawn(rows=4000, **options) -> np.ndarray:
  """The shares of the first drawn token after token 2."""
  batch = {'tokens': np.full((rows, 1), 2), 'mask': np.ones((rows, 1), bool)}
  tokens = run(markov, MARKOV, batch, 2, key=KEY, **options)['tokens']
  return np.bincount(tokens[:, 0], minlength=4) / rows


def test_tokens_are_drawn_at_their_temperature():
  for t in (0.5, 1.0, 2.0):
    want = np.asarray(jax.nn.softmax(MARKOV[2] / t))
    assert np.abs(drawn(temperature=t) - want).max() < 0.03


def test_the_nucleus_is_the_fewest_tokens_of_this_probability():
  p = np.asarray(jax.nn.softmax(MARKOV[2]))
  order = np.argsort(-p)
  for size in (1, 2, 3):
    inside = order[:size]
    for top_p in (p[inside].sum() - 1e-3, p[inside[:-1]].sum() + 1e-3):
      want = np.where(np.isin(np.arange(4), inside), p, 0)
      shares = drawn(temperature=1.0, top_p=float(top_p))
      assert np.abs(shares - want / want.sum()).max() < 0.03
      assert (shares[order[size:]] == 0).all()


def test_draws_follow_the_key_and_the_step():
  batch = {'tokens': np.full((64, 1), 2), 'mask': np.ones((64, 1), bool)}
  a, b, c = (
    run(markov, 0 * MARKOV, batch, 5, key=jax.random.key(k), temperature=1.0)['tokens']
    for k in (0, 0, 1)
  )
  np.testing.assert_array_equal(a, b)
  assert (a != c).any() and (a[:, 0] != a[:, 1]).any()


def best(start: int, new: int, eos: int) -> tuple[list[int], float]:
  """The sequence of the best mean log-probability among all, and its sum."""
  logp = np.asarray(jax.nn.log_softmax(MARKOV))
  found = []
  for length in range(1, new + 1):
    for tokens in itertools.product(range(4), repeat=length):
      if eos in tokens[:-1] or (length < new and tokens[-1] != eos):
        continue
      total = sum(logp[a, b] for a, b in itertools.pairwise((start, *tokens)))
      found.append((total / length, total, list(tokens)))
  _, total, tokens = max(found)
  return tokens, total


@pytest.mark.parametrize('eos', range(4))
def test_wide_beams_find_the_best_of_all_sequences(eos):
  got = run(markov, MARKOV, START, 4, beams=64, eos=eos)
  for i, start in enumerate((2, 0)):
    tokens, total = best(start, 4, eos)
    assert got['tokens'][i, : got['lengths'][i]].tolist() == tokens
    assert got['mask'][i].sum() == len(tokens) and not got['tokens'][i, len(tokens) :].any()
    np.testing.assert_allclose(got['scores'][i], total, atol=1e-5)


def test_beams_of_transformers():
  """With rows of unequal length that end at different steps."""
  model, fixture = models.load(str(FIXTURES / 'gpt2-tiny')), read('gpt2-tiny')
  with safe_open(FIXTURES / 'gpt2-tiny/beams.safetensors', 'numpy') as file:
    want = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    eos, beams = int(file.metadata()['eos']), int(file.metadata()['beams'])
  assert len(set(want['lengths'])) == 3
  new = want['tokens'].shape[1]
  assert (want['tokens'] != fixture.arrays['generated'][:, -new:]).any(1).sum() > 1
  got = run(model.forward, model.params, fixture.batch, new, beams=beams, eos=eos)
  np.testing.assert_array_equal(got['tokens'], want['tokens'])
  np.testing.assert_array_equal(got['lengths'], want['lengths'])
  np.testing.assert_allclose(got['scores'], want['scores'], atol=1e-4)


def test_beams_of_an_encoder_decoder_do_not_depend_on_the_batch():
  model, fixture = models.load(str(FIXTURES / 't5-tiny')), read('t5-tiny')
  batch = {k: fixture.batch[k] for k in ('tokens', 'mask')}
  batch['decoder_tokens'] = np.zeros((4, 1), np.int32)
  one = {k: v[1:2] for k, v in batch.items()}
  beams = run(model.forward, model.params, batch, 4, beams=3)
  alone = run(model.forward, model.params, one, 4, beams=3)
  np.testing.assert_array_equal(beams['tokens'][1:2], alone['tokens'])


@pytest.mark.parametrize(
  'options, message',
  [
    ({'new': 0}, 'new=0 is no whole number of at least 1'),
    ({'beams': 0}, 'beams=0 is no whole number of at least 1'),
    ({'temperature': -1.0}, 'temperature=-1.0 is 0, or finite and at least 1e-06'),
    ({'top_p': 0.0}, 'top_p=0.0 is a probability, above 0 and at most 1'),
    ({'beams': 2, 'temperature': 1.0}, 'beams=2 search and temperature=1.0 draws; choose one'),
    ({'temperature': 1.0}, r'temperature=1.0 draws tokens; pass key=jax.random.key\(seed\)'),
    ({'key': jax.random.key(0)}, 'a key draws tokens, and temperature=0'),
    ({'key': 0, 'temperature': 1.0}, r'key=0 is no key; pass key=jax.random.key'),
    ({'new': 1.5}, 'new=1.5 is no whole number'),
    ({'new': True}, 'new=True is no whole number'),
    ({'beams': '2'}, "beams='2' is no whole number"),
    ({'temperature': float('nan')}, 'temperature=nan is 0, or finite and at least 1e-06'),
    ({'temperature': float('inf')}, 'temperature=inf is 0, or finite'),
    ({'temperature': 1e-40}, 'temperature=1e-40 is 0, or finite'),
    ({'temperature': '1'}, "temperature='1' is no number"),
    ({'top_p': float('nan')}, 'top_p=nan is a probability'),
    ({'top_p': None}, 'top_p=None is no number'),
    ({'key': jax.random.split(jax.random.key(0)), 'temperature': 1.0}, 'is no key; pass key'),
    ({'eos': 4}, 'eos=4 is no token, or tokens, of a vocabulary of 4'),
    ({'eos': [0, -1]}, r'eos=\[0, -1\] is no token'),
    ({'eos': 1.5}, 'eos=1.5 is no token'),
    ({'eos': 'a'}, "eos='a' is no token"),
    ({'top_p': 0.5}, 'top_p=0.5 is of drawn tokens; set a temperature'),
  ],
)
def test_options_that_contradict_each_other(options, message):
  with pytest.raises(FewshotError, match=message):
    generate(markov, MARKOV, START, **{'new': 2, **options})


def test_models_that_do_not_generate(tiny):
  with pytest.raises(FewshotError, match=r'does not generate: its outputs are features, .* load a'):
    generate(tiny.forward, tiny.params, tiny.batch, 2)
  with pytest.raises(FewshotError, match='continues tokens, and the batch has x'):
    generate(markov, MARKOV, {'x': np.ones((1, 2))}, 2)


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'tokens': np.zeros((0, 2), int)}, r'tokens is \[0, 2\]; give \[B, T\]'),
    ({'tokens': np.zeros((2, 0), int)}, r'tokens is \[2, 0\]; give \[B, T\]'),
    ({'tokens': np.array([1, 2])}, r'tokens is \[2\]; give \[B, T\]'),
    ({'tokens': np.ones((2, 1))}, 'tokens is float32; tokens are whole numbers'),
    ({'tokens': np.array([[1], [4]])}, 'tokens are from 1 to 4; the vocabulary has 4'),
    ({'tokens': np.array([[1], [-1]])}, 'tokens are from -1 to 1'),
    ({'mask': np.ones((2, 2))}, r'mask is \[2, 2\], and tokens \[2, 1\]'),
    ({'mask': np.array([[True], [False]])}, 'mask has holes, or an empty row; pad rows'),
    ({'decoder_tokens': np.zeros((3, 1), int)}, r'tokens is \[[23], 1\]; give \[B, T\] of one B'),
  ],
)
def test_batches_that_are_none(changes, said):
  with pytest.raises(FewshotError, match=said):
    generate(markov, jnp.asarray(MARKOV), START | changes, 2)


def test_more_ends_than_there_are_continuations():
  done = run(markov, MARKOV, START, 3, beams=3, eos=[0, 1, 2, 3, 3])
  np.testing.assert_array_equal(done['lengths'], [1, 1])
  best = np.asarray(MARKOV)[START['tokens'][:, 0]].argmax(-1)
  np.testing.assert_array_equal(done['tokens'][:, 0], best)


def word_model(model: Decoder, special: bool = False) -> models.Model:
  """The tiny model with a tokenizer of words w0, w1, ... that stand for tokens 0, 1, ..."""
  vocab = {f'w{i}': i for i in range(49)} | {'<s>': 49}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token='w0'))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  if special:
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
      single='<s> $A', special_tokens=[('<s>', 49)]
    )
  tokenizer.add_special_tokens(['<s>'])
  return models.Model(
    'tiny', model.forward, model.params, tokenizer, positions=model.config.positions
  )


TEXTS = ['w3 w4 w5', 'w6', 'w7 w8 w9 w10 w11 w12 w13 w14 w15', 'w16 w17', 'w18 w19 w20 w21 w22']


def words(model, text, new) -> list[int]:
  tokens = np.array([[int(w[1:]) for w in text.split()]])
  return greedy(model.forward, model.params, {'tokens': tokens, 'mask': tokens > 0}, new)[
    0
  ].tolist()


def test_texts_are_continued_in_their_order_whatever_the_batches():
  model = tiny('llama')
  got = continue_texts(word_model(model), TEXTS, 4, batch=2)
  want = [words(model, text, 4) for text in TEXTS]
  shown = [[f'w{t}' for t in row if t != 49] for row in want]  # Special tokens are not decoded.
  assert [text.split() for text in got] == shown
  assert got[0].startswith(' ')  # Texts and continuations join.
  assert continue_texts(word_model(model), [], 4) == []


def test_ends_and_beams_of_texts():
  model = tiny('llama')
  (text,) = continue_texts(word_model(model), TEXTS[:1], 5)
  end = text.split()[2]
  (cut,) = continue_texts(word_model(model), TEXTS[:1], 5, eos=end)
  assert cut.split() == text.split()[: text.split().index(end)]
  (several,) = continue_texts(word_model(model), TEXTS[:1], 5, eos=('w1', end), beams=3)
  assert end not in several.split()


def test_drawn_texts_follow_the_key():
  model = word_model(tiny('llama'))
  a, b, c = (
    continue_texts(model, TEXTS, 5, key=jax.random.key(k), temperature=2.0) for k in (0, 0, 1)
  )
  assert a == b != c


def test_an_adapted_model_continues_texts(perturb):
  model = tiny('gpt2')
  method = methods.soft_prompt(length=3)
  theta, state = method.init(KEY, model.forward, model.params, methods.Calib(model.batch))
  adapted = methods.adapt(method, model.forward, perturb(theta), state)
  (got,) = continue_texts(word_model(model)._replace(forward=adapted), TEXTS[:1], 3)
  want = words(model._replace(family=type('F', (), {'forward': lambda c: adapted})), TEXTS[0], 3)
  assert got.split() == [f'w{t}' for t in want if t != 49]


def test_texts_that_cannot_be_continued():
  model = word_model(tiny('gpt2'))
  with pytest.raises(FewshotError, match=r'takes a list of texts, not one text; write \[text\]'):
    continue_texts(model, 'w1', 2)
  for given, message in (
    (None, 'takes a list of texts'),
    ([None], 'there is a NoneType at 0'),
    (['w1', b'w2'], 'there is a bytes at 1'),
    ([('w1', 'w2')], 'there is a tuple at 0'),
    (['w1', 'w\ud800'], r'text 1 holds half a character \(a lone surrogate\)'),
  ):
    with pytest.raises(FewshotError, match=message):
      continue_texts(model, given, 2)
  for options, message in (
    ({'batch': -1}, 'batch=-1 is no whole number'),
    ({'batch': 1.5}, 'batch=1.5 is no whole number'),
    ({'new': 2.0}, 'new=2.0 is no whole number'),
    ({'eos': 5}, 'eos=5 is no token as the tokenizer spells it'),
    ({'key': 3, 'temperature': 1.0}, 'key=3 is no key'),
  ):
    with pytest.raises(FewshotError, match=message):
      continue_texts(model, ['w1', 'w2'], **{'new': 2, **options})
  with pytest.raises(FewshotError, match='tiny has no tokenizer; call generate'):
    continue_texts(model._replace(tokenizer=None), ['w1'], 2)
  with pytest.raises(
    FewshotError, match=r'text 2 has 9 tokens, and 16 new .* 24 positions of tiny'
  ):
    continue_texts(model, TEXTS, 16)
  assert len(continue_texts(model, TEXTS, 15)) == 5  # Though 9 tokens are padded to 12.
  with pytest.raises(FewshotError, match="has no token '</s>'; its special tokens are <s>"):
    continue_texts(model, TEXTS, 2, eos='</s>')
  with pytest.raises(FewshotError, match='text 1 is empty, so there is nothing to continue'):
    continue_texts(model, ['w1', ''], 2)
  assert len(continue_texts(word_model(tiny('gpt2'), special=True), ['w1', ''], 2)) == 2


def test_texts_of_an_encoder_decoder_begin_with_the_start_token():
  config = t5.Config(vocab=50, dim=8, depth=1, decoder_depth=1, heads=2, head_dim=4, width=16)
  params, forward = t5.init(config, KEY), t5.forward(config)
  tokenizer = word_model(tiny('gpt2')).tokenizer
  model = models.Model('t5', forward, params, tokenizer, example=t5.example(config))
  batch = {'tokens': np.array([[3, 4, 5]]), 'mask': np.ones((1, 3), bool)}
  want = generate(forward, params, batch | {'decoder_tokens': np.zeros((1, 1), int)}, 4)['tokens'][
    0
  ]
  (got,) = continue_texts(model, ['w3 w4 w5'], 4)
  assert got == tokenizer.decode(want.tolist())
