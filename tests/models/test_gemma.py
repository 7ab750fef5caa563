"""Gemma 3: its blocks of two kinds, its gains, configs of both kinds of file."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.models import gemma
from tests.models.decoders import params, tiny
from tests.parity.errors import FIXTURES

RAW = json.loads((FIXTURES / 'gemma3-tiny/config.json').read_text(encoding='utf-8'))
META = {
  'general.architecture': 'gemma3',
  'tokenizer.ggml.tokens': ['a'] * 50,
  'gemma3.block_count': 7,
  'gemma3.embedding_length': 36,
  'gemma3.feed_forward_length': 24,
  'gemma3.attention.head_count': 4,
  'gemma3.attention.head_count_kv': 1,
  'gemma3.attention.key_length': 4,
  'gemma3.attention.value_length': 4,
  'gemma3.attention.layer_norm_rms_epsilon': 1e-5,
  'gemma3.attention.sliding_window': 12,
  'gemma3.context_length': 64,
  'gemma3.rope.freq_base': 2e6,
}
SIX = (True,) * 5 + (False,)


def test_a_config():
  assert gemma.config_from_hf(RAW) == gemma.Config(
    vocab=100, dim=32, depth=2, heads=4, groups=2, head_dim=12, width=48, positions=40,
    local=(True, False), window=4, scale=1 / 3, base=1000.0, local_base=100.0, factor=2.0,
  )  # fmt: skip


def test_a_config_of_older_files():
  old = {k: v for k, v in RAW.items() if k not in ('rope_parameters', 'layer_types')}
  old |= {'num_hidden_layers': 8, 'rope_theta': 5e5, 'rope_local_base_freq': 50.0}
  config = gemma.config_from_hf(old)
  assert (config.base, config.local_base, config.factor) == (5e5, 50.0, 1.0)
  assert config.local == (*SIX, True, True)
  linear = {'rope_type': 'linear', 'factor': 8.0}
  config = gemma.config_from_hf(old | {'rope_scaling': linear, 'sliding_window_pattern': 2})
  assert (config.base, config.factor, config.local) == (5e5, 8.0, (True, False) * 4)


@pytest.mark.parametrize(
  'entry, message',
  [
    ({'attn_logit_softcapping': 50.0}, 'attn_logit_softcapping 50.0 is not computed here'),
    ({'final_logit_softcapping': 30.0}, 'final_logit_softcapping 30.0 is not computed here'),
    ({'use_bidirectional_attention': True}, 'use_bidirectional_attention True is not computed'),
    ({'attention_bias': True}, 'attention_bias True is not computed here'),
    ({'hidden_activation': 'swish'}, "hidden_activation 'swish' is not known; known: gelu"),
    ({'layer_types': ['full_attention']}, r"layer_types \['full_attention'\] is not .* only 2 of"),
    ({'layer_types': ['full_attention', 'chunked_attention']}, 'chunked_attention.* is not comput'),
    ({'num_key_value_heads': 3}, '4 heads do not divide into num_key_value_heads 3'),
    (
      {'rope_parameters': {'sliding_attention': {'rope_type': 'linear', 'factor': 2.0}}},
      'of rope scalings only linear ones of full_attention',
    ),
    ({'rope_parameters': {'full_attention': {'rope_type': 'yarn'}}}, "rope_type 'yarn' is not"),
  ],
)
def test_what_is_not_computed_is_refused(entry, message):
  with pytest.raises(FewshotError, match=message):
    gemma.config_from_hf(RAW | entry)


def test_gains_are_stored_less_one_and_keep_small_ones():
  """In bfloat16, 1 + 0.003 would be 1."""
  part = gemma.names(tiny('gemma').config)['encoder/block_0/attn/ln_query']
  stored = np.array([0.003, -0.5], ml_dtypes.bfloat16)
  got = part.of(stored)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, 1 + stored.astype(np.float32), rtol=1e-7)


def test_embedded_tokens_are_scaled_behind_the_site_where_prompts_attach():
  model = tiny('gemma')
  inputs = gemma.Inputs(model.config)
  x = np.ones((1, 2, 16), np.float32)
  y, *_ = inputs.apply({}, x, np.ones((1, 2), bool), np.arange(2)[None])
  np.testing.assert_array_equal(y, 4 * x)


@pytest.mark.parametrize('kind', ['local', 'global'])
def test_each_kind_of_block_has_its_own_base(kind):
  """With blocks of one kind alone, the base of the other changes nothing."""
  c = dataclasses.replace(tiny('gemma').config, local=(kind == 'local',) * 2)
  some, batch = tiny('gemma').params, tiny('gemma').batch

  def run(**changed):
    config = dataclasses.replace(c, **changed)
    return np.asarray(gemma.forward(config)(some, batch)['features'])

  own, other = ('local_base', 'base') if kind == 'local' else ('base', 'local_base')
  base = run()
  np.testing.assert_array_equal(run(**{other: 7.0}), base)
  assert np.abs(run(**{own: 7.0}) - base).max() > 1e-4
  assert (np.abs(run(factor=4.0) - base).max() > 1e-4) == (kind == 'global')


def test_only_local_blocks_have_a_window():
  c, some = tiny('gemma').config, tiny('gemma').params
  batch = {'tokens': np.arange(1, 8)[None], 'mask': np.ones((1, 7), bool)}
  other = batch | {'tokens': np.array([[9, 2, 3, 4, 5, 6, 7]])}

  def reach(local):
    forward = gemma.forward(dataclasses.replace(c, local=local))
    change = forward(some, batch)['hidden'] - forward(some, other)['hidden']
    return (np.abs(np.asarray(change)).max(-1)[0] > 0).tolist()

  # Two blocks that see four tokens each reach six back; one that sees all is enough.
  assert reach((True, True)) == [True] * 7
  assert reach((True, False)) == [True] * 7
  shallow = dataclasses.replace(c, depth=1, local=(True,))
  forward, one = gemma.forward(shallow), params(gemma, shallow)
  change = forward(one, batch)['hidden'] - forward(one, other)['hidden']
  assert (np.abs(np.asarray(change)).max(-1)[0] > 0).tolist() == [True] * 4 + [False] * 3


def test_a_config_of_gguf():
  assert gemma.config_from_gguf(META) == gemma.Config(
    vocab=50, dim=36, depth=7, heads=4, groups=1, head_dim=4, width=24, positions=64,
    local=(*SIX, True), window=12, scale=0.5, eps=1e-5, base=2e6,
  )  # fmt: skip
  large = META | {'gemma3.block_count': 62, 'gemma3.rope.scaling.type': 'linear'}
  config = gemma.config_from_gguf(large | {'gemma3.rope.scaling.factor': 8.0})
  assert (config.scale, config.factor) == (1 / 3, 8.0)
  assert not gemma.config_from_gguf(META, ('output.weight',)).tied


@pytest.mark.parametrize(
  'entry, message',
  [
    ({'gemma3.final_logit_softcapping': 30.0}, 'softcapping of logits is not computed here'),
    ({'general.architecture': 'gemma2'}, "architecture 'gemma2' is no gemma3"),
    ({'gemma3.rope.scaling.type': 'yarn'}, "gemma3.rope.scaling.type 'yarn' is not computed"),
  ],
)
def test_what_a_gguf_file_may_not_ask_for(entry, message):
  with pytest.raises(FewshotError, match=message):
    gemma.config_from_gguf(META | entry)


def test_every_leaf_has_a_name_in_both_kinds_of_file():
  config = dataclasses.replace(gemma.config_from_gguf(META), tied=False)
  modules = {p.rpartition('/')[0] for p in paths.flatten(params(gemma, config))}
  assert modules == set(gemma.names(config)) == set(gemma.gguf_names(config))
