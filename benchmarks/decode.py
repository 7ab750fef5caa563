"""Greedy decoding by a model of SmolLM2-135M's shape: 64 tokens after 32, batches of 1 and 16.

The peer is generate() of Transformers on PyTorch; random weights and no token that ends a row, so
that both decode all 64; float32, caches of keys and values.  The figure is milliseconds a new
token of the whole batch, the prompt's forward pass included.  Ours leaves out the time to compile,
which is printed as `compile_s`.  `limit` is the time to read all weights once a token at the
measured copy bandwidth or, where that is longer, of the matrix products at their measured peak.

    fewshot bench decode
"""

import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

from fewshot.bench import FOLDER, Case, copy_bytes_per_s, matmul_flops_per_s, median_ms

PROMPT, NEW = 32, 64
SMOLLM2 = {
  'model_type': 'llama', 'vocab_size': 49152, 'hidden_size': 576, 'num_hidden_layers': 30,
  'num_attention_heads': 9, 'num_key_value_heads': 3, 'intermediate_size': 1536,
  'max_position_embeddings': 8192, 'rope_theta': 1e5, 'rms_norm_eps': 1e-5,
  'tie_word_embeddings': True,
}  # fmt: skip


def cases() -> list[Case]:
  """Both batches."""
  return [_case(batch, SMOLLM2) for batch in (1, 16)]


def _case(batch: int, shape: dict[str, Any]) -> Case:
  args = [str(batch), str(PROMPT), str(NEW), json.dumps(shape)]
  return Case(
    f'smollm2-135m batch {batch}',
    [str(Path(__file__)), *args],
    [str(FOLDER / 'peers' / 'decode.py'), *args],
    'ms_per_token',
    'ms',
    bars=(0.8, 0.3),
  )


def main(batch: int, prompt: int, new: int, shape: dict[str, Any]) -> None:
  """Measures ours, and prints one JSON line."""
  import jax
  import jax.numpy as jnp

  from fewshot.generation import generate
  from fewshot.models import llama

  config = llama.config_from_hf(shape)
  key = jax.random.key(0)
  params = jax.jit(functools.partial(llama.init, config))(key)
  tokens = jax.random.randint(key, (batch, prompt), 0, config.vocab)
  inputs = {'tokens': tokens, 'mask': jnp.ones(tokens.shape, bool)}
  forward = llama.forward(config)
  start = time.perf_counter()
  decode = jax.jit(lambda p, b: generate(forward, p, b, new)).lower(params, inputs).compile()
  seconds = time.perf_counter() - start
  ms = median_ms(lambda: jax.block_until_ready(decode(params, inputs)), warmup=1, repeats=3) / new
  weights = sum(x.size for x in jax.tree.leaves(params))
  limit = max(4 * weights / copy_bytes_per_s(), 2 * weights * batch / matmul_flops_per_s())
  print(
    json.dumps(
      {
        'ms_per_token': ms,
        'tokens_per_s': 1e3 * batch / ms,
        'compile_s': seconds,
        'limit': 1e3 * limit,
      }
    )
  )


if __name__ == '__main__':
  main(*map(int, sys.argv[1:4]), json.loads(sys.argv[4]))
