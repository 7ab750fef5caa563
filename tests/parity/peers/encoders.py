"""The text encoders with their masked-language-model heads, by Transformers."""

from pathlib import Path

import torch
import transformers
from torch import Tensor

from tests.parity.peers.bert import TINY
from tests.parity.peers.common import mean_pool, ragged, randomise, save

TINY = TINY | {'attn_implementation': 'eager'}
DISTIL = {
  'vocab_size': 100,
  'dim': 32,
  'n_layers': 2,
  'n_heads': 4,
  'hidden_dim': 64,
  'max_position_embeddings': 40,
  'attn_implementation': 'eager',
}
ATTENTION = 'encoder.layer.0.attention'
SHARED = 'albert.encoder.albert_layer_groups.0.albert_layers.0.attention'


def masked_lm(
  folder: Path, model: transformers.PreTrainedModel, query: str, seed: int, types: bool = False
) -> None:
  """Writes a random tiny model, its outputs and the gradient of one query through its logits."""
  generator = torch.Generator().manual_seed(seed)
  randomise(model, generator)
  model.eval().save_pretrained(folder)
  ids, mask = ragged(100, model.config.pad_token_id, generator)
  if model.config.model_type == 'mpnet':  # One text, long enough for every bucket of distances.
    ids, mask = torch.randint(5, 100, (1, 140), generator=generator), torch.arange(140)[None] < 136
    ids = torch.where(mask, ids, model.config.pad_token_id)
  batch = {'tokens': ids, 'mask': mask}
  segments: dict[str, Tensor] = {}
  if types:
    batch['types'] = torch.randint(0, 2, ids.shape, generator=generator)
    segments['token_type_ids'] = batch['types']
  sites = {}
  if model.config.model_type == 'albert':  # What its encoder is given is narrower than our inputs.
    keep = lambda module, args, out: sites.update(inputs=out)  # noqa: E731
    model.albert.encoder.embedding_hidden_mapping_in.register_forward_hook(keep)
  out = model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, **segments)
  inputs, *blocks = out.hidden_states
  hidden = blocks[-1]
  if not sites:
    sites = {'inputs': inputs, **{f'encoder/block_{i}': x for i, x in enumerate(blocks)}}
  save(
    folder,
    batch,
    {'features': mean_pool(hidden, mask), 'hidden': hidden, 'token_logits': out.logits},
    sites | {'encoder': hidden},
    ('encoder/block_0/attn/query/kernel', model.get_parameter(query), lambda g: g.T),
    loss_of='token_logits',
  )


def write(root: Path) -> None:
  """Writes the fixtures of this file."""
  bert = transformers.BertForMaskedLM(transformers.BertConfig(**TINY, pad_token_id=0))
  masked_lm(root / 'bert-mlm-tiny', bert, f'bert.{ATTENTION}.self.query.weight', 2, types=True)
  roberta = transformers.RobertaForMaskedLM(
    transformers.RobertaConfig(**TINY, pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5)
  )
  masked_lm(root / 'roberta-mlm-tiny', roberta, f'roberta.{ATTENTION}.self.query.weight', 3)
  distilbert = transformers.DistilBertForMaskedLM(transformers.DistilBertConfig(**DISTIL))
  query = 'distilbert.transformer.layer.0.attention.q_lin.weight'
  masked_lm(root / 'distilbert-mlm-tiny', distilbert, query, 4)
  albert = transformers.AlbertForMaskedLM(transformers.AlbertConfig(**TINY, embedding_size=16))
  masked_lm(root / 'albert-mlm-tiny', albert, f'{SHARED}.query.weight', 5, types=True)
  mpnet = transformers.MPNetForMaskedLM(
    transformers.MPNetConfig(**TINY | {'max_position_embeddings': 150})
  )
  masked_lm(root / 'mpnet-mlm-tiny', mpnet, f'mpnet.{ATTENTION}.attn.q.weight', 6)
