"""GPT-2: its table of names, and the configs it refuses."""

import json

import numpy as np
import pytest

from fewshot import models
from fewshot.errors import FewshotError
from fewshot.models import gpt2
from tests.models.decoders import params, tiny
from tests.parity.errors import FIXTURES

RAW = json.loads((FIXTURES / 'gpt2-tiny/config.json').read_text(encoding='utf-8'))


def test_a_config():
  want = gpt2.Config(vocab=100, dim=32, depth=2, heads=4, width=128, positions=40)
  assert gpt2.config_from_hf(RAW) == want
  assert gpt2.config_from_hf(RAW | {'n_inner': 48, 'tie_word_embeddings': False}).width == 48


@pytest.mark.parametrize(
  'entry, message',
  [
    ({'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx True is not comp'),
    ({'reorder_and_upcast_attn': True}, 'reorder_and_upcast_attn True is not computed here; only'),
    ({'scale_attn_weights': False}, 'scale_attn_weights False is not computed here; only True'),
    ({'add_cross_attention': True}, 'add_cross_attention True is not computed'),
    ({'activation_function': 'swish'}, "activation_function 'swish' is not known; known: gelu"),
    ({'n_head': 5}, 'n_embd 32 does not divide into 5 heads'),
  ],
)
def test_what_is_not_computed_is_refused(entry, message):
  with pytest.raises(FewshotError, match=message):
    gpt2.config_from_hf(RAW | entry)


def test_fused_projections_come_apart():
  x = np.arange(24.0).reshape(2, 12)  # [in, 3 x out]
  names = gpt2.names(tiny('gpt2').config)
  for i, site in enumerate(('query', 'key', 'value')):
    part = names[f'encoder/block_1/attn/{site}']
    assert part.name == 'h.1.attn.c_attn'
    np.testing.assert_array_equal(part.of(x), x[:, 4 * i : 4 * i + 4].T)
    np.testing.assert_array_equal(part.of(x[0]), x[0, 4 * i : 4 * i + 4])


def test_positions_are_added():
  model = tiny('gpt2')
  moved = params(model.family, model.config)
  moved['inputs']['positions']['embedding'][2, :8] += 1  # All alike would be lost in the norm.
  change = (
    model.forward(moved, model.batch)['hidden'] - model.forward(model.params, model.batch)['hidden']
  )
  change = np.abs(np.asarray(change)).max(-1)
  assert (change[:, :2] == 0).all() and (change[0, 2:] > 1e-3).all()


def test_a_fixture_has_a_tied_head():
  assert 'lm_head' not in models.load(str(FIXTURES / 'gpt2-tiny')).params
