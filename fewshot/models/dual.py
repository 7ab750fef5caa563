"""What models of an image and a text tower share: blocks, patches, the root, the forward.

Pre-norm transformers; `clip`, `siglip` and `clip_resnet` put them together.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fewshot.errors import FewshotError
from fewshot.models import images
from fewshot.models.causal import check_length
from fewshot.models.layers import ACTIVATIONS, Core, Mlp, classify, drop
from fewshot.models.weights.names import Names, per_block

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Tower:
  """The shape of one transformer."""

  dim: int
  depth: int
  heads: int
  width: int  # Of the MLP.
  activation: str = 'quick_gelu'
  eps: float = 1e-5

  def __post_init__(self) -> None:
    if self.dim % self.heads:
      raise FewshotError(f'a dim of {self.dim} does not divide into {self.heads} heads')
    if self.activation not in ACTIVATIONS:
      known = ', '.join(ACTIVATIONS)
      raise FewshotError(f'hidden_act {self.activation!r} is not known; known: {known}')


class Attention(nn.Module):
  """Multi-head attention of x [B, Q, D] over source [B, K, D], by default over itself."""

  config: Tower

  @nn.compact
  def __call__(self, x: Array, mask: Array, source: Array | None = None) -> Array:
    c, source = self.config, x if source is None else source
    split = lambda y: y.reshape(*y.shape[:-1], c.heads, c.dim // c.heads)  # noqa: E731
    q = split(nn.Dense(c.dim, name='query')(x))
    k, v = (split(nn.Dense(c.dim, name=n)(source)) for n in ('key', 'value'))
    return nn.Dense(c.dim, name='out')(Core(name='core')(q, k, v, mask).reshape(x.shape))


class Block(nn.Module):
  """x = x + attn(ln1(x)); x = x + mlp(ln2(x))."""

  config: Tower
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x: Array, mask: Array) -> Array:
    c = self.config
    y = Attention(c, name='attn')(nn.LayerNorm(c.eps, name='ln1')(x), mask)
    x = x + drop(self, self.dropout, y)
    y = Mlp(c.width, c.activation, name='mlp')(nn.LayerNorm(c.eps, name='ln2')(x))
    return x + drop(self, self.dropout, y)


class Stack(nn.Module):
  """The blocks of a tower, maybe causal, maybe with a last norm: x [B, T, D], mask [B, T]."""

  config: Tower
  dropout: float = 0.0
  causal: bool = False
  norm: bool = True

  @nn.compact
  def __call__(self, x: Array, mask: Array) -> Array:
    if self.causal:
      mask = mask[:, None, None, :] & jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
    for i in range(self.config.depth):
      x = Block(self.config, self.dropout, name=f'block_{i}')(x, mask)
    return nn.LayerNorm(self.config.eps, name='ln')(x) if self.norm else x


class TextInputs(nn.Module):
  """Adds positions to embedded tokens; soft prompts attach before it."""

  limit: int
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x: Array, mask: Array, positions: Array) -> tuple[Array, Array]:
    check_length(x.shape[1], None, self.limit)
    x = x + nn.Embed(self.limit, x.shape[-1], name='positions')(positions)
    return drop(self, self.dropout, x), mask


class Dual(nn.Module):
  """Two towers: unit vectors of images and texts, and exp(scale) cos + bias between them.

  features and hidden are of the images where there are any, else of the texts; features are what
  the unit vectors are made of.  logits are of `head` where params have one, else similarities
  [images, texts] where there are both.
  """

  config: Any
  text: Callable[..., nn.Module]  # Of the config; (tokens, mask) -> features, hidden.
  image: Callable[..., nn.Module]  # Of the config; pixels -> features, hidden.
  biased: bool = False  # Whether `bias` is added to the similarities.

  @nn.compact
  def __call__(
    self, pixels: Array | None, tokens: Array | None, mask: Array | None
  ) -> dict[str, Array]:
    outputs: dict[str, Array] = {}
    if tokens is not None and mask is not None:
      x, hidden = self.text(self.config, name='text')(tokens, mask)
      outputs = {'text_features': unit(x), 'features': x, 'hidden': hidden, 'mask': mask}
    if pixels is not None:
      x, hidden = self.image(self.config, name='image')(pixels)
      outputs |= {'image_features': unit(x), 'features': x, 'hidden': hidden}
      outputs.pop('mask', None)  # It says which of the hidden are real: all of an image's are.
    if tokens is not None and pixels is not None:
      scale = self.param('scale', nn.initializers.constant(2.6592), (1,))  # log(1 / 0.07).
      cos = outputs['image_features'] @ outputs['text_features'].T
      outputs['logits'] = jnp.exp(scale) * cos
      if self.biased:
        outputs['logits'] += self.param('bias', nn.initializers.zeros, (1,))
    return outputs | classify(self, outputs['features'])


def unit(x: Array) -> Array:
  """x / |x| over the last axis."""
  return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True))


def forward_of(module: Dual) -> Callable[..., dict[str, Array]]:
  """The pure function (params, batch, key=None) -> outputs; see `clip.forward`."""
  size = module.config.image_size

  def apply(params: Any, batch: dict[str, Any], key: Array | None = None) -> dict[str, Array]:
    if not batch.keys() & {'image', 'tokens'} or ('tokens' in batch and 'mask' not in batch):
      raise FewshotError(
        f'this model reads image, or tokens and mask, and the batch has '
        f'{", ".join(batch) or "nothing"}; give it images, texts or both'
      )
    x = images.pixels(batch, module.config, params) if 'image' in batch else None
    if x is not None and x.shape[1:3] != (size, size):
      raise FewshotError(
        f'images are {x.shape[1]} x {x.shape[2]} pixels, and the positions of this model are made '
        f'for {size} x {size}; resize the images'
      )
    text = [batch['tokens'], jnp.asarray(batch['mask'], bool)] if 'tokens' in batch else [None] * 2
    rngs = None if key is None else {'dropout': key}
    return module.apply({'params': params}, x, *text, rngs=rngs)  # type: ignore[return-value]

  return apply


def init_of(module: Dual, key: Array) -> Any:
  """Random params of two towers."""
  batch = example(module.config)
  image = jnp.zeros(batch['image'].shape)
  return module.init(key, image, batch['tokens'], batch['mask'])['params']


def example(config: Any) -> dict[str, Array]:
  """A batch of one image and one text."""
  text = {'tokens': jnp.zeros((1, 2), int), 'mask': jnp.ones((1, 2), bool)}
  return images.example_of(config) | text


def tower(hf: Mapping[str, Any]) -> Tower:
  """One tower of a Hugging Face `config.json`."""
  return Tower(
    dim=hf['hidden_size'],
    depth=hf['num_hidden_layers'],
    heads=hf['num_attention_heads'],
    width=hf['intermediate_size'],
    activation=hf['hidden_act'],
    eps=hf['layer_norm_eps'],
  )


def tower_names(ours: str, theirs: str, depth: int) -> Names:
  """The blocks of one tower."""
  modules = {f'attn/{n}': f'self_attn.{n[0]}_proj' for n in ('query', 'key', 'value')}
  modules |= {'attn/out': 'self_attn.out_proj', 'ln1': 'layer_norm1', 'ln2': 'layer_norm2'}
  modules |= {'mlp/up': 'mlp.fc1', 'mlp/down': 'mlp.fc2'}
  block, layer = f'{ours}/encoder/block_{{i}}', f'{theirs}.encoder.layers.{{i}}'
  return per_block({f'{block}/{a}': f'{layer}.{b}' for a, b in modules.items()}, depth)
