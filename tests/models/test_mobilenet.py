"""MobileNetV2: configs that are refused, widths, and torchvision's names."""

import jax
import numpy as np
import pytest

from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.models import mobilenet
from fewshot.models.mobilenet import Shape
from fewshot.models.weights.names import Tensor, assemble

HF = {'model_type': 'mobilenet_v2', 'image_size': 32}


@pytest.mark.parametrize(
  'changes, match',
  [
    ({'hidden_act': 'relu'}, "hidden_act 'relu', and only 'relu6' is computed"),
    ({'output_stride': 16}, 'output_stride 16, and only 32'),
    ({'first_layer_is_expansion': False}, 'first_layer_is_expansion False'),
    ({'expand_ratio': 2.5}, 'expand_ratio 2.5'),
    ({'depth_multiplier': 0.1}, 'depth_multiplier 0.1 the first block keeps its width'),
  ],
)
def test_configs_that_are_not_computed(changes, match):
  with pytest.raises(FewshotError, match=match):
    mobilenet.config_from_hf(HF | changes)


def test_a_config_of_the_full_width_is_the_papers():
  config = mobilenet.config_from_hf(HF | {'tf_padding': False})
  assert (config.stem, config.stages, config.last) == (32, mobilenet.STAGES, 1280)
  assert (config.eps, config.same, config.mean) == (1e-3, False, (0.5,) * 3)
  assert mobilenet.config_from_hf(HF).same


@pytest.mark.parametrize('finegrained, last', [(True, 1280), (False, 448)])
def test_a_thin_config(finegrained, last):
  hf = HF | {'depth_multiplier': 0.35, 'finegrained_output': finegrained}
  config = mobilenet.config_from_hf(hf)
  assert config.stem == 16 and config.last == last
  assert [s.width for s in config.stages] == [8, 8, 16, 24, 32, 56, 112]


def test_the_names_of_torchvision():
  config = mobilenet.Config(4, (Shape(1, 4, 1, 1), Shape(2, 8, 2)), 16, classes=3)
  like = jax.eval_shape(lambda: mobilenet.init(config, jax.random.key(0)))
  stored = stored_by_torchvision()
  params = assemble(
    {k: Tensor(v.shape, lambda v=v: v) for k, v in stored.items()},
    like,
    mobilenet.names_torchvision(config),
    where='here',
    unused=mobilenet.UNUSED,
  )
  got = paths.flatten(params)
  depthwise = stored['features.1.conv.0.0.weight'][:, 0]
  np.testing.assert_array_equal(
    got['stage_0/block_0/conv_1/kernel'][:, :, 0], np.moveaxis(depthwise, 0, -1)
  )
  np.testing.assert_array_equal(
    got['stage_1/block_1/norm_2/var'], stored['features.3.conv.3.running_var']
  )
  np.testing.assert_array_equal(got['head/kernel'], stored['classifier.1.weight'].T)


def stored_by_torchvision() -> dict[str, np.ndarray]:
  """A tiny MobileNetV2 as torchvision would store it: two stages, of one and two blocks."""
  shapes = {
    'features.0.0': (4, 3, 3, 3),
    'features.1.conv.0.0': (4, 1, 3, 3),
    'features.1.conv.1': (4, 4, 1, 1),
    'features.2.conv.0.0': (24, 4, 1, 1),
    'features.2.conv.1.0': (24, 1, 3, 3),
    'features.2.conv.2': (8, 24, 1, 1),
    'features.3.conv.0.0': (48, 8, 1, 1),
    'features.3.conv.1.0': (48, 1, 3, 3),
    'features.3.conv.2': (8, 48, 1, 1),
    'features.4.0': (16, 8, 1, 1),
  }
  rng, stored = np.random.default_rng(0), {}
  for name, shape in shapes.items():
    stored[f'{name}.weight'] = rng.standard_normal(shape).astype(np.float32)
    head, _, last = name.rpartition('.')
    norm = f'{head}.{int(last) + 1}'  # It stands after its convolution.
    for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
      stored[f'{norm}.{leaf}'] = rng.random(shape[0], np.float32)
    stored[f'{norm}.num_batches_tracked'] = np.array(7)
  stored['classifier.1.weight'] = rng.random((3, 16), np.float32)
  stored['classifier.1.bias'] = rng.random(3, np.float32)
  return stored


def test_the_published_number_of_parameters():
  config = mobilenet.Config(classes=1000)
  leaves = paths.flatten(jax.eval_shape(lambda: mobilenet.init(config, jax.random.key(0))))
  trained = sum(x.size for p, x in leaves.items() if not p.endswith(('/mean', '/var')))
  assert trained == 3_504_872
