"""How far we are from HF PEFT on the adapters of fixtures/; prints the table of docs/adapters.md.

Import: PEFT's trained adapter read here, our output against PEFT's.  Export: an adapter made here
and written, PEFT's output against ours; that was measured when the fixtures were written
(`python -m tests.parity.regenerate adapters`).  `python -m tests.exchange.errors` prints the table.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from fewshot import exchange, methods, models
from fewshot.adapted import Adapted

FIXTURES = Path(__file__).parent / 'fixtures'
BASES = Path(__file__).parents[1] / 'parity' / 'fixtures'
LIMIT = 1e-4
MAIN = ('bert', 'gpt2', 'llama', 'vit')


def names() -> list[str]:
  """The fixtures, case-model."""
  return sorted(p.parent.name for p in FIXTURES.glob('*/expected.safetensors'))


def header(name: str) -> dict[str, str]:
  """What the fixture says of itself: base, exported, made_by."""
  with safe_open(FIXTURES / name / 'expected.safetensors', 'numpy') as file:
    return dict(file.metadata())


def expected(name: str) -> dict[str, np.ndarray]:
  """The batch in/* and the output out/* of PEFT."""
  with safe_open(FIXTURES / name / 'expected.safetensors', 'numpy') as file:
    return {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118


@functools.cache
def base(name: str) -> models.Model:
  """The tiny model that a fixture's adapter belongs to."""
  return models.load(str(BASES / name))


def adapted(name: str) -> Adapted:
  """The fixture's adapter, read."""
  return exchange.read(FIXTURES / name, base(header(name)['base']))


def error(name: str, read: Adapted) -> float:
  """The largest absolute difference from PEFT's output, at tokens that are not padding."""
  arrays = expected(name)
  narrow = lambda x: x.astype(np.int32) if x.dtype == np.int64 else x  # noqa: E731
  batch: dict[str, Any] = {
    k.removeprefix('in/'): narrow(v) for k, v in arrays.items() if k.startswith('in/')
  }
  (output,) = (k for k in arrays if k.startswith('out/'))
  forward = methods.adapt(read.method, read.model.forward, read.theta, read.state)
  got = np.asarray(forward(read.model.params, batch)[output.removeprefix('out/')], np.float64)
  assert got.shape == arrays[output].shape, (got.shape, arrays[output].shape)
  difference = np.abs(got - arrays[output])
  mask = batch.get('mask')
  real = mask is not None and mask.shape == difference.shape[:2]
  return float((difference[mask] if real else difference).max())


def main() -> None:
  """Prints the table as Markdown, a cell `import / export`."""
  rows: dict[str, dict[str, str]] = {}
  for name in names():
    read, about = adapted(name), header(name)
    model = about['base'].removesuffix('-tiny')
    case = name.removesuffix(f'-{model}')
    parts = read.method.parts or (read.method,)
    ours = ', '.join(dict.fromkeys(part.made.fn.__name__ for part in parts if part.made))
    cell = f'{error(name, read):.1e} / {float(about["exported"]):.1e}'
    rows.setdefault(f'{case} | {ours}', {})[model] = cell
  others = sorted({m for cells in rows.values() for m in cells} - set(MAIN))
  columns = [*MAIN, *others]
  print('| adapter | read as | ' + ' | '.join(columns) + ' |')
  print('|---' * (len(columns) + 2) + '|')
  for case, cells in rows.items():
    print(f'| {case} | ' + ' | '.join(cells.get(m, '') for m in columns) + ' |')


if __name__ == '__main__':
  main()
