"""Models of a shape alone: their sizes are the published ones, and nothing is allocated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import models
from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.models import shapes
from fewshot.tasks.encode import tokenize

# As published, or as Transformers counts them (encoders without their poolers, running statistics
# of BatchNorm included).
PUBLISHED = {
  'llama-7b': 6_738_415_616,
  'llama-13b': 13_015_864_320,
  'llama-70b': 68_976_648_192,
  'llama-3-8b': 8_030_261_248,
  'llama-3-70b': 70_553_706_496,
  'gpt2-xl': 1_557_611_200,
  'vit-l16': 304_326_632,
  'resnet-50': 25_557_032 - 2_049_000 + 2 * 26_560,  # Less its classifier.
  'roberta-base': 124_695_897,
}
DEEP = ('llama-13b', 'llama-70b', 'llama-3-70b', 'gpt2-xl')  # As others, of more blocks to trace.
NAMED = {'bert-base': 'bert-base-uncased'} | {
  name: name for name in ('minilm-l6', 'roberta-large', 't5-base', 'gpt2', 'vit-b16')
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_sizes_are_the_published_ones(name):
  params = shapes.abstract(name).params
  assert sum(x.size for x in jax.tree.leaves(params)) == PUBLISHED[name]


@pytest.mark.parametrize('name', NAMED)
def test_sizes_are_those_of_the_models_of_that_name(name):
  params = shapes.abstract(name).params
  assert sum(x.size for x in jax.tree.leaves(params)) == models.MODELS[NAMED[name]].params


@pytest.mark.parametrize('name', [n for n in shapes.SHAPES if n not in DEEP])
def test_shapes_alone(name):
  model = shapes.abstract(name, jnp.bfloat16)
  leaves = jax.tree.leaves(model.params)
  assert all(type(x) is jax.ShapeDtypeStruct and x.dtype == jnp.bfloat16 for x in leaves)
  assert model.name == f'shape:{name}' and model.hashes['weights'] == 'abstract'
  outputs = jax.eval_shape(model.forward, model.params, model.example)
  assert outputs['features'].dtype == jnp.bfloat16
  if model.tokenizer:
    vocab = model.params['embed']['embedding'].shape[0]
    assert model.tokenizer.get_vocab_size(with_added_tokens=True) <= vocab


@pytest.mark.parametrize('name', ['tiny', 'tiny-gpt2', 'tiny-llama', 'tiny-vit'])
def test_random_weights_are_of_that_shape_and_compute(name):
  model, shape = shapes.random(name), shapes.abstract(name)
  same = jax.tree.map(
    lambda x, s: (x.shape, x.dtype) == (s.shape, s.dtype), model.params, shape.params
  )
  assert all(jax.tree.leaves(same))
  features = np.asarray(model.forward(model.params, model.example)['features'])
  assert np.isfinite(features).all() and features.std() > 0.1


def test_random_weights_are_those_of_their_key():
  first, again = shapes.random('tiny'), shapes.random('tiny')
  jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
  assert first.hashes == again.hashes and first.hashes['weights'].startswith('random-')
  other = shapes.random('tiny', jax.random.key(1))
  assert other.hashes['weights'] != first.hashes['weights']
  assert other.hashes['tokenizer'] == first.hashes['tokenizer']


def test_dtype_and_dropout_are_as_asked():
  model = shapes.random('tiny', dtype=jnp.bfloat16, dropout=0.5)
  assert {x.dtype for x in jax.tree.leaves(model.params)} == {jnp.dtype(jnp.bfloat16)}
  plain = model.forward(model.params, model.example)['features']
  dropped = model.forward(model.params, model.example, jax.random.key(0))['features']
  assert not np.array_equal(plain, dropped)


def test_every_byte_is_a_token():
  made = shapes.byte_level()
  text = 'A née 漢字, \t\n\U0001f600.'
  ids = made.encode(text).ids
  assert len(ids) == len(text.encode()) + 2 and ids[0] == 1 and ids[-1] == 2
  assert made.decode(ids) == text
  assert sorted(made.get_vocab().values()) == list(range(261))
  assert made.token_to_id('<pad>') == 0 and made.token_to_id('<mask>') == 4


def test_texts_are_encoded():
  batch, lengths = tokenize(shapes.byte_level(), ['a', 'bcd'], 16)
  assert lengths.tolist() == [3, 5]
  assert batch['tokens'][0, : batch['mask'][0].sum()].tolist()[::2] == [1, 2]


def test_unknown_shapes_are_refused():
  for make in (shapes.abstract, shapes.random):
    with pytest.raises(FewshotError, match="no shape 'lama-7b'; did you mean 'llama-7b'"):
      make('shape:lama-7b')


def test_stacks_have_the_names_that_methods_address():
  found = paths.flatten(shapes.abstract('llama-3-8b').params)
  assert found['encoder/block_31/attn/key/kernel'].shape == (4096, 1024)
  assert found['lm_head/kernel'].shape == (4096, 128_256)
