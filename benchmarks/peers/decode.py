"""The peer of ../decode.py: generate() of Transformers on PyTorch, the same shape and lengths."""

import json
import statistics
import sys
import time

import torch
import transformers


def main(batch: int, prompt: int, new: int, shape: dict) -> None:
  """Prints the median milliseconds a new token as one JSON line."""
  torch.manual_seed(0)
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  config = transformers.AutoConfig.for_model(**shape, eos_token_id=None, pad_token_id=0)
  model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
  model = model.eval().to(device)
  tokens = torch.randint(1, config.vocab_size, (batch, prompt), device=device)
  inputs = {'input_ids': tokens, 'attention_mask': torch.ones_like(tokens)}
  greedy = {'do_sample': False, 'use_cache': True, 'max_new_tokens': new, 'min_new_tokens': new}
  times = []
  for _ in range(4):
    start = time.perf_counter()
    with torch.inference_mode():
      out = model.generate(**inputs, **greedy)
    got = out.cpu().shape  # Waits for the device.
    times.append(1e3 * (time.perf_counter() - start) / new)
    assert got == (batch, prompt + new), got
  ms = statistics.median(times[1:])
  print(json.dumps({'ms_per_token': ms, 'tokens_per_s': 1e3 * batch / ms}))


if __name__ == '__main__':
  main(*map(int, sys.argv[1:4]), json.loads(sys.argv[4]))
