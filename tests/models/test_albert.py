"""ALBERT: one block for all layers, narrow token vectors."""

import json

import jax
import numpy as np
import pytest

from fewshot import methods, models
from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.models import albert
from tests.parity.errors import FIXTURES, read

FOLDER = FIXTURES / 'albert-mlm-tiny'
CONFIG = json.loads((FOLDER / 'config.json').read_text())


@pytest.fixture(scope='module')
def model() -> models.Model:
  return models.load(str(FOLDER))


@pytest.fixture(scope='module')
def batch() -> dict[str, np.ndarray]:
  return read('albert-mlm-tiny').batch


def test_params_do_not_grow_with_depth(model):
  config = albert.config_from_hf(CONFIG | {'num_hidden_layers': 7})
  deep = jax.eval_shape(lambda: albert.init(config, jax.random.key(0)))
  assert methods.count(deep) == methods.count(model.params)
  assert model.params['embed']['embedding'].shape == (100, 16)
  assert model.params['inputs']['project']['kernel'].shape == (16, 32)
  assert model.params['lm_head']['dense']['kernel'].shape == (32, 16)


def test_depth_counts(model, batch):
  config = albert.config_from_hf(CONFIG | {'num_hidden_layers': 3})
  deeper = albert.forward(config)(model.params, batch)['features']
  assert np.abs(deeper - model.forward(model.params, batch)['features']).max() > 1e-2


@pytest.mark.parametrize('spelling', ['lora(rank=2)', 'ia3()', 'adapter(width=2)'])
def test_activation_methods_refuse_the_shared_block(model, batch, spelling):
  method = methods.parse(spelling)
  theta, state = method.init(
    jax.random.key(0), model.forward, model.params, methods.Calib(batch, 2)
  )
  with pytest.raises(FewshotError, match=r"'encoder/block_0/.*more than once.*as_weights\("):
    methods.adapt(method, model.forward, theta, state)(model.params, batch)


def test_the_weight_form_adapts_the_shared_block(model, batch, perturb):
  method = methods.parse('as_weights(lora(rank=2))')
  theta, state = method.init(
    jax.random.key(0), model.forward, model.params, methods.Calib(batch, 2)
  )
  assert {p.split('/')[1] for p in paths.flatten(theta)} == {'block_0'}
  features = lambda t: methods.adapt(method, model.forward, t, state)(model.params, batch)  # noqa: E731
  base = model.forward(model.params, batch)['features']
  assert np.abs(features(theta)['features'] - base).max() <= 1e-5
  assert np.abs(features(perturb(theta))['features'] - base).max() > 1e-2


@pytest.mark.parametrize('key', ['num_hidden_groups', 'inner_group_num'])
def test_more_than_one_group_is_refused(key):
  with pytest.raises(FewshotError, match=f'{key} 2; only 1'):
    albert.config_from_hf(CONFIG | {key: 2})
