"""Prefixes: what attention reads first, against its definition in numpy and against the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import methods
from fewshot.errors import FewshotError
from fewshot.methods import prefixes
from fewshot.models.layers import Core
from tests.laws import laws
from tests.models import decoders

KEY, RNG = jax.random.key(0), np.random.default_rng(0)
B, Q, K, H, G, D, N = 2, 3, 5, 4, 2, 6, 3
q, k, v = (
  RNG.standard_normal((B, n, g, D)).astype(np.float32) for n, g in ((Q, H), (K, G), (K, G))
)
KEYS, VALUES = RNG.standard_normal((2, N, G, D)).astype(np.float32)
LONG = np.arange(K) < np.array([[5], [3]])


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def attention(q, k, v, seen, bias):
  """One row and head at a time, over the keys that are seen [B, Q, K]."""
  y = np.zeros(q.shape)
  for b, i, h in np.ndindex(*q.shape[:3]):
    at, g = seen[b, i], h // (q.shape[2] // k.shape[2])
    scores = k[b, at, g] @ q[b, i, h] / np.sqrt(q.shape[-1]) + bias[h, i, at]
    y[b, i, h] = softmax(scores) @ v[b, at, g]
  return y


def starts(method, model, batch=None):
  theta, state = method.init(KEY, model.forward, model.params, methods.Calib(batch or model.batch))
  return theta, state, methods.adapt(method, model.forward, theta, state)


@pytest.mark.parametrize('each', [False, True])
def test_keys_and_values_are_read_before_those_of_the_tokens(each):
  """With groups, a bias of the tokens alone, and a mask for all queries or each."""
  bias = RNG.standard_normal((H, Q, K)).astype(np.float32)
  seen = np.broadcast_to(LONG[:, None], (B, Q, K)) & (np.tri(Q, K, 2) > 0 if each else True)
  mask = seen[:, None] if each else LONG
  f = lambda q, *args: Core().apply({}, jnp.asarray(q), *args)  # noqa: E731
  own = np.array([[True, True, False]])  # What of the prefix is seen.
  got = prefixes._read({'keys': KEYS, 'values': VALUES}, own, f, q, k, v, mask, bias[None])
  first = lambda p, x: np.concatenate([np.broadcast_to(p, (B, *p.shape)), x], 1)  # noqa: E731
  seen = np.concatenate([np.broadcast_to(own, (B, Q, N)), seen], -1)
  bias = np.pad(bias, ((0, 0), (0, 0), (N, 0)))
  want = attention(q, first(KEYS, k), first(VALUES, v), seen, bias)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_mlp_makes_the_keys_and_values_of_all_cores(tiny):
  """The function is that of the direct form at tanh(E W_1 + b_1) W_2 + b_2."""
  method, direct = methods.prefix(length=N, width=5), methods.prefix(length=N)
  theta, state = method.init(KEY, tiny.forward, tiny.params, tiny.calib)
  shared, made = theta['*'], {'inputs': {}}
  hidden = np.tanh(shared['embedding'] @ shared['hidden'] + shared['hidden_bias'])
  for path in ('encoder/block_0/attn/core', 'encoder/block_1/attn/core'):
    out = np.asarray(theta[path]['out']).reshape(5, -1)  # PyTorch's columns: keys, then values.
    kv = (hidden @ out + np.asarray(theta[path]['out_bias']).reshape(-1)).reshape(N, 2, 4, 8)
    made[path] = {'keys': kv[:, 0], 'values': kv[:, 1]}
  got = methods.adapt(method, tiny.forward, theta, state)(tiny.params, tiny.batch)
  want = methods.adapt(direct, tiny.forward, made, {})(tiny.params, tiny.batch)
  np.testing.assert_allclose(got['features'], want['features'], atol=1e-5)


@pytest.mark.parametrize('name', ['gpt2', 'llama'])
@pytest.mark.parametrize('method', ['prefix(length=3)', 'llama_adapter(length=3)'])
def test_decoding_goes_on_from_a_cache(name, method, perturb):
  """Token after token gives what one pass over all of them does."""
  model, method = decoders.tiny(name), methods.parse(method)
  theta, state, _ = starts(method, model)
  adapted = methods.adapt(method, model.forward, perturb(theta), state)
  out = adapted(model.params, model.batch | {'room': np.zeros(2)})
  then = adapted(model.params, {'tokens': np.array([[4], [5], [6]]), 'cache': out['cache']})
  tokens = np.array([[*model.batch['tokens'][0], 4]])
  want = adapted(model.params, {'tokens': tokens, 'mask': np.ones((1, 7), bool)})
  got = then['token_logits'][:1, 0]
  np.testing.assert_allclose(got, want['token_logits'][:, -1], atol=1e-5)


def test_positions_begin_behind_the_prefix():
  """A prefix that no query sees shifts the positions, and changes nothing else."""
  model = decoders.tiny('gpt2')
  theta, _, _ = starts(methods.prefix(length=N), model)
  adapted = prefixes.prefixed(model.forward, theta, np.zeros((1, N), bool))
  table = model.params['inputs']['positions']['embedding']
  moved = {**model.params, 'inputs': {'positions': {'embedding': np.roll(table, -N, 0)}}}
  want = model.forward(moved, model.batch)['token_logits']
  np.testing.assert_allclose(adapted(model.params, model.batch)['token_logits'], want, atol=1e-5)
  with pytest.raises(
    FewshotError, match='a prefix of 20 and an input of 6 tokens do not fit the 24'
  ):
    starts(methods.prefix(length=20), model)[2](model.params, model.batch)


def test_a_gate_weighs_attention_to_the_prompt(perturb):
  """y = attention(q, k, v) + g attention(q, P W_k + b_k, P W_v + b_v), without the causal mask."""
  model, path = decoders.tiny('llama'), 'encoder/block_0/attn/core'
  method = methods.llama_adapter(length=N, where=path)
  theta, state, adapted = starts(method, model)
  np.testing.assert_array_equal(
    adapted(model.params, model.batch)['hidden'], model.forward(model.params, model.batch)['hidden']
  )
  theta = perturb(theta)
  own, prompt = model.params['encoder']['block_0']['attn'], theta[path]['prompt']
  heads = lambda n: (prompt @ own[n]['kernel'] + own[n]['bias']).reshape(1, N, 2, 6)  # noqa: E731

  def call(t, f, q, k, v, mask):
    everything = np.ones((len(q), q.shape[1], N), bool)
    many = lambda x: np.repeat(x, len(q), 0)  # noqa: E731
    extra = attention(q, many(heads('key')), many(heads('value')), everything, np.zeros((4, 6, N)))
    return f(q, k, v, mask) + theta[path]['gate'] * extra.astype(np.float32)

  by_hand = prefixes.at_cores(call).wrap(model.forward, {path: {}}, {})
  want = by_hand(model.params, model.batch)['hidden']
  got = methods.adapt(method, model.forward, theta, state)(model.params, model.batch)['hidden']
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_other_sites_are_refused(tiny):
  with pytest.raises(FewshotError, match=r'block_\*/mlp \(2\): no cores of attention'):
    methods.prefix(where='.*/mlp').init(KEY, tiny.forward, tiny.params, tiny.calib)
  with pytest.raises(FewshotError, match=r'prefix\(length=0\) is too small'):
    methods.prefix(length=0)


@pytest.mark.parametrize('name', ['t5-tiny', 'mpnet-mlm-tiny', 'clip-tiny', 'gemma3-tiny'])
def test_relative_biases_towers_and_windows(name):
  """T5 in both stacks but not in cross attention; no family has a case of its own."""
  on = laws.fixture(name)
  theta, state = methods.prefix(length=2).init(KEY, on.model.forward, on.model.params, on.calib)
  assert not [p for p in theta if 'cross' in p]
  assert any('decoder' in p for p in theta) == (name == 't5-tiny')
  got = methods.adapt(methods.prefix(length=2), on.model.forward, theta, state)
  want, got = (f(on.model.params, on.batch)['features'] for f in (on.model.forward, got))
  assert got.shape == want.shape and np.isfinite(got).all() and np.abs(got - want).max() > 1e-3
