"""Vision transformers: ViT (Dosovitskiy et al. 2021, arXiv:2010.11929) and DeiT (Touvron et al.
2021, arXiv:2012.12877); `dinov2` is this module with other names.

Pre-norm blocks over the patches and a class token, learned positions.  Stochastic depth, which
these models were pretrained with, is not computed; positions are not interpolated, so that images
must have the size the table was made for.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fewshot.errors import FewshotError
from fewshot.models import images
from fewshot.models.layers import ACTIVATIONS, Core, Mlp, drop
from fewshot.models.weights.names import Names, Part, per_block, third

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a ViT; images are image_size x image_size pixels, cut into patch x patch."""

  dim: int
  depth: int
  heads: int
  width: int  # Of the MLP.
  image_size: int
  patch: int
  classes: int = 0  # Of the checkpoint's classifier; 0 where it has none.
  distilled: bool = False  # Whether DeiT's distillation token stands after the class token.
  registers: int = 0  # Tokens without positions after the class token (arXiv:2309.16588).
  layer_scale: bool = False  # Whether gains `ls1` and `ls2` scale what a block adds.
  gated: bool = False  # Whether the MLP is SwiGLU.
  qkv_bias: bool = True
  activation: str = 'gelu'
  eps: float = 1e-6
  mean: tuple[float, ...] = images.HALF[0]
  std: tuple[float, ...] = images.HALF[1]
  dropout: float = 0.0

  def __post_init__(self) -> None:
    if self.dim % self.heads:
      raise FewshotError(f'a dim of {self.dim} does not divide into {self.heads} heads')
    if self.image_size % self.patch:
      raise FewshotError(
        f'images of {self.image_size} pixels do not divide into patches of {self.patch}'
      )


class Inputs(nn.Module):
  """Puts the class token (and DeiT's distillation token, registers) before patches [B, N, D].

  All but registers get positions.  Prompts of visual prompt tuning (arXiv:2203.12119), which have
  no positions and stand after the class token, attach at `encoder`.
  """

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array) -> tuple[Array, Array]:
    c, small = self.config, nn.initializers.normal(0.02)
    first = ['cls', 'distillation'] if c.distilled else ['cls']
    tokens = jnp.stack([self.param(n, small, (c.dim,)) for n in first])
    positions = self.param('positions', small, (len(first) + x.shape[1], c.dim))
    x = _before(tokens, x) + positions
    if c.registers:
      registers = self.param('registers', small, (c.registers, c.dim))
      x = jnp.concatenate([x[:, :1], _before(registers, x[:, 1:])], 1)
    more = x.shape[1] - mask.shape[1]
    return drop(self, c.dropout, x), jnp.pad(mask, ((0, 0), (more, 0)), constant_values=True)


class Attention(nn.Module):
  """Multi-head self-attention."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array) -> Array:
    c = self.config
    split = lambda y: y.reshape(*y.shape[:-1], c.heads, c.dim // c.heads)  # noqa: E731
    q, k, v = (split(nn.Dense(c.dim, c.qkv_bias, name=n)(x)) for n in ('query', 'key', 'value'))
    y = Core(name='core')(q, k, v, mask)
    return nn.Dense(c.dim, name='out')(y.reshape(x.shape))


class Gain(nn.Module):
  """LayerScale (Touvron et al. 2021, arXiv:2103.17239): x times a vector."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return x * self.param('scale', nn.initializers.constant(1e-5), x.shape[-1:])


class Block(nn.Module):
  """x = x + ls1(attn(ln1(x))); x = x + ls2(mlp(ln2(x)))."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array) -> Array:
    c = self.config
    gain = lambda name, y: Gain(name=name)(y) if c.layer_scale else y  # noqa: E731
    y = Attention(c, name='attn')(nn.LayerNorm(c.eps, name='ln1')(x), mask)
    x = x + drop(self, c.dropout, gain('ls1', y))
    y = Mlp(c.width, c.activation, c.gated, name='mlp')(nn.LayerNorm(c.eps, name='ln2')(x))
    return x + drop(self, c.dropout, gain('ls2', y))


class Encoder(nn.Module):
  """The stack of blocks and the last norm: x [B, T, D], mask [B, T] -> [B, T, D]."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array) -> Array:
    for i in range(self.config.depth):
      x = Block(self.config, name=f'block_{i}')(x, mask)
    return nn.LayerNorm(self.config.eps, name='ln')(x)


class ViT(nn.Module):
  """Images [B, S, S, C] -> features [B, D], the class token's; hidden [B, T, D]; maybe logits.

  T counts the class token, the patches and what the config adds.
  """

  config: Config

  @nn.compact
  def __call__(self, x: Array) -> dict[str, Array]:
    c = self.config
    if x.shape[1:3] != (c.image_size, c.image_size):
      raise FewshotError(
        f'images are {x.shape[1]} x {x.shape[2]} pixels, and the positions of this model are made '
        f'for {c.image_size} x {c.image_size}; resize the images'
      )
    x = images.Patches(c.dim, c.patch, name='embed')(x)
    x, mask = Inputs(c, name='inputs')(x, jnp.ones(x.shape[:2], bool))
    x = Encoder(c, name='encoder')(x, mask)
    features = x[:, 0]
    return {'features': features, 'hidden': x} | images.classifier(self, features, c.classes)


def forward(config: Config) -> Callable[..., dict[str, Any]]:
  """The pure function (params, batch, key=None) -> outputs; batch has image [B, S, S, C].

  >>> tiny = Config(dim=8, depth=1, heads=2, width=16, image_size=8, patch=4)
  >>> outputs = forward(tiny)(init(tiny, jax.random.key(0)), example(tiny))
  >>> outputs['features'].shape, outputs['hidden'].shape
  ((1, 8), (1, 5, 8))
  """
  return images.forward_of(ViT(config))


def init(config: Config, key: Array) -> Any:
  """Random params of a model of this shape."""
  return images.init_of(ViT(config), key)


def example(config: Config) -> dict[str, Array]:
  """A batch of one."""
  return images.example_of(config)


def config_from_hf(hf: Mapping[str, Any]) -> Config:
  """Reads the `config.json` of a ViT or DeiT; what this file does not compute is refused."""
  deit = hf['model_type'] == 'deit'
  images.refuse(hf, {'hidden_act': ['gelu', *ACTIVATIONS]})
  return Config(
    dim=hf['hidden_size'],
    depth=hf['num_hidden_layers'],
    heads=hf['num_attention_heads'],
    width=hf['intermediate_size'],
    image_size=hf['image_size'],
    patch=hf['patch_size'],
    classes=images.classes(hf),
    distilled=deit,
    qkv_bias=hf.get('qkv_bias', True),
    activation=hf.get('hidden_act', 'gelu'),
    eps=hf.get('layer_norm_eps', 1e-12),
    **images.colours(hf, images.IMAGENET if deit else images.HALF),
  )


def names(config: Config) -> Names:
  """Our module -> Hugging Face's name, after a leading 'vit.' or 'deit.'."""
  return per_block(
    {
      'embed': 'embeddings.patch_embeddings.projection',
      'inputs/cls': 'embeddings.cls_token',
      'inputs/distillation': 'embeddings.distillation_token',
      'inputs/positions': 'embeddings.position_embeddings',
      'encoder/block_{i}/ln1': 'encoder.layer.{i}.layernorm_before',
      'encoder/block_{i}/attn/query': 'encoder.layer.{i}.attention.attention.query',
      'encoder/block_{i}/attn/key': 'encoder.layer.{i}.attention.attention.key',
      'encoder/block_{i}/attn/value': 'encoder.layer.{i}.attention.attention.value',
      'encoder/block_{i}/attn/out': 'encoder.layer.{i}.attention.output.dense',
      'encoder/block_{i}/ln2': 'encoder.layer.{i}.layernorm_after',
      'encoder/block_{i}/mlp/up': 'encoder.layer.{i}.intermediate.dense',
      'encoder/block_{i}/mlp/down': 'encoder.layer.{i}.output.dense',
      'encoder/ln': 'layernorm',
      'head': 'classifier',
    },
    config.depth,
  )


def names_timm(config: Config) -> Names:
  """Our module -> the name in timm, whose projections of query, key and value are one."""
  table: dict[str, str | Part] = {
    'embed': 'patch_embed.proj',
    'inputs/cls': 'cls_token',
    'inputs/distillation': 'dist_token',
    'inputs/positions': 'pos_embed',
    'encoder/block_{i}/ln1': 'blocks.{i}.norm1',
    'encoder/block_{i}/attn/out': 'blocks.{i}.attn.proj',
    'encoder/block_{i}/ln2': 'blocks.{i}.norm2',
    'encoder/block_{i}/mlp/up': 'blocks.{i}.mlp.fc1',
    'encoder/block_{i}/mlp/down': 'blocks.{i}.mlp.fc2',
    'encoder/ln': 'norm',
    'head': 'head',
  }
  for j, name in enumerate(('query', 'key', 'value')):
    table[f'encoder/block_{{i}}/attn/{name}'] = Part('blocks.{i}.attn.qkv', third(j))
  return per_block(table, config.depth)


def _before(tokens: Array, x: Array) -> Array:
  """tokens [K, D] before every x [B, N, D] -> [B, K + N, D]."""
  return jnp.concatenate([jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape)), x], 1)


PREFIXES: tuple[str, ...] = ('vit.', 'deit.')
UNUSED: tuple[str, ...] = (
  r'pooler\.dense\..*',  # A tanh layer over the class token; features are that token itself.
  # Of DeiT trained with a teacher, whose logits are the mean of two tokens' classifiers: features
  # are the class token's, and there is no one `head` on them.
  r'(cls|distillation)_classifier\..*',
)
