"""Conv4, the small backbone of few-shot image papers (Vinyals et al. 2016, arXiv:1606.04080; Snell
et al. 2017, arXiv:1703.05175): four times convolution, batch norm, relu, max pooling.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from fewshot.models import images
from fewshot.models.images import Norm, conv
from fewshot.models.layers import drop
from fewshot.models.weights.names import Names, per_block

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a Conv4; the features of 84 x 84 pixels have 1600 entries, of 28 x 28 have 64."""

  width: int = 64  # Channels.
  depth: int = 4
  image_size: int = 84  # Of an example; features grow with the size.
  mean: tuple[float, ...] = images.IMAGENET[0]
  std: tuple[float, ...] = images.IMAGENET[1]
  dropout: float = 0.0  # Of the features.


class Block(nn.Module):
  """halve(relu(norm_0(conv_0(x))))."""

  width: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    y = conv(self.width, 3, use_bias=True, name='conv_0')(x)
    return images.halve(nn.relu(Norm(name='norm_0')(y)))


class Stage(nn.Module):
  """A stage of one block."""

  width: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return Block(self.width, name='block_0')(x)


class Conv4(nn.Module):
  """[B, H, W, C] -> hidden [B, H/16, W/16, D]; features are all of it, [B, H/16 W/16 D]."""

  config: Config

  @nn.compact
  def __call__(self, x: Array) -> dict[str, Array]:
    c = self.config
    for i in range(c.depth):
      x = Stage(c.width, name=f'stage_{i}')(x)
    features = drop(self, c.dropout, x.reshape(x.shape[0], -1))
    return {'features': features, 'hidden': x} | images.classifier(self, features, 0)


def forward(config: Config, batch_stats: bool = False) -> Callable[..., dict[str, Any]]:
  """The pure function (params, batch, key=None) -> outputs; batch has image [B, H, W, C].

  With `batch_stats` the norms use the statistics of the batch, as prototypical networks do while
  they are meta-trained, and outputs have `state`, see `images.run`.

  >>> tiny = Config(width=4, depth=2, image_size=8)
  >>> params = init(tiny, jax.random.key(0))
  >>> forward(tiny)(params, example(tiny))['features'].shape
  (1, 16)
  >>> sorted(forward(tiny, batch_stats=True)(params, example(tiny))['state'])[0]
  'stage_0/block_0/norm_0/mean'
  """
  return images.forward_of(Conv4(config), batch_stats)


def init(config: Config, key: Array) -> Any:
  """Random params of a model of this shape."""
  return images.init_of(Conv4(config), key)


def example(config: Config) -> dict[str, Array]:
  """A batch of one."""
  return images.example_of(config)


def config_from_hf(hf: Mapping[str, Any]) -> Config:
  """Reads our own `config.json`, of the model_type 'conv4' with the fields of `Config`."""
  return Config(
    hf['width'],
    hf['depth'],
    hf.get('image_size', Config.image_size),
    **images.colours(hf, images.IMAGENET),
  )


def names(config: Config) -> Names:
  """Our module -> the name in the code of prototypical networks."""
  table = {
    'stage_{i}/block_0/conv_0': 'encoder.{i}.0',
    'stage_{i}/block_0/norm_0': 'encoder.{i}.1',
  }
  return per_block(table, config.depth)


PREFIXES: tuple[str, ...] = ()
UNUSED: tuple[str, ...] = (r'.*\.num_batches_tracked',)  # Counts the steps of training.
