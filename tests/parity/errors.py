"""How far our backbones are from the fixtures; `python -m tests.parity.errors` prints the table."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from safetensors import safe_open

from fewshot import models
from fewshot.generation import generate

FIXTURES = Path(__file__).parent / 'fixtures'
LIMITS = {'hidden states': 1e-4, 'outputs': 1e-4, 'loss': 1e-4, 'gradient': 1e-3, 'generated': 0}


class Fixture(NamedTuple):
  """What a reference implementation computed, see peers/common.py."""

  name: str
  arrays: dict[str, np.ndarray]
  header: dict[str, str]

  def under(self, prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose name starts with `prefix/`."""
    return {
      k.removeprefix(f'{prefix}/'): v for k, v in self.arrays.items() if k.startswith(f'{prefix}/')
    }

  @property
  def batch(self) -> dict[str, np.ndarray]:
    """in/*, token ids as int32."""
    narrow = lambda x: x.astype(np.int32) if x.dtype == np.int64 else x  # noqa: E731
    return {k: narrow(v) for k, v in self.under('in').items()}


def read(name: str) -> Fixture:
  """The fixture of that name."""
  with safe_open(FIXTURES / name / 'expected.safetensors', 'numpy') as file:
    arrays = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    return Fixture(name, arrays, file.metadata())


def names() -> list[str]:
  """The fixtures that come with their own tiny weights."""
  return sorted(p.parent.name for p in FIXTURES.glob('*/config.json'))


def worst(got: Any, want: np.ndarray, mask: np.ndarray | None) -> float:
  """The largest absolute difference; padded positions are nobody's output."""
  got = np.asarray(got, np.float64)
  assert got.shape == want.shape, (got.shape, want.shape)
  difference = np.abs(got - want)
  if mask is not None and want.shape[: mask.ndim] == mask.shape:
    difference = difference[mask]
  return float(difference.max())


def hidden_states(model: models.Model, fixture: Fixture) -> float:
  """The worst site of site/*; every one must be called."""
  seen: dict[str, Any] = {}

  def record(next_fn: Any, args: Any, kwargs: Any, context: Any) -> Any:
    out = next_fn(*args, **kwargs)
    seen['/'.join(context.module.path)] = out[0] if isinstance(out, tuple) else out
    return out

  with nn.intercept_methods(record):
    model.forward(model.params, fixture.batch)
  masks = [v for k, v in fixture.batch.items() if k.endswith('mask')]
  fits = lambda x: next((m for m in masks if x.shape[:2] == m.shape), None)  # noqa: E731
  return max(worst(seen[path], x, fits(x)) for path, x in fixture.under('site').items())


def outputs(model: models.Model, fixture: Fixture) -> float:
  """The worst output of out/*."""
  got = jax.jit(model.forward)(model.params, fixture.batch)
  masks = [v for k, v in fixture.batch.items() if k.endswith('mask')]
  fits = lambda x: next((m for m in masks if x.shape[:2] == m.shape), None)  # noqa: E731
  return max(worst(got[name], x, fits(x)) for name, x in fixture.under('out').items())


def loss_and_gradient(model: models.Model, fixture: Fixture) -> tuple[float, float]:
  """Of sum(output * loss_weights), and of its gradient by one leaf."""
  weights = fixture.arrays['loss_weights']

  def loss(params: Any) -> Any:
    return (model.forward(params, fixture.batch)[fixture.header['loss_of']] * weights).sum()

  value, gradient = jax.jit(jax.value_and_grad(loss))(jax.tree.map(jnp.asarray, model.params))
  for part in fixture.header['gradient_of'].split('/'):
    gradient = gradient[part]
  assert np.abs(fixture.arrays['gradient']).max() > 1e-2  # Or a small error would say nothing.
  return abs(float(value) - float(fixture.arrays['loss'])), worst(
    gradient, fixture.arrays['gradient'], None
  )


def generated(model: models.Model, fixture: Fixture) -> int:
  """How many tokens of the greedy continuations differ."""
  fed = 'decoder_tokens' if 'decoder_tokens' in fixture.batch else 'tokens'
  want = fixture.arrays['generated'][:, fixture.batch[fed].shape[1] :]
  run = jax.jit(lambda p, b: generate(model.forward, p, b, want.shape[1])['tokens'])
  return int((np.asarray(run(model.params, fixture.batch)) != want).sum())


def all_of(name: str) -> dict[str, float]:
  """Quantity -> largest absolute error, for what the fixture has."""
  fixture, model = read(name), models.load(str(FIXTURES / name))
  found = {}
  if fixture.under('site'):
    found['hidden states'] = hidden_states(model, fixture)
  if fixture.under('out'):
    found['outputs'] = outputs(model, fixture)
  if 'generated' in fixture.arrays:
    found['generated'] = generated(model, fixture)
  if 'loss' in fixture.arrays:
    found['loss'], found['gradient'] = loss_and_gradient(model, fixture)
  return found


def main() -> None:
  """Prints the table as Markdown."""
  print('| fixture | ' + ' | '.join(LIMITS) + ' | reference |')
  print('|---' * (len(LIMITS) + 2) + '|')
  for name in names():
    found = all_of(name)
    cells = [f'{found[k]:.1e}' if k in found else '' for k in LIMITS]
    print(f'| {name} | ' + ' | '.join(cells) + f' | {read(name).header["made_by"]} |')


if __name__ == '__main__':
  main()
