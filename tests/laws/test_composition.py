"""Every pair of the common methods composes: it starts, merges, stacks and trains as each alone.

By default pairs are taken in one order; `make test-all` takes both.
"""

import itertools

import jax
import numpy as np
import pytest

from fewshot import methods
from tests.laws import laws
from tests.laws.case import CLASSES
from tests.laws.laws import Instance, worst

METHODS = (
  'lora(rank=2)',
  'ia3()',
  'adapter(width=4)',
  'prefix(length=2)',
  'soft_prompt(length=2)',
  'bitfit()',
  'ssf()',
  'loreft(rank=2)',
)
MERGE = {'lora(rank=2)', 'ia3()', 'bitfit()', 'ssf()'}
MOVED_AT_START = {'prefix(length=2)', 'soft_prompt(length=2)'}  # Every token reads them.


def pairs() -> list:
  first = list(itertools.combinations(METHODS, 2))
  rest = [(b, a) for a, b in first]
  later = [pytest.param(*pair, marks=pytest.mark.product) for pair in rest]
  return [pytest.param(*pair) for pair in first] + later


@pytest.fixture(scope='module', autouse=True)
def quick_compilation():
  """These programs compile for seconds and run for milliseconds."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.mark.parametrize('first, second', pairs())
def test_a_pair_obeys_the_laws(first, second, tiny, perturb):
  method = methods.chain(methods.parse(first), methods.parse(second))
  assert methods.spell(method) == f'chain({first}, {second})'
  assert method.mergeable == ({first, second} <= MERGE)
  seen = laws.see(method, Instance('bert', tiny.model, tiny.batch, CLASSES), perturb)
  out = seen.outputs
  if not {first, second} & MOVED_AT_START:
    assert worst(out['started']['features'], out['base']['features']) < 2e-5
  for k in out.get('merged', {}):
    assert worst(out['merged'][k], out['applied'][k]) < 1e-4
  for k, stacked in out['stacked'].items():
    assert worst(stacked, np.stack([out['applied'][k], out['other'][k]])) < 1e-4
  assert laws.silent(seen.gradient, r'(.*/)?key/beta') == []  # Softmax is blind to it.
  for before, after in zip(seen.theta, seen.stepped, strict=True):  # Both parts take a step.
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after)
    assert any(jax.tree.leaves(moved))
  counts = [methods.count(t) for t in seen.start]
  assert counts == [_count(first, tiny), _count(second, tiny)]


def _count(spelling: str, tiny) -> int:
  theta, _ = methods.shapes(methods.parse(spelling), tiny.forward, tiny.params, tiny.calib)
  return methods.count(theta)
