"""A multilayer perceptron over vectors, for tests and for features that are already computed."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fewshot.errors import FewshotError
from fewshot.models import images
from fewshot.models.layers import ACTIVATIONS, drop
from fewshot.models.weights.names import Names, per_block

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a multilayer perceptron."""

  inputs: int
  dim: int  # Of every layer.
  depth: int
  activation: str = 'relu'
  dropout: float = 0.0


class Block(nn.Module):
  """act(up(x))."""

  config: Config

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = self.config
    return drop(self, c.dropout, ACTIVATIONS[c.activation](nn.Dense(c.dim, name='up')(x)))


class Encoder(nn.Module):
  """The stack of blocks: x [B, inputs] -> [B, D]."""

  config: Config

  @nn.compact
  def __call__(self, x: Array) -> Array:
    for i in range(self.config.depth):
      x = Block(self.config, name=f'block_{i}')(x)
    return x


class MLP(nn.Module):
  """x [B, inputs] -> features [B, D]; maybe logits."""

  config: Config

  @nn.compact
  def __call__(self, x: Array) -> dict[str, Array]:
    x = Encoder(self.config, name='encoder')(x)
    return {'features': x} | images.classifier(self, x, 0)


def forward(config: Config) -> Callable[..., dict[str, Array]]:
  """The pure function (params, batch, key=None) -> outputs; batch has x [B, inputs].

  >>> tiny = Config(inputs=3, dim=8, depth=2)
  >>> params = init(tiny, jax.random.key(0))
  >>> forward(tiny)(params, {'x': jnp.ones((2, 3))})['features'].shape
  (2, 8)
  """
  module = MLP(config)

  def apply(params: Any, batch: dict[str, Any], key: Array | None = None) -> dict[str, Array]:
    if 'x' not in batch:
      has = ', '.join(batch) or 'nothing'
      raise FewshotError(f'this model reads x [B, {config.inputs}], and the batch has {has}')
    x = jnp.asarray(batch['x'], jax.tree.leaves(params)[0].dtype)
    return images.run(module, params, x, key)

  return apply


def init(config: Config, key: Array) -> Any:
  """Random params of a model of this shape."""
  return MLP(config).init(key, example(config)['x'])['params']


def example(config: Config) -> dict[str, Array]:
  """A batch of one."""
  return {'x': jnp.zeros((1, config.inputs))}


def config_from_hf(hf: Mapping[str, Any]) -> Config:
  """Reads our own `config.json`, of the model_type 'mlp' with the fields of `Config`."""
  images.refuse(hf, {'activation': ['relu', *ACTIVATIONS]})
  return Config(hf['inputs'], hf['dim'], hf['depth'], hf.get('activation', 'relu'))


def names(config: Config) -> Names:
  """Our module -> the name in a list `layers` of linear maps."""
  return per_block({'encoder/block_{i}/up': 'layers.{i}'}, config.depth)


PREFIXES: tuple[str, ...] = ()
UNUSED: tuple[str, ...] = ()
