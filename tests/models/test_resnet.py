"""ResNets: configs that are refused, torchvision's names, and the sizes of the papers."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from fewshot import models
from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.models import resnet, resnet12
from fewshot.models.weights.names import Tensor, assemble
from tests.parity.errors import FIXTURES

HF = {'model_type': 'resnet', 'embedding_size': 8, 'hidden_sizes': [8, 16], 'depths': [1, 1]}
RESNET50 = resnet.Config(64, (256, 512, 1024, 2048), (3, 4, 6, 3), bottleneck=True, classes=1000)


@pytest.mark.parametrize(
  'changes, match',
  [
    ({'hidden_act': 'gelu'}, "hidden_act 'gelu', and only 'relu' is computed"),
    ({'layer_type': 'wide'}, "layer_type 'wide', and only 'bottleneck' or 'basic'"),
    ({'downsample_in_first_stage': True}, 'downsample_in_first_stage True'),
    ({'downsample_in_bottleneck': True}, 'downsample_in_bottleneck True'),
  ],
)
def test_configs_that_are_not_computed(changes, match):
  with pytest.raises(FewshotError, match=match):
    resnet.config_from_hf(HF | changes)


def test_a_config_is_read():
  config = resnet.config_from_hf(HF | {'layer_type': 'basic'})
  assert config == resnet.Config(8, (8, 16), (1, 1))
  assert resnet.config_from_hf(HF).bottleneck


def trained(family, config) -> int:
  """How many parameters train."""
  leaves = paths.flatten(jax.eval_shape(lambda: family.init(config, jax.random.key(0))))
  return sum(x.size for p, x in leaves.items() if not p.endswith(('/mean', '/var')))


@pytest.mark.parametrize(
  'family, config, n',
  [
    (resnet, resnet.Config(classes=1000), 11_689_512),
    (resnet, RESNET50, 25_557_032),
    (resnet12, resnet12.Config(), 12_424_320),
  ],
)
def test_the_published_numbers_of_parameters(family, config, n):
  assert trained(family, config) == n


@pytest.mark.parametrize('fixture', ['resnet-tiny', 'resnet-bottleneck-tiny'])
def test_the_names_of_torchvision(fixture):
  config = resnet.config_from_hf(json.loads((FIXTURES / fixture / 'config.json').read_text()))
  stored = {}
  for name, x in load_file(FIXTURES / fixture / 'model.safetensors').items():
    name = name.removeprefix('resnet.').replace('classifier.1', 'fc')
    name = name.replace('embedder.embedder.convolution', 'conv1')
    name = name.replace('embedder.embedder.normalization', 'bn1')
    for i in range(2):
      name = name.replace(f'encoder.stages.{i}.layers.', f'layer{i + 1}.')
    for k in range(3):
      name = name.replace(f'.layer.{k}.convolution', f'.conv{k + 1}')
      name = name.replace(f'.layer.{k}.normalization', f'.bn{k + 1}')
    name = name.replace('shortcut.convolution', 'downsample.0')
    stored[name.replace('shortcut.normalization', 'downsample.1')] = x
  assert {'layer2.0.downsample.1.running_var', 'layer1.0.bn2.num_batches_tracked'} <= stored.keys()
  got = assemble(
    {k: Tensor(v.shape, lambda v=v: v) for k, v in stored.items()},
    jax.eval_shape(lambda: resnet.init(config, jax.random.key(0))),
    resnet.names_torchvision(config),
    where='here',
    unused=resnet.UNUSED,
  )
  want = paths.flatten(models.load(str(FIXTURES / fixture)).params)
  assert paths.flatten(got).keys() == want.keys()
  for path, x in paths.flatten(got).items():
    np.testing.assert_array_equal(x, want[path], path)


def test_a_folder_of_resnet12_loads_by_the_names_of_the_paper():
  model = models.load(str(FIXTURES / 'resnet12-tiny'))
  stored = load_file(FIXTURES / 'resnet12-tiny' / 'model.safetensors')
  np.testing.assert_array_equal(
    model.params['stage_1']['block_0']['norm_2']['var'], stored['layer2.0.bn3.running_var']
  )
  assert model.example['image'].shape == (1, 16, 16, 3)
