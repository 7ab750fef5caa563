"""The peer of ../models.py: Transformers and HF PEFT on PyTorch, the same shapes and work."""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model

SHAPES = json.loads((Path(__file__).parent.parent / 'shapes.json').read_text())


def main(name: str, what: str) -> None:
  """Prints the median milliseconds as one JSON line."""
  torch.manual_seed(0)
  shape = SHAPES[name]
  config = transformers.AutoConfig.for_model(**shape['config'])
  extra = {'add_pooling_layer': False} if config.model_type in ('bert', 'vit') else {}
  model = transformers.AutoModel.from_config(config, **extra).eval()
  batch = inputs(shape)
  work = training(model, shape, batch) if what == 'step' else forward(model, batch)
  print(json.dumps({'ms_median': median_ms(work, warmup=2, repeats=8)}))


def inputs(shape: dict) -> dict[str, torch.Tensor]:
  """Token ids with a mask of ones, or images."""
  n, size = shape['batch']
  if 'vocab_size' not in shape['config']:
    return {'pixel_values': torch.rand(n, 3, size, size)}
  ids = torch.randint(0, shape['config']['vocab_size'], (n, size))
  return {'input_ids': ids, 'attention_mask': torch.ones_like(ids)}


def forward(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
  """The last hidden states, in inference mode."""

  def work() -> None:
    with torch.inference_mode():
      model(**batch)

  return work


def training(model: torch.nn.Module, shape: dict, batch: dict) -> Callable[[], None]:
  """A step of AdamW on LoRA (or all weights) and a linear head on the pooled features."""
  if shape['target']:
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=shape['target']))
  with torch.no_grad():
    width = pooled(model(**batch).last_hidden_state).shape[-1]
  head = torch.nn.Linear(width, 2)
  trained = [w for w in (*model.parameters(), *head.parameters()) if w.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=1e-3)
  labels = torch.randint(0, 2, (shape['batch'][0],))

  def work() -> None:
    logits = head(pooled(model(**batch).last_hidden_state))
    torch.nn.functional.cross_entropy(logits, labels).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

  return work


def pooled(hidden: torch.Tensor) -> torch.Tensor:
  """[B, T, D] or [B, D, H, W] -> [B, D]."""
  return hidden.mean(1) if hidden.ndim == 3 else hidden.mean((2, 3))


def median_ms(work: Callable[[], None], warmup: int, repeats: int) -> float:
  """Of single calls."""
  times = []
  for _ in range(warmup + repeats):
    start = time.perf_counter()
    work()
    times.append(1e3 * (time.perf_counter() - start))
  return statistics.median(times[warmup:])


if __name__ == '__main__':
  main(*sys.argv[1:])
