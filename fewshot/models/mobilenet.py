"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381); `efficientnet` is this module with other
stages and names.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from fewshot.errors import FewshotError
from fewshot.models import images
from fewshot.models.images import Depthwise, Norm, conv
from fewshot.models.layers import drop
from fewshot.models.weights.names import Names

Array = jax.Array


class Shape(NamedTuple):
  """The shape of a stage; its first block has the stride."""

  depth: int
  width: int
  stride: int
  expand: int = 6  # The inner width over the outer.
  kernel: int = 3


STAGES = (
  *(Shape(1, 16, 1, 1), Shape(2, 24, 2), Shape(3, 32, 2), Shape(4, 64, 2)),
  *(Shape(3, 96, 1), Shape(3, 160, 2), Shape(1, 320, 1)),
)


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a MobileNet; MobileNetV2 1.0 of torchvision by default."""

  stem: int = 32
  stages: tuple[Shape, ...] = STAGES
  last: int = 1280  # The width of the last convolution.
  classes: int = 0  # Of the checkpoint's classifier; 0 where it has none.
  same: bool = False  # Whether padding is TensorFlow's 'SAME', more at the right and bottom.
  image_size: int = 224  # Of an example; other sizes do as well.
  eps: float = 1e-5
  momentum: float = 0.1  # Of the running statistics.
  mean: tuple[float, ...] = images.IMAGENET[0]
  std: tuple[float, ...] = images.IMAGENET[1]
  dropout: float = 0.0  # Of the features.


class Conv(nn.Module):
  """relu6(norm_0(conv_0(x))): the stem, and the layer before the pooling."""

  config: Config
  width: int
  kernel: int
  stride: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = self.config
    convolve = conv(self.width, self.kernel, self.stride, same=c.same, name='conv_0')
    return nn.relu6(_norm(c, 0, convolve(x)))


class Block(nn.Module):
  """The inverted residual: x + project(relu6(depthwise(relu6(expand(x))))).

  Expansion is conv_0, the depthwise convolution conv_1, projection conv_2, each with its norm; an
  expansion by 1 is left out, and x is only added where the shape stays.
  """

  config: Config
  shape: Shape
  stride: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c, (_, width, _, expand, kernel) = self.config, self.shape
    inner, y = x.shape[-1] * expand, x
    if expand != 1:
      y = nn.relu6(_norm(c, 0, conv(inner, 1, name='conv_0')(y)))
    y = nn.relu6(_norm(c, 1, Depthwise(kernel, self.stride, c.same, name='conv_1')(y)))
    y = _norm(c, 2, conv(width, 1, name='conv_2')(y))
    return x + y if self.stride == 1 and x.shape == y.shape else y


class Stage(nn.Module):
  """Blocks of one width."""

  config: Config
  shape: Shape

  @nn.compact
  def __call__(self, x: Array) -> Array:
    for j in range(self.shape.depth):
      stride = 1 if j else self.shape.stride
      x = Block(self.config, self.shape, stride, name=f'block_{j}')(x)
    return x


class MobileNet(nn.Module):
  """[B, H, W, C] -> features [B, D], the mean of hidden [B, H/32, W/32, D]; maybe logits."""

  config: Config

  @nn.compact
  def __call__(self, x: Array) -> dict[str, Array]:
    c = self.config
    x = Conv(c, c.stem, 3, 2, name='stem')(x)
    for i, shape in enumerate(c.stages):
      x = Stage(c, shape, name=f'stage_{i}')(x)
    x = Conv(c, c.last, 1, 1, name='last')(x)
    features = drop(self, c.dropout, x.mean((1, 2)))
    return {'features': features, 'hidden': x} | images.classifier(self, features, c.classes)


def forward(config: Config, batch_stats: bool = False) -> Callable[..., dict[str, Any]]:
  """The pure function (params, batch, key=None) -> outputs; batch has image [B, H, W, C].

  With `batch_stats` the norms use the statistics of the batch, and outputs have `state`, see
  `images.run`.

  >>> tiny = Config(stem=4, stages=(Shape(1, 4, 1, 1), Shape(2, 8, 2)), last=16, image_size=16)
  >>> outputs = forward(tiny)(init(tiny, jax.random.key(0)), example(tiny))
  >>> outputs['features'].shape, outputs['hidden'].shape
  ((1, 16), (1, 4, 4, 16))
  """
  return images.forward_of(MobileNet(config), batch_stats)


def init(config: Config, key: Array) -> Any:
  """Random params of a model of this shape."""
  return images.init_of(MobileNet(config), key)


def example(config: Config) -> dict[str, Array]:
  """A batch of one."""
  return images.example_of(config)


def config_from_hf(hf: Mapping[str, Any]) -> Config:
  """Reads a Hugging Face `config.json`; what this file does not compute is refused."""
  expand, multiplier = hf.get('expand_ratio', 6), hf.get('depth_multiplier', 1.0)
  images.refuse(
    hf,
    {
      'hidden_act': ['relu6'],
      'output_stride': [32],  # Less would be dilated convolutions.
      'first_layer_is_expansion': [True],
      'expand_ratio': [int(expand)],
    },
  )

  def width(channels: int) -> int:
    divisor, least = hf.get('depth_divisible_by', 8), hf.get('min_depth', 8)
    return rounded(round(channels * multiplier), divisor, least)

  if width(STAGES[0].width) == width(32):
    raise FewshotError(
      f'with depth_multiplier {multiplier} the first block keeps its width, and it would add its '
      'input, which Hugging Face does not'
    )
  thin = hf.get('finegrained_output', True) and multiplier < 1
  return Config(
    stem=width(32),
    stages=tuple(
      s._replace(width=width(s.width), expand=int(expand) if i else 1) for i, s in enumerate(STAGES)
    ),
    last=1280 if thin else width(1280),
    classes=images.classes(hf),
    same=hf.get('tf_padding', True),
    image_size=hf.get('image_size', 224),
    eps=hf.get('layer_norm_eps', 1e-3),
    **images.colours(hf, images.HALF),
  )


def rounded(channels: float, divisor: int, least: int) -> int:
  """The multiple of `divisor` nearest to channels, at least `least` and 90 % of them.

  >>> [rounded(channels, 8, 8) for channels in (3, 20, 11)]
  [8, 24, 16]
  """
  n = max(least, int(channels + divisor / 2) // divisor * divisor)
  return n + divisor if n < 0.9 * channels else n


def names(config: Config) -> Names:
  """Our module -> Hugging Face's name, after a leading 'mobilenet_v2.'."""
  table = {'head': 'classifier'}

  def add(ours: str, k: int, theirs: str) -> None:
    table[f'{ours}/conv_{k}'] = f'{theirs}.convolution'
    table[f'{ours}/norm_{k}'] = f'{theirs}.normalization'

  add('stem', 0, 'conv_stem.first_conv')
  add('last', 0, 'conv_1x1')
  for n, (ours, _) in enumerate(blocks(config)):
    theirs = f'layer.{n - 1}' if n else 'conv_stem'
    for k, name in enumerate(('expand_1x1', 'conv_3x3', 'reduce_1x1')):
      add(ours, k, f'{theirs}.{name}')
  return table


def names_torchvision(config: Config) -> Names:
  """Our module -> torchvision's name."""
  table = {'head': 'classifier.1'}

  def add(ours: str, k: int, conv: str, norm: str) -> None:
    table[f'{ours}/conv_{k}'] = f'features.{conv}'
    table[f'{ours}/norm_{k}'] = f'features.{norm}'

  found = blocks(config)
  add('stem', 0, '0.0', '0.1')
  add('last', 0, f'{len(found) + 1}.0', f'{len(found) + 1}.1')
  for n, (ours, shape) in enumerate(found, 1):
    skipped = int(shape.expand == 1)  # Without an expansion the others come one earlier.
    for k in range(skipped, 2):
      add(ours, k, f'{n}.conv.{k - skipped}.0', f'{n}.conv.{k - skipped}.1')
    add(ours, 2, f'{n}.conv.{2 - skipped}', f'{n}.conv.{3 - skipped}')
  return table


def blocks(config: Config) -> list[tuple[str, Shape]]:
  """(our path, the shape of its stage) of every block."""
  stages = enumerate(config.stages)
  return [(f'stage_{i}/block_{j}', s) for i, s in stages for j in range(s.depth)]


def _norm(config: Config, k: int, x: Array) -> Array:
  """norm_k of the module in whose compact method this is called."""
  return Norm(config.eps, config.momentum, name=f'norm_{k}')(x)


PREFIXES: tuple[str, ...] = ('mobilenet_v2.',)
UNUSED: tuple[str, ...] = (r'.*\.num_batches_tracked',)  # Counts the steps of training.
