"""BERT, RoBERTa and the real MiniLM, by Transformers."""

import json
from pathlib import Path

import tokenizers
import torch
import transformers

from fewshot import assets
from tests.parity.peers.common import mean_pool, ragged, randomise, save

QUERY = 'encoder.layer.0.attention.self.query.weight'
TINY = {
  'vocab_size': 100,
  'hidden_size': 32,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'intermediate_size': 64,
  'max_position_embeddings': 40,
}
SENTENCES = (
  'Hello.',
  'The film was a delight from start to finish.',
  'What is the capital of Australia?',
  'NASDAQ fell 2.7% on Friday, its worst day since March 2020.',
  'Naïve café owners don’t tip-toe around re-opening.',
  'a',
  'Gradient descent finds a minimum of the loss if the step is small enough; how small depends on '
  'the largest curvature, which few people measure.',
  'The committee, having heard three witnesses, two of whom contradicted each other, adjourned '
  'without a vote; its chair said that the matter would be taken up again in the autumn, when the '
  'missing accounts were expected, although nobody present could say who was keeping them, or why.',
)


def tiny(folder: Path, model: transformers.PreTrainedModel, seed: int) -> None:
  """Writes a random tiny model as a Hugging Face folder, its outputs and one gradient."""
  generator = torch.Generator().manual_seed(seed)
  randomise(model, generator)
  model.eval().save_pretrained(folder)
  ids, mask = ragged(TINY['vocab_size'], model.config.pad_token_id, generator)
  out = model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
  inputs, *blocks = out.hidden_states
  save(
    folder,
    {'tokens': ids, 'mask': mask},
    {'features': mean_pool(out.last_hidden_state, mask), 'hidden': out.last_hidden_state},
    {'inputs': inputs, **{f'encoder/block_{i}': x for i, x in enumerate(blocks)}},
    ('encoder/block_0/attn/query/kernel', model.get_parameter(QUERY), lambda g: g.T),
  )


def minilm(folder: Path) -> None:
  """Writes the mean-pooled features of `SENTENCES` by all-MiniLM-L6-v2, not normalised."""
  weights = assets.get('minilm-l6')
  tokenizer = tokenizers.Tokenizer.from_file(str(weights / 'tokenizer.json'))
  tokenizer.no_truncation()
  tokenizer.enable_padding()
  encoded = tokenizer.encode_batch(list(SENTENCES))
  ids = torch.tensor([row.ids for row in encoded])
  mask = torch.tensor([row.attention_mask for row in encoded]).bool()
  model = transformers.BertModel.from_pretrained(weights, attn_implementation='eager').eval()
  with torch.no_grad():
    hidden = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
  folder.mkdir(parents=True, exist_ok=True)
  text = json.dumps(SENTENCES, indent=2, ensure_ascii=False) + '\n'
  (folder / 'sentences.json').write_text(text, encoding='utf-8')
  save(folder, {'tokens': ids, 'mask': mask}, {'features': mean_pool(hidden, mask)})


def write(root: Path) -> None:
  """Writes the fixtures of this file."""
  bert = transformers.BertConfig(**TINY, pad_token_id=0, attn_implementation='eager')
  roberta = transformers.RobertaConfig(
    **TINY, pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5, attn_implementation='eager'
  )
  tiny(root / 'bert-tiny', transformers.BertModel(bert), seed=0)
  tiny(root / 'roberta-tiny', transformers.RobertaModel(roberta), seed=1)
  minilm(root / 'minilm-l6')
