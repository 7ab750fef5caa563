"""The multilayer perceptron."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from fewshot import methods, models
from fewshot.errors import FewshotError
from fewshot.models import mlp

TINY = mlp.Config(inputs=3, dim=8, depth=2)
X = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)


@pytest.fixture(scope='module')
def params():
  return mlp.init(TINY, jax.random.key(0))


def test_the_features_are_the_last_layer(params):
  blocks = [params['encoder'][f'block_{i}']['up'] for i in range(2)]
  x = X
  for p in blocks:
    x = np.maximum(x @ p['kernel'] + p['bias'], 0)
  out = mlp.forward(TINY)(params, {'x': X})
  np.testing.assert_allclose(out['features'], x, rtol=1e-5, atol=1e-6)
  assert 'logits' not in out


def test_params_may_have_a_head(params):
  kernel = np.ones((8, 2), np.float32)
  merged = params | {'head': {'kernel': kernel, 'bias': np.zeros(2, np.float32)}}
  out = mlp.forward(TINY)(merged, {'x': X})
  np.testing.assert_allclose(out['logits'], out['features'] @ kernel, rtol=1e-5)


def test_a_batch_without_x(params):
  with pytest.raises(FewshotError, match=r'reads x \[B, 3\], and the batch has tokens'):
    mlp.forward(TINY)(params, {'tokens': X})


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_features_have_the_dtype_of_params(params, dtype):
  with jax.numpy_dtype_promotion('strict'):
    cast = jax.tree.map(lambda w: w.astype(dtype), params)
    assert mlp.forward(TINY)(cast, {'x': X})['features'].dtype == dtype


def test_dropout_follows_the_key(params):
  forward = mlp.forward(dataclasses.replace(TINY, dropout=0.5))
  run = lambda *key: np.asarray(forward(params, {'x': X}, *key)['features'])  # noqa: E731
  a, b = run(jax.random.key(0)), run(jax.random.key(1))
  np.testing.assert_array_equal(a, run(jax.random.key(0)))
  assert np.abs(a - b).max() > 1e-2
  np.testing.assert_array_equal(run(), mlp.forward(TINY)(params, {'x': X})['features'])


def test_lora_merges(params):
  forward, batch = mlp.forward(TINY), {'x': X}
  method = methods.lora('.*/up', rank=2)
  theta, state = method.init(jax.random.key(0), forward, params, methods.Calib(batch, 2))
  theta = jax.tree.map(lambda t: t + 0.1, theta)
  got = methods.adapt(method, forward, theta, state)(params, batch)['features']
  want = forward(method.merge(theta, state, params), batch)['features']
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_folder_is_read(params, tmp_path):
  config = {'model_type': 'mlp', 'inputs': 3, 'dim': 8, 'depth': 2}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  stored = {}
  for i in range(2):
    p = params['encoder'][f'block_{i}']['up']
    stored[f'layers.{i}.weight'] = np.ascontiguousarray(np.asarray(p['kernel']).T)
    stored[f'layers.{i}.bias'] = np.asarray(p['bias'])
  save_file(stored, tmp_path / 'model.safetensors')
  model = models.load(str(tmp_path))
  jax.tree.map(np.testing.assert_array_equal, model.params, params)
  assert model.example['x'].shape == (1, 3)


def test_an_activation_that_is_not_known():
  with pytest.raises(FewshotError, match="activation 'swish', and only 'relu' or"):
    mlp.config_from_hf({'inputs': 3, 'dim': 8, 'depth': 2, 'activation': 'swish'})
