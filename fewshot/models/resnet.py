"""ResNet-18, 50 and their like (He et al. 2016, arXiv:1512.03385), of two or three convolutions a
block; three as in 'v1.5', with the stride in the second.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from fewshot.models import images
from fewshot.models.images import Norm, conv
from fewshot.models.layers import drop
from fewshot.models.weights.names import Names

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a ResNet; ResNet-18 by default."""

  stem: int = 64  # Channels of the first convolution.
  widths: tuple[int, ...] = (64, 128, 256, 512)  # Channels that the blocks of a stage give.
  depths: tuple[int, ...] = (2, 2, 2, 2)  # Blocks of each stage.
  bottleneck: bool = False
  classes: int = 0  # Of the checkpoint's classifier; 0 where it has none.
  image_size: int = 224  # Of an example; other sizes do as well.
  mean: tuple[float, ...] = images.IMAGENET[0]
  std: tuple[float, ...] = images.IMAGENET[1]
  dropout: float = 0.0  # Of the features.


class Stem(nn.Module):
  """A convolution and a pooling of stride 2: [B, H, W, C] -> [B, H/4, W/4, stem]."""

  config: Config

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = nn.relu(Norm(name='norm_0')(conv(self.config.stem, 7, 2, name='conv_0')(x)))
    return nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])


class Shortcut(nn.Module):
  """What is added where a block changes the shape of x: norm_0(conv_0(x))."""

  width: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return Norm(name='norm_0')(conv(self.width, 1, self.stride, name='conv_0')(x))


class Block(nn.Module):
  """relu(shortcut(x) + norm_n(conv_n(... relu(norm_0(conv_0(x))))))."""

  width: int
  stride: int
  bottleneck: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    inner = self.width // 4
    layers = [(inner, 1, 1), (inner, 3, self.stride), (self.width, 1, 1)]  # Width, kernel, stride.
    if not self.bottleneck:
      layers = [(self.width, 3, self.stride), (self.width, 3, 1)]
    y = x
    for i, layer in enumerate(layers):
      y = nn.relu(y) if i else y
      y = Norm(name=f'norm_{i}')(conv(*layer, name=f'conv_{i}')(y))
    if x.shape != y.shape:
      x = Shortcut(self.width, self.stride, name='shortcut')(x)
    return nn.relu(x + y)


class Stage(nn.Module):
  """Blocks of one width, the first of them with the stride."""

  width: int
  depth: int
  stride: int
  bottleneck: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    for j in range(self.depth):
      stride = 1 if j else self.stride
      x = Block(self.width, stride, self.bottleneck, name=f'block_{j}')(x)
    return x


class ResNet(nn.Module):
  """[B, H, W, C] -> features [B, D], the mean of hidden [B, H/32, W/32, D]; maybe logits."""

  config: Config

  @nn.compact
  def __call__(self, x: Array) -> dict[str, Array]:
    c = self.config
    x = Stem(c, name='stem')(x)
    for i, (width, depth) in enumerate(zip(c.widths, c.depths, strict=True)):
      x = Stage(width, depth, 2 if i else 1, c.bottleneck, name=f'stage_{i}')(x)
    features = drop(self, c.dropout, x.mean((1, 2)))
    return {'features': features, 'hidden': x} | images.classifier(self, features, c.classes)


def forward(config: Config, batch_stats: bool = False) -> Callable[..., dict[str, Any]]:
  """The pure function (params, batch, key=None) -> outputs; batch has image [B, H, W, C].

  With `batch_stats` the norms use the statistics of the batch, and outputs have `state`, see
  `images.run`.

  >>> tiny = Config(stem=4, widths=(4, 8), depths=(1, 1), image_size=16)
  >>> outputs = forward(tiny)(init(tiny, jax.random.key(0)), example(tiny))
  >>> outputs['features'].shape, outputs['hidden'].shape
  ((1, 8), (1, 2, 2, 8))
  """
  return images.forward_of(ResNet(config), batch_stats)


def init(config: Config, key: Array) -> Any:
  """Random params of a model of this shape."""
  return images.init_of(ResNet(config), key)


def example(config: Config) -> dict[str, Array]:
  """A batch of one."""
  return images.example_of(config)


def config_from_hf(hf: Mapping[str, Any]) -> Config:
  """Reads a Hugging Face `config.json`; what this file does not compute is refused."""
  images.refuse(
    hf,
    {
      'hidden_act': ['relu'],
      'layer_type': ['bottleneck', 'basic'],
      'downsample_in_first_stage': [False],
      'downsample_in_bottleneck': [False],
    },
  )
  return Config(
    stem=hf['embedding_size'],
    widths=tuple(hf['hidden_sizes']),
    depths=tuple(hf['depths']),
    bottleneck=hf.get('layer_type', 'bottleneck') == 'bottleneck',
    classes=images.classes(hf),
    **images.colours(hf, images.IMAGENET),
  )


def names(config: Config) -> Names:
  """Our module -> Hugging Face's name, after a leading 'resnet.'."""
  table = {
    'stem/conv_0': 'embedder.embedder.convolution',
    'stem/norm_0': 'embedder.embedder.normalization',
    'head': 'classifier.1',
  }
  for ours, i, j in _blocks(config):
    theirs = f'encoder.stages.{i}.layers.{j}'
    for k in range(3):
      table[f'{ours}/conv_{k}'] = f'{theirs}.layer.{k}.convolution'
      table[f'{ours}/norm_{k}'] = f'{theirs}.layer.{k}.normalization'
    table[f'{ours}/shortcut/conv_0'] = f'{theirs}.shortcut.convolution'
    table[f'{ours}/shortcut/norm_0'] = f'{theirs}.shortcut.normalization'
  return table


def names_torchvision(config: Config) -> Names:
  """Our module -> torchvision's name."""
  table = {'stem/conv_0': 'conv1', 'stem/norm_0': 'bn1', 'head': 'fc'}
  for ours, i, j in _blocks(config):
    theirs = f'layer{i + 1}.{j}'
    for k in range(3):
      table[f'{ours}/conv_{k}'] = f'{theirs}.conv{k + 1}'
      table[f'{ours}/norm_{k}'] = f'{theirs}.bn{k + 1}'
    table[f'{ours}/shortcut/conv_0'] = f'{theirs}.downsample.0'
    table[f'{ours}/shortcut/norm_0'] = f'{theirs}.downsample.1'
  return table


def _blocks(config: Config) -> list[tuple[str, int, int]]:
  """(our path, stage, block) of every block."""
  return [(f'stage_{i}/block_{j}', i, j) for i, n in enumerate(config.depths) for j in range(n)]


PREFIXES: tuple[str, ...] = ('resnet.',)
UNUSED: tuple[str, ...] = (r'.*\.num_batches_tracked',)  # Counts the steps of training.
