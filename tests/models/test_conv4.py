"""Conv4: its shapes, and what a step in train mode does to the running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fewshot import models
from fewshot.methods import paths
from fewshot.models import conv4
from tests.parity.errors import FIXTURES

FOLDER = FIXTURES / 'conv4-tiny'


def test_train_mode_and_the_running_statistics_are_those_of_the_reference():
  want, params = load_file(FOLDER / 'train.safetensors'), models.load(str(FOLDER)).params
  forward = jax.jit(conv4.forward(conv4.Config(8, 2), batch_stats=True))
  out = forward(params, {'image': want['image']})
  assert np.abs(out['features'] - want['features']).max() <= 1e-4
  state = {k.removeprefix('state/'): v for k, v in want.items() if k.startswith('state/')}
  assert len(state) == 4 and out['state'].keys() == state.keys()
  before = paths.flatten(params)
  for path, x in state.items():
    assert np.abs(out['state'][path] - x).max() <= 1e-5
    assert np.abs(before[path] - x).max() > 1e-2


def test_many_steps_bring_the_running_statistics_to_those_of_the_batch():
  config = conv4.Config(4, 2, image_size=8)
  params = conv4.init(config, jax.random.key(0))
  batch = {'image': np.random.default_rng(0).random((16, 8, 8, 3), np.float32)}
  train, test = (jax.jit(conv4.forward(config, batch_stats=b)) for b in (True, False))
  for _ in range(80):
    out = train(params, batch)
    params = paths.replace(params, out['state'])
  # Not the same: running variances are unbiased.
  assert np.abs(test(params, batch)['features'] - out['features']).max() <= 0.02
  assert np.abs(out['features']).max() > 0.5


@pytest.mark.parametrize('size, entries', [(84, 1600), (28, 64)])
def test_the_features_of_the_papers(size, entries):
  config = conv4.Config(image_size=size)
  shapes = jax.eval_shape(
    conv4.forward(config),
    jax.eval_shape(lambda: conv4.init(config, jax.random.key(0))),
    conv4.example(config),
  )
  assert shapes['features'].shape == (1, entries)


def test_the_published_number_of_parameters():
  shapes = jax.eval_shape(lambda: conv4.init(conv4.Config(), jax.random.key(0)))
  trained = {p: x for p, x in paths.flatten(shapes).items() if p[-4:] != 'mean' and p[-3:] != 'var'}
  assert sum(x.size for x in trained.values()) == 113_088


def test_a_config_is_read():
  config = conv4.config_from_hf({'width': 8, 'depth': 3, 'image_mean': [0.5], 'image_std': [0.2]})
  assert config == conv4.Config(8, 3, mean=(0.5,), std=(0.2,))
  assert conv4.example(config)['image'].dtype == jnp.uint8
