"""Masked language models with the heads that they were trained with, by Transformers."""

import json
from pathlib import Path

import torch
import transformers

from fewshot import assets
from tests.parity.peers.common import save

EVERY = 7  # Of the vocabulary, so that a fixture stays small.
TEXTS = {
  'albert-tiny-zh': (
    '北京是中[MASK]的首都',
    '酒店的服务很[MASK]。',
    '很[MASK]！早餐品种不多，房间倒是干净，下次还会来住。',
  ),
  'splade-tiny': (
    'Paris is the capital of [MASK].',
    'It was [MASK].',
    'The [MASK] rose over the hills, and nobody in the village had slept.',
  ),
}


def write(root: Path) -> None:
  """Writes the log-probabilities at the mask of each text, of every seventh token, as one batch."""
  for name, texts in TEXTS.items():
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    weights = assets.get(name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights)
    model = transformers.AutoModelForMaskedLM.from_pretrained(
      weights, attn_implementation='eager'
    ).eval()
    encoded = tokenizer(list(texts), padding=True, return_tensors='pt')
    ids, mask = encoded.input_ids, encoded.attention_mask.bool()
    slots = (ids == tokenizer.mask_token_id).int().argmax(1)
    with torch.no_grad():
      logits = model(input_ids=ids, attention_mask=mask.long()).logits
    at = torch.log_softmax(logits[torch.arange(len(ids)), slots], -1)
    text = json.dumps(texts, indent=2, ensure_ascii=False) + '\n'
    (folder / 'sentences.json').write_text(text, encoding='utf-8')
    save(
      folder, {'tokens': ids, 'mask': mask, 'slots': slots[:, None]}, {'log_probs': at[:, ::EVERY]}
    )
