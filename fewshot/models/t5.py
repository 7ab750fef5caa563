"""The T5 family: T5, T5 v1.1 and Flan-T5, encoder-decoders with relative positions.

Raffel et al. 2020 (arXiv:1910.10683), Shazeer 2020 (arXiv:2002.05202), Chung et al. 2022
(arXiv:2210.11416).  Pre-norm blocks without biases, a table of position biases for each stack,
unscaled attention.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fewshot.errors import FewshotError
from fewshot.models import cache
from fewshot.models.layers import ACTIVATIONS, Core, Mlp, RMSNorm, bucket, classify, drop, mean_pool
from fewshot.models.weights.names import Names, per_block

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a T5."""

  vocab: int
  dim: int
  depth: int  # Of the encoder.
  decoder_depth: int
  heads: int
  head_dim: int
  width: int  # Of the MLP.
  buckets: int = 32  # Of relative positions.
  farthest: int = 128  # All distances from here on share a bucket.
  eps: float = 1e-6
  activation: str = 'relu'
  gated: bool = False
  tied: bool = True  # The output matrix is the embedding's, its input scaled by dim^-0.5.
  start: int = 0  # The token that outputs start with.
  dropout: float = 0.0


class Attention(nn.Module):
  """Multi-head self-attention; mask, bias as in `Core`, start as in `cache.Keys`."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array, bias: Array, start: Array | None = None) -> Array:
    q, k, v = (_projected(self.config, n, x) for n in ('query', 'key', 'value'))
    k = cache.remember(self, 'keys', k, start, mask.shape[-1])
    v = cache.remember(self, 'values', v, start, mask.shape[-1])
    return _joined(self.config, Core(1.0, name='core')(q, k, v, mask, bias))


class Cross(nn.Module):
  """Multi-head attention of x [B, U, D] over source [B, K, D]; without it, over what is cached."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array, source: Array | None) -> Array:
    def of_source(name: str) -> Array:
      if source is None:
        return self.get_variable('cache', f'{name}s')
      y = _projected(self.config, name, source)
      if self.is_mutable_collection('cache'):
        self.put_variable('cache', f'{name}s', y)
      return y

    q, k, v = _projected(self.config, 'query', x), of_source('key'), of_source('value')
    return _joined(self.config, Core(1.0, name='core')(q, k, v, mask))


def _projected(config: Config, name: str, x: Array) -> Array:
  """x [B, T, D] as heads [B, T, H, d], by the owner's `name`."""
  y = nn.Dense(config.heads * config.head_dim, use_bias=False, name=name)(x)
  return y.reshape(*x.shape[:-1], config.heads, config.head_dim)


def _joined(config: Config, y: Array) -> Array:
  """Heads [B, T, H, d] as [B, T, D], by the owner's `out`."""
  return nn.Dense(config.dim, use_bias=False, name='out')(y.reshape(*y.shape[:2], -1))


class Block(nn.Module):
  """x += attn(ln1(x)); x += mlp(ln2(x)); in a decoder cross(ln2(x)) comes before mlp(ln3(x))."""

  config: Config

  @nn.compact
  def __call__(
    self,
    x: Array,
    mask: Array,
    bias: Array,
    start: Array | None = None,
    source_mask: Array | None = None,
    source: Array | None = None,
  ) -> Array:
    c = self.config
    norm = lambda i: RMSNorm(c.eps, name=f'ln{i}')  # noqa: E731
    x = x + drop(self, c.dropout, Attention(c, name='attn')(norm(1)(x), mask, bias, start))
    if source_mask is not None:
      x = x + drop(self, c.dropout, Cross(c, name='cross')(norm(2)(x), source_mask, source))
    mlp = Mlp(c.width, c.activation, c.gated, use_bias=False, name='mlp')
    return x + drop(self, c.dropout, mlp(norm(2 if source_mask is None else 3)(x)))


class Inputs(nn.Module):
  """Embedded tokens as they are, since positions enter as biases; soft prompts attach here."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array, positions: Array) -> tuple[Array, Array, Array]:
    return drop(self, self.config.dropout, x), mask, positions


class Encoder(nn.Module):
  """The stack of blocks: x [B, T, D], mask [B, T], positions [B, T], alike in all rows."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array, positions: Array) -> Array:
    c = self.config
    bias = position_bias(c, positions[:1], positions[:1], both=True)
    for i in range(c.depth):
      x = Block(c, name=f'block_{i}')(x, mask, bias)
    return drop(self, c.dropout, RMSNorm(c.eps, name='ln')(x))


class Decoder(nn.Module):
  """The causal stack: x [B, U, D] after what is cached, over source [B, K, D] or the cached one."""

  config: Config
  room: int | None = None

  @nn.compact
  def __call__(
    self, x: Array, mask: Array, source: Array | None = None, source_mask: Array | None = None
  ) -> Array:
    c = self.config
    mask, positions = cache.places(self.variables.get('cache') or None, mask)
    keys = cache.keys(self, mask, positions, self.room)
    source_mask = self.get_variable('cache', 'source_mask', source_mask)
    if self.is_mutable_collection('cache'):
      self.put_variable('cache', 'source_mask', source_mask)
    rows = slice(1 if keys.start is None else None)  # Without a cache all rows are alike.
    bias = position_bias(c, positions[rows], keys.positions[rows], both=False)
    seen, x = cache.causal(keys, positions), drop(self, c.dropout, x)
    for i in range(c.decoder_depth):
      x = Block(c, name=f'block_{i}')(x, seen, bias, keys.start, source_mask, source)
    return drop(self, c.dropout, RMSNorm(c.eps, name='ln')(x))


class T5(nn.Module):
  """The encoder's features [B, D] and hidden [B, T, D]; with decoder tokens, their logits too.

  tokens, mask [B, T]; decoder_tokens, decoder_mask [B, U]; slots [B, M], positions among U.
  Without tokens, decoder_tokens go on where the collection 'cache' ends.
  """

  config: Config
  room: int | None = None

  @nn.compact
  def __call__(
    self,
    tokens: Array | None,
    mask: Array | None,
    decoder_tokens: Array | None = None,
    decoder_mask: Array | None = None,
    slots: Array | None = None,
  ) -> dict[str, Array]:
    c = self.config
    embed = nn.Embed(c.vocab, c.dim, name='embed')
    given = [jnp.asarray(t, jnp.int32) for t in (tokens, decoder_tokens) if t is not None]
    x = embed(jnp.concatenate(given, 1))  # One call for both: a site of methods.
    outputs: dict[str, Array] = {}
    source: tuple[Array, ...] = ()
    if tokens is not None and mask is not None:
      source = _encoded(c, x[:, : tokens.shape[1]], mask)
      hidden = source[0][:, -tokens.shape[1] :]  # Without a prompt's.
      features = mean_pool(hidden, mask)
      outputs = {'features': features, 'hidden': hidden, 'mask': mask} | classify(self, features)
    if decoder_tokens is None:
      return outputs
    x = x[:, x.shape[1] - decoder_tokens.shape[1] :]
    seen = jnp.ones(x.shape[:2], bool) if decoder_mask is None else jnp.asarray(decoder_mask, bool)
    h = Decoder(c, self.room, name='decoder')(x, seen, *source)
    asked = h if slots is None else jnp.take_along_axis(h, slots[..., None], 1)
    head = embed.attend if c.tied else nn.Dense(c.vocab, use_bias=False, name='lm_head')
    logits = head(asked * c.dim**-0.5 if c.tied else asked)
    return outputs | {'decoder_hidden': h, 'token_logits': logits}


def _encoded(config: Config, x: Array, mask: Array) -> tuple[Array, Array]:
  """What the decoder attends to, and its mask: both longer where a soft prompt's outputs stay."""
  positions = jnp.broadcast_to(jnp.arange(x.shape[1]), mask.shape)
  x, longer, *rest = Inputs(config, name='inputs')(x, mask, positions)
  y = Encoder(config, name='encoder')(x, longer, *rest)
  return y, longer if y.shape[1] == longer.shape[1] else mask


def position_bias(config: Config, queries: Array, keys: Array, both: bool) -> Array:
  """The owner's table `bias` at the distances from queries [b, Q] to keys [b, K]: [b, H, Q, K]."""
  distance = keys[:, None, :] - queries[:, :, None]
  table = nn.Embed(config.buckets, config.heads, name='bias')
  return jnp.moveaxis(table(bucket(distance, config.buckets, config.farthest, both)), -1, 1)


def forward(config: Config) -> Callable[..., dict[str, Any]]:
  """The pure function (params, batch, key=None) -> outputs; batch has tokens and mask [B, T].

  With decoder_tokens [B, U] (and maybe decoder_mask, slots) there are decoder_hidden and
  token_logits.  With `room` too, the outputs have a `cache` (see models/cache.py); a batch of this
  `cache` and decoder_tokens [B, t] goes on, without running the encoder again.

  >>> tiny = Config(vocab=9, dim=8, depth=1, decoder_depth=1, heads=2, head_dim=4, width=16)
  >>> params = init(tiny, jax.random.key(0))
  >>> outputs = forward(tiny)(params, example(tiny) | {'room': jnp.zeros(3)})
  >>> outputs['token_logits'].shape
  (1, 2, 9)
  >>> batch = {'cache': outputs['cache'], 'decoder_tokens': jnp.ones((1, 1), int)}
  >>> forward(tiny)(params, batch)['token_logits'].shape
  (1, 1, 9)
  """

  def apply(params: Any, batch: dict[str, Any], key: Array | None = None) -> dict[str, Any]:
    given = _read(batch)
    module = T5(config, batch['room'].shape[0] if 'room' in batch else None)
    rngs = None if key is None else {'dropout': key}
    if 'cache' not in batch and 'room' not in batch:
      return module.apply({'params': params}, *given, rngs=rngs)  # type: ignore[return-value]
    variables = {'params': params} | {k: batch[k] for k in ('cache',) if k in batch}
    outputs, changed = module.apply(variables, *given, rngs=rngs, mutable=['cache'])
    return outputs | changed

  return apply


def _read(batch: dict[str, Any]) -> list[Any]:
  """What `T5` takes of a batch; one that lacks something is refused."""
  if 'cache' in batch and 'room' in batch:
    raise FewshotError('a batch has room (to begin a cache) or a cache (to continue), not both')
  needed = ['tokens', 'mask'] if 'cache' not in batch else []
  needed += ['decoder_tokens'] if 'cache' in batch or 'room' in batch else []
  if any(name not in batch for name in needed):
    raise FewshotError(
      f'this model reads {", ".join(needed)}, and the batch has {", ".join(batch) or "nothing"}; '
      'give it texts, or a dict of these arrays'
    )
  source = [None, None] if 'cache' in batch else [batch['tokens'], jnp.asarray(batch['mask'], bool)]
  return [*source, *(batch.get(name) for name in ('decoder_tokens', 'decoder_mask', 'slots'))]


def init(config: Config, key: Array) -> Any:
  """Random params of a model of this shape."""
  return T5(config).init(key, *example(config).values(), mutable=['params'])['params']


def example(config: Config) -> dict[str, Array]:
  """A batch of one; its decoder_tokens are those that outputs start with."""
  tokens, mask = jnp.zeros((1, 2), int), jnp.ones((1, 2), bool)
  return {'tokens': tokens, 'mask': mask, 'decoder_tokens': jnp.full_like(tokens, config.start)}


def config_from_hf(hf: Mapping[str, Any]) -> Config:
  """Reads a Hugging Face `config.json`; what this file does not compute is refused."""
  kind = hf.get('feed_forward_proj', 'relu')
  # 'gated-gelu' always meant the tanh approximation.
  act = 'gelu_new' if kind == 'gated-gelu' else kind.removeprefix('gated-')
  if act not in ACTIVATIONS:
    raise FewshotError(f'feed_forward_proj {kind!r} is not known; known: {", ".join(ACTIVATIONS)}')
  if hf.get('dense_act_fn', act) != act:
    raise FewshotError(
      f'dense_act_fn {hf["dense_act_fn"]!r} contradicts feed_forward_proj {kind!r}'
    )
  return Config(
    vocab=hf['vocab_size'],
    dim=hf['d_model'],
    depth=hf['num_layers'],
    decoder_depth=hf.get('num_decoder_layers') or hf['num_layers'],
    heads=hf['num_heads'],
    head_dim=hf['d_kv'],
    width=hf['d_ff'],
    buckets=hf.get('relative_attention_num_buckets', 32),
    farthest=hf.get('relative_attention_max_distance', 128),
    eps=hf.get('layer_norm_epsilon', 1e-6),
    activation=act,
    gated=kind.startswith('gated-'),
    # Newer files always say that embeddings are tied, and of v1.1 only that outputs are unscaled.
    tied=hf.get('scale_decoder_outputs', hf.get('tie_word_embeddings', True)),
    start=hf.get('decoder_start_token_id') or 0,
  )


def names(config: Config) -> Names:
  """Our module -> Hugging Face's name."""
  linear = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}
  mlp = {'up': 'wi_1', 'gate': 'wi_0'} if config.gated else {'up': 'wi'}
  parts = {
    'attn': ('SelfAttention', linear),
    'cross': ('EncDecAttention', linear),
    'mlp': ('DenseReluDense', mlp | {'down': 'wo'}),
  }
  table: dict[str, Any] = {'embed': 'shared'} | ({} if config.tied else {'lm_head': 'lm_head'})
  for stack, depth in (('encoder', config.depth), ('decoder', config.decoder_depth)):
    table[f'{stack}/bias'] = f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias'
    table[f'{stack}/ln'] = f'{stack}.final_layer_norm'
    blocks = {}
    for j, part in enumerate(p for p in parts if p != 'cross' or stack == 'decoder'):
      layer, (module, leaves) = f'{stack}.block.{{i}}.layer.{j}', parts[part]
      blocks[f'{stack}/block_{{i}}/ln{j + 1}'] = f'{layer}.layer_norm'
      for ours, theirs in leaves.items():
        blocks[f'{stack}/block_{{i}}/{part}/{ours}'] = f'{layer}.{module}.{theirs}'
    table |= per_block(blocks, depth)
  return table


PREFIXES: tuple[str, ...] = ()
UNUSED: tuple[str, ...] = (
  r'(encoder|decoder)\.embed_tokens\.weight',  # Copies of the shared embedding.
  r'decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight',  # Never read.
)
