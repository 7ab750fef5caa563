"""The methods on one tiny instance of each family: the laws hold, or one line says why not.

The instances are the parity fixtures, so a new family is here as soon as it has one.  The laws of
every method are in test_library.py, of chains and sweeps in tests/test_laws.py.
"""

import re

import jax
import numpy as np
import pytest

from fewshot import methods, models
from fewshot.errors import FewshotError
from fewshot.models.weights import hf
from tests.laws import laws
from tests.parity import errors

METHODS = (
  'full()',
  'linear_probe()',
  'bitfit()',
  'layernorm()',
  'lora(rank=2)',
  'ia3()',
  'adapter(width=4)',
  'soft_prompt(length=3)',
  'linear()',
  'as_weights(lora(rank=2))',
)
CNNS = r'(conv4|efficientnet|mobilenet|resnet).*'
# (fixture, method) as patterns -> what the refusal says.
REFUSED = {
  # One block is called at every depth.
  ('albert.*', 'lora|ia3|adapter'): 'used more than once.*as_weights',
  # They have neither attention nor MLPs, which the defaults of these name.
  (CNNS, r'lora|ia3|adapter|as_weights'): 'matches none of the .* modules',
  # Images have no tokens, and of two towers one does.
  (rf'{CNNS}|vit.*|dinov2.*|clip.*|siglip.*', 'soft_prompt'): 'soft_prompt reads a table of tokens',
}


def one_of_each() -> list[str]:
  """The last fixture of each family file: with a head for language, where there is one."""
  kinds = {n: hf.read_json(errors.FIXTURES / n / 'config.json') for n in errors.names()}
  return sorted({models.FAMILIES[c['model_type']].__name__: n for n, c in kinds.items()}.values())


@pytest.fixture(scope='module', params=one_of_each())
def instance(request) -> laws.Instance:
  return laws.fixture(request.param)


@pytest.fixture(scope='module', autouse=True)
def quick_compilation():
  """These programs compile for seconds and run for milliseconds."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def refusal(name: str, spelling: str) -> str | None:
  found = [w for (n, m), w in REFUSED.items() if re.fullmatch(n, name) and re.match(m, spelling)]
  return found[0] if found else None


@pytest.mark.parametrize('spelling', METHODS)
def test_a_method_on_a_family(instance, perturb, spelling):
  method, why = methods.parse(spelling), refusal(instance.name, spelling)
  if why:
    with pytest.raises(FewshotError, match=why):
      laws.see(method, instance, perturb)
    return
  seen = laws.see(method, instance, perturb)
  out = seen.outputs
  assert out['started'].keys() == out['base'].keys()
  if not spelling.startswith('soft_prompt'):
    assert laws.worst(out['started']['features'], out['base']['features']) < 1e-5
  moved = [k for k, base in out['base'].items() if np.abs(out['applied'][k] - base).max() > 1e-3]
  assert moved, 'training theta changes nothing'
  for key, merged in out.get('merged', {}).items():
    assert laws.worst(merged, out['applied'][key]) < 1e-4
  assert laws.silent(seen.gradient, '') == [], 'no gradient'
