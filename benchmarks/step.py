"""One LoRA training step: rank 8 on query and value of a 6-layer, 384-wide encoder, 32 x 64 tokens.

The peer is HF PEFT on PyTorch, the same shape with random weights; AdamW, no dropout, two classes.
Ours runs the steps as the engine does, in a loop inside one program.  `limit` is the time that the
step's matrix products would take at the measured matmul peak.

    fewshot bench step
"""

import functools
import itertools
import json
from pathlib import Path
from typing import Any

from fewshot.bench import Case, matmul_flops_per_s, median_ms

BATCH, LENGTH, STEPS = 32, 64, 5


def cases() -> list[Case]:
  """The one case; both sides print ms_median."""
  peer = ['peft_step.py', '--method', 'lora', '--warmup', '2', '--repeats', '8']
  return [Case('lora-r8 6x384 32x64', [str(Path(__file__))], peer, 'ms_median', 'ms')]


def main() -> None:
  """Measures ours, and prints one JSON line."""
  import jax
  import jax.numpy as jnp

  from fewshot import fits, methods, train
  from fewshot.models import bert
  from fewshot.objectives import classification

  shape = bert.Config(30522, 384, 6, 12, 1536, 512, 2)
  key = jax.random.key(0)
  params = bert.init(shape, key)
  tokens = jax.random.randint(key, (BATCH, LENGTH), 0, shape.vocab)
  labels = jax.random.randint(key, (BATCH,), 0, 2)
  batch = {'tokens': tokens, 'mask': jnp.ones((BATCH, LENGTH), bool), 'labels': labels}
  method = methods.parse('chain(lora(rank=8), linear())')
  fit = fits.sgd(steps=10**6, lr=1e-3, batch=BATCH)
  fit = _without_curve(fit)
  setup = train.Setup(bert.forward(shape), method, fit, classification(), 2)
  run = train.Inputs(key, {}, fits.Data(batch))
  advance = jax.jit(functools.partial(train.advance, setup, False))
  carry = jax.jit(functools.partial(train.begin, setup))(params, run)

  starts = itertools.count(1, STEPS)

  def steps() -> None:
    nonlocal carry
    t = next(starts)
    carry = advance(params, run, carry, jnp.int32(t), jnp.int32(t + STEPS))
    jax.block_until_ready(carry)

  ms = median_ms(steps, warmup=1, repeats=4) / STEPS
  print(json.dumps({'ms_median': ms, 'limit': _limit_ms()}))


def _without_curve(fit: Any) -> Any:
  """The step alone: a million-step curve is not what is measured."""
  import jax.numpy as jnp

  def start(*args: Any) -> Any:
    return fit.start(*args) | {'curve': jnp.zeros(1)}

  return fit._replace(start=start)


def _limit_ms() -> float:
  """Forward and the activations' backward, 2 x 2 x weights x tokens FLOPs, at the matmul peak."""
  weights = 6 * (4 * 384 * 384 + 2 * 384 * 1536)
  return 1e3 * 2 * 2 * weights * BATCH * LENGTH / matmul_flops_per_s()


if __name__ == '__main__':
  main()
