"""What all causal models promise: names, padding, dtypes, slots, dropout, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fewshot import methods
from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.models import gpt2, llama
from tests.models.decoders import FAMILIES, GROUPS, Decoder, params, tiny

BLOCK = (
  *(f'attn/{s}' for s in ('query', 'key', 'value', 'core', 'out')),
  *('attn', 'mlp', 'mlp/up', 'mlp/down', 'ln1', 'ln2'),
)
CONTRACT = {'embed', 'inputs', 'encoder', 'encoder/ln'}
CONTRACT |= {f'encoder/block_{i}/{site}' for i in range(2) for site in BLOCK}


@pytest.fixture(params=FAMILIES)
def model(request) -> Decoder:
  return tiny(request.param)


def visited(model, batch) -> dict[str, tuple]:
  """The arguments of every module call by path."""
  calls = {}

  def record(next_fn, args, kwargs, context):
    if context.method_name == '__call__':
      calls.setdefault('/'.join(context.module.path), []).append(args)
    return next_fn(*args, **kwargs)

  with nn.intercept_methods(record):
    model.forward(model.params, batch)
  assert all(len(c) == 1 for c in calls.values())  # A site is one call.
  return {path: c[0] for path, c in calls.items()}


def test_every_name_of_the_contract_is_seen_by_an_interceptor(model):
  calls, (b, t) = visited(model, model.batch), model.batch['tokens'].shape
  extra = {'gpt2': {'inputs/positions'}, 'llama': {'lm_head'}, 'gemma': set()}[model.name]
  assert set(calls) >= CONTRACT | extra
  x, mask, positions = calls['inputs']
  assert x.shape == (b, t, model.config.dim) and mask.shape == positions.shape == (b, t)
  assert [a.shape for a in calls['encoder']] == [(b, t, model.config.dim), (b, t), (b, t)]
  q, k, v, mask = calls['encoder/block_1/attn/core']
  assert (q.shape[2], k.shape[2]) == (4, 4 if model.name == 'gpt2' else 2) and k.shape == v.shape
  assert mask.shape == (b, 1, t, t)


def test_params_are_at_the_paths_of_their_sites(model):
  with_params = {p.rsplit('/', 1)[0] for p in paths.flatten(model.params)}
  assert with_params <= set(visited(model, model.batch))


def test_outputs(model):
  out = model.forward(model.params, model.batch)
  hidden, last = np.asarray(out['hidden']), model.batch['mask'].sum(1) - 1
  np.testing.assert_array_equal(out['features'], hidden[np.arange(3), last])
  p = model.params
  matrix = p['lm_head']['kernel'] if model.name == 'llama' else p['embed']['embedding'].T
  np.testing.assert_allclose(out['token_logits'], hidden @ matrix, atol=1e-5)
  assert 'logits' not in out and 'cache' not in out
  slots = np.array([[0, 5], [2, 1], [0, 0]])
  some = model.forward(model.params, model.batch | {'slots': slots})['token_logits']
  want = np.take_along_axis(np.asarray(out['token_logits']), slots[..., None], 1)
  np.testing.assert_allclose(some, want, atol=1e-6)
  headed = model.params | {'head': {'kernel': np.ones((16, 3), np.float32), 'bias': np.ones(3)}}
  logits = model.forward(headed, model.batch)['logits']
  np.testing.assert_allclose(logits[:, 0], np.asarray(out['features']).sum(-1) + 1, atol=1e-5)


def test_padding_changes_nothing(model):
  """Neither how much of it there is nor which tokens stand there."""
  rng = np.random.default_rng(1)
  tokens, mask = model.batch['tokens'], model.batch['mask']
  longer = np.pad(mask, ((0, 0), (0, 3)))
  noise = rng.integers(0, 50, longer.shape)
  noise[:, :6] = np.where(mask, tokens, noise[:, :6])
  want = model.forward(model.params, model.batch)
  got = model.forward(model.params, {'tokens': noise, 'mask': longer})
  assert np.abs(got['features'] - want['features']).max() <= 1e-5
  assert np.abs(np.asarray(got['token_logits'])[:, :6] - want['token_logits'])[mask].max() <= 1e-5


def test_no_token_sees_a_later_one(model):
  tokens = model.batch['tokens'][:1]
  batch = {'tokens': tokens, 'mask': np.ones((1, 6), bool)}
  base = np.asarray(model.forward(model.params, batch)['hidden'])
  changed = model.forward(model.params, batch | {'tokens': np.where(np.arange(6) == 3, 7, tokens)})
  difference = np.abs(np.asarray(changed['hidden']) - base).max(-1)[0]
  assert (difference[:3] == 0).all() and (difference[3:] > 1e-4).all()


def test_dtypes(model):
  """bfloat16 params give bfloat16 outputs; float64 stays float64; nothing promotes in silence."""
  batch = {k: jnp.asarray(v) for k, v in model.batch.items()}
  half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), model.params)
  out = model.forward(half, batch)
  assert out['features'].dtype == out['token_logits'].dtype == jnp.bfloat16
  want = model.forward(model.params, batch)
  assert np.abs(np.asarray(out['hidden'], np.float32) - want['hidden']).max() < 0.3
  with jax.numpy_dtype_promotion('strict'):
    whole = jax.tree.map(jnp.asarray, model.params)
    begun = model.forward(whole, batch | {'room': jnp.zeros(1)})
    np.testing.assert_allclose(begun['features'], want['features'], atol=1e-5)
    model.forward(whole, {'tokens': jnp.ones((3, 1), jnp.int32), 'cache': begun['cache']})
  with jax.enable_x64(True):
    double = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), model.params)
    features = model.forward(double, batch)['features']
    assert features.dtype == jnp.float64
    np.testing.assert_allclose(features, want['features'], atol=1e-5)


def test_dropout_follows_the_key(model):
  forward = model.family.forward(dataclasses.replace(model.config, dropout=0.3))
  run = lambda key: np.asarray(forward(model.params, model.batch, key)['features'])  # noqa: E731
  a, b = run(jax.random.key(0)), run(jax.random.key(1))
  np.testing.assert_array_equal(a, run(jax.random.key(0)))
  assert np.abs(a - b).max() > 1e-2
  plain = np.asarray(model.forward(model.params, model.batch, jax.random.key(0))['features'])
  np.testing.assert_array_equal(run(None), plain)
  assert np.abs(a - plain).max() > 1e-2


def test_models_stacked_by_vmap(model):
  two = jax.tree.map(lambda x: np.stack([x, 1.1 * x]), model.params)
  stacked = jax.vmap(lambda p: model.forward(p, model.batch)['features'])(two)
  single = model.forward(jax.tree.map(lambda x: x[1], two), model.batch)['features']
  np.testing.assert_allclose(stacked[1], single, atol=1e-5)


def test_layernorm_tuning_reaches_every_norm(model):
  """Also those of queries and keys, and behind sublayers."""
  method = methods.layernorm()
  calib = methods.Calib(model.batch)
  theta, _ = method.init(jax.random.key(0), model.forward, model.params, calib)
  norms = {p for p in paths.flatten(model.params) if '/ln' in p}
  assert set(theta) == norms and len(norms) == {'gpt2': 10, 'llama': 5, 'gemma': 13}[model.name]


def test_inputs_that_are_too_long_or_not_there(model):
  ones = np.ones((1, 25), np.int32)
  with pytest.raises(FewshotError, match=r'25 tokens .prompts counted. is longer than the 24'):
    model.forward(model.params, {'tokens': ones, 'mask': ones > 0})
  with pytest.raises(FewshotError, match='reads tokens and mask, and the batch has x; give it'):
    model.forward(model.params, {'x': ones})
  with pytest.raises(FewshotError, match='reads tokens and mask, and the batch has tokens'):
    model.forward(model.params, {'tokens': ones})


def test_an_own_head_beside_the_embedding():
  config = dataclasses.replace(tiny('gpt2').config, tied=False)
  own = params(gpt2, config)
  batch = tiny('gpt2').batch
  out = gpt2.forward(config)(own, batch)
  want = np.asarray(out['hidden']) @ own['lm_head']['kernel']
  np.testing.assert_allclose(out['token_logits'], want, atol=1e-5)
  assert 'lm_head' not in params(llama, llama.Config(**GROUPS, tied=True))
