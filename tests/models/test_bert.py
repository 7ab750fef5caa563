"""The naming contract of the BERT family, and what padding and dropout may not change."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot import methods
from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.models import bert, layers
from tests.parity import errors

SITES = (
  *(f'attn/{s}' for s in ('query', 'key', 'value', 'core', 'out')),
  *('attn', 'mlp', 'mlp/up', 'mlp/down', 'ln1', 'ln2'),
)
BLOCKS = {f'encoder/block_{i}/{site}' for i in range(2) for site in SITES}
CONTRACT = {'embed', 'inputs', 'encoder', 'head'} | BLOCKS
HF = json.loads((errors.FIXTURES / 'bert-tiny' / 'config.json').read_text())


@pytest.fixture(scope='module')
def jitted(tiny):
  return jax.jit(tiny.forward)


def visited(tiny, batch) -> dict[str, tuple]:
  """The arguments of every module call by path."""
  calls = {}

  def record(next_fn, args, kwargs, context):
    if context.method_name == '__call__':
      calls.setdefault('/'.join(context.module.path), []).append(args)
    return next_fn(*args, **kwargs)

  with nn.intercept_methods(record):
    tiny.forward(tiny.params, batch)
  assert all(len(c) == 1 for c in calls.values())  # A site is one call.
  return {path: c[0] for path, c in calls.items()}


def test_every_name_of_the_contract_is_seen_by_an_interceptor(tiny):
  assert set(visited(tiny, tiny.batch)) >= CONTRACT


def test_sites_take_what_methods_expect(tiny):
  calls, (b, t), c = visited(tiny, tiny.batch), tiny.batch['tokens'].shape, tiny.config
  x, mask, positions, *types = calls['inputs']
  assert x.shape == (b, t, c.dim) and mask.shape == positions.shape == types[0].shape == (b, t)
  np.testing.assert_array_equal(positions[0], np.arange(t))
  q, k, v, mask = calls['encoder/block_1/attn/core']
  assert q.shape == k.shape == v.shape == (b, t, c.heads, c.dim // c.heads)
  assert mask.shape == (b, t)
  assert calls['encoder/block_0/mlp/down'][0].shape == (b, t, c.width)


def test_params_are_at_the_paths_of_their_sites(tiny):
  with_params = {p.rsplit('/', 1)[0] for p in paths.flatten(tiny.params)}
  assert with_params <= set(visited(tiny, tiny.batch))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([1, 10]))
def test_padding_changes_nothing(tiny, jitted, seed, more):
  """Neither how much of it there is nor which tokens stand there."""
  rng = np.random.default_rng(seed)
  mask = np.arange(6) < rng.integers(1, 7, (3, 1))
  tokens = rng.integers(0, tiny.config.vocab, (3, 6))
  want = jitted(tiny.params, {'tokens': tokens, 'mask': mask})
  noise = rng.integers(0, tiny.config.vocab, (3, 6 + more))
  padded = {
    'tokens': np.where(
      np.pad(mask, ((0, 0), (0, more))), np.pad(tokens, ((0, 0), (0, more))), noise
    ),
    'mask': np.pad(mask, ((0, 0), (0, more))),
  }
  got = jitted(tiny.params, padded)
  for name in ('features', 'logits'):
    assert np.abs(got[name] - want[name]).max() <= 1e-5


def test_an_example_does_not_depend_on_its_batch(tiny, jitted):
  want = jitted(tiny.params, tiny.batch)['features']
  one = {k: v[2:3] for k, v in tiny.batch.items()}
  assert np.abs(jitted(tiny.params, one)['features'] - want[2:3]).max() <= 1e-5


@pytest.mark.parametrize('activation', bert.ACTIVATIONS)
def test_bfloat16_and_every_activation_stay_finite(tiny, activation):
  config = dataclasses.replace(tiny.config, activation=activation)
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tiny.params)
  features = bert.forward(config)(params, tiny.batch)['features']
  assert features.dtype == jnp.bfloat16 and np.isfinite(np.asarray(features, np.float32)).all()


def test_types_are_added_where_the_batch_has_them(tiny):
  base = tiny.forward(tiny.params, tiny.batch)['features']
  zeros = tiny.batch | {'types': np.zeros_like(tiny.batch['tokens'])}
  np.testing.assert_array_equal(tiny.forward(tiny.params, zeros)['features'], base)
  ones = tiny.batch | {'types': np.ones_like(tiny.batch['tokens'])}
  assert np.abs(tiny.forward(tiny.params, ones)['features'] - base).max() > 1e-2


def test_dropout_follows_the_key(tiny):
  forward = jax.jit(bert.forward(dataclasses.replace(tiny.config, dropout=0.3)))
  run = lambda key: np.asarray(forward(tiny.params, tiny.batch, key)['features'])  # noqa: E731
  a, b = run(jax.random.key(0)), run(jax.random.key(1))
  np.testing.assert_array_equal(a, run(jax.random.key(0)))
  assert np.abs(a - b).max() > 1e-2
  plain = np.asarray(tiny.forward(tiny.params, tiny.batch)['features'])
  assert np.abs(run(None) - plain).max() <= 1e-5
  assert np.abs(a - plain).max() > 1e-2


def test_a_dropout_of_zero_ignores_the_key(tiny):
  plain = tiny.forward(tiny.params, tiny.batch)['features']
  keyed = tiny.forward(tiny.params, tiny.batch, jax.random.key(0))['features']
  np.testing.assert_array_equal(plain, keyed)


def test_dropout_keeps_the_mean_and_drops_at_its_rate(tiny):
  class One(nn.Module):
    @nn.compact
    def __call__(self, x):
      return layers.drop(self, 0.25, x)

  y = np.asarray(One().apply({}, jnp.ones(40_000), rngs={'dropout': jax.random.key(0)}))
  assert set(np.unique(y)) == {0.0, np.float32(4 / 3)}
  assert abs((y == 0).mean() - 0.25) < 0.01


def test_an_input_longer_than_the_positions(tiny):
  n = tiny.config.positions
  ones = np.ones((1, n), np.int32)
  tiny.forward(tiny.params, {'tokens': ones, 'mask': ones > 0})
  ones = np.ones((1, n + 1), np.int32)
  with pytest.raises(FewshotError, match=r'65 tokens.*longer than the 64 positions.*cut the texts'):
    tiny.forward(tiny.params, {'tokens': ones, 'mask': ones > 0})


def test_a_prompt_counts_as_positions(tiny):
  method = methods.soft_prompt(length=10)
  theta, state = method.init(jax.random.key(0), tiny.forward, tiny.params, tiny.calib)
  adapted = methods.adapt(method, tiny.forward, theta, state)
  ones = np.ones((1, 54), np.int32)
  adapted(tiny.params, {'tokens': ones, 'mask': ones > 0})
  ones = np.ones((1, 55), np.int32)
  with pytest.raises(FewshotError, match=r'65 tokens .prompts counted. is longer than the 64'):
    adapted(tiny.params, {'tokens': ones, 'mask': ones > 0})


def test_a_batch_without_tokens(tiny):
  with pytest.raises(FewshotError, match='reads tokens and mask, and the batch has x'):
    tiny.forward(tiny.params, {'x': np.ones((1, 3))})


def test_logits_need_a_head(tiny):
  bare = {k: v for k, v in tiny.params.items() if k != 'head'}
  assert 'logits' not in tiny.forward(bare, tiny.batch)


@pytest.mark.parametrize(
  'architectures, lm',
  [
    (['BertForMaskedLM'], True),
    (['BertForPreTraining'], True),
    (['BertModel'], False),
    (['BertForSequenceClassification'], False),
    ([], False),
    (None, False),
  ],
)
def test_a_head_where_the_architecture_has_one(architectures, lm):
  assert bert.config_from_hf(HF | {'architectures': architectures}).lm == lm


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'is_decoder': True}, 'is_decoder or add_cross_attention is true; only encoders'),
    ({'add_cross_attention': True}, 'is_decoder or add_cross_attention is true; only encoders'),
    ({'position_embedding_type': 'relative_key'}, "'relative_key'; only absolute"),
    ({'hidden_act': 'mish'}, "hidden_act 'mish' is not known; known: gelu"),
    (
      {'architectures': ['BertForMaskedLM'], 'tie_word_embeddings': False},
      'tie_word_embeddings is false; only a head that reads `embed`',
    ),
  ],
)
def test_what_is_not_computed_is_refused(changes, message):
  with pytest.raises(FewshotError, match=message):
    bert.config_from_hf(HF | changes)


def test_a_pooling_that_is_not_known(tiny):
  with pytest.raises(FewshotError, match="pooling 'max' is not known; known: mean, cls"):
    dataclasses.replace(tiny.config, pooling='max')
