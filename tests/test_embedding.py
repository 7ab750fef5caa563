"""Sentence embeddings: in order, independent of their batch, in few compiled shapes."""

import jax
import numpy as np
import pytest
import tokenizers

from fewshot import models
from fewshot.embedding import embed
from fewshot.errors import FewshotError
from fewshot.models import bert

CONFIG = bert.Config(vocab=50, dim=16, depth=1, heads=2, width=32, positions=30, types=1, lm=True)
WORDS = [f'w{i}' for i in range(1, 50)]


@pytest.fixture(scope='module')
def model() -> models.Model:
  """A tiny BERT with a head that embeddings do not need, and a tokenizer of words."""
  params = bert.init(CONFIG, jax.random.key(0))
  made = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({'<unk>': 0, **{w: i for i, w in enumerate(WORDS, 1)}}, '<unk>')
  )
  made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  return models.Model('tiny', bert.forward(CONFIG), params, made, positions=CONFIG.positions)


def texts(n: int, longest: int = 29) -> list[str]:
  rng = np.random.default_rng(0)
  return [' '.join(rng.choice(WORDS, rng.integers(1, longest + 1))) for _ in range(n)]


def one(model: models.Model, text: str) -> np.ndarray:
  """The features of a text alone, by hand."""
  ids = np.array([model.tokenizer.encode(text).ids], np.int32)
  return np.asarray(model.forward(model.params, {'tokens': ids, 'mask': ids >= 0})['features'])[0]


@pytest.mark.parametrize('n, batch', [(1, 32), (7, 3), (20, 8)])
def test_each_row_is_the_text_alone(model, n, batch):
  some = texts(n)
  found = embed(model, some, batch, normalise=False)
  assert found.shape == (n, CONFIG.dim) and found.dtype == np.float32
  for row, text in zip(found, some, strict=True):
    np.testing.assert_allclose(row, one(model, text), atol=1e-5)


def test_normalised_rows_have_length_one_and_the_same_direction(model):
  plain, scaled = (embed(model, texts(5), normalise=n) for n in (False, True))
  lengths = np.linalg.norm(plain, axis=1, keepdims=True)
  assert np.abs(lengths - 1).max() > 0.1
  np.testing.assert_allclose(scaled, plain / lengths, atol=1e-6)


def test_few_shapes_are_compiled_and_little_is_padded(model):
  shapes = []

  def forward(params, batch):
    shapes.append(batch['tokens'].shape)  # Once a compilation.
    return model.forward(params, batch)

  some = [*texts(60, longest=4), ' '.join(WORDS[:28])]
  watched = model._replace(forward=forward)
  first = embed(watched, some, batch=16)
  assert shapes == [(15, 4), (1, 28)]
  np.testing.assert_array_equal(embed(watched, some, batch=16), first)
  assert len(shapes) == 2


def test_an_empty_text_has_an_embedding(model):
  assert np.isfinite(embed(model, ['', 'w1'])).all()


def test_longer_texts_are_cut(model):
  a, b = ' '.join(WORDS[:5]), ' '.join(WORDS[:3])
  np.testing.assert_allclose(*embed(model, [a, b], max_length=3), atol=1e-6)
  assert np.abs(np.subtract(*embed(model, [a, b]))).max() > 1e-3
  positions = ' '.join(WORDS[: CONFIG.positions])  # Which are no multiple of four.
  np.testing.assert_allclose(*embed(model, [positions, positions + ' w1 w2']), atol=1e-6)


@pytest.mark.parametrize(
  'given, message',
  [
    ('w1 w2', r'not one text; write embed\(model, \[text\]\)'),
    ([], 'the list is empty'),
    (['w1', 3], 'there is a int at 1'),
    (None, 'not one text'),
    ([b'w1'], 'there is a bytes at 0'),
    (['\ud800'], 'text 0 holds half a character'),
  ],
)
def test_what_is_no_list_of_texts(model, given, message):
  with pytest.raises(FewshotError, match=message):
    embed(model, given)


@pytest.mark.parametrize('value', [0, -1, 1.5, '3', None])
@pytest.mark.parametrize('name', ['batch', 'max_length'])
def test_numbers_of_nothing(model, name, value):
  with pytest.raises(FewshotError, match=f'{name}=.* is no whole number of at least 1'):
    embed(model, ['w1'], **{name: value})


def test_texts_may_come_one_by_one(model):
  np.testing.assert_array_equal(embed(model, (t for t in ('w1', 'w2'))), embed(model, ['w1', 'w2']))


def test_a_model_that_reads_no_text(model):
  with pytest.raises(FewshotError, match='tiny has no tokenizer'):
    embed(model._replace(tokenizer=None), ['w1'])


@pytest.mark.assets
def test_the_real_minilm_puts_like_sentences_together():
  try:
    minilm = models.load('minilm-l6')
  except FewshotError as e:
    pytest.skip(f'minilm-l6 cannot be had: {e}')
  some = ['A man is playing a guitar.', 'Someone plays the guitar.', 'The stock market fell today.']
  a, b, c = embed(minilm, some)
  assert a @ b > 0.6 > 0.2 > a @ c
