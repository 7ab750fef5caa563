"""The BERT family against outputs that Transformers computed (see regenerate.py)."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import load_file

from fewshot import assets, methods, models
from fewshot.errors import FewshotError
from fewshot.tasks.encode import tokenize

FIXTURES = Path(__file__).parent / 'fixtures'
TINY = ('bert-tiny', 'roberta-tiny')


def expected(name: str) -> dict[str, np.ndarray]:
  return load_file(FIXTURES / name / 'expected.safetensors')


def batch_of(want: dict[str, np.ndarray]) -> dict[str, Any]:
  return {'tokens': want['input_ids'].astype(np.int32), 'mask': want['attention_mask'] > 0}


@pytest.fixture(scope='module', params=TINY)
def reference(request) -> tuple[models.Model, dict[str, np.ndarray]]:
  return models.load(str(FIXTURES / request.param)), expected(request.param)


def test_hidden_states_at_every_layer_and_features(reference):
  model, want = reference
  seen = {}

  def record(next_fn, args, kwargs, context):
    out = next_fn(*args, **kwargs)
    path = '/'.join(context.module.path)
    if path == 'inputs':
      seen[0] = out[0]
    if path.startswith('encoder/block_') and path.count('/') == 1:
      seen[int(path.rsplit('_', 1)[1]) + 1] = out
    return out

  with nn.intercept_methods(record):
    outputs = model.forward(model.params, batch_of(want))
  real = want['attention_mask'] > 0  # Padded positions are nobody's output.
  assert sorted(seen) == [0, 1, 2]
  for i, hidden in seen.items():
    assert np.abs(hidden - want[f'hidden_state_{i}'])[real].max() <= 1e-5, i
  assert np.abs(outputs['hidden'] - want['last_hidden_state'])[real].max() <= 1e-5
  assert np.abs(outputs['features'] - want['features']).max() <= 1e-5


def test_loss_and_gradient(reference):
  model, want = reference

  def loss(params):
    features = model.forward(params, batch_of(want))['features']
    return (features * want['loss_weights']).sum()

  value, gradient = jax.jit(jax.value_and_grad(loss))(model.params)
  assert abs(value - want['loss']) <= 1e-4
  query = gradient['encoder']['block_0']['attn']['query']['kernel']
  assert np.abs(query.T - want['gradient']).max() <= 1e-4
  assert np.abs(want['gradient']).max() > 1e-2  # Or the line above would say nothing.


@pytest.fixture(scope='module')
def minilm() -> models.Model:
  try:
    return models.load('minilm-l6')
  except FewshotError as e:
    pytest.skip(f'minilm-l6 cannot be had: {e}')


@pytest.mark.assets
def test_the_real_minilm_with_our_tokenizer(minilm):
  want = expected('minilm-l6')
  sentences = json.loads((FIXTURES / 'minilm-l6' / 'sentences.json').read_text(encoding='utf-8'))
  batch, lengths = tokenize(minilm.tokenizer, sentences, max_length=128)
  width = want['input_ids'].shape[1]
  assert lengths.tolist() == want['attention_mask'].sum(1).tolist()
  np.testing.assert_array_equal(batch['tokens'][:, :width], want['input_ids'])
  np.testing.assert_array_equal(batch['mask'][:, :width], want['attention_mask'] > 0)
  assert not batch['mask'][:, width:].any()
  features = jax.jit(minilm.forward)(minilm.params, batch)['features']
  assert np.abs(features - want['features']).max() <= 1e-4


@pytest.mark.assets
def test_the_list_of_models_counts_the_real_parameters(minilm):
  (row,) = [r for r in models.rows() if r['name'] == 'minilm-l6']
  assert row['params'] == methods.count(minilm.params)
  assert row['family'] == 'bert'
  assert row['sources'] == next(r['sources'] for r in assets.rows() if r['name'] == 'minilm-l6')


@pytest.mark.assets
def test_the_real_minilm_in_bfloat16(minilm):
  want = expected('minilm-l6')['features'][:2]
  half = models.load('minilm-l6', dtype=jnp.bfloat16)
  assert {x.dtype for x in jax.tree.leaves(half.params)} == {jnp.dtype(jnp.bfloat16)}
  batch = {k: v[:2, :16] for k, v in batch_of(expected('minilm-l6')).items()}
  features = np.asarray(jax.jit(half.forward)(half.params, batch)['features'], np.float32)
  assert np.abs(features - want).max() <= 0.1
  assert half.hashes['weights'] != minilm.hashes['weights']
