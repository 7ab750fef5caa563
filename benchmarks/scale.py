"""How time and memory grow with seeds (1 to 64), shots (1 to 256) and classes (2 to 128).

LoRA on a 2-layer, 64-wide encoder with texts of 16 tokens, ten epochs in minibatches of 16; one
seed, 16 shots and 2 classes where they do not vary.  Seconds are those of the compiled training
steps of all seeds, bytes what the larger of the two programs takes.  Each is fitted as c x n^e by
least squares in logarithms; the figures are the exponents e, and the points are printed with them.
There is no peer: 1 is linear, and what does not grow with n is 0.

    fewshot bench scale
    python benchmarks/scale.py seeds
"""

import argparse
import functools
import json
from pathlib import Path
from typing import Any

from fewshot.bench import FOLDER, Case

AXES = {
  'seeds': (1, 2, 4, 8, 16, 32, 64),
  'shots': (1, 4, 16, 64, 256),
  'classes': (2, 4, 8, 16, 32, 64, 128),
}
USUAL = {'seeds': 1, 'shots': 16, 'classes': 2}
SHAPE = (1000, 64, 2, 4, 256, 64, 2)  # vocab, dim, depth, heads, width, positions, types
LENGTH, EPOCHS, BATCH, TESTED = 16, 10, 16, 32


def cases() -> list[Case]:
  """Time and memory along each axis."""
  script = str(FOLDER / Path(__file__).name)
  return [
    Case(f'{what} by {axis}', [script, axis], [], f'{what}_exponent', 'exponent')
    for axis in AXES
    for what in ('seconds', 'bytes')
  ]


def main(axis: str, quick: bool = False) -> None:
  """Measures along an axis, and prints one JSON line; `quick` takes its two smallest sizes."""
  sizes = AXES[axis][: 2 if quick else None]
  model = _model()
  points = [{'n': n, **_measure(model, **USUAL | {axis: n})} for n in sizes]
  figures: dict[str, Any] = {'axis': axis, 'points': points}
  for what in ('seconds', 'bytes'):
    exponent, r2 = power_law(sizes, [p[what] for p in points])
    figures |= {f'{what}_exponent': exponent, f'{what}_r2': r2}
  print(json.dumps(figures))


def power_law(n: Any, y: Any) -> tuple[float, float]:
  """The exponent e of y = c n^e, fitted in logarithms, and the r^2 of that fit."""
  import numpy as np

  x, y = np.log(n), np.log(y)
  e, c = np.polyfit(x, y, 1)
  total = ((y - y.mean()) ** 2).sum()
  rest = ((y - (e * x + c)) ** 2).sum()
  return float(e), float(1 - rest / total) if total > 1e-12 else 1.0  # Constant but for rounding.


def _model() -> Any:
  import jax

  from fewshot.models import Model, bert

  config = bert.Config(*SHAPE)
  params = jax.jit(functools.partial(bert.init, config))(jax.random.key(0))
  return Model('random', bert.forward(config), params)


def _measure(model: Any, seeds: int, shots: int, classes: int) -> dict[str, float]:
  """Of a sweep over so many seeds; its test set is 32 texts."""
  import numpy as np

  from fewshot import fits, methods, tasks
  from fewshot.sweep import sweep

  rng, n = np.random.default_rng(0), shots * classes
  tokens = rng.integers(0, SHAPE[0], (n + TESTED, LENGTH)).astype(np.int32)
  inputs = {'tokens': tokens, 'mask': np.ones(tokens.shape, bool)}
  task = tasks.make('random', inputs, np.arange(n + TESTED) % classes, test=range(n, n + TESTED))
  data = tasks.encode(task, tasks.kshot(task, shots, [0]))
  fit = fits.sgd(steps=EPOCHS * max(n // BATCH, 1), batch=BATCH)
  method = methods.parse('chain(lora(rank=8), linear())')
  result = next(iter(sweep(model, data, method, fit, classes=classes, seeds=range(seeds))))
  found = {'seconds': result.timings['fit_seconds'], 'bytes': result.memory['bytes']}
  return found | {'compile_seconds': result.timings['compile_seconds']}


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description='How time and memory grow along an axis.')
  parser.add_argument('axis', choices=AXES)
  parser.add_argument('--quick', action='store_true', help='its two smallest sizes alone')
  main(**vars(parser.parse_args()))
