"""ALBERT (Lan et al. 2020, arXiv:1909.11942): BERT with narrow token vectors and one shared block.

The block's modules are called once a layer, so activation methods refuse them: adapt the shared
weights, `as_weights(lora())`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from fewshot.errors import FewshotError
from fewshot.models import bert
from fewshot.models.bert import Config
from fewshot.models.weights.names import Names

Array = jax.Array
example = bert.example


class Encoder(nn.Module):
  """One block, `depth` times: x [B, T, D], mask [B, T] -> [B, T, D]."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array) -> Array:
    block = bert.Block(self.config, name='block_0')
    for _ in range(self.config.depth):
      x = block(x, mask)
    return x


init = functools.partial(bert.init, stack=Encoder)
forward = functools.partial(bert.forward, stack=Encoder)


def config_from_hf(hf: Mapping[str, Any]) -> Config:
  """Reads a Hugging Face `config.json`; what this file does not compute is refused."""
  for key in ('num_hidden_groups', 'inner_group_num'):
    if hf.get(key, 1) != 1:
      raise FewshotError(f'{key} {hf[key]}; only 1: all layers share one block')
  config = bert.config_from_hf({'hidden_act': 'gelu_new', **hf})
  return dataclasses.replace(config, embedding=hf['embedding_size'])


def names(config: Config) -> Names:
  """Our module -> Hugging Face's name, after a leading 'albert.'."""
  del config
  block, stored = 'encoder/block_0', 'encoder.albert_layer_groups.0.albert_layers.0'
  return {
    'embed': 'embeddings.word_embeddings',
    'inputs/positions': 'embeddings.position_embeddings',
    'inputs/types': 'embeddings.token_type_embeddings',
    'inputs/ln': 'embeddings.LayerNorm',
    'inputs/project': 'encoder.embedding_hidden_mapping_in',
    f'{block}/attn/query': f'{stored}.attention.query',
    f'{block}/attn/key': f'{stored}.attention.key',
    f'{block}/attn/value': f'{stored}.attention.value',
    f'{block}/attn/out': f'{stored}.attention.dense',
    f'{block}/ln1': f'{stored}.attention.LayerNorm',
    f'{block}/mlp/up': f'{stored}.ffn',
    f'{block}/mlp/down': f'{stored}.ffn_output',
    f'{block}/ln2': f'{stored}.full_layer_layer_norm',
    'lm_head/dense': 'predictions.dense',
    'lm_head/ln': 'predictions.LayerNorm',
    'lm_head/bias': 'predictions.bias',
  }


PREFIXES: tuple[str, ...] = ('albert.',)
# Tensors of a checkpoint that the outputs do not depend on.
UNUSED: tuple[str, ...] = (
  r'pooler\..*',  # The tanh layer over [CLS].
  r'embeddings\.(position_ids|token_type_ids)',  # Constants that old checkpoints store.
  r'(sop_classifier|classifier|qa_outputs)\..*',  # Heads of another task.
  # Of the masked-language-model head the tied matrix, and all of it where the config has none.
  r'predictions\..*',
)
