"""EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946, without squeeze-and-excitation and with
relu6): MobileNetV2's blocks in other stages.  Stochastic depth is not computed.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from fewshot.models import images, mobilenet
from fewshot.models.mobilenet import UNUSED, Config, Shape, blocks, example, forward
from fewshot.models.weights.names import Names

__all__ = [
  'LITE0',
  'PREFIXES',
  'UNUSED',
  'Config',
  'config_from_hf',
  'example',
  'forward',
  'init',
  'names',
]

BYTES = ((127 / 255,) * 3, (128 / 255,) * 3)  # (byte - 127) / 128.
LITE0 = Config(
  stages=(
    *(Shape(1, 16, 1, 1), Shape(2, 24, 2), Shape(2, 40, 2, kernel=5), Shape(3, 80, 2)),
    *(Shape(3, 112, 1, kernel=5), Shape(4, 192, 2, kernel=5), Shape(1, 320, 1)),
  ),
  classes=1000,
  same=True,
  eps=1e-3,
  momentum=0.01,
  mean=BYTES[0],
  std=BYTES[1],
)


def init(config: Config, key: jax.Array) -> Any:
  """Random params of a model of this shape.

  >>> params = jax.eval_shape(lambda: init(LITE0, jax.random.key(0)))
  >>> params['stage_2']['block_0']['conv_1']['kernel'].shape
  (5, 5, 1, 144)
  """
  return mobilenet.init(config, key)


def config_from_hf(hf: Mapping[str, Any]) -> Config:
  """Reads our own `config.json`, of the model_type 'efficientnet-lite'; Lite0 where it is silent.

  It may have stem, stages (lists of depth, width, stride, expand, kernel), last, classes,
  image_size, image_mean and image_std.
  """
  given = {k: hf[k] for k in ('stem', 'last', 'classes', 'image_size') if k in hf}
  if 'stages' in hf:
    given['stages'] = tuple(Shape(*s) for s in hf['stages'])
  return dataclasses.replace(LITE0, **given, **images.colours(hf, BYTES))


def names(config: Config) -> Names:
  """Our module -> the name in Melas-Kyriazi's EfficientNet-PyTorch and what follows it."""
  table = {
    'stem/conv_0': '_conv_stem',
    'stem/norm_0': '_bn0',
    'last/conv_0': '_conv_head',
    'last/norm_0': '_bn1',
    'head': '_fc',
  }
  for n, (ours, _) in enumerate(blocks(config)):
    for k, name in enumerate(('expand', 'depthwise', 'project')):
      table[f'{ours}/conv_{k}'] = f'_blocks.{n}._{name}_conv'
      table[f'{ours}/norm_{k}'] = f'_blocks.{n}._bn{k}'
  return table


PREFIXES: tuple[str, ...] = ()
