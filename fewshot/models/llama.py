"""The Llama family: Llama 1-3, TinyLlama, SmolLM2, Mistral, Qwen2 and Qwen2.5.

Touvron et al. 2023 (arXiv:2302.13971), Jiang et al. 2023 (arXiv:2310.06825), Yang et al. 2024
(arXiv:2407.10671).  Causal pre-norm blocks with RMSNorm, rotary positions, grouped queries and a
gated MLP; features are those of the last token.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from fewshot.errors import FewshotError
from fewshot.models import cache, causal
from fewshot.models.causal import check_length
from fewshot.models.layers import ACTIVATIONS, Core, Mlp, RMSNorm, drop, rotate
from fewshot.models.weights.names import Names, per_block

Array = jax.Array


class Stretch(NamedTuple):
  """Llama 3's stretched rotary positions: waves longer than a part of `original` slow down."""

  factor: float
  low: float
  high: float
  original: int  # The longest input before stretching, in tokens.


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a Llama; lengths in tokens."""

  vocab: int
  dim: int
  depth: int
  heads: int
  groups: int  # Heads of keys and values, each shared by heads / groups queries.
  head_dim: int
  width: int  # Of the MLP.
  positions: int
  eps: float = 1e-6
  activation: str = 'silu'
  base: float = 1e4  # Of the rotary waves.
  factor: float = 1.0  # By which all of them are slower.
  stretch: Stretch | None = None
  interleaved: bool = False  # Which pairs are rotated, see `rotate`.
  window: int | None = None  # How many tokens a query sees, itself included; None for all.
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  tied: bool = False  # Whether the output matrix is the embedding.
  dropout: float = 0.0


def waves(dim: int, base: float, factor: float = 1.0, stretch: Stretch | None = None) -> np.ndarray:
  """The frequencies [D / 2] by which positions turn the pairs of a head's D numbers.

      w_i = base^(-2i/D) / factor

  With a stretch, w_i is also divided by its factor where the wave is longer than original / low;
  it stays where that is shorter than original / high, and goes over linearly between.
  """
  w = base ** -(np.arange(0, dim, 2) / dim) / factor
  if stretch is None:
    return w
  turns = stretch.original * w / (2 * math.pi)  # In the original length.
  kept = np.clip((turns - stretch.low) / (stretch.high - stretch.low), 0, 1)
  return w * (kept + (1 - kept) / stretch.factor)


class Attention(nn.Module):
  """Grouped-query attention; mask [B, 1, T, K], positions [B, T], start as in `cache.Keys`."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array, positions: Array, start: Array | None = None) -> Array:
    c = self.config

    def heads(name: str, n: int) -> Array:
      return nn.Dense(n * c.head_dim, c.qkv_bias, name=name)(x).reshape(*x.shape[:2], n, -1)

    w = waves(c.head_dim, c.base, c.factor, c.stretch)
    turn = lambda y: rotate(y, positions, w, c.interleaved)  # noqa: E731
    q, k, v = turn(heads('query', c.heads)), turn(heads('key', c.groups)), heads('value', c.groups)
    k = cache.remember(self, 'keys', k, start, mask.shape[-1])
    v = cache.remember(self, 'values', v, start, mask.shape[-1])
    y = Core(name='core')(q, k, v, mask)
    return nn.Dense(c.dim, c.out_bias, name='out')(y.reshape(*x.shape[:2], -1))


class Block(nn.Module):
  """x = x + attn(ln1(x)); x = x + mlp(ln2(x))."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array, positions: Array, start: Array | None = None) -> Array:
    c = self.config
    y = Attention(c, name='attn')(RMSNorm(c.eps, name='ln1')(x), mask, positions, start)
    x = x + drop(self, c.dropout, y)
    y = Mlp(c.width, c.activation, True, c.mlp_bias, name='mlp')(RMSNorm(c.eps, name='ln2')(x))
    return x + drop(self, c.dropout, y)


class Encoder(nn.Module):
  """The causal stack and its norm: x [B, T, D], mask [B, T] (or [B, S]), positions [B, T]."""

  config: Config
  room: int | None = None

  @nn.compact
  def __call__(self, x: Array, mask: Array, positions: Array) -> Array:
    keys = cache.keys(self, mask, positions, self.room)
    seen = cache.causal(keys, positions, self.config.window)
    for i in range(self.config.depth):
      x = Block(self.config, name=f'block_{i}')(x, seen, positions, keys.start)
    return RMSNorm(self.config.eps, name='ln')(x)


class Inputs(nn.Module):
  """Where soft prompts attach; positions are rotations inside the blocks."""

  config: Config
  room: int | None = None

  @nn.compact
  def __call__(self, x: Array, mask: Array, positions: Array) -> tuple[Array, Array, Array]:
    check_length(mask.shape[1], self.room, self.config.positions)
    return drop(self, self.config.dropout, x), mask, positions


def forward(config: Config) -> Callable[..., dict[str, Any]]:
  """The pure function (params, batch, key=None) -> outputs, see `causal.forward`.

  >>> tiny = Config(
  ...   vocab=9, dim=8, depth=1, heads=2, groups=1, head_dim=4, width=16, positions=4
  ... )
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
  kind, heads = hf['model_type'], hf['num_attention_heads']
  act = hf.get('hidden_act', 'silu')
  if act not in ACTIVATIONS:
    raise FewshotError(f'hidden_act {act!r} is not known; known: {", ".join(ACTIVATIONS)}')
  if kind == 'qwen2' and hf.get('use_sliding_window', False):
    raise FewshotError('use_sliding_window of Qwen2 is not computed here; only full attention')
  groups = hf.get('num_key_value_heads') or heads
  if heads % groups:
    raise FewshotError(f'{heads} heads do not divide into num_key_value_heads {groups}')
  positions = hf['max_position_embeddings']
  window = hf.get('sliding_window', 4096) if kind == 'mistral' else None
  return Config(
    vocab=hf['vocab_size'],
    dim=hf['hidden_size'],
    depth=hf['num_hidden_layers'],
    heads=heads,
    groups=groups,
    head_dim=hf.get('head_dim') or hf['hidden_size'] // heads,
    width=hf['intermediate_size'],
    positions=positions,
    eps=hf.get('rms_norm_eps', 1e-6),
    activation=act,
    **rope_from_hf(hf),
    window=window if window and window < positions else None,
    qkv_bias=kind == 'qwen2' or hf.get('attention_bias', False),
    out_bias=kind != 'qwen2' and hf.get('attention_bias', False),
    mlp_bias=hf.get('mlp_bias', False),
    tied=hf.get('tie_word_embeddings', False),
  )


def rope_from_hf(hf: Mapping[str, Any]) -> dict[str, Any]:
  """base, factor and stretch of a config, from `rope_parameters` or the older two entries."""
  rope = hf.get('rope_parameters') or hf.get('rope_scaling') or {}
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind not in ('default', 'linear', 'llama3'):
    raise FewshotError(f'rope_type {kind!r} is not computed here; only default, linear and llama3')
  if rope.get('partial_rotary_factor', hf.get('partial_rotary_factor', 1)) != 1:
    raise FewshotError('partial_rotary_factor is not computed here; all of a head is rotated')
  stretch = None
  if kind == 'llama3':
    entries = 'factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings'
    stretch = Stretch(*(rope[k] for k in entries))
  base = rope.get('rope_theta') or hf.get('rope_theta') or 1e4
  factor = rope['factor'] if kind == 'linear' else 1.0
  return {'base': float(base), 'factor': float(factor), 'stretch': stretch}


def names(config: Config) -> Names:
  """Our module -> Hugging Face's name, after a leading 'model.'."""
  return per_block(
    {
      'embed': 'embed_tokens',
      'encoder/block_{i}/ln1': 'layers.{i}.input_layernorm',
      'encoder/block_{i}/attn/query': 'layers.{i}.self_attn.q_proj',
      'encoder/block_{i}/attn/key': 'layers.{i}.self_attn.k_proj',
      'encoder/block_{i}/attn/value': 'layers.{i}.self_attn.v_proj',
      'encoder/block_{i}/attn/out': 'layers.{i}.self_attn.o_proj',
      'encoder/block_{i}/ln2': 'layers.{i}.post_attention_layernorm',
      'encoder/block_{i}/mlp/gate': 'layers.{i}.mlp.gate_proj',
      'encoder/block_{i}/mlp/up': 'layers.{i}.mlp.up_proj',
      'encoder/block_{i}/mlp/down': 'layers.{i}.mlp.down_proj',
      'encoder/ln': 'norm',
      'lm_head': 'lm_head',
    },
    config.depth,
  )


PREFIXES: tuple[str, ...] = ('model.',)
UNUSED: tuple[str, ...] = (
  r'layers\.\d+\.self_attn\.rotary_emb\.inv_freq',  # A constant that old checkpoints store.
  r'lm_head\.weight',  # A copy of the embedding where the head is tied; read where it is not.
)


def config_from_gguf(
  meta: Mapping[str, Any], tensors: Collection[str] = ('output.weight',)
) -> Config:
  """The `Config` of a GGUF file of architecture llama or qwen2.

  Args:
    meta: the file's metadata.
    tensors: the names of its tensors: without an `output.weight` the head is tied.
  """
  arch = meta['general.architecture']
  read = lambda key, *default: _read(meta, f'{arch}.{key}', *default)  # noqa: E731
  if arch not in ('llama', 'qwen2'):
    raise FewshotError(f'a GGUF file of architecture {arch!r} is no Llama; only llama and qwen2')
  heads, dim, positions = (
    read(k) for k in ('attention.head_count', 'embedding_length', 'context_length')
  )
  head_dim = read('attention.key_length', dim // heads)
  window = read('attention.sliding_window', None)
  return Config(
    vocab=len(meta['tokenizer.ggml.tokens']),
    dim=dim,
    depth=read('block_count'),
    heads=heads,
    groups=read('attention.head_count_kv', heads),
    head_dim=head_dim,
    width=read('feed_forward_length'),
    positions=positions,
    eps=read('attention.layer_norm_rms_epsilon'),
    base=float(read('rope.freq_base', 1e4)),
    factor=gguf_factor(meta, arch, head_dim),
    interleaved=arch == 'llama',  # Its query and key rows are stored in this order.
    window=window if window and window < positions else None,
    qkv_bias=arch == 'qwen2',
    tied='output.weight' not in tensors,
  )


def gguf_factor(meta: Mapping[str, Any], arch: str, head_dim: int) -> float:
  """By what a GGUF file divides positions; other changes of the rotary positions are refused."""
  kind = _read(meta, f'{arch}.rope.scaling.type', 'none')
  if kind not in ('none', 'linear'):
    raise FewshotError(f'{arch}.rope.scaling.type {kind!r} is not computed here; only linear')
  if _read(meta, f'{arch}.rope.dimension_count', head_dim) != head_dim:
    raise FewshotError(f'{arch}.rope.dimension_count is not the {head_dim} of a head; only all')
  return float(_read(meta, f'{arch}.rope.scaling.factor', 1.0)) if kind == 'linear' else 1.0


def gguf_names(config: Config) -> Names:
  """Our module -> the name in a GGUF file."""
  return per_block(
    {
      'embed': 'token_embd',
      'encoder/block_{i}/ln1': 'blk.{i}.attn_norm',
      'encoder/block_{i}/attn/query': 'blk.{i}.attn_q',
      'encoder/block_{i}/attn/key': 'blk.{i}.attn_k',
      'encoder/block_{i}/attn/value': 'blk.{i}.attn_v',
      'encoder/block_{i}/attn/out': 'blk.{i}.attn_output',
      'encoder/block_{i}/ln2': 'blk.{i}.ffn_norm',
      'encoder/block_{i}/mlp/gate': 'blk.{i}.ffn_gate',
      'encoder/block_{i}/mlp/up': 'blk.{i}.ffn_up',
      'encoder/block_{i}/mlp/down': 'blk.{i}.ffn_down',
      'encoder/ln': 'output_norm',
      'lm_head': 'output',
    },
    config.depth,
  )


def _read(meta: Mapping[str, Any], key: str, *default: Any) -> Any:
  return meta.get(key, *default) if default else meta[key]
