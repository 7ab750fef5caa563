"""ResNet-12, the deep backbone of few-shot image papers (Lee et al. 2019, arXiv:1904.03758).

Four blocks of three convolutions, each halved by max pooling; global average pooling.  DropBlock,
which regularises it there, is not computed.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from fewshot.models import images
from fewshot.models.images import Norm, conv
from fewshot.models.layers import drop
from fewshot.models.resnet import Shortcut
from fewshot.models.weights.names import Names

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a ResNet-12; a block for each width."""

  widths: tuple[int, ...] = (64, 160, 320, 640)
  image_size: int = 84  # Of an example; other sizes do as well.
  mean: tuple[float, ...] = images.IMAGENET[0]
  std: tuple[float, ...] = images.IMAGENET[1]
  dropout: float = 0.0  # Of the features.


class Block(nn.Module):
  """halve(act(shortcut(x) + norm_2(conv_2(act(norm_1(conv_1(act(norm_0(conv_0(x)))))))))."""

  width: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    act = lambda y: nn.leaky_relu(y, 0.1)  # noqa: E731
    y = x
    for i in range(3):
      y = act(y) if i else y
      y = Norm(name=f'norm_{i}')(conv(self.width, 3, name=f'conv_{i}')(y))
    return images.halve(act(Shortcut(self.width, name='shortcut')(x) + y))


class Stage(nn.Module):
  """A stage of one block."""

  width: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return Block(self.width, name='block_0')(x)


class ResNet12(nn.Module):
  """[B, H, W, C] -> features [B, D], the mean of hidden [B, H/16, W/16, D]."""

  config: Config

  @nn.compact
  def __call__(self, x: Array) -> dict[str, Array]:
    c = self.config
    for i, width in enumerate(c.widths):
      x = Stage(width, name=f'stage_{i}')(x)
    features = drop(self, c.dropout, x.mean((1, 2)))
    return {'features': features, 'hidden': x} | images.classifier(self, features, 0)


def forward(config: Config, batch_stats: bool = False) -> Callable[..., dict[str, Any]]:
  """The pure function (params, batch, key=None) -> outputs; batch has image [B, H, W, C].

  With `batch_stats` the norms use the statistics of the batch, and outputs have `state`, see
  `images.run`.

  >>> tiny = Config(widths=(4, 8), image_size=8)
  >>> outputs = forward(tiny)(init(tiny, jax.random.key(0)), example(tiny))
  >>> outputs['features'].shape, outputs['hidden'].shape
  ((1, 8), (1, 2, 2, 8))
  """
  return images.forward_of(ResNet12(config), batch_stats)


def init(config: Config, key: Array) -> Any:
  """Random params of a model of this shape."""
  return images.init_of(ResNet12(config), key)


def example(config: Config) -> dict[str, Array]:
  """A batch of one."""
  return images.example_of(config)


def config_from_hf(hf: Mapping[str, Any]) -> Config:
  """Reads our own `config.json`, of the model_type 'resnet12' with the fields of `Config`."""
  size = hf.get('image_size', Config.image_size)
  return Config(tuple(hf['widths']), size, **images.colours(hf, images.IMAGENET))


def names(config: Config) -> Names:
  """Our module -> the name in MetaOptNet's code and what follows it."""
  table = {}
  for i in range(len(config.widths)):
    ours, theirs = f'stage_{i}/block_0', f'layer{i + 1}.0'
    for k in range(3):
      table[f'{ours}/conv_{k}'] = f'{theirs}.conv{k + 1}'
      table[f'{ours}/norm_{k}'] = f'{theirs}.bn{k + 1}'
    table[f'{ours}/shortcut/conv_0'] = f'{theirs}.downsample.0'
    table[f'{ours}/shortcut/norm_0'] = f'{theirs}.downsample.1'
  return table


PREFIXES: tuple[str, ...] = ()
UNUSED: tuple[str, ...] = (r'.*\.num_batches_tracked',)  # Counts the steps of training.
