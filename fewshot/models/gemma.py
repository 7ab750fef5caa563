"""The Gemma 3 family, text models.

Gemma Team 2025 (arXiv:2503.19786).  Causal blocks with a norm before and after each sublayer and
on every query and key, most of them seeing a window of the last tokens only; features are those of
the last token.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fewshot.errors import FewshotError
from fewshot.models import cache, causal
from fewshot.models.causal import check_length
from fewshot.models.layers import ACTIVATIONS, Core, Mlp, RMSNorm, drop, rotate
from fewshot.models.llama import gguf_factor, rope_from_hf, waves
from fewshot.models.weights.names import Names, Part, per_block

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a Gemma 3; lengths in tokens."""

  vocab: int
  dim: int
  depth: int
  heads: int
  groups: int  # Heads of keys and values, each shared by heads / groups queries.
  head_dim: int
  width: int  # Of the MLP.
  positions: int
  local: tuple[bool, ...]  # Which blocks see the last `window` tokens only.
  window: int
  scale: float  # Of the scores.
  eps: float = 1e-6
  activation: str = 'gelu_pytorch_tanh'
  base: float = 1e6  # Of the rotary waves, in blocks that see everything,
  local_base: float = 1e4  # and in the others.
  factor: float = 1.0  # By which these waves are slower, in blocks that see everything.
  tied: bool = True  # Whether the output matrix is the embedding.
  dropout: float = 0.0


class Attention(nn.Module):
  """Grouped-query attention; mask [B, 1, T, K], positions [B, T], start as in `cache.Keys`."""

  config: Config
  local: bool

  @nn.compact
  def __call__(self, x: Array, mask: Array, positions: Array, start: Array | None = None) -> Array:
    c = self.config
    base, factor = (c.local_base, 1.0) if self.local else (c.base, c.factor)

    def heads(name: str, n: int) -> Array:
      y = nn.Dense(n * c.head_dim, use_bias=False, name=name)(x)
      return y.reshape(*x.shape[:2], n, c.head_dim)

    def turned(name: str, n: int) -> Array:
      y = RMSNorm(c.eps, name=f'ln_{name}')(heads(name, n))
      return rotate(y, positions, waves(c.head_dim, base, factor))

    q, k, v = turned('query', c.heads), turned('key', c.groups), heads('value', c.groups)
    k = cache.remember(self, 'keys', k, start, mask.shape[-1])
    v = cache.remember(self, 'values', v, start, mask.shape[-1])
    y = Core(c.scale, name='core')(q, k, v, mask)
    return nn.Dense(c.dim, use_bias=False, name='out')(y.reshape(*x.shape[:2], -1))


class Block(nn.Module):
  """x = x + ln1_out(attn(ln1(x))); x = x + ln2_out(mlp(ln2(x)))."""

  config: Config
  local: bool

  @nn.compact
  def __call__(self, x: Array, mask: Array, positions: Array, start: Array | None = None) -> Array:
    c, norm = self.config, lambda name: RMSNorm(self.config.eps, name=name)
    y = Attention(c, self.local, name='attn')(norm('ln1')(x), mask, positions, start)
    x = x + drop(self, c.dropout, norm('ln1_out')(y))
    y = Mlp(c.width, c.activation, gated=True, use_bias=False, name='mlp')(norm('ln2')(x))
    return x + drop(self, c.dropout, norm('ln2_out')(y))


class Encoder(nn.Module):
  """The causal stack and its norm: x [B, T, D], mask [B, T] (or [B, S]), positions [B, T]."""

  config: Config
  room: int | None = None

  @nn.compact
  def __call__(self, x: Array, mask: Array, positions: Array) -> Array:
    c = self.config
    keys = cache.keys(self, mask, positions, self.room)
    seen = {local: cache.causal(keys, positions, c.window if local else None) for local in c.local}
    for i, local in enumerate(c.local):
      x = Block(c, local, name=f'block_{i}')(x, seen[local], positions, keys.start)
    return RMSNorm(c.eps, name='ln')(x)


class Inputs(nn.Module):
  """Scales embedded tokens by sqrt(D); soft prompts attach before it."""

  config: Config
  room: int | None = None

  @nn.compact
  def __call__(self, x: Array, mask: Array, positions: Array) -> tuple[Array, Array, Array]:
    c = self.config
    check_length(mask.shape[1], self.room, c.positions)
    return drop(self, c.dropout, x * jnp.asarray(c.dim**0.5, x.dtype)), mask, positions


def forward(config: Config) -> Callable[..., dict[str, Any]]:
  """The pure function (params, batch, key=None) -> outputs, see `causal.forward`.

  >>> tiny = Config(
  ...   vocab=9, dim=8, depth=1, heads=2, groups=1, head_dim=4, width=16, positions=4,
  ...   local=(True,), window=2, scale=0.5,
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
  for name in (
    *('attn_logit_softcapping', 'final_logit_softcapping'),
    *('use_bidirectional_attention', 'attention_bias'),
  ):
    if hf.get(name):
      raise FewshotError(f'{name} {hf[name]!r} is not computed here; only configs without it')
  act = hf.get('hidden_activation', 'gelu_pytorch_tanh')
  if act not in ACTIVATIONS:
    raise FewshotError(f'hidden_activation {act!r} is not known; known: {", ".join(ACTIVATIONS)}')
  heads, groups, depth = (
    hf[k] for k in ('num_attention_heads', 'num_key_value_heads', 'num_hidden_layers')
  )
  if heads % groups:
    raise FewshotError(f'{heads} heads do not divide into num_key_value_heads {groups}')
  return Config(
    vocab=hf['vocab_size'],
    dim=hf['hidden_size'],
    depth=depth,
    heads=heads,
    groups=groups,
    head_dim=hf['head_dim'],
    width=hf['intermediate_size'],
    positions=hf['max_position_embeddings'],
    local=_local(hf, depth),
    window=hf['sliding_window'],
    scale=hf.get('query_pre_attn_scalar', 256) ** -0.5,
    eps=hf.get('rms_norm_eps', 1e-6),
    activation=act,
    **_rope(hf),
    tied=hf.get('tie_word_embeddings', True),
  )


def _local(hf: Mapping[str, Any], depth: int) -> tuple[bool, ...]:
  """Which blocks see a window: listed, or all but each `sliding_window_pattern`-th."""
  kinds = {'sliding_attention': True, 'full_attention': False}
  listed = hf.get('layer_types')
  if not listed:
    pattern = hf.get('sliding_window_pattern', 6)
    return tuple((i + 1) % pattern != 0 for i in range(depth))
  if len(listed) != depth or not set(listed) <= set(kinds):
    raise FewshotError(
      f'layer_types {listed} is not computed here; only {depth} of {", ".join(kinds)}'
    )
  return tuple(kinds[k] for k in listed)


def _rope(hf: Mapping[str, Any]) -> dict[str, Any]:
  """Both rotary bases, from `rope_parameters` of each kind of block or the older entries."""
  each = hf.get('rope_parameters') or {}
  old = {'rope_theta': hf.get('rope_theta', 1e6), **(hf.get('rope_scaling') or {})}
  full = rope_from_hf({'rope_parameters': each.get('full_attention') or old})
  near = {'rope_theta': hf.get('rope_local_base_freq', 1e4)}
  near = rope_from_hf({'rope_parameters': each.get('sliding_attention') or near})
  if full['stretch'] or near['stretch'] or near['factor'] != 1:
    raise FewshotError('of rope scalings only linear ones of full_attention are computed here')
  return {'base': full['base'], 'factor': full['factor'], 'local_base': near['base']}


def names(config: Config) -> Names:
  """Our module -> Hugging Face's name, after a leading 'model.'; gains are stored less one."""
  # 1 + w in bfloat16 would round most of w away.
  gain = lambda name: Part(name, lambda x: 1 + x.astype(jnp.promote_types(x.dtype, np.float32)))  # noqa: E731
  table: dict[str, str | Part] = {
    'embed': 'embed_tokens',
    'encoder/block_{i}/ln1': gain('layers.{i}.input_layernorm'),
    'encoder/block_{i}/attn/query': 'layers.{i}.self_attn.q_proj',
    'encoder/block_{i}/attn/key': 'layers.{i}.self_attn.k_proj',
    'encoder/block_{i}/attn/value': 'layers.{i}.self_attn.v_proj',
    'encoder/block_{i}/attn/ln_query': gain('layers.{i}.self_attn.q_norm'),
    'encoder/block_{i}/attn/ln_key': gain('layers.{i}.self_attn.k_norm'),
    'encoder/block_{i}/attn/out': 'layers.{i}.self_attn.o_proj',
    'encoder/block_{i}/ln1_out': gain('layers.{i}.post_attention_layernorm'),
    'encoder/block_{i}/ln2': gain('layers.{i}.pre_feedforward_layernorm'),
    'encoder/block_{i}/mlp/gate': 'layers.{i}.mlp.gate_proj',
    'encoder/block_{i}/mlp/up': 'layers.{i}.mlp.up_proj',
    'encoder/block_{i}/mlp/down': 'layers.{i}.mlp.down_proj',
    'encoder/block_{i}/ln2_out': gain('layers.{i}.post_feedforward_layernorm'),
    'encoder/ln': gain('norm'),
    'lm_head': 'lm_head',
  }
  return per_block(table, config.depth)


PREFIXES: tuple[str, ...] = ('model.',)
# A copy of the embedding where the head is tied; read where it is not.
UNUSED: tuple[str, ...] = (r'lm_head\.weight',)


def config_from_gguf(meta: Mapping[str, Any], tensors: Collection[str] = ()) -> Config:
  """The `Config` of a GGUF file of architecture gemma3.

  Args:
    meta: the file's metadata.
    tensors: the names of its tensors: without an `output.weight` the head is tied.
  """
  if meta['general.architecture'] != 'gemma3':
    raise FewshotError(f'a GGUF file of architecture {meta["general.architecture"]!r} is no gemma3')
  of = {k.removeprefix('gemma3.'): v for k, v in meta.items()}
  heads, dim, depth = of['attention.head_count'], of['embedding_length'], of['block_count']
  head_dim = of['attention.key_length']
  if of.get('attn_logit_softcapping') or of.get('final_logit_softcapping'):
    raise FewshotError('softcapping of logits is not computed here; only files without it')
  return Config(
    vocab=len(meta['tokenizer.ggml.tokens']),
    dim=dim,
    depth=depth,
    heads=heads,
    groups=of['attention.head_count_kv'],
    head_dim=head_dim,
    width=of['feed_forward_length'],
    positions=of['context_length'],
    local=_local({}, depth),
    window=of['attention.sliding_window'],
    # The 27B, which alone has 62 blocks, scales by dim / heads; the file does not say so.
    scale=(dim // heads if depth == 62 else head_dim) ** -0.5,
    eps=of['attention.layer_norm_rms_epsilon'],
    base=float(of.get('rope.freq_base', 1e6)),
    factor=gguf_factor(meta, 'gemma3', head_dim),
    tied='output.weight' not in tensors,
  )


def gguf_names(config: Config) -> Names:
  """Our module -> the name in a GGUF file, which stores gains as they are."""
  return per_block(
    {
      'embed': 'token_embd',
      'encoder/block_{i}/ln1': 'blk.{i}.attn_norm',
      'encoder/block_{i}/attn/query': 'blk.{i}.attn_q',
      'encoder/block_{i}/attn/key': 'blk.{i}.attn_k',
      'encoder/block_{i}/attn/value': 'blk.{i}.attn_v',
      'encoder/block_{i}/attn/ln_query': 'blk.{i}.attn_q_norm',
      'encoder/block_{i}/attn/ln_key': 'blk.{i}.attn_k_norm',
      'encoder/block_{i}/attn/out': 'blk.{i}.attn_output',
      'encoder/block_{i}/ln1_out': 'blk.{i}.post_attention_norm',
      'encoder/block_{i}/ln2': 'blk.{i}.ffn_norm',
      'encoder/block_{i}/mlp/gate': 'blk.{i}.ffn_gate',
      'encoder/block_{i}/mlp/up': 'blk.{i}.ffn_up',
      'encoder/block_{i}/mlp/down': 'blk.{i}.ffn_down',
      'encoder/block_{i}/ln2_out': 'blk.{i}.post_ffw_norm',
      'encoder/ln': 'output_norm',
      'lm_head': 'output',
    },
    config.depth,
  )
