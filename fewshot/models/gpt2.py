"""The GPT-2 family: GPT-2 and DistilGPT-2.

Radford et al. 2019, 'Language Models are Unsupervised Multitask Learners'.  Causal pre-norm blocks,
learned positions, the output matrix tied to the embedding; features are those of the last token.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from fewshot.errors import FewshotError
from fewshot.models import cache, causal
from fewshot.models.causal import check_length
from fewshot.models.layers import ACTIVATIONS, Core, Mlp, drop
from fewshot.models.weights.names import Names, Part, per_block, third

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a GPT-2; lengths in tokens."""

  vocab: int
  dim: int
  depth: int
  heads: int
  width: int  # Of the MLP.
  positions: int
  eps: float = 1e-5
  activation: str = 'gelu_new'
  tied: bool = True  # Whether the output matrix is the embedding.
  dropout: float = 0.0


class Attention(nn.Module):
  """Multi-head self-attention; mask [B, 1, T, K], start as in `cache.Keys`."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array, start: Array | None = None) -> Array:
    c = self.config
    split = lambda y: y.reshape(*y.shape[:-1], c.heads, c.dim // c.heads)  # noqa: E731
    q, k, v = (split(nn.Dense(c.dim, name=n)(x)) for n in ('query', 'key', 'value'))
    k = cache.remember(self, 'keys', k, start, mask.shape[-1])
    v = cache.remember(self, 'values', v, start, mask.shape[-1])
    y = Core(name='core')(q, k, v, mask)
    return nn.Dense(c.dim, name='out')(y.reshape(x.shape))


class Block(nn.Module):
  """x = x + attn(ln1(x)); x = x + mlp(ln2(x))."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array, start: Array | None = None) -> Array:
    c = self.config
    y = Attention(c, name='attn')(nn.LayerNorm(c.eps, name='ln1')(x), mask, start)
    x = x + drop(self, c.dropout, y)
    y = Mlp(c.width, c.activation, name='mlp')(nn.LayerNorm(c.eps, name='ln2')(x))
    return x + drop(self, c.dropout, y)


class Encoder(nn.Module):
  """The causal stack and its norm: x [B, T, D], mask [B, T] (or [B, S]), positions [B, T]."""

  config: Config
  room: int | None = None

  @nn.compact
  def __call__(self, x: Array, mask: Array, positions: Array) -> Array:
    keys = cache.keys(self, mask, positions, self.room)
    seen = cache.causal(keys, positions)
    for i in range(self.config.depth):
      x = Block(self.config, name=f'block_{i}')(x, seen, keys.start)
    return nn.LayerNorm(self.config.eps, name='ln')(x)


class Inputs(nn.Module):
  """Adds positions to embedded tokens; soft prompts attach before it."""

  config: Config
  room: int | None = None

  @nn.compact
  def __call__(self, x: Array, mask: Array, positions: Array) -> tuple[Array, Array, Array]:
    c = self.config
    check_length(mask.shape[1], self.room, c.positions)
    x = x + nn.Embed(c.positions, c.dim, name='positions')(positions)
    return drop(self, c.dropout, x), mask, positions


def forward(config: Config) -> Callable[..., dict[str, Any]]:
  """The pure function (params, batch, key=None) -> outputs, see `causal.forward`.

  >>> tiny = Config(vocab=9, dim=8, depth=1, heads=2, width=16, positions=4)
  >>> params = init(tiny, jax.random.key(0))
  >>> forward(tiny)(params, example(tiny))['token_logits'].shape
  (1, 2, 9)
  """
  return causal.forward(causal.Causal(config, Inputs, Encoder))


def init(config: Config, key: Array) -> Any:
  """Random params of a model of this shape."""
  return causal.init(causal.Causal(config, Inputs, Encoder), key)


def example(config: Config) -> dict[str, Array]:
  """A batch of one."""
  return causal.example(config)


def config_from_hf(hf: Mapping[str, Any]) -> Config:
  """Reads a Hugging Face `config.json`; what this file does not compute is refused."""
  plain = {
    'scale_attn_weights': True,
    'scale_attn_by_inverse_layer_idx': False,
    'reorder_and_upcast_attn': False,
    'add_cross_attention': False,
  }
  for name, only in plain.items():
    if hf.get(name, only) != only:
      raise FewshotError(f'{name} {hf[name]!r} is not computed here; only {only}')
  act = hf.get('activation_function', 'gelu_new')
  if act not in ACTIVATIONS:
    raise FewshotError(f'activation_function {act!r} is not known; known: {", ".join(ACTIVATIONS)}')
  if hf['n_embd'] % hf['n_head']:
    raise FewshotError(f'n_embd {hf["n_embd"]} does not divide into {hf["n_head"]} heads')
  return Config(
    vocab=hf['vocab_size'],
    dim=hf['n_embd'],
    depth=hf['n_layer'],
    heads=hf['n_head'],
    width=hf.get('n_inner') or 4 * hf['n_embd'],
    positions=hf['n_positions'],
    eps=hf.get('layer_norm_epsilon', 1e-5),
    activation=act,
    tied=hf.get('tie_word_embeddings', True),
  )


def names(config: Config) -> Names:
  """Our module -> Hugging Face's name, after a leading 'transformer.'.

  Linear maps are stored [in, out], query, key and value side by side in one.
  """
  fused = lambda i: Part('h.{i}.attn.c_attn', lambda x: third(i, -1)(x).T)  # noqa: E731
  flipped = lambda name: Part(name, np.transpose)  # noqa: E731
  return per_block(
    {
      'embed': 'wte',
      'inputs/positions': 'wpe',
      'encoder/block_{i}/ln1': 'h.{i}.ln_1',
      'encoder/block_{i}/attn/query': fused(0),
      'encoder/block_{i}/attn/key': fused(1),
      'encoder/block_{i}/attn/value': fused(2),
      'encoder/block_{i}/attn/out': flipped('h.{i}.attn.c_proj'),
      'encoder/block_{i}/ln2': 'h.{i}.ln_2',
      'encoder/block_{i}/mlp/up': flipped('h.{i}.mlp.c_fc'),
      'encoder/block_{i}/mlp/down': flipped('h.{i}.mlp.c_proj'),
      'encoder/ln': 'ln_f',
      'lm_head': 'lm_head',
    },
    config.depth,
  )


PREFIXES: tuple[str, ...] = ('transformer.',)
UNUSED: tuple[str, ...] = (
  r'h\.\d+\.attn\.(masked_)?bias',  # The causal mask as a constant, in old checkpoints.
  r'lm_head\.weight',  # A copy of the embedding where the head is tied; read where it is not.
)
