"""The backbones against what reference implementations computed (see regenerate.py)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import assets, methods, models
from fewshot.errors import FewshotError
from fewshot.tasks.encode import tokenize
from tests.parity import errors


@pytest.mark.parametrize('name', errors.names())
def test_a_backbone_computes_what_its_reference_does(name):
  found = errors.all_of(name)
  assert found.keys() >= {'hidden states', 'outputs', 'loss', 'gradient'}
  assert {k: v for k, v in found.items() if v > errors.LIMITS[k]} == {}


@pytest.mark.parametrize(
  'name', ['albert-mlm-tiny', 'bert-mlm-tiny', 'gpt2-tiny', 'llama-tiny', 'roberta-mlm-tiny']
)
def test_the_logits_at_slots_are_those_of_transformers(name):
  """At the first, a middle and the last real token of each row, as cloze texts have their masks."""
  fixture, model = errors.read(name), models.load(str(errors.FIXTURES / name))
  last = fixture.batch['mask'].sum(1) - 1
  slots = np.stack([np.zeros_like(last), last // 2, last], 1).astype(np.int32)
  got = jax.jit(model.forward)(model.params, fixture.batch | {'slots': slots})['token_logits']
  want = fixture.arrays['out/token_logits'][np.arange(len(last))[:, None], slots]
  assert got.shape == want.shape and np.abs(want).max() > 1
  assert np.abs(np.asarray(got) - want).max() <= errors.LIMITS['outputs']


@pytest.fixture(scope='module')
def minilm() -> models.Model:
  try:
    return models.load('minilm-l6')
  except FewshotError as e:
    pytest.skip(f'minilm-l6 cannot be had: {e}')


@pytest.mark.assets
def test_the_real_minilm_with_our_tokenizer(minilm):
  fixture = errors.read('minilm-l6')
  want, mask = fixture.batch['tokens'], fixture.batch['mask']
  sentences = json.loads(
    (errors.FIXTURES / 'minilm-l6' / 'sentences.json').read_text(encoding='utf-8')
  )
  batch, lengths = tokenize(minilm.tokenizer, sentences, max_length=128)
  width = want.shape[1]
  assert lengths.tolist() == mask.sum(1).tolist()
  np.testing.assert_array_equal(batch['tokens'][:, :width], want)
  np.testing.assert_array_equal(batch['mask'][:, :width], mask)
  assert not batch['mask'][:, width:].any()
  features = jax.jit(minilm.forward)(minilm.params, batch)['features']
  assert np.abs(features - fixture.arrays['out/features']).max() <= 1e-4


@pytest.mark.assets
def test_the_list_of_models_counts_the_real_parameters(minilm):
  (row,) = [r for r in models.rows() if r['name'] == 'minilm-l6']
  assert row['params'] == methods.count(minilm.params)
  assert row['family'] == 'bert'
  assert row['sources'] == next(r['sources'] for r in assets.rows() if r['name'] == 'minilm-l6')


@pytest.mark.assets
def test_the_real_minilm_in_bfloat16(minilm):
  fixture = errors.read('minilm-l6')
  half = models.load('minilm-l6', dtype=jnp.bfloat16)
  assert {x.dtype for x in jax.tree.leaves(half.params)} == {jnp.dtype(jnp.bfloat16)}
  batch = {k: v[:2, :16] for k, v in fixture.batch.items()}
  features = np.asarray(jax.jit(half.forward)(half.params, batch)['features'], np.float32)
  assert np.abs(features - fixture.arrays['out/features'][:2]).max() <= 0.1
  assert half.hashes['weights'] != minilm.hashes['weights']


@pytest.mark.assets
@pytest.mark.parametrize(('name', 'likeliest'), [('albert-tiny-zh', '國'), ('splade-tiny', 'city')])
def test_a_real_head_fills_masks_as_in_transformers(name, likeliest):
  """Three texts in one padded batch, by our tokenizer; of every seventh token of the vocabulary."""
  if not assets.present(name):
    pytest.skip(f'{name} is not in the cache; `fewshot assets get {name}` fetches it')
  model, fixture = models.load(name), errors.read(name)
  texts = json.loads((errors.FIXTURES / name / 'sentences.json').read_text(encoding='utf-8'))
  batch, _ = tokenize(model.tokenizer, texts, max_length=64)
  slots = fixture.batch['slots']
  at = np.take_along_axis(batch['tokens'], slots, 1)
  assert (at == model.tokenizer.token_to_id('[MASK]')).all()
  logits = jax.jit(model.forward)(model.params, batch | {'slots': slots})['token_logits'][:, 0]
  log_probs = np.asarray(jax.nn.log_softmax(logits, -1))
  want = fixture.arrays['out/log_probs']
  np.testing.assert_allclose(log_probs[:, ::7], want, atol=errors.LIMITS['outputs'])
  assert model.tokenizer.id_to_token(int(log_probs[0].argmax())) == likeliest
