"""The BERT family: BERT, RoBERTa, MiniLM and what shares their block.

Devlin et al. 2019 (arXiv:1810.04805), Liu et al. 2019 (arXiv:1907.11692), Wang et al. 2020
(arXiv:2002.10957).  Post-norm blocks, learned positions, mean pooling over the real tokens.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fewshot.errors import FewshotError
from fewshot.models.layers import ACTIVATIONS, Core, Mlp, classify, drop, mean_pool
from fewshot.models.weights.names import Names, Part, per_block

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a BERT; lengths in tokens."""

  vocab: int
  dim: int
  depth: int
  heads: int
  width: int  # Of the MLP.
  positions: int
  types: int
  eps: float = 1e-12
  activation: str = 'gelu'
  dropout: float = 0.0


class Attention(nn.Module):
  """Multi-head self-attention over the positions where mask [B, T] holds."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array) -> Array:
    c = self.config
    split = lambda y: y.reshape(*y.shape[:-1], c.heads, c.dim // c.heads)  # noqa: E731
    q, k, v = (split(nn.Dense(c.dim, name=n)(x)) for n in ('query', 'key', 'value'))
    y = Core(name='core')(q, k, v, mask)
    return nn.Dense(c.dim, name='out')(y.reshape(x.shape))


class Block(nn.Module):
  """x = ln1(x + attn(x)); x = ln2(x + mlp(x))."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array) -> Array:
    c = self.config
    x = nn.LayerNorm(c.eps, name='ln1')(
      x + drop(self, c.dropout, Attention(c, name='attn')(x, mask))
    )
    y = Mlp(c.width, c.activation, name='mlp')(x)
    return nn.LayerNorm(c.eps, name='ln2')(x + drop(self, c.dropout, y))


class Encoder(nn.Module):
  """The stack of blocks: x [B, T, D], mask [B, T] -> [B, T, D]."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array) -> Array:
    for i in range(self.config.depth):
      x = Block(self.config, name=f'block_{i}')(x, mask)
    return x


class Inputs(nn.Module):
  """Adds positions and segment types to embedded tokens; soft prompts attach before it."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array, positions: Array, types: Array) -> tuple[Array, Array]:
    c = self.config
    if x.shape[1] > c.positions:
      raise FewshotError(
        f'an input of {x.shape[1]} tokens (prompts counted) is longer than the {c.positions} '
        'positions of this model; cut the texts at fewer tokens'
      )
    x = x + nn.Embed(c.positions, c.dim, name='positions')(positions)
    x = x + nn.Embed(c.types, c.dim, name='types')(types)
    return drop(self, c.dropout, nn.LayerNorm(c.eps, name='ln')(x)), mask


class Bert(nn.Module):
  """tokens [B, T], mask [B, T] (and types [B, T]) -> features [B, D], hidden [B, T, D], logits.

  Logits come from the features where params have a `head`, as a merged classifier does.
  """

  config: Config

  @nn.compact
  def __call__(self, tokens: Array, mask: Array, types: Array | None = None) -> dict[str, Array]:
    c = self.config
    x = nn.Embed(c.vocab, c.dim, name='embed')(tokens)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    types = jnp.zeros_like(tokens) if types is None else types
    x = Encoder(c, name='encoder')(*Inputs(c, name='inputs')(x, mask, positions, types))
    features = mean_pool(x, mask)
    return {'features': features, 'hidden': x, 'mask': mask} | classify(self, features)


def forward(config: Config) -> Callable[..., dict[str, Array]]:
  """The pure function (params, batch, key=None) -> outputs; batch has tokens, mask, maybe types.

  >>> tiny = Config(vocab=9, dim=8, depth=1, heads=2, width=16, positions=4, types=1)
  >>> batch = {'tokens': jnp.ones((2, 3), int), 'mask': jnp.ones((2, 3), bool)}
  >>> params = init(tiny, jax.random.key(0))
  >>> forward(tiny)(params, batch)['features'].shape
  (2, 8)
  """
  module = Bert(config)

  def apply(params: Any, batch: dict[str, Any], key: Array | None = None) -> dict[str, Array]:
    if 'tokens' not in batch or 'mask' not in batch:
      raise FewshotError(
        f'this model reads tokens and mask, and the batch has {", ".join(batch) or "nothing"}; '
        'give it texts, or a dict of both arrays'
      )
    rngs = None if key is None else {'dropout': key}
    types = batch.get('types')
    return module.apply({'params': params}, batch['tokens'], batch['mask'], types, rngs=rngs)  # type: ignore[return-value]

  return apply


def init(config: Config, key: Array) -> Any:
  """Random params of a model of this shape."""
  batch = example(config)
  return Bert(config).init(key, batch['tokens'], batch['mask'])['params']


def example(config: Config) -> dict[str, Array]:
  """A batch of one."""
  del config
  return {'tokens': jnp.zeros((1, 2), int), 'mask': jnp.ones((1, 2), bool)}


def config_from_hf(hf: Mapping[str, Any]) -> Config:
  """Reads a Hugging Face `config.json`; what this file does not compute is refused."""
  if hf.get('position_embedding_type', 'absolute') != 'absolute':
    raise FewshotError(f'position_embedding_type {hf["position_embedding_type"]!r}; only absolute')
  if hf['hidden_size'] % hf['num_attention_heads']:
    raise FewshotError(
      f'hidden_size {hf["hidden_size"]} does not divide into {hf["num_attention_heads"]} heads'
    )
  act = hf.get('hidden_act', 'gelu')
  if act not in ACTIVATIONS:
    raise FewshotError(f'hidden_act {act!r} is not known; known: {", ".join(ACTIVATIONS)}')
  return Config(
    vocab=hf['vocab_size'],
    dim=hf['hidden_size'],
    depth=hf['num_hidden_layers'],
    heads=hf['num_attention_heads'],
    width=hf['intermediate_size'],
    positions=hf['max_position_embeddings'] - skipped_positions(hf),
    types=hf['type_vocab_size'],
    eps=hf.get('layer_norm_eps', 1e-12),
    activation=act,
  )


def skipped_positions(hf: Mapping[str, Any]) -> int:
  """RoBERTa counts positions from pad_token_id + 1: the rows before are never read."""
  return hf['pad_token_id'] + 1 if hf['model_type'] == 'roberta' else 0


def names(config: Config) -> Names:
  """Our module -> Hugging Face's name, after a leading 'bert.' or 'roberta.'."""
  return per_block(
    {
      'embed': 'embeddings.word_embeddings',
      'inputs/positions': Part(
        'embeddings.position_embeddings', lambda x: x[x.shape[0] - config.positions :]
      ),
      'inputs/types': 'embeddings.token_type_embeddings',
      'inputs/ln': 'embeddings.LayerNorm',
      'encoder/block_{i}/attn/query': 'encoder.layer.{i}.attention.self.query',
      'encoder/block_{i}/attn/key': 'encoder.layer.{i}.attention.self.key',
      'encoder/block_{i}/attn/value': 'encoder.layer.{i}.attention.self.value',
      'encoder/block_{i}/attn/out': 'encoder.layer.{i}.attention.output.dense',
      'encoder/block_{i}/ln1': 'encoder.layer.{i}.attention.output.LayerNorm',
      'encoder/block_{i}/mlp/up': 'encoder.layer.{i}.intermediate.dense',
      'encoder/block_{i}/mlp/down': 'encoder.layer.{i}.output.dense',
      'encoder/block_{i}/ln2': 'encoder.layer.{i}.output.LayerNorm',
    },
    config.depth,
  )


PREFIXES: tuple[str, ...] = ('bert.', 'roberta.')
# Tensors of a checkpoint that a mean-pooled encoder does not compute with.
UNUSED: tuple[str, ...] = (
  r'pooler\..*',  # The tanh layer over [CLS].
  r'embeddings\.(position_ids|token_type_ids)',  # Constants that old checkpoints store.
  r'(cls|lm_head|classifier|qa_outputs)\..*',  # Heads of the task the checkpoint was made for.
)
