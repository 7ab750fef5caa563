"""RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT whose positions start after the padding's id.

XLM-RoBERTa (Conneau et al. 2020, arXiv:1911.02116) is the same network.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fewshot.errors import FewshotError
from fewshot.models import bert
from fewshot.models.bert import Config
from fewshot.models.weights.names import Names, Part

init, forward, example = bert.init, bert.forward, bert.example


def config_from_hf(hf: Mapping[str, Any]) -> Config:
  """Reads a Hugging Face `config.json`; what this file does not compute is refused."""
  config = bert.config_from_hf(hf)
  if config.lm and config.activation != 'gelu':  # The blocks' differs from the head's.
    raise FewshotError(f'hidden_act {config.activation!r} beside a head of gelu; only gelu')
  # Positions are counted from pad_token_id + 1: the rows before are never read.
  return dataclasses.replace(config, positions=config.positions - hf['pad_token_id'] - 1)


def names(config: Config) -> Names:
  """Our module -> Hugging Face's name, after a leading 'roberta.'."""
  table = 'embeddings.position_embeddings'
  return {
    **bert.names(config),
    'inputs/positions': Part(table, lambda x: x[x.shape[0] - config.positions :]),
    'lm_head/dense': 'lm_head.dense',
    'lm_head/ln': 'lm_head.layer_norm',
    'lm_head/bias': 'lm_head.bias',
  }


PREFIXES: tuple[str, ...] = ('roberta.',)
UNUSED = bert.UNUSED
