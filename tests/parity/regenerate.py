"""Writes the reference outputs that the parity tests compare the BERT family with.

Run `python -m tests.parity.regenerate` in the repository root, with the `peers` extra installed.
The fixtures are committed, so the tests need neither PyTorch nor Transformers. Everything is
float32 on the CPU, in eval mode, with eager attention and right padding.
"""

import json
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from fewshot import assets

FIXTURES = Path(__file__).parent / 'fixtures'
LENGTHS = (12, 7, 1, 10)
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


def randomise(model: torch.nn.Module, generator: torch.Generator) -> None:
  """Draws every weight, so that no bias is zero and no LayerNorm is the identity."""
  for name, value in model.named_parameters():
    start = 1.0 if 'LayerNorm.weight' in name else 0.0
    value.data = start + 0.2 * torch.randn(value.shape, generator=generator)


def ragged(pad: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
  """Token ids and mask with one row for each of `LENGTHS`; no token within a row is padding."""
  ids = torch.randint(5, TINY['vocab_size'], (len(LENGTHS), max(LENGTHS)), generator=generator)
  mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
  return torch.where(mask.bool(), ids, pad), mask


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
  """The mean over the tokens that are not padding; hidden: [b, t, d], mask: [b, t]."""
  weights = mask[..., None].to(hidden.dtype)
  return (hidden * weights).sum(1) / weights.sum(1)


def save(folder: Path, tensors: dict[str, Tensor]) -> None:
  """Writes `expected.safetensors`, with the versions that made it in its header."""
  torch_version = torch.__version__.split('+')[0]
  made_by = f'torch {torch_version}, transformers {transformers.__version__}'
  arrays = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
  save_file(arrays, folder / 'expected.safetensors', metadata={'made_by': made_by})
  for path in folder.glob('*.safetensors'):
    path.chmod(0o644)


def tiny(folder: Path, model: transformers.PreTrainedModel, seed: int) -> None:
  """Writes a random tiny model as a Hugging Face folder, its outputs and one gradient."""
  generator = torch.Generator().manual_seed(seed)
  randomise(model, generator)
  model.eval().save_pretrained(folder)
  ids, mask = ragged(model.config.pad_token_id, generator)
  out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
  features = mean_pool(out.last_hidden_state, mask)
  loss_weights = torch.randn(features.shape, generator=generator)
  loss = (features * loss_weights).sum()
  (gradient,) = torch.autograd.grad(loss, [model.get_parameter(QUERY)])
  states = {f'hidden_state_{i}': state for i, state in enumerate(out.hidden_states)}
  save(
    folder,
    {
      'input_ids': ids,
      'attention_mask': mask,
      'last_hidden_state': out.last_hidden_state,
      'features': features,
      'loss_weights': loss_weights,
      'loss': loss,
      'gradient': gradient,
      **states,
    },
  )


def minilm(folder: Path) -> None:
  """Writes the mean-pooled features of `SENTENCES` by all-MiniLM-L6-v2, not normalised."""
  weights = assets.get('minilm-l6')
  tokenizer = tokenizers.Tokenizer.from_file(str(weights / 'tokenizer.json'))
  tokenizer.no_truncation()
  tokenizer.enable_padding()
  encoded = tokenizer.encode_batch(list(SENTENCES))
  ids = torch.tensor([row.ids for row in encoded])
  mask = torch.tensor([row.attention_mask for row in encoded])
  model = transformers.BertModel.from_pretrained(weights, attn_implementation='eager').eval()
  with torch.no_grad():
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
  folder.mkdir(parents=True, exist_ok=True)
  text = json.dumps(SENTENCES, indent=2, ensure_ascii=False) + '\n'
  (folder / 'sentences.json').write_text(text, encoding='utf-8')
  save(folder, {'input_ids': ids, 'attention_mask': mask, 'features': mean_pool(hidden, mask)})


def main() -> None:
  """Writes all fixtures, over those that exist."""
  bert = transformers.BertConfig(**TINY, pad_token_id=0, attn_implementation='eager')
  roberta = transformers.RobertaConfig(
    **TINY,
    pad_token_id=1,
    type_vocab_size=1,
    layer_norm_eps=1e-5,
    attn_implementation='eager',
  )
  tiny(FIXTURES / 'bert-tiny', transformers.BertModel(bert), seed=0)
  tiny(FIXTURES / 'roberta-tiny', transformers.RobertaModel(roberta), seed=1)
  minilm(FIXTURES / 'minilm-l6')


if __name__ == '__main__':
  main()
