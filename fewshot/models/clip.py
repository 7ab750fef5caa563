"""CLIP (Radford et al. 2021, arXiv:2103.00020): a text and an image encoder with one space.

The text tower is causal, and its feature that of the end token; the image tower's is that of a
class token.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fewshot.models import dual, images
from fewshot.models.dual import Dual, Stack, TextInputs, Tower
from fewshot.models.layers import drop
from fewshot.models.weights.names import Names, Part

Array = jax.Array
COLOURS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
LEGACY_EOS = 2  # Of configs that do not know their end token, which is the highest in a text.
example = dual.example


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a CLIP; images are image_size x image_size pixels in patches of patch x patch."""

  text: Tower
  image: Tower
  vocab: int
  positions: int  # Tokens of a text.
  image_size: int
  patch: int
  project: int  # Dimensions of the common space.
  eos: int = LEGACY_EOS
  mean: tuple[float, ...] = COLOURS[0]
  std: tuple[float, ...] = COLOURS[1]
  dropout: float = 0.0


class Text(nn.Module):
  """tokens, mask [B, T] -> features [B, project], hidden [B, T, D]."""

  config: Any  # Of `clip` or `clip_resnet`.

  @nn.compact
  def __call__(self, tokens: Array, mask: Array) -> tuple[Array, Array]:
    c = self.config
    x = nn.Embed(c.vocab, c.text.dim, name='embed')(tokens)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    x, longer = TextInputs(c.positions, c.dropout, name='inputs')(x, mask, positions)
    x = Stack(c.text, c.dropout, causal=True, name='encoder')(x, longer)[:, -tokens.shape[1] :]
    end = jnp.take_along_axis(x, end_of(tokens, mask, c.eos)[:, None, None], 1)[:, 0]
    return nn.Dense(c.project, use_bias=False, name='project')(end), x


def end_of(tokens: Array, mask: Array, eos: int) -> Array:
  """Where each text [B, T] ends: its first token `eos`, or the last token if it was cut -> [B].

  >>> tokens = jnp.array([[7, 3, 9, 9], [7, 3, 4, 9]])
  >>> end_of(tokens, jnp.array([[1, 1, 1, 0], [1, 1, 1, 0]], bool), 9).tolist()
  [2, 2]
  """
  if eos == LEGACY_EOS:
    return jnp.where(mask, tokens, -1).argmax(1)
  found = (tokens == eos) & mask
  last = jnp.where(mask, jnp.arange(mask.shape[1]), 0).max(1)
  return jnp.where(found.any(1), found.argmax(1), last)


class ImageInputs(nn.Module):
  """Puts the class token before patches [B, N, D], adds positions, normalises."""

  config: Tower
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x: Array, mask: Array) -> tuple[Array, Array]:
    (b, n, d), small = x.shape, nn.initializers.normal(0.02)
    cls = jnp.broadcast_to(self.param('cls', small, (d,)), (b, 1, d))
    x = jnp.concatenate([cls, x], 1) + self.param('positions', small, (1 + n, d))
    x = nn.LayerNorm(self.config.eps, name='ln')(x)
    return drop(self, self.dropout, x), jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)


class Image(nn.Module):
  """Images [B, S, S, 3] -> features [B, project], hidden [B, 1 + N, D], the class token first."""

  config: Config

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Array]:
    c = self.config
    x = images.Patches(c.image.dim, c.patch, use_bias=False, name='embed')(x)
    x, mask = ImageInputs(c.image, c.dropout, name='inputs')(x, jnp.ones(x.shape[:2], bool))
    x = Stack(c.image, c.dropout, norm=False, name='encoder')(x, mask)
    features = nn.LayerNorm(c.image.eps, name='ln')(x[:, 0])
    return nn.Dense(c.project, use_bias=False, name='project')(features), x


def forward(config: Config) -> Callable[..., dict[str, Array]]:
  """The pure function (params, batch, key=None) -> outputs.

  batch has image [B, S, S, 3], or tokens and mask [B, T], or both, maybe of different B.

  >>> tower = Tower(dim=8, depth=1, heads=2, width=16)
  >>> tiny = Config(tower, tower, vocab=9, positions=4, image_size=8, patch=4, project=6)
  >>> outputs = forward(tiny)(init(tiny, jax.random.key(0)), example(tiny))
  >>> outputs['text_features'].shape, outputs['image_features'].shape, outputs['logits'].shape
  ((1, 6), (1, 6), (1, 1))
  """
  return dual.forward_of(Dual(config, Text, Image))


def init(config: Config, key: Array) -> Any:
  """Random params of a model of this shape."""
  return dual.init_of(Dual(config, Text, Image), key)


def config_from_hf(hf: Mapping[str, Any]) -> Config:
  """Reads a Hugging Face `config.json`; what this file does not compute is refused."""
  # Old files have the values of a tower in a second place.
  text = {**TEXT, **hf.get('text_config', {}), **(hf.get('text_config_dict') or {})}
  image = {**IMAGE, **hf.get('vision_config', {}), **(hf.get('vision_config_dict') or {})}
  images.refuse(image, {'num_channels': [3]})
  return Config(
    text=dual.tower(text),
    image=dual.tower(image),
    vocab=text['vocab_size'],
    positions=text['max_position_embeddings'],
    image_size=image['image_size'],
    patch=image['patch_size'],
    project=hf.get('projection_dim', 512),
    eos=text['eos_token_id'],
    **images.colours(hf, COLOURS),
  )


def names(config: Config) -> Names:
  """Our module -> Hugging Face's name."""
  return {
    **dual.tower_names('text', 'text_model', config.text.depth),
    **dual.tower_names('image', 'vision_model', config.image.depth),
    'text/embed': 'text_model.embeddings.token_embedding',
    'text/inputs/positions': 'text_model.embeddings.position_embedding',
    'text/encoder/ln': 'text_model.final_layer_norm',
    'text/project': 'text_projection',
    'image/embed': 'vision_model.embeddings.patch_embedding',
    'image/inputs/cls': 'vision_model.embeddings.class_embedding',
    'image/inputs/positions': 'vision_model.embeddings.position_embedding.weight',
    'image/inputs/ln': 'vision_model.pre_layrnorm',
    'image/ln': 'vision_model.post_layernorm',
    'image/project': 'visual_projection',
    'scale': Part('logit_scale', lambda x: x.reshape(1)),
  }


# Files may hold only what differs from these.
SHARED = {'num_hidden_layers': 12, 'hidden_act': 'quick_gelu', 'layer_norm_eps': 1e-5}
TEXT: dict[str, Any] = {
  **SHARED,
  'hidden_size': 512,
  'num_attention_heads': 8,
  'intermediate_size': 2048,
  'vocab_size': 49408,
  'max_position_embeddings': 77,
  'eos_token_id': 49407,
}
IMAGE: dict[str, Any] = {
  **SHARED,
  'hidden_size': 768,
  'num_attention_heads': 12,
  'intermediate_size': 3072,
  'image_size': 224,
  'patch_size': 32,
}
PREFIXES: tuple[str, ...] = ()
UNUSED: tuple[str, ...] = (
  r'(text|vision)_model\.embeddings\.position_ids',  # Constants that old checkpoints store.
)
