"""Memory of eight seeds against one, as compiled, BERT-base's shape, BitFit and LoRA.

Figures of the fitting program of a sweep, from the compiler's own analysis; nothing is run or
allocated.  `argument_bytes` are the frozen weights, the runs' theta with its optimizer state, and
their examples.  Temporaries grow with the batch, for every seed has one of its own; fitted over
batches of 1, 2 and 4 as a + b x batch, `temp_intercept` is a, what is needed whatever the batch.
It may be little more than rounding (then no weight is copied for a seed), and a ratio of two such
says little: `fixed_bytes` is the arguments and the intercept together.  The peer is ourselves with
one seed.

    fewshot bench memory
"""

import functools
import json
import sys
from pathlib import Path
from typing import Any

from fewshot.bench import FOLDER, Case

BATCHES, EXAMPLES, LENGTH = (1, 2, 4), 32, 64
METHODS = {'bitfit': 'chain(bitfit(), linear())', 'lora': 'chain(lora(rank=8), linear())'}
# vocab, dim, depth, heads, width, positions, types
SHAPES = {
  'base': (30522, 768, 12, 12, 3072, 512, 2),
  'tiny': (50, 32, 1, 4, 64, LENGTH, 2),
}


def cases() -> list[Case]:
  """The figures of both methods."""
  script = str(FOLDER / Path(__file__).name)
  figures = {
    'arguments': ('argument_bytes', 1.1),
    'temporaries': ('temp_intercept', 1.2),
    'both': ('fixed_bytes', 1.2),
  }
  return [
    Case(
      f'8 seeds {method} {what}',
      [script, method, '8'],
      [script, method, '1'],
      key,
      'bytes',
      bars=(bar, bar),
      once=True,
    )
    for method in METHODS
    for what, (key, bar) in figures.items()
  ]


def main(method: str, seeds: str, shape: str = 'base') -> None:
  """Prints one JSON line."""
  import numpy as np

  found = [_analysis(METHODS[method], int(seeds), SHAPES[shape], batch) for batch in BATCHES]
  temps = [m.temp_size_in_bytes for m in found]
  slope, intercept = np.polyfit(BATCHES, temps, 1)
  arguments = found[-1].argument_size_in_bytes
  print(
    json.dumps(
      {
        'argument_bytes': arguments,
        'fixed_bytes': arguments + intercept,
        'temp_intercept': intercept,
        'temp_per_example': slope,
        'temp_bytes': temps,
      }
    )
  )


def _analysis(spelling: str, seeds: int, shape: tuple[int, ...], batch: int) -> Any:
  """Of the program that a sweep over seeds fits with, lowered on shapes alone."""
  import jax
  import jax.numpy as jnp

  from fewshot import fits, methods, train
  from fewshot.models import bert
  from fewshot.objectives import classification

  config = bert.Config(*shape)
  fit = fits.sgd(steps=100, batch=batch)
  setup = train.Setup(
    bert.forward(config), methods.parse(spelling), fit, classification(), classes=2
  )
  of = jax.ShapeDtypeStruct
  texts = (seeds, EXAMPLES, LENGTH)
  examples = {'tokens': of(texts, jnp.int32), 'mask': of(texts, bool)}
  examples['labels'] = of(texts[:2], jnp.int32)
  params = jax.eval_shape(functools.partial(bert.init, config), jax.random.key(0))
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), seeds))
  runs = train.Inputs(keys, {}, fits.Data(examples))
  carry = jax.eval_shape(jax.vmap(functools.partial(train.begin, setup), (None, 0)), params, runs)
  advance = jax.vmap(functools.partial(train.advance, setup, False, None), (None, 0, 0, None, None))
  t = of((), jnp.int32)
  lowered = jax.jit(advance, donate_argnums=2).lower(params, runs, carry, t, t)
  return lowered.compile().memory_analysis()


if __name__ == '__main__':
  main(*sys.argv[1:])
