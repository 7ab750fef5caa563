"""One LoRA training step: rank 8 on query and value of an encoder of two shapes.

The peer is HF PEFT on PyTorch, the same shape with random weights; AdamW, no dropout, two classes.
Ours runs the steps as the engine does, in a loop inside one program.  `limit` is the time that the
step's matrix products would take at the measured matmul peak.

    fewshot bench step
"""

import argparse
import functools
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

from fewshot.bench import Case, matmul_flops_per_s, median_ms

STEPS = 5  # In a call of the program.


class Shape(NamedTuple):
  """An encoder, and the batch it is shown."""

  layers: int
  dim: int
  heads: int
  ffn: int
  batch: int
  len: int


SHAPES = {'6x384': Shape(6, 384, 12, 1536, 32, 64), 'base': Shape(12, 768, 12, 3072, 16, 128)}
BARS = {'6x384': (0.70, 0.5), 'base': (0.90, 0.5)}


def cases() -> list[Case]:
  """A shape each; both sides print ms_median."""
  out = []
  for name, s in SHAPES.items():
    args = [x for k, v in s._asdict().items() for x in (f'--{k}', str(v))]
    peer = ['peft_step.py', '--method', 'lora', '--warmup', '2', '--repeats', '8', *args]
    ours = [str(Path(__file__)), name]
    title = f'lora-r8 {s.layers}x{s.dim} {s.batch}x{s.len}'
    out.append(Case(title, ours, peer, 'ms_median', 'ms', bars=BARS[name]))
  return out


def main() -> None:
  """Measures ours, and prints one JSON line."""
  parser = argparse.ArgumentParser()
  parser.add_argument('shape', nargs='?', default='6x384', choices=SHAPES)
  s = SHAPES[parser.parse_args().shape]
  import jax
  import jax.numpy as jnp

  from fewshot import fits, methods, train
  from fewshot.models import bert
  from fewshot.objectives import classification

  shape = bert.Config(30522, s.dim, s.layers, s.heads, s.ffn, 512, 2)
  key = jax.random.key(0)
  params = bert.init(shape, key)
  tokens = jax.random.randint(key, (s.batch, s.len), 0, shape.vocab)
  labels = jax.random.randint(key, (s.batch,), 0, 2)
  batch = {'tokens': tokens, 'mask': jnp.ones((s.batch, s.len), bool), 'labels': labels}
  method = methods.parse('chain(lora(rank=8), linear())')
  fit = _without_curve(fits.sgd(steps=10**6, lr=1e-3, batch=s.batch))
  setup = train.Setup(bert.forward(shape), method, fit, classification(), 2)
  run = train.Inputs(key, {}, fits.Data(batch))
  advance = jax.jit(functools.partial(train.advance, setup, False, None))
  carry = jax.jit(functools.partial(train.begin, setup))(params, run)

  starts = itertools.count(1, STEPS)

  def steps() -> None:
    nonlocal carry
    t = next(starts)
    carry = advance(params, run, carry, jnp.int32(t), jnp.int32(t + STEPS))
    jax.block_until_ready(carry)

  ms = median_ms(steps, warmup=1, repeats=4) / STEPS
  print(json.dumps({'ms_median': ms, 'limit': _limit_ms(s)}))


def _without_curve(fit: Any) -> Any:
  """The step alone: a million-step curve is not what is measured."""
  import jax.numpy as jnp

  def start(*args: Any) -> Any:
    return fit.start(*args) | {'curve': jnp.zeros(1)}

  return fit._replace(start=start)


def _limit_ms(s: Shape) -> float:
  """Forward and the activations' backward, 2 x 2 x weights x tokens FLOPs, at the matmul peak."""
  weights = s.layers * (4 * s.dim * s.dim + 2 * s.dim * s.ffn)
  return 1e3 * 2 * 2 * weights * s.batch * s.len / matmul_flops_per_s()


if __name__ == '__main__':
  main()
