"""Quantised frozen weights: small, close to the float model, frozen, and open to methods."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import fits, methods, models
from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.models import bert, vit
from fewshot.quantized import KERNELS, dequantize, nbytes, quantize
from fewshot.remat import compiler_options, remat
from fewshot.sweep import Options, sweep
from fewshot.tasks.encode import tokenize
from tests.conftest import CLASSES

qwix = pytest.importorskip('qwix', reason='the extra fewshot[int8] is not installed')

METHODS = ['lora(rank=2)', 'ia3()', 'adapter(width=4)', 'bitfit()', 'linear()']
METHODS += ['soft_prompt(length=2)']


@pytest.fixture(scope='module')
def small(tiny) -> models.Model:
  return quantize(tiny.model)


@pytest.fixture
def quick_compilation():
  """These programs compile for seconds and run for milliseconds."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def kernels(tiny) -> dict:
  """The float kernels that are quantised."""
  return paths.select(paths.flatten(tiny.params), KERNELS)


def off(got, want) -> float:
  """The relative error."""
  return float(np.linalg.norm(np.asarray(got) - want) / np.linalg.norm(want))


def test_outputs_are_within_two_per_cent(tiny, small):
  got, want = (m.forward(m.params, tiny.batch) for m in (small, tiny.model))
  assert 1e-4 < off(got['features'], want['features']) < 0.02
  np.testing.assert_array_equal(
    got['features'], tiny.forward(dequantize(small.params), tiny.batch)['features']
  )


def test_kernels_take_less_than_a_third(tiny, small):
  floats, flat = kernels(tiny), paths.flatten(small.params)
  assert len(floats) == 12
  packed = {p: x for p, x in flat.items() if p.rpartition('/')[0] in floats}
  assert nbytes(packed) <= 0.30 * nbytes(floats)
  assert {x.dtype for p, x in packed.items() if p.endswith('/qvalue')} == {jnp.dtype('int8')}
  assert nbytes(small.params) == sum(np.asarray(x).nbytes for x in jax.tree.leaves(small.params))


def test_each_weight_is_half_a_step_off_at_most(tiny, small):
  """A step is max |W| / 127.5 of the 32 inputs that share a scale."""
  back = paths.flatten(dequantize(small.params))
  for path, w in kernels(tiny).items():
    tiles = w.reshape(w.shape[0] // 32, 32, w.shape[1])
    step = np.abs(tiles).max(1, keepdims=True) / 127.5
    error = np.abs(np.asarray(back[path]).reshape(tiles.shape) - tiles)
    assert (error <= 0.5001 * step).all() and error.max() > 0.4 * step.max()
  untouched = {p: x for p, x in paths.flatten(tiny.params).items() if p not in kernels(tiny)}
  for path, x in untouched.items():
    np.testing.assert_array_equal(back[path], x)


@pytest.mark.parametrize('d, scales', [(96, 3), (100, 2), (37, 1), (8, 1)])
def test_a_scale_serves_the_least_divisor_from_32(d, scales):
  w = np.random.default_rng(0).normal(size=(d, 3)).astype(np.float32)
  forward = models.from_function(lambda p, x: x @ p['kernel'])
  model = quantize(models.Model('net', forward, {'kernel': w}), 'kernel')
  assert model.params['kernel'].scale.shape == (scales, 3)
  x = jnp.eye(d)
  assert off(model.forward(model.params, {'x': x})['features'], w) < 0.01  # No Linen module.


def test_what_it_is_called_and_what_refuses_it(tiny, small):
  assert small.name == 'tiny'
  assert small.hashes == {
    'weights': models.hash_params(tiny.params),
    'quantized': r'int8 (.*/)?(encoder|decoder)/.*/kernel',
  }
  with pytest.raises(FewshotError, match='tiny is quantised already: int8'):
    quantize(small)
  with pytest.raises(FewshotError, match=r"not quantised to 'int9'; did you mean 'int8'"):
    quantize(tiny.model, dtype='int9')
  with pytest.raises(FewshotError, match=r'not encoder/block_\*/attn/key/bias'):
    quantize(tiny.model, 'encoder/.*key/.*')
  with pytest.raises(FewshotError, match="'conv/kernel' matches none of"):
    quantize(tiny.model, 'conv/kernel')


def test_without_the_library(tiny, monkeypatch):
  monkeypatch.setitem(sys.modules, 'qwix', None)
  with pytest.raises(FewshotError, match=r'need qwix.*pip install "fewshot\[int8\]"'):
    quantize(tiny.model)


@pytest.mark.usefixtures('quick_compilation')
@pytest.mark.parametrize('spelling', METHODS)
def test_methods_train_in_a_sweep(tiny, small, spelling):
  """Two splits and two seeds vmapped; near the float model's runs, and theta has moved."""
  method = methods.parse(spelling if spelling == 'linear()' else f'chain({spelling}, linear())')
  fit = fits.sgd(steps=3, lr=0.02, batch=4)
  before = jax.tree.map(np.array, small.params)
  both = [
    list(sweep(m, tiny.encoded, method, fit, classes=CLASSES, seeds=(0, 1)))
    for m in (small, tiny.model)
  ]
  jax.tree.map(np.testing.assert_array_equal, small.params, before)
  for got, want in zip(*both, strict=True):
    assert off(got.curve, want.curve) < 0.02
    assert off(got.logits, want.logits) < 0.1
    assert jax.tree.structure(got.theta) == jax.tree.structure(want.theta)
  assert np.abs(both[0][0].logits - both[0][2].logits).max() > 1e-3  # Or closeness says little.


def test_the_gradient_by_theta_is_that_at_the_dequantised_weights(tiny, small, perturb):
  method, key = methods.parse('chain(lora(rank=2), adapter(width=4), linear())'), jax.random.key(0)
  theta, state = method.init(key, small.forward, small.params, tiny.calib)
  theta = perturb(theta)

  def grads(forward, params):
    def loss(theta, params):
      outputs = methods.adapt(method, forward, theta, state)(params, tiny.batch)
      return tiny.calib.loss(outputs, tiny.batch).mean()

    return jax.jit(jax.grad(loss))(theta, params)

  want = grads(tiny.forward, dequantize(small.params))
  for forward in (small.forward, remat(small.forward)):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
      grads(forward, small.params),
      want,
    )


def test_no_float_copy_of_all_kernels():
  """Of a step in a loop: not ahead of the loop, nor kept for the backward pass."""
  config = bert.Config(50, dim=64, depth=8, heads=4, width=256, positions=64, types=2)
  model = models.Model('deep', bert.forward(config), bert.init(config, jax.random.key(0)))
  batch = {'tokens': jnp.arange(1, 9)[None], 'mask': jnp.ones((1, 8), bool)}
  floats = nbytes(paths.select(paths.flatten(model.params), KERNELS))
  method, small = methods.lora(rank=2), quantize(model)

  def temporary(forward, params) -> int:
    theta, state = method.init(jax.random.key(0), forward, params, methods.Calib(batch))

    def loss(theta, params):
      return methods.adapt(method, forward, theta, state)(params, batch)['features'].sum()

    def steps(theta, params):
      down = lambda t, g: t - 1e-3 * g  # noqa: E731
      step = lambda i, t: jax.tree.map(down, t, jax.grad(loss)(t, params))  # noqa: E731
      return jax.lax.fori_loop(0, 3, step, theta)

    compiled = jax.jit(steps).lower(theta, params).compile(compiler_options())
    return compiled.memory_analysis().temp_size_in_bytes

  base = temporary(model.forward, model.params)
  copies = lambda p, b, key=None: model.forward(dequantize(p), b, key)  # noqa: E731
  assert temporary(copies, small.params) - base > 0.9 * floats
  assert temporary(small.forward, small.params) - base < 0.3 * floats


def test_merges_go_into_dequantised_params(tiny, small, perturb):
  method = methods.lora(rank=2)
  theta, state = method.init(jax.random.key(0), small.forward, small.params, tiny.calib)
  theta = perturb(theta)
  with pytest.raises(FewshotError, match=r'is quantised, so nothing can be merged .* dequantise'):
    methods.merge(method, theta, state, small.params)
  merged = methods.merge(method, theta, state, dequantize(small.params))
  want = methods.adapt(method, small.forward, theta, state)(small.params, tiny.batch)['features']
  for forward in (tiny.forward, small.forward):
    np.testing.assert_allclose(forward(merged, tiny.batch)['features'], want, atol=1e-4)


@pytest.mark.parametrize(
  'spelling', ['full()', "tune('.*/query/kernel')", 'lokr()', 'sparse()', 'intrinsic_dimension()']
)
def test_weights_of_a_quantised_kernel_do_not_train(tiny, small, spelling):
  with pytest.raises(FewshotError, match=r'is quantised, .* choose other leaves .* or dequantise'):
    methods.parse(spelling).init(jax.random.key(0), small.forward, small.params, tiny.calib)


def test_other_leaves_train_and_scales_do_not(tiny, small):
  theta, _ = methods.tune('.*scale').init(
    jax.random.key(0), small.forward, small.params, tiny.calib
  )
  assert set(theta) == {p for p in paths.flatten(tiny.params) if p.endswith('/scale')}


def test_starts_from_a_gradient_need_floats(tiny, small):
  with pytest.raises(FewshotError, match='linear map'):
    methods.lora(rank=2, init='lora_ga').init(
      jax.random.key(0), small.forward, small.params, tiny.calib
    )


def test_the_engine_rematerialises(tiny, small):
  fit = fits.sgd(steps=2, lr=0.02, batch=4)
  method = methods.parse('chain(lora(rank=2), linear())')
  plain, thrifty = (
    list(sweep(small, tiny.encoded, method, fit, classes=CLASSES, options=Options(remat=r)))
    for r in ('off', 'nothing')
  )
  for a, b in zip(thrifty, plain, strict=True):
    np.testing.assert_allclose(a.logits, b.logits, atol=1e-4)


def test_reports_count_the_scales_too(tiny, small):
  scales = sum(w.size // 32 for w in kernels(tiny).values())
  assert methods.count(small.params) == methods.count(tiny.params) + scales
  *_, frozen = methods.table(methods.lora(rank=2), small.forward, small.params, tiny.calib)
  assert methods.count(frozen.leaves) == methods.count(small.params)


def test_half_precision_stays(tiny):
  half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tiny.params)
  small = quantize(tiny.model._replace(params=half))
  features = small.forward(small.params, tiny.batch)['features']
  assert features.dtype == jnp.bfloat16
  assert off(features.astype(np.float32), tiny.forward(tiny.params, tiny.batch)['features']) < 0.04


def test_kernels_that_a_module_reshapes():
  """A ViT cuts patches by its kernel reshaped."""
  config = vit.Config(dim=32, depth=1, heads=4, width=64, image_size=16, patch=8)
  params, batch = vit.init(config, jax.random.key(0)), vit.example(config)
  model = models.Model('vit', vit.forward(config), params)
  small = quantize(model, '.*kernel')
  got, want = (m.forward(m.params, batch)['features'] for m in (small, model))
  assert off(got, want) < 0.03


@pytest.mark.assets
@pytest.mark.slow
def test_minilm_within_two_per_cent():
  try:
    model = models.load('minilm-l6')
  except FewshotError as e:
    pytest.skip(f'the assets cannot be had: {e}')
  small = quantize(model)
  texts = ['What is the capital of France?', 'a gripping movie', 'I would never watch it again']
  batch, _ = tokenize(model.tokenizer, texts, 16)
  got, want = (m.forward(m.params, batch)['features'] for m in (small, model))
  assert off(got, want) < 0.02
