"""MPNet (Song et al. 2020, arXiv:2004.09297): RoBERTa with a bias for each distance, no types."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fewshot.errors import FewshotError
from fewshot.models import bert, roberta
from fewshot.models.bert import Config
from fewshot.models.layers import bucket
from fewshot.models.weights.names import Names, Part, per_block

Array = jax.Array
example = bert.example
BUCKETS, FARTHEST = 32, 128  # Of distances, as T5 counts them.
PAD = 1  # The id of the padding, which positions are counted from.


class Encoder(nn.Module):
  """The stack of blocks, which share one bias: x [B, T, D], mask [B, T] -> [B, T, D]."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array) -> Array:
    c = self.config
    positions = jnp.arange(x.shape[1])
    distance = bucket(positions[None] - positions[:, None], BUCKETS, FARTHEST, both=True)
    bias = nn.Embed(BUCKETS, c.heads, name='bias')(distance)
    bias = jnp.moveaxis(bias, -1, 0)[None]  # [1, H, T, T]
    for i in range(c.depth):
      x = bert.Block(c, name=f'block_{i}')(x, mask, bias)
    return x


init = functools.partial(bert.init, stack=Encoder)
forward = functools.partial(bert.forward, stack=Encoder)


def config_from_hf(hf: Mapping[str, Any]) -> Config:
  """Reads a Hugging Face `config.json`; what this file does not compute is refused."""
  found = hf.get('relative_attention_num_buckets', BUCKETS)
  if found != BUCKETS:
    raise FewshotError(f'relative_attention_num_buckets {found}; only {BUCKETS}')
  return roberta.config_from_hf({**hf, 'type_vocab_size': 0, 'pad_token_id': PAD})


def names(config: Config) -> Names:
  """Our module -> Hugging Face's name, after a leading 'mpnet.'."""
  block, stored = 'encoder/block_{i}', 'encoder.layer.{i}'
  attention = {
    f'{block}/attn/query': f'{stored}.attention.attn.q',
    f'{block}/attn/key': f'{stored}.attention.attn.k',
    f'{block}/attn/value': f'{stored}.attention.attn.v',
    f'{block}/attn/out': f'{stored}.attention.attn.o',
    f'{block}/ln1': f'{stored}.attention.LayerNorm',
  }
  return {
    **roberta.names(config),
    **per_block(attention, config.depth),
    'inputs/positions': Part('embeddings.position_embeddings', lambda x: x[PAD + 1 :]),
    'encoder/bias': 'encoder.relative_attention_bias',
  }


PREFIXES: tuple[str, ...] = ('mpnet.',)
UNUSED = bert.UNUSED
