"""Llama and its kin: rotary positions, windows, configs of both kinds of file."""

import dataclasses
import json
import math

import numpy as np
import pytest

from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.models import llama
from tests.models.decoders import params, tiny
from tests.parity.errors import FIXTURES

RAW = json.loads((FIXTURES / 'llama-tiny/config.json').read_text(encoding='utf-8'))
META = {
  'general.architecture': 'llama',
  'tokenizer.ggml.tokens': ['a'] * 50,
  'llama.block_count': 2,
  'llama.embedding_length': 16,
  'llama.feed_forward_length': 24,
  'llama.attention.head_count': 4,
  'llama.attention.head_count_kv': 2,
  'llama.attention.layer_norm_rms_epsilon': 1e-5,
  'llama.context_length': 64,
  'llama.rope.freq_base': 5e5,
  'llama.rope.dimension_count': 4,
}
QWEN2 = {k.replace('llama', 'qwen2'): v for k, v in META.items()} | {
  'general.architecture': 'qwen2'
}


def test_a_config():
  assert llama.config_from_hf(RAW) == llama.Config(
    vocab=100, dim=32, depth=2, heads=4, groups=2, head_dim=12, width=48, positions=40, base=500.0
  )  # fmt: skip


def test_a_config_of_older_files():
  """rope_theta beside rope_scaling, no groups, no head_dim."""
  drop = ('rope_parameters', 'num_key_value_heads', 'head_dim')
  old = {k: v for k, v in RAW.items() if k not in drop}
  config = llama.config_from_hf(old | {'rope_theta': 7.0, 'rope_scaling': None})
  assert (config.groups, config.head_dim, config.base) == (4, 8, 7.0)
  config = llama.config_from_hf(old | {'rope_scaling': {'type': 'linear', 'factor': 4}})
  assert (config.base, config.factor, config.stretch) == (1e4, 4.0, None)


@pytest.mark.parametrize('window, seen', [(None, None), (40, None), (5, 5), ('absent', None)])
def test_windows_of_mistral(window, seen):
  raw = RAW | {'model_type': 'mistral', 'sliding_window': window}
  if window == 'absent':  # Transformers then has 4096, more than these positions.
    del raw['sliding_window']
  assert llama.config_from_hf(raw).window == seen


def test_biases_of_qwen2_and_of_llama():
  biases = lambda c: (c.qkv_bias, c.out_bias, c.mlp_bias)  # noqa: E731
  qwen2 = RAW | {'model_type': 'qwen2', 'sliding_window': 3}
  assert biases(llama.config_from_hf(qwen2)) == (True, False, False)
  assert llama.config_from_hf(qwen2).window is None
  biased = llama.config_from_hf(RAW | {'attention_bias': True, 'mlp_bias': True})
  assert biases(biased) == (True, True, True)
  flat = paths.flatten(params(llama, biased))
  assert {p.split('/')[-2] for p in flat if p.endswith('bias')} == {
    'query', 'key', 'value', 'out', 'up', 'gate', 'down',
  }  # fmt: skip


@pytest.mark.parametrize(
  'entry, message',
  [
    ({'hidden_act': 'swish'}, "hidden_act 'swish' is not known; known: gelu"),
    ({'rope_parameters': {'rope_type': 'yarn'}}, "rope_type 'yarn' is not computed here; only de"),
    ({'rope_parameters': {'partial_rotary_factor': 0.5}}, 'partial_rotary_factor is not computed'),
    ({'model_type': 'qwen2', 'use_sliding_window': True}, 'use_sliding_window of Qwen2 is not'),
    ({'num_key_value_heads': 3}, '4 heads do not divide into num_key_value_heads 3'),
  ],
)
def test_what_is_not_computed_is_refused(entry, message):
  with pytest.raises(FewshotError, match=message):
    llama.config_from_hf(RAW | entry)


def test_waves():
  np.testing.assert_allclose(llama.waves(6, 8.0), [1, 0.5, 0.25])
  np.testing.assert_allclose(llama.waves(6, 8.0, factor=2.0), [0.5, 0.25, 0.125])
  stretch = llama.Stretch(factor=8.0, low=1.0, high=4.0, original=64)
  w, plain = llama.waves(8, 100.0, stretch=stretch), llama.waves(8, 100.0)
  for new, old in zip(w, plain, strict=True):
    turns = 64 * old / (2 * math.pi)
    share = min(max((turns - 1) / 3, 0), 1)
    assert math.isclose(new, share * old + (1 - share) * old / 8)
  assert w[0] == plain[0] and math.isclose(w[3], plain[3] / 8) and plain[2] / 8 < w[2] < plain[2]


def test_interleaved_weights_compute_what_halves_do():
  """A GGUF file has the rows of queries and keys in the other order."""
  model = tiny('llama')
  config = dataclasses.replace(model.config, interleaved=True)
  turned = params(llama, config)
  order = np.arange(6).reshape(2, 3).T.reshape(-1)  # 0 3 1 4 2 5
  for block in ('block_0', 'block_1'):
    for site in ('query', 'key'):
      leaf = turned['encoder'][block]['attn'][site]
      for name, x in leaf.items():
        heads = x.reshape(*x.shape[:-1], -1, 6)
        leaf[name] = heads[..., order].reshape(x.shape)
  want = model.forward(model.params, model.batch)['features']
  np.testing.assert_allclose(
    llama.forward(config)(turned, model.batch)['features'], want, atol=1e-5
  )
  assert np.abs(llama.forward(config)(model.params, model.batch)['features'] - want).max() > 1e-3


def test_a_window_hides_what_is_further_back():
  model = tiny('llama')
  shallow = dataclasses.replace(model.config, depth=1)
  forward, some = llama.forward(shallow), params(llama, shallow)
  batch = {'tokens': np.arange(1, 8)[None], 'mask': np.ones((1, 7), bool)}
  base = np.asarray(forward(some, batch)['hidden'])
  other = np.array([[9, 2, 3, 4, 5, 6, 7]])
  change = np.abs(np.asarray(forward(some, batch | {'tokens': other})['hidden']) - base).max(-1)[0]
  assert (change[:5] > 1e-5).all() and (change[5:] == 0).all()


def test_a_config_of_gguf():
  assert llama.config_from_gguf(META) == llama.Config(
    vocab=50, dim=16, depth=2, heads=4, groups=2, head_dim=4, width=24, positions=64, eps=1e-5,
    base=5e5, interleaved=True,
  )  # fmt: skip
  qwen2 = llama.config_from_gguf(QWEN2, tensors=('token_embd.weight',))
  assert qwen2.qkv_bias and qwen2.tied and not qwen2.interleaved
  scaled = META | {'llama.rope.scaling.type': 'linear', 'llama.rope.scaling.factor': 2.0}
  scaled |= {'llama.attention.sliding_window': 8}
  assert (llama.config_from_gguf(scaled).factor, llama.config_from_gguf(scaled).window) == (2.0, 8)


@pytest.mark.parametrize(
  'entry, message',
  [
    ({'llama.rope.scaling.type': 'yarn'}, "llama.rope.scaling.type 'yarn' is not computed here"),
    ({'llama.rope.dimension_count': 2}, 'llama.rope.dimension_count is not the 4 of a head'),
    ({'general.architecture': 'phi3'}, "architecture 'phi3' is no Llama; only llama and qwen2"),
  ],
)
def test_what_a_gguf_file_may_not_ask_for(entry, message):
  with pytest.raises(FewshotError, match=message):
    llama.config_from_gguf(META | entry)


@pytest.mark.parametrize('meta', [META, QWEN2])
def test_every_leaf_has_a_name_in_both_kinds_of_file(meta):
  config = llama.config_from_gguf(meta)
  modules = {p.rpartition('/')[0] for p in paths.flatten(params(llama, config))}
  assert modules == set(llama.names(config)) == set(llama.gguf_names(config))
