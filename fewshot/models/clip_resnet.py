"""CLIP with a ResNet for images (Radford et al. 2021, arXiv:2103.00020, section 2.4).

The ResNet has a stem of three convolutions, pools by averages where others have strides, and ends
in attention of the mean over all positions.  Weights are named as in the original release, which
has no config.json; one in the words of OpenCLIP is read.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fewshot.errors import FewshotError
from fewshot.models import clip, dual, images
from fewshot.models.dual import Dual, Tower
from fewshot.models.images import Norm, conv
from fewshot.models.layers import Core
from fewshot.models.resnet import Shortcut
from fewshot.models.weights.names import Names, Part, per_block, third

Array = jax.Array
example = dual.example


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a CLIP with a ResNet; the defaults are those of RN50."""

  text: Tower
  vocab: int
  positions: int  # Tokens of a text.
  project: int  # Dimensions of the common space.
  width: int = 64  # Channels of the stem; the stages give 4, 8, 16 and 32 times as many.
  depths: tuple[int, ...] = (3, 4, 6, 3)  # Blocks of each stage.
  head_dim: int = 64  # Of the pooling attention.
  image_size: int = 224
  eos: int = clip.LEGACY_EOS
  mean: tuple[float, ...] = clip.COLOURS[0]
  std: tuple[float, ...] = clip.COLOURS[1]
  dropout: float = 0.0  # Of the text tower.

  def __post_init__(self) -> None:
    if self.image_size % self.reduction:
      raise FewshotError(
        f'images of {self.image_size} pixels do not divide by {self.reduction}, which the stages '
        'shrink them by'
      )

  @property
  def reduction(self) -> int:
    """How many pixels become one position."""
    return 4 * 2 ** (len(self.depths) - 1)


def shrink(x: Array, by: int) -> Array:
  """The means of by x by blocks [B, H, W, C]; odd last rows and columns are left out.

  >>> shrink(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0].tolist()
  [[2.5, 4.5], [10.5, 12.5]]
  """
  b, h, w, c = x.shape
  x = x[:, : h // by * by, : w // by * by]
  return x.reshape(b, h // by, by, w // by, by, c).mean((2, 4))


class Stem(nn.Module):
  """Three convolutions and a mean of 2 x 2: [B, H, W, 3] -> [B, H/4, W/4, width]."""

  width: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    for i, (width, stride) in enumerate(
      ((self.width // 2, 2), (self.width // 2, 1), (self.width, 1))
    ):
      x = nn.relu(Norm(name=f'norm_{i}')(conv(width, 3, stride, name=f'conv_{i}')(x)))
    return shrink(x, 2)


class Block(nn.Module):
  """relu(shortcut(x) + y) of three convolutions y; both are averaged where the stride is 2."""

  width: int  # Of the inner convolutions; a fourth of what the block gives.
  stride: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    y, layers = x, ((self.width, 1), (self.width, 3), (4 * self.width, 1))
    for i, (width, kernel) in enumerate(layers):
      y = shrink(nn.relu(y), self.stride if i == 2 else 1) if i else y
      y = Norm(name=f'norm_{i}')(conv(width, kernel, name=f'conv_{i}')(y))
    if x.shape != y.shape:
      x = Shortcut(4 * self.width, name='shortcut')(shrink(x, self.stride))
    return nn.relu(x + y)


class Stage(nn.Module):
  """Blocks of one width, the first of them with the stride."""

  width: int
  depth: int
  stride: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    for j in range(self.depth):
      x = Block(self.width, 1 if j else self.stride, name=f'block_{j}')(x)
    return x


class PoolAttention(nn.Module):
  """Multi-head attention of the first of x [B, N, D] over all -> [B, project]."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array) -> Array:
    d = x.shape[-1]
    split = lambda y: y.reshape(*y.shape[:2], -1, self.config.head_dim)  # noqa: E731
    q = split(nn.Dense(d, name='query')(x[:, :1]))
    k, v = (split(nn.Dense(d, name=n)(x)) for n in ('key', 'value'))
    y = Core(name='core')(q, k, v, mask).reshape(x.shape[0], d)
    return nn.Dense(self.config.project, name='out')(y)


class Pool(nn.Module):
  """Puts the mean before the positions of x [B, H, W, D] and attends from it -> [B, project]."""

  config: Config

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    x = jnp.concatenate([x.mean(1, keepdims=True), x], 1)
    x = x + self.param('positions', nn.initializers.normal(0.02), x.shape[1:])
    return PoolAttention(self.config, name='attn')(x, jnp.ones(x.shape[:2], bool))


class Image(nn.Module):
  """Images [B, S, S, 3] -> features [B, project], hidden [B, S/32, S/32, 32 width]."""

  config: Config

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Array]:
    c = self.config
    x = Stem(c.width, name='stem')(x)
    for i, depth in enumerate(c.depths):
      x = Stage(c.width * 2**i, depth, 2 if i else 1, name=f'stage_{i}')(x)
    return Pool(c, name='pool')(x), x


def forward(config: Config) -> Callable[..., dict[str, Array]]:
  """The pure function (params, batch, key=None) -> outputs, as of `clip.forward`.

  >>> text = Tower(dim=8, depth=1, heads=2, width=16)
  >>> tiny = Config(text, 9, 4, project=6, width=2, depths=(1, 1), head_dim=4, image_size=16)
  >>> outputs = forward(tiny)(init(tiny, jax.random.key(0)), example(tiny))
  >>> outputs['features'].shape, outputs['hidden'].shape, outputs['logits'].shape
  ((1, 6), (1, 2, 2, 16), (1, 1))
  """
  return dual.forward_of(Dual(config, clip.Text, Image))


def init(config: Config, key: Array) -> Any:
  """Random params of a model of this shape."""
  return dual.init_of(Dual(config, clip.Text, Image), key)


def config_from_hf(hf: Mapping[str, Any]) -> Config:
  """Reads a config.json in the words of OpenCLIP; what this file does not compute is refused.

  `quick_gelu` is true for the original weights.
  """
  text, image = hf['text_cfg'], hf['vision_cfg']
  if not isinstance(image['layers'], list):
    raise FewshotError(f'vision_cfg has layers {image["layers"]!r}, not blocks of each stage')
  images.refuse(image, {'timm_model_name': [None]})
  images.refuse(text, {'hf_model_name': [None], 'no_causal_mask': [False], 'mlp_ratio': [4.0]})
  act = 'quick_gelu' if hf.get('quick_gelu', False) else 'gelu'
  return Config(
    text=Tower(text['width'], text['layers'], text['heads'], 4 * text['width'], act),
    vocab=text['vocab_size'],
    positions=text['context_length'],
    project=hf['embed_dim'],
    width=image['width'],
    depths=tuple(image['layers']),
    head_dim=image.get('head_width', 64),
    image_size=image['image_size'],
    **images.colours(hf, clip.COLOURS),
  )


def names(config: Config) -> Names:
  """Our module or leaf -> the name of the original release."""
  table: dict[str, str | Part] = {
    'text/embed': 'token_embedding',
    'text/inputs/positions/embedding': 'positional_embedding',
    'text/encoder/ln': 'ln_final',
    'text/project/kernel': Part('text_projection', lambda x: x.T),  # Stored [in, out].
    'scale': Part('logit_scale', lambda x: x.reshape(1)),
    'image/pool/positions': 'visual.attnpool.positional_embedding',
    'image/pool/attn/query': 'visual.attnpool.q_proj',
    'image/pool/attn/key': 'visual.attnpool.k_proj',
    'image/pool/attn/value': 'visual.attnpool.v_proj',
    'image/pool/attn/out': 'visual.attnpool.c_proj',
  }
  for k in range(3):
    table[f'image/stem/conv_{k}'] = f'visual.conv{k + 1}'
    table[f'image/stem/norm_{k}'] = f'visual.bn{k + 1}'
  for i, depth in enumerate(config.depths):
    table |= per_block(_block(f'image/stage_{i}/block_{{i}}', f'visual.layer{i + 1}.{{i}}'), depth)
  return table | per_block(_text_block(), config.text.depth)


def _block(ours: str, theirs: str) -> Names:
  table = {f'{ours}/conv_{k}': f'{theirs}.conv{k + 1}' for k in range(3)}
  table |= {f'{ours}/norm_{k}': f'{theirs}.bn{k + 1}' for k in range(3)}
  return table | {
    f'{ours}/shortcut/conv_0': f'{theirs}.downsample.0',
    f'{ours}/shortcut/norm_0': f'{theirs}.downsample.1',
  }


def _text_block() -> Names:
  ours, theirs = 'text/encoder/block_{i}', 'transformer.resblocks.{i}'
  table: dict[str, str | Part] = {
    f'{ours}/ln1': f'{theirs}.ln_1',
    f'{ours}/ln2': f'{theirs}.ln_2',
    f'{ours}/attn/out': f'{theirs}.attn.out_proj',
    f'{ours}/mlp/up': f'{theirs}.mlp.c_fc',
    f'{ours}/mlp/down': f'{theirs}.mlp.c_proj',
  }
  for j, name in enumerate(('query', 'key', 'value')):
    for leaf, stored in (('kernel', 'weight'), ('bias', 'bias')):
      table[f'{ours}/attn/{name}/{leaf}'] = Part(f'{theirs}.attn.in_proj_{stored}', third(j))
  return table


PREFIXES: tuple[str, ...] = ()
UNUSED: tuple[str, ...] = (
  r'.*\.num_batches_tracked',  # A counter of the training.
  r'input_resolution|context_length|vocab_size',  # Numbers that the config has.
)
