"""The named models do what they were trained for: weights, tokenizer and computation agree.

`make test-assets` fetches what these tests read; a model that is not in the cache is skipped.
"""

import functools
import time

import jax
import numpy as np
import pytest

from fewshot import assets, models
from fewshot.embedding import embed
from fewshot.generation import continue_texts
from fewshot.methods import paths
from fewshot.models import tokenizers
from fewshot.models.weights import gguf

pytestmark = [pytest.mark.assets, pytest.mark.slow]
PACKAGED = [n for n in models.MODELS if assets.ASSETS[n].packages]
CATS = {281, 282, 283, 284, 285, 286, 287}  # ImageNet's classes of cats.


@functools.lru_cache(maxsize=1)
def load(name: str) -> models.Model:
  if not assets.present(name):
    pytest.skip(f'{name} is not in the cache; `fewshot assets get {name}` fetches it')
  return models.load(name)


@pytest.mark.parametrize('name', PACKAGED)
def test_the_table_counts_the_parameters_right(name):
  flat = paths.flatten(load(name).params)
  counted = {p: x for p, x in flat.items() if p.rpartition('/')[2] not in ('mean', 'var')}
  assert models.MODELS[name].params == sum(x.size for x in counted.values())


def likeliest(model: models.Model, text: str, count: int) -> list[str]:
  """The tokens after a text, the likeliest first."""
  ids = model.tokenizer.encode(text).ids
  batch = {'tokens': np.array([ids]), 'mask': np.ones((1, len(ids)), bool)}
  out = jax.jit(model.forward)(model.params, batch | {'slots': np.array([[len(ids) - 1]])})
  best = np.argsort(-np.asarray(out['token_logits'][0, 0]))[:count]
  return [model.tokenizer.decode([i]) for i in best]


def test_smollm2_knows_the_capital_of_france():
  assert continue_texts(load('smollm2-135m'), ['The capital of France is'], 1) == [' Paris']


@pytest.mark.parametrize('name', ['smollm2-135m', 'gemma3-270m'])
def test_a_sentence_is_told_from_its_words_in_disorder(name):
  model = load(name)
  sentence = 'The children walked to the old library and read books about the sea'
  words = sentence.split()
  mixed = ' '.join(np.random.default_rng(0).permutation(words))
  assert surprise(model, sentence) < 5 < surprise(model, mixed)


def surprise(model: models.Model, text: str) -> float:
  """The mean of -log p(token | tokens before)."""
  ids = np.array([model.tokenizer.encode(text).ids])
  out = model.forward(model.params, {'tokens': ids, 'mask': np.ones(ids.shape, bool)})
  logp = np.asarray(jax.nn.log_softmax(out['token_logits'], -1))[0, :-1]
  return float(-logp[np.arange(ids.size - 1), ids[0, 1:]].mean())


def test_tinystories_tells_a_story():
  model = load('tinystories-15m')
  (story,) = continue_texts(model, ['Once upon a time'], 40)
  assert story.startswith(', there was a little girl named Lily. She loved to play outside')


def test_gemma_knows_the_capital_of_france():
  assert 'Paris' in [
    t.strip() for t in likeliest(load('gemma3-270m'), 'The capital of France is', 5)
  ]


def test_a_vocabulary_of_262144_pieces_is_read_in_seconds():
  if not assets.present('gemma3-270m'):
    pytest.skip('gemma3-270m is not in the cache; `fewshot assets get gemma3-270m` fetches it')
  start = time.monotonic()
  meta, _ = gguf.read(assets.get('gemma3-270m') / 'gemma-3-270m-q4_k_m.gguf')
  tokenizer = tokenizers.from_gguf(meta)
  assert time.monotonic() - start < 10
  encoded = tokenizer.encode('  def f(x):\n\n    return "café 🙂"')
  assert tokenizer.decode(encoded.ids) == '  def f(x):\n\n    return "café 🙂"'
  assert encoded.tokens[:3] == ['<bos>', '▁▁', 'def'] and '\n\n' in encoded.tokens


def photographs() -> dict[str, np.ndarray]:
  """Four photographs as [224, 224, 3] bytes: the short side scaled to 256, the middle cut out."""
  from PIL import Image
  from skimage import data
  from sklearn.datasets import load_sample_image

  raw = {'china': load_sample_image('china.jpg'), 'cat': data.chelsea()}
  raw |= {'coffee': data.coffee(), 'rocket': data.rocket()}
  found = {}
  for name, pixels in raw.items():
    image = Image.fromarray(pixels)
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), 3)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    found[name] = np.asarray(image.crop((left, top, left + 224, top + 224)))
  return found


@pytest.mark.parametrize('name', ['vit-b16', 'efficientnet-lite0', 'mobilenet-v2'])
def test_photographs_are_named(name):
  """China is a palace (698), coffee an espresso (967), a rocket a missile or space shuttle."""
  model, images = load(name), photographs()
  out = jax.jit(model.forward)(model.params, {'image': np.stack(list(images.values()))})
  best = dict(zip(images, np.argsort(-np.asarray(out['logits']), -1), strict=True))
  assert best['china'][0] == 698 and best['coffee'][0] == 967 and best['cat'][0] in CATS
  assert {657, 744, 812} & set(best['rocket'][:3].tolist())


PAIRS = (
  ('A man is playing a guitar.', 'Someone plays the guitar.'),
  ('The cat sleeps on the sofa.', 'A kitten naps on the couch.'),
  ('Stock prices fell sharply today.', 'Shares dropped a lot this day.'),
)


@pytest.mark.parametrize('name', ['minilm-l6', 'mpnet-base'])
def test_sentences_of_one_meaning_are_close(name):
  e = embed(load(name), [text for pair in PAIRS for text in pair])
  cosines = e @ e.T - 2 * np.eye(6)
  assert cosines.argmax(1).tolist() == [1, 0, 3, 2, 5, 4]
  assert min(cosines[i, i + 1] for i in (0, 2, 4)) > 0.5 > 0.3 > cosines[::2, ::2].max()
