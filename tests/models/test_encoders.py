"""What all encoders made like BERT promise: names, padding, dtypes, slots, dropout, errors."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fewshot import methods, models
from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.models import albert, bert, distilbert, mpnet, roberta

SHAPE = bert.Config(vocab=40, dim=16, depth=2, heads=2, width=24, positions=20, types=0, lm=True)
FAMILIES = {
  'bert': (bert, dataclasses.replace(SHAPE, types=2)),
  'roberta': (roberta, dataclasses.replace(SHAPE, types=1)),
  'distilbert': (distilbert, SHAPE),
  'albert': (albert, dataclasses.replace(SHAPE, types=2, embedding=12)),
  'mpnet': (mpnet, SHAPE),
}
BLOCK = (
  *(f'attn/{s}' for s in ('query', 'key', 'value', 'core', 'out')),
  *('attn', 'mlp', 'mlp/up', 'mlp/down', 'ln1', 'ln2'),
)
OUTSIDE = {'embed', 'inputs', 'inputs/positions', 'inputs/ln', 'encoder', 'lm_head'}


class Encoder(NamedTuple):
  """A tiny model on which no leaf is trivially zero, and a ragged batch."""

  name: str
  family: models.base.Family
  config: bert.Config
  params: Any
  batch: dict[str, Any]

  def run(self, params: Any = None, batch: Any = None, key: Any = None) -> dict[str, Any]:
    params = self.params if params is None else params
    return jitted(self.name, self.config)(params, batch or self.batch, key)


@functools.cache
def jitted(name: str, config: bert.Config) -> Any:
  return jax.jit(FAMILIES[name][0].forward(config))


@pytest.fixture(scope='module', autouse=True)
def quick_compilation():
  """These programs compile for seconds and run for milliseconds."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='module', params=FAMILIES)
def encoder(request) -> Encoder:
  family, config = FAMILIES[request.param]
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: family.init(config, jax.random.key(0)))
  draw = lambda x: (0.3 * rng.standard_normal(x.shape)).astype(x.dtype)  # noqa: E731
  mask = np.arange(9) < np.array([9, 1, 5])[:, None]
  tokens = np.where(mask, rng.integers(1, config.vocab, mask.shape), 0).astype(np.int32)
  return Encoder(
    request.param, family, config, jax.tree.map(draw, shapes), {'tokens': tokens, 'mask': mask}
  )


def test_the_names_of_the_contract_are_called_once(encoder):
  calls: dict[str, int] = {}

  def record(next_fn, args, kwargs, context):
    if context.method_name == '__call__':
      path = '/'.join(context.module.path)
      calls[path] = calls.get(path, 0) + 1
    return next_fn(*args, **kwargs)

  with nn.intercept_methods(record):
    encoder.family.forward(encoder.config)(encoder.params, encoder.batch)
  shared = encoder.name == 'albert'
  blocks = range(1 if shared else encoder.config.depth)
  inside = {f'encoder/block_{i}/{site}' for i in blocks for site in BLOCK}
  assert calls.keys() >= OUTSIDE | inside | {'lm_head/dense', 'lm_head/ln'}
  assert {p.rsplit('/', 1)[0] for p in paths.flatten(encoder.params)} <= calls.keys()
  many = {p for p, n in calls.items() if n > 1}
  assert many == ({p for p in calls if p.startswith('encoder/block_0')} if shared else set())


def test_the_table_of_names_has_every_leaf(encoder):
  table = encoder.family.names(encoder.config)
  assert not [p for p in paths.flatten(encoder.params) if not {p, p.rsplit('/', 1)[0]} & {*table}]


def test_padding_changes_nothing(encoder):
  """Neither how much of it there is nor which tokens stand there."""
  want, rng = encoder.run(), np.random.default_rng(1)
  wide = {k: np.pad(v, ((0, 0), (0, 4))) for k, v in encoder.batch.items()}
  noise = rng.integers(0, encoder.config.vocab, wide['tokens'].shape).astype(np.int32)
  got = encoder.run(batch=wide | {'tokens': np.where(wide['mask'], wide['tokens'], noise)})
  real = encoder.batch['mask']
  assert np.abs(got['features'] - want['features']).max() <= 1e-5
  for name in ('hidden', 'token_logits'):
    assert np.abs(got[name][:, :9][real] - want[name][real]).max() <= 1e-5


def test_logits_at_slots_are_those_of_all_positions(encoder):
  slots = np.array([[8, 0], [0, 0], [3, 1]], np.int32)
  want = np.take_along_axis(np.asarray(encoder.run()['token_logits']), slots[..., None], 1)
  got = encoder.run(batch=encoder.batch | {'slots': slots})['token_logits']
  assert got.shape == (3, 2, encoder.config.vocab)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_head_reads_the_table_of_the_embedding(encoder):
  table = np.asarray(encoder.params['embed']['embedding'])
  doubled = encoder.params | {
    'embed': {'embedding': np.concatenate([table[:-1], 2 * table[-2:-1]])}
  }
  base = encoder.params['lm_head']['bias']
  logits = np.asarray(encoder.run(doubled)['token_logits']) - base
  assert encoder.config.vocab - 1 not in encoder.batch['tokens']  # Only as an output.
  np.testing.assert_allclose(logits[..., -1], 2 * logits[..., -2], atol=1e-4)


def test_without_a_head_there_are_no_logits(encoder):
  config = dataclasses.replace(encoder.config, lm=False)
  assert 'lm_head' not in encoder.family.init(config, jax.random.key(0))
  out = jax.eval_shape(encoder.family.forward(config), encoder.params, encoder.batch)
  assert out.keys() == {'features', 'hidden', 'mask'}


def test_pooling_by_the_first_token(encoder):
  first = encoder._replace(config=dataclasses.replace(encoder.config, pooling='cls')).run()
  np.testing.assert_array_equal(first['features'], first['hidden'][:, 0])
  assert np.abs(encoder.run()['features'] - first['features'])[0].max() > 1e-2


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32', 'float64'])
def test_other_dtypes_stay_what_they_are(encoder, dtype):
  """No silent promotion, forwards and backwards."""
  # Flax's own LayerNorm promotes to float32 at least, which strictness refuses for other dtypes.
  promotion = 'strict' if dtype == 'float32' else 'standard'
  with jax.enable_x64(dtype == 'float64'), jax.numpy_dtype_promotion(promotion):
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), encoder.params)
    forward = encoder.family.forward(encoder.config)

    def loss(params):
      out = forward(params, encoder.batch)
      return out['features'].sum() + out['token_logits'].sum(), out

    gradient, out = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert {str(out[k].dtype) for k in ('features', 'hidden', 'token_logits')} == {dtype}
    assert {str(g.dtype) for g in jax.tree.leaves(gradient)} == {dtype}
    got = np.asarray(out['features'], np.float64)
  assert np.abs(got - encoder.run()['features']).max() <= (0.1 if dtype == 'bfloat16' else 1e-5)


def test_models_are_mapped_over_params(encoder):
  both = jax.tree.map(lambda x: np.stack([x, 2 * x]), encoder.params)
  forward = encoder.family.forward(encoder.config)
  got = jax.jit(jax.vmap(forward, (0, None)))(both, encoder.batch)['features']
  np.testing.assert_allclose(got[0], encoder.run()['features'], atol=1e-5)
  assert np.abs(got[0] - got[1]).max() > 1e-2


def test_dropout_follows_the_key(encoder):
  noisy = encoder._replace(config=dataclasses.replace(encoder.config, dropout=0.3))
  run = lambda key: np.asarray(noisy.run(key=key)['features'])  # noqa: E731
  a, b = run(jax.random.key(0)), run(jax.random.key(1))
  np.testing.assert_array_equal(a, run(jax.random.key(0)))
  assert np.abs(a - b).max() > 1e-2
  assert np.abs(run(None) - encoder.run()['features']).max() <= 1e-5


def test_a_soft_prompt_stands_before_the_tokens(encoder):
  method, forward = methods.soft_prompt(length=3), encoder.family.forward(encoder.config)
  calib = methods.Calib(encoder.batch, 2)
  theta, state = method.init(jax.random.key(0), forward, encoder.params, calib)
  adapted = methods.adapt(method, forward, theta, state)
  out = jax.jit(adapted)(encoder.params, encoder.batch)
  assert out['hidden'].shape == encoder.run()['hidden'].shape
  assert np.abs(out['features'] - encoder.run()['features']).max() > 1e-2
  with pytest.raises(FewshotError, match=r'21 tokens .prompts counted. is longer than the 20'):
    ones = np.ones((1, 18), np.int32)
    adapted(encoder.params, {'tokens': ones, 'mask': ones > 0})


def test_activation_methods_refuse_the_tied_table(encoder):
  method, forward = methods.adapter('embed', width=2), encoder.family.forward(encoder.config)
  theta, state = method.init(
    jax.random.key(0), forward, encoder.params, methods.Calib(encoder.batch, 2)
  )
  with pytest.raises(FewshotError, match=r"'embed' is used more than once.*tied.*as_weights\("):
    methods.adapt(method, forward, theta, state)(encoder.params, encoder.batch)


def test_a_batch_without_tokens(encoder):
  with pytest.raises(FewshotError, match='reads tokens and mask, and the batch has x'):
    encoder.family.forward(encoder.config)(encoder.params, {'x': np.ones((1, 3))})
