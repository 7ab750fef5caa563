"""The methods on one tiny instance of each family: the laws hold, or one line says why not.

The instances are the parity fixtures, so a new family is here as soon as it has one.  The laws of
a method by itself (counts, chains, dtypes, sweeps) are in test_laws.py.
"""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import methods, models
from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.models.weights import hf
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
# Leaves whose gradient is zero by construction: softmax is blind to a shift of all scores, and the
# scale and bias of two towers' similarity to a head that stands in its place.
BLIND = r'(.*/)?key/bias(/.*)?|scale|bias'
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


class Instance(NamedTuple):
  """A tiny model with a head, and a batch."""

  name: str
  model: models.Model
  batch: dict[str, Any]
  classes: int


@pytest.fixture(scope='module', params=one_of_each())
def instance(request) -> Instance:
  model = models.load(str(errors.FIXTURES / request.param))
  batch = errors.read(request.param).batch
  shapes = jax.eval_shape(model.forward, model.params, batch)
  rng = np.random.default_rng(0)
  dim, params = shapes['features'].shape[-1], dict(model.params)
  if 'head' not in params:
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    params['head'] = {'kernel': draw(dim, 3), 'bias': draw(3)}
  classes = params['head']['kernel'].shape[-1]
  batch['labels'] = np.arange(len(shapes['features'])) % classes
  return Instance(request.param, model._replace(params=params), batch, classes)


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
      laws(method, instance, perturb)
    return
  theta, got = laws(method, instance, perturb)
  base, start, applied = got['base'], got['start'], got['applied']
  assert start.keys() == base.keys()
  if not spelling.startswith('soft_prompt'):
    assert_close(start['features'], base['features'], 1e-5)  # It starts as the pretrained function.
  moved = [k for k in base if far(applied[k], base[k])]
  assert moved, 'training theta changes nothing'
  for key in got['merged']:  # Merge equals apply.
    assert_close(got['merged'][key], applied[key], 1e-4)
  gradients = {p: np.abs(g).max() for p, g in paths.flatten(got['gradient']).items()}
  assert gradients.keys() == paths.flatten(theta).keys()
  silent = {p: g for p, g in gradients.items() if g < 1e-6 and not re.fullmatch(BLIND, p)}
  assert silent == {}, 'no gradient'


def laws(method: Any, instance: Instance, perturb: Any) -> tuple[Any, Any]:
  """(theta after some training, what one compiled program computes of all laws)."""
  _, model, batch, classes = instance
  calib = methods.Calib(batch, classes)
  start, state = method.init(jax.random.key(1), model.forward, model.params, calib)
  theta = perturb(start, scale=0.1)
  shapes = jax.eval_shape(model.forward, model.params, batch)
  rng = np.random.default_rng(3)
  weights = {
    k: rng.standard_normal(x.shape).astype(np.float32)
    for k, x in shapes.items()
    if hasattr(x, 'dtype') and jnp.issubdtype(x.dtype, jnp.floating)
  }

  def adapted(theta: Any, params: Any) -> Any:
    return methods.adapt(method, model.forward, theta, state)(params, batch)

  def loss(theta: Any, params: Any) -> Any:
    outputs = adapted(theta, params)
    return sum((outputs[k] * w).sum() for k, w in weights.items())

  @jax.jit
  def everything(params: Any, start: Any, theta: Any) -> Any:
    pick = lambda outputs: {k: outputs[k] for k in weights}  # noqa: E731
    merged = {}
    if method.mergeable:
      merged = pick(model.forward(methods.merge(method, theta, state, params), batch))
    return {
      'base': pick(model.forward(params, batch)),
      'start': pick(adapted(start, params)),
      'applied': pick(adapted(theta, params)),
      'merged': merged,
      'gradient': jax.grad(loss)(theta, params),
    }

  return theta, everything(model.params, start, theta)


def far(a: Any, b: Any) -> bool:
  return bool(np.abs(np.asarray(a) - np.asarray(b)).max() > 1e-3)


def assert_close(got: Any, want: Any, tolerance: float) -> None:
  """The largest difference, relative to the largest entry."""
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  worst = np.abs(got - want).max() / max(1.0, np.abs(want).max())
  assert worst <= tolerance, worst
