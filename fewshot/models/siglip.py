"""SigLIP (Zhai et al. 2023, arXiv:2303.15343): two towers as CLIP's, trained pair by pair.

The probability that an image and a text belong together is sigmoid(logits).  Images are pooled by
attention, texts at their last position; texts were always padded to all positions, and nothing is
masked, so that the padding is part of what the model reads.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fewshot.errors import FewshotError
from fewshot.models import dual, images
from fewshot.models.causal import check_length
from fewshot.models.dual import Attention, Dual, Stack, TextInputs, Tower, tower_names
from fewshot.models.layers import Mlp, drop
from fewshot.models.weights.names import Names, Part, third

Array = jax.Array
example = dual.example


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a SigLIP; images are image_size x image_size pixels, in squares of `patch`."""

  text: Tower
  image: Tower
  vocab: int
  positions: int  # Tokens that every text is padded to.
  image_size: int
  patch: int
  pad: int = 1
  mean: tuple[float, ...] = images.HALF[0]
  std: tuple[float, ...] = images.HALF[1]
  dropout: float = 0.0


class Text(nn.Module):
  """tokens, mask [B, T] -> features [B, image.dim], hidden [B, T, text.dim]."""

  config: Config

  @nn.compact
  def __call__(self, tokens: Array, mask: Array) -> tuple[Array, Array]:
    c, t = self.config, tokens.shape[1]
    check_length(t, None, c.positions)
    tokens = jnp.where(mask, tokens, c.pad)
    tokens = jnp.pad(tokens, ((0, 0), (0, c.positions - t)), constant_values=c.pad)
    x = nn.Embed(c.vocab, c.text.dim, name='embed')(tokens)
    positions = jnp.broadcast_to(jnp.arange(c.positions), tokens.shape)
    everything = jnp.ones(tokens.shape, bool)
    inputs = TextInputs(c.positions, c.dropout, name='inputs')(x, everything, positions)
    x = Stack(c.text, c.dropout, name='encoder')(*inputs)
    return nn.Dense(c.image.dim, name='head')(x[:, -1]), x[:, :t]


class ImageInputs(nn.Module):
  """Adds positions to patches [B, N, D]."""

  dropout: float = 0.0

  @nn.compact
  def __call__(self, x: Array, mask: Array) -> tuple[Array, Array]:
    x = x + self.param('positions', nn.initializers.normal(0.02), x.shape[1:])
    return drop(self, self.dropout, x), mask


class Pool(nn.Module):
  """y = attn(probe, x); y + mlp(ln(y)), for one trained probe: x [B, N, D] -> [B, D]."""

  config: Tower

  @nn.compact
  def __call__(self, x: Array, mask: Array) -> Array:
    c = self.config
    probe = self.param('probe', nn.initializers.normal(0.02), (c.dim,))
    y = jnp.broadcast_to(probe, (x.shape[0], 1, c.dim))
    y = Attention(c, name='attn')(y, mask, x)
    mlp, ln = Mlp(c.width, c.activation, name='mlp'), nn.LayerNorm(c.eps, name='ln')
    return (y + mlp(ln(y)))[:, 0]


class Image(nn.Module):
  """Images [B, S, S, 3] -> features [B, D], hidden [B, N, D]."""

  config: Config

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Array]:
    c = self.config
    x = images.Patches(c.image.dim, c.patch, name='embed')(x)
    x, mask = ImageInputs(c.dropout, name='inputs')(x, jnp.ones(x.shape[:2], bool))
    x = Stack(c.image, c.dropout, name='encoder')(x, mask)
    return Pool(c.image, name='pool')(x, mask), x


def forward(config: Config) -> Callable[..., dict[str, Array]]:
  """The pure function (params, batch, key=None) -> outputs, as of `clip.forward`.

  logits are exp(scale) cos + bias.

  >>> tower = Tower(dim=8, depth=1, heads=2, width=16)
  >>> tiny = Config(tower, tower, vocab=9, positions=4, image_size=8, patch=4)
  >>> outputs = forward(tiny)(init(tiny, jax.random.key(0)), example(tiny))
  >>> outputs['text_features'].shape, outputs['image_features'].shape, outputs['logits'].shape
  ((1, 8), (1, 8), (1, 1))
  """
  return dual.forward_of(Dual(config, Text, Image, biased=True))


def init(config: Config, key: Array) -> Any:
  """Random params of a model of this shape."""
  return dual.init_of(Dual(config, Text, Image, biased=True), key)


def config_from_hf(hf: Mapping[str, Any]) -> Config:
  """Reads a Hugging Face `config.json`; what this file does not compute is refused."""
  text = {**TEXT, **hf.get('text_config', {})}
  image = {**IMAGE, **hf.get('vision_config', {})}
  images.refuse(image, {'num_channels': [3], 'vision_use_head': [True]})
  project = text.get('projection_size') or text['hidden_size']
  if project != image['hidden_size']:
    raise FewshotError(
      f'texts have {project} features and images {image["hidden_size"]}; they cannot be compared'
    )
  return Config(
    text=dual.tower(text),
    image=dual.tower(image),
    vocab=text['vocab_size'],
    positions=text['max_position_embeddings'],
    image_size=image['image_size'],
    patch=image['patch_size'],
    pad=text['pad_token_id'],
    **images.colours(hf, images.HALF),
  )


def names(config: Config) -> Names:
  """Our module or leaf -> Hugging Face's name; a pool's query, key and value are stored as one."""
  pooled: dict[str, str | Part] = {}
  for j, ours in enumerate(('query', 'key', 'value')):
    for leaf, theirs in (('kernel', 'weight'), ('bias', 'bias')):
      stored = f'vision_model.head.attention.in_proj_{theirs}'
      pooled[f'image/pool/attn/{ours}/{leaf}'] = Part(stored, third(j))
  return {
    **tower_names('text', 'text_model', config.text.depth),
    **tower_names('image', 'vision_model', config.image.depth),
    **pooled,
    'text/embed': 'text_model.embeddings.token_embedding',
    'text/inputs/positions': 'text_model.embeddings.position_embedding',
    'text/encoder/ln': 'text_model.final_layer_norm',
    'text/head': 'text_model.head',
    'image/embed': 'vision_model.embeddings.patch_embedding',
    'image/inputs/positions': 'vision_model.embeddings.position_embedding.weight',
    'image/encoder/ln': 'vision_model.post_layernorm',
    'image/pool/probe': 'vision_model.head.probe',
    'image/pool/attn/out': 'vision_model.head.attention.out_proj',
    'image/pool/ln': 'vision_model.head.layernorm',
    'image/pool/mlp/up': 'vision_model.head.mlp.fc1',
    'image/pool/mlp/down': 'vision_model.head.mlp.fc2',
    'scale': 'logit_scale',
    'bias': 'logit_bias',
  }


# Files may hold only what differs from these.
SHARED: dict[str, Any] = {
  'hidden_size': 768,
  'num_hidden_layers': 12,
  'num_attention_heads': 12,
  'intermediate_size': 3072,
  'hidden_act': 'gelu_pytorch_tanh',
  'layer_norm_eps': 1e-6,
}
TEXT = {**SHARED, 'vocab_size': 32000, 'max_position_embeddings': 64, 'pad_token_id': 1}
IMAGE = {**SHARED, 'image_size': 224, 'patch_size': 16}
PREFIXES: tuple[str, ...] = ()
UNUSED: tuple[str, ...] = (
  r'(text|vision)_model\.embeddings\.position_ids',  # Constants that old checkpoints store.
)
