"""T5: its sites, its buckets of distances, its cache, and what padding may not change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fewshot import methods
from fewshot.errors import FewshotError
from fewshot.generation import generate
from fewshot.models import t5

CONFIG = t5.Config(
  vocab=40, dim=16, depth=2, decoder_depth=2, heads=4, head_dim=3, width=24, buckets=8, farthest=10
)
GATED = dataclasses.replace(CONFIG, gated=True, tied=False, activation='gelu_new')
HF = {
  'model_type': 't5',
  'vocab_size': 40,
  'd_model': 16,
  'd_kv': 3,
  'd_ff': 24,
  'num_layers': 2,
  'num_heads': 4,
}


def random_params(config: t5.Config) -> dict:
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: t5.init(config, jax.random.key(0)))
  draw = lambda x: (0.3 * rng.standard_normal(x.shape) + (x.ndim == 1)).astype(np.float32)  # noqa: E731
  return jax.tree.map(draw, shapes)


@pytest.fixture(scope='module')
def params() -> dict:
  return random_params(CONFIG)


@pytest.fixture(scope='module')
def batch() -> dict:
  rng = np.random.default_rng(1)
  return {
    'tokens': rng.integers(1, 40, (3, 6)).astype(np.int32),
    'mask': np.arange(6) < np.array([[6], [2], [4]]),
    'decoder_tokens': rng.integers(1, 40, (3, 5)).astype(np.int32),
    'decoder_mask': np.arange(5) < np.array([[3], [5], [1]]),
  }


@pytest.fixture(scope='module')
def jitted():
  return jax.jit(t5.forward(CONFIG))


@pytest.mark.parametrize('config', [CONFIG, GATED], ids=['t5', 'v1.1'])
def test_every_name_of_the_contract_is_called_once(config, batch):
  seen, params = [], random_params(config)

  def record(next_fn, args, kwargs, context):
    if context.method_name == '__call__':
      seen.append('/'.join(context.module.path))
    return next_fn(*args, **kwargs)

  with nn.intercept_methods(record):
    t5.forward(config)(params, batch)
  attention = ('query', 'key', 'value', 'core', 'out')
  mlp = {'up', 'down', 'gate'} if config.gated else {'up', 'down'}
  want = {'embed', 'inputs', 'encoder', 'encoder/ln', 'encoder/bias', 'decoder', 'decoder/ln'}
  want |= {'decoder/bias'} | (set() if config.tied else {'lm_head'})
  for stack, layers in (('encoder', ['attn']), ('decoder', ['attn', 'cross'])):
    for block in (f'{stack}/block_{i}' for i in range(2)):
      want |= {block, f'{block}/mlp', *(f'{block}/mlp/{m}' for m in mlp)}
      want |= {f'{block}/ln{i + 1}' for i in range(len(layers) + 1)}
      want |= {f'{block}/{a}' for a in layers} | {
        f'{block}/{a}/{s}' for a in layers for s in attention
      }
  assert sorted(s for s in seen if s) == sorted(want)


def test_outputs_have_the_shapes_of_the_contract(params, batch, jitted):
  out = jitted(params, batch)
  assert out['features'].shape == (3, 16) and out['hidden'].shape == (3, 6, 16)
  assert out['decoder_hidden'].shape == (3, 5, 16) and out['token_logits'].shape == (3, 5, 40)
  assert 'logits' not in out
  head = {'kernel': np.ones((16, 2), np.float32), 'bias': np.zeros(2, np.float32)}
  assert jitted(params | {'head': head}, batch)['logits'].shape == (3, 2)


def test_without_decoder_tokens_only_the_encoder_runs(params, batch, jitted):
  encoded = jitted(params, {k: batch[k] for k in ('tokens', 'mask')})
  assert encoded.keys() == {'features', 'hidden', 'mask'}
  np.testing.assert_allclose(encoded['features'], jitted(params, batch)['features'], atol=1e-5)


def test_token_logits_at_slots(params, batch, jitted):
  slots = np.array([[2, 0], [4, 1], [0, 0]])
  got = jitted(params, batch | {'slots': slots})['token_logits']
  want = np.asarray(jitted(params, batch)['token_logits'])
  np.testing.assert_allclose(got, want[np.arange(3)[:, None], slots], atol=1e-5)


@pytest.mark.parametrize('more', [0, 3])
def test_padding_changes_nothing(params, batch, jitted, more):
  rng, wide = np.random.default_rng(2), ((0, 0), (0, more))
  padded = {}
  for tokens, mask in (('tokens', 'mask'), ('decoder_tokens', 'decoder_mask')):
    padded[mask] = np.pad(batch[mask], wide)
    noise = rng.integers(0, 40, padded[mask].shape).astype(np.int32)
    padded[tokens] = np.where(padded[mask], np.pad(batch[tokens], wide), noise)
  want, got = jitted(params, batch), jitted(params, padded)
  assert np.abs(got['features'] - want['features']).max() <= 1e-5
  difference = np.abs(got['token_logits'][:, :5] - want['token_logits'])[batch['decoder_mask']]
  assert difference.max() <= 1e-5


def test_a_later_decoder_token_changes_no_earlier_logits(params, batch, jitted):
  changed = batch | {'decoder_tokens': batch['decoder_tokens'].copy()}
  changed['decoder_tokens'][1, 3] += 1
  difference = np.abs(
    jitted(params, changed)['token_logits'] - jitted(params, batch)['token_logits']
  )
  assert difference[1, :3].max() <= 1e-6 and difference[1, 3:].min(-1).max() >= 0
  assert difference[1, 3].max() > 1e-2


@pytest.mark.parametrize('config', [CONFIG, GATED], ids=['t5', 'v1.1'])
def test_decoding_step_by_step_is_decoding_at_once(config, batch):
  """Rows go on behind their own last tokens, whatever padding was read first."""
  forward, params = jax.jit(t5.forward(config)), random_params(config)
  more = np.random.default_rng(3).integers(1, 40, (3, 3)).astype(np.int32)
  lengths = batch['decoder_mask'].sum(1)
  whole = np.zeros((3, 8), np.int32)
  for row, n, old, new in zip(whole, lengths, batch['decoder_tokens'], more, strict=True):
    row[: n + 3] = [*old[:n], *new]
  mask = np.arange(8) < lengths[:, None] + 3
  want = forward(params, batch | {'decoder_tokens': whole, 'decoder_mask': mask})['token_logits']
  out = forward(params, batch | {'room': np.zeros(3)})
  for step, width in ((0, 1), (1, 2)):
    tokens = more[:, step : step + width]
    out = forward(params, {'decoder_tokens': tokens, 'cache': out['cache']})
    assert out.keys() == {'decoder_hidden', 'token_logits', 'cache'}
    at = (lengths + step)[:, None] + np.arange(width)
    expected = np.take_along_axis(np.asarray(want), at[..., None], 1)
    np.testing.assert_allclose(out['token_logits'], expected, atol=1e-4)


def test_a_step_does_not_run_the_encoder(params, batch):
  out, seen = t5.forward(CONFIG)(params, batch | {'room': np.zeros(1)}), set()

  def record(next_fn, args, kwargs, context):
    seen.add('/'.join(context.module.path))
    return next_fn(*args, **kwargs)

  with nn.intercept_methods(record):
    step = {'decoder_tokens': batch['decoder_tokens'][:, :1], 'cache': out['cache']}
    t5.forward(CONFIG)(params, step)
  assert 'decoder/block_0/cross/query' in seen
  assert not {
    s for s in seen if s.startswith('encoder') or s.endswith(('cross/key', 'cross/value'))
  }


@pytest.mark.parametrize('beams', [1, 2])
def test_generate_gives_a_row_what_it_gives_it_alone(params, batch, beams):
  run = lambda b: generate(t5.forward(CONFIG), params, b, 4, beams=beams)['tokens']  # noqa: E731
  start = {k: batch[k] for k in ('tokens', 'mask')} | {'decoder_tokens': np.zeros((3, 1), np.int32)}
  together = run(start)
  for i, n in enumerate(batch['mask'].sum(1)):
    alone = {k: v[i : i + 1, :n] for k, v in start.items()}
    np.testing.assert_array_equal(run(alone)[0], together[i])


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32', 'float64'])
def test_other_dtypes_stay_what_they_are(params, batch, dtype):
  """No silent promotion, forwards and backwards."""
  names = ('features', 'hidden', 'decoder_hidden', 'token_logits')
  # Flax's own norms promote to float32 at least, which strictness refuses for other dtypes.
  promotion = 'strict' if dtype == 'float32' else 'standard'
  with jax.enable_x64(dtype == 'float64'), jax.numpy_dtype_promotion(promotion):
    cast = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)

    def loss(params):
      out = t5.forward(CONFIG)(params, batch)
      return out['token_logits'].sum(), out

    gradient, out = jax.jit(jax.grad(loss, has_aux=True))(cast)
    assert {str(out[k].dtype) for k in names} == {dtype}
    assert {str(g.dtype) for g in jax.tree.leaves(gradient)} == {dtype}
    assert all(np.isfinite(np.asarray(out[k], np.float64)).all() for k in names)


def test_dropout_follows_the_key(params, batch):
  forward = jax.jit(t5.forward(dataclasses.replace(CONFIG, dropout=0.3)))
  run = lambda key: np.asarray(forward(params, batch, key)['token_logits'])  # noqa: E731
  a = run(jax.random.key(0))
  np.testing.assert_array_equal(a, run(jax.random.key(0)))
  assert np.abs(a - run(jax.random.key(1))).max() > 1e-2
  np.testing.assert_allclose(
    run(None), t5.forward(CONFIG)(params, batch)['token_logits'], atol=1e-4
  )


@pytest.mark.parametrize('kept', [False, True])
def test_the_decoder_attends_to_what_the_encoder_gives(params, batch, kept):
  """A prompt at `inputs` lengthens it; its outputs may be dropped at `encoder`, or stay."""
  sources = []

  def prompted(next_fn, args, kwargs, context):
    path = '/'.join(context.module.path)
    if path == 'inputs':
      x, mask, positions = (jnp.pad(a, [(0, 0), (2, 0)] + [(0, 0)] * (a.ndim - 2)) for a in args)
      args = x + 1, mask.at[:, :2].set(True), positions
    if path.endswith('cross'):
      sources.append((args[1].shape, args[2].shape))
    out = next_fn(*args, **kwargs)
    return out[:, 2:] if path == 'encoder' and not kept else out

  with nn.intercept_methods(prompted):
    out = t5.forward(CONFIG)(params, batch)
  t = 6 + 2 * kept
  assert sources == [((3, t), (3, t, 16))] * 2
  assert out['hidden'].shape == (3, 6, 16) and out['features'].shape == (3, 16)


def test_soft_prompts_and_lora_train(params, batch):
  calib = methods.Calib(batch, 2, None)
  for method in (methods.soft_prompt(length=2), methods.lora(rank=2)):
    theta, state = method.init(jax.random.key(0), t5.forward(CONFIG), params, calib)
    adapted = methods.adapt(method, t5.forward(CONFIG), theta, state)
    assert adapted(params, batch)['token_logits'].shape == (3, 5, 40)


def test_a_batch_that_lacks_something(params, batch):
  forward = t5.forward(CONFIG)
  with pytest.raises(FewshotError, match='reads tokens, mask, and the batch has x'):
    forward(params, {'x': 1})
  with pytest.raises(FewshotError, match='reads tokens, mask, decoder_tokens, and the batch has'):
    forward(params, {k: batch[k] for k in ('tokens', 'mask')} | {'room': np.zeros(2)})
  out = forward(params, batch | {'room': np.zeros(1)})
  with pytest.raises(FewshotError, match='reads decoder_tokens, and the batch has cache'):
    forward(params, {'cache': out['cache']})
  with pytest.raises(FewshotError, match=r'room .* or a cache .* not both'):
    forward(params, batch | {'room': np.zeros(1), 'cache': out['cache']})


def test_configs():
  config = t5.config_from_hf(HF | {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False})
  assert (config.activation, config.gated, config.tied) == ('gelu_new', True, False)
  assert config.decoder_depth == 2
  assert not t5.config_from_hf(HF | {'scale_decoder_outputs': False}).tied
  assert t5.config_from_hf(HF | {'num_decoder_layers': 5}).decoder_depth == 5
  start = t5.config_from_hf(HF | {'decoder_start_token_id': 7})
  assert t5.example(start)['decoder_tokens'].tolist() == [[7, 7]]


@pytest.mark.parametrize(
  'change, message',
  [
    ({'feed_forward_proj': 'gated-swish'}, "feed_forward_proj 'gated-swish' is not known"),
    ({'dense_act_fn': 'silu'}, "dense_act_fn 'silu' contradicts feed_forward_proj 'relu'"),
  ],
)
def test_configs_that_are_refused(change, message):
  with pytest.raises(FewshotError, match=message):
    t5.config_from_hf(HF | change)
