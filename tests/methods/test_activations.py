"""Activation methods: which sites they reach, and the models they refuse instead of missing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from fewshot import fits, methods, models, objectives
from fewshot.errors import FewshotError
from fewshot.methods import in_weights, paths

RNG = np.random.default_rng(0)
X = {'x': RNG.standard_normal((5, 8)).astype(np.float32), 'labels': np.arange(5) % 3}
TOKENS = {'x': RNG.integers(0, 9, (4, 6))}
KEY = jax.random.key(0)


class Shared(nn.Module):
  """One dense layer called twice, as ALBERT's blocks are."""

  @nn.compact
  def __call__(self, x):
    layer = nn.Dense(8, name='layer')
    return nn.Dense(4, name='out')(jnp.tanh(layer(jnp.tanh(layer(x)))))


class Tied(nn.Module):
  """An embedding that is read twice: as a table and as the output layer."""

  @nn.compact
  def __call__(self, tokens):
    embed = nn.Embed(9, 8, name='embed')
    return embed.attend(nn.Dense(8, name='layer')(embed(tokens)))


class Odd(nn.Module):
  """Sites that are no linear map over the last axis."""

  @nn.compact
  def __call__(self, x):
    x = nn.LayerNorm(name='norm')(x)
    x = nn.DenseGeneral((2, 4), name='split')(x)
    return nn.DenseGeneral(8, axis=(-2, -1), name='join')(x)


def setup(module, batch, output='features'):
  forward = models.from_linen(module, output=output)
  params = jax.tree.map(np.asarray, module.init(KEY, batch['x'])['params'])
  return forward, params


def start(method, forward, params, batch, classes=3):
  return method.init(KEY, forward, params, methods.Calib(batch, classes))


@pytest.mark.parametrize('spelling', ["lora('layer')", "ia3('layer', 'out')", "adapter('layer')"])
def test_shared_weights_are_refused_by_activation_methods(spelling):
  forward, params = setup(Shared(), X)
  method = methods.parse(spelling)
  theta, state = start(method, forward, params, X)
  with pytest.raises(FewshotError, match=r"'layer' is used more than once.*as_weights\("):
    methods.adapt(method, forward, theta, state)(params, X)


@pytest.mark.parametrize('spelling', ["lora('layer', rank=2)", "ia3('layer', 'out')"])
def test_shared_weights_take_the_weight_form(perturb, spelling):
  forward, params = setup(Shared(), X)
  method = methods.parse(f'as_weights({spelling})')
  theta, state = start(method, forward, params, X)
  base = forward(params, X)['features']
  adapt = lambda t: methods.adapt(method, forward, t, state)(params, X)['features']  # noqa: E731
  np.testing.assert_allclose(adapt(theta), base, atol=1e-6)
  moved = perturb(theta)
  merged = forward(methods.merge(method, moved, state, params), X)['features']
  np.testing.assert_allclose(adapt(moved), merged, atol=1e-5)
  assert np.abs(merged - base).max() > 1e-2


def test_tied_embeddings_are_refused_by_activation_methods():
  forward, params = setup(Tied(), TOKENS)
  method = methods.adapter('embed', width=2)
  theta, state = start(method, forward, params, TOKENS)
  with pytest.raises(FewshotError, match=r"'embed' is used more than once.*tied.*as_weights\("):
    methods.adapt(method, forward, theta, state)(params, TOKENS)
  beside = methods.lora('layer', rank=2)
  theta, state = start(beside, forward, params, TOKENS)
  methods.adapt(beside, forward, theta, state)(params, TOKENS)


def test_a_wrong_where_lists_the_modules():
  forward, params = setup(Shared(), X)
  with pytest.raises(
    FewshotError, match="'query' matches none of the 2 modules; there are layer, out"
  ):
    start(methods.lora('query'), forward, params, X)


def test_a_wrong_where_lists_the_parameters(tiny):
  for method in (methods.tune('kernel'), methods.tune(methods.at('x') & methods.at('y'))):
    with pytest.raises(FewshotError, match=r'matches none .*encoder/block_\*/attn/key/bias \(2\)'):
      method.init(KEY, tiny.forward, tiny.params, tiny.calib)
  with pytest.raises(FewshotError, match=r'matches none .* modules; .*encoder/block_\*/attn \(2\)'):
    methods.lora('query').init(KEY, tiny.forward, tiny.params, tiny.calib)


@pytest.mark.parametrize('spelling', ['lora(rank=2)', 'ia3()', 'adapter(width=4)'])
@pytest.mark.parametrize('warm', [False, True])
@pytest.mark.parametrize('inside', [False, True])
def test_a_jitted_forward_is_refused(tiny, perturb, spelling, warm, inside):
  """A cached trace runs no Python: the adapted model would silently be the base model."""
  jitted = jax.jit(lambda params, batch, key=None: tiny.forward(params, batch, key))
  forward = (lambda params, batch, key=None: jitted(params, batch, key)) if inside else jitted
  method = methods.parse(spelling)
  theta, state = method.init(KEY, tiny.forward, tiny.params, tiny.calib)
  theta = perturb(theta)
  if warm:
    forward(tiny.params, tiny.batch, None)
  want = methods.adapt(method, tiny.forward, theta, state)(tiny.params, tiny.batch)['logits']

  def adapted():
    return methods.adapt(method, forward, theta, state)(tiny.params, tiny.batch, None)['logits']

  if inside and not warm:  # Seen by its first trace alone, which is the adapted model's.
    np.testing.assert_allclose(adapted(), want, atol=1e-4)
  with pytest.raises(FewshotError, match='jitted'):
    adapted()
  if warm or not inside:
    with pytest.raises(FewshotError, match='jitted'):
      method.init(KEY, forward, tiny.params, tiny.calib)


def test_another_model_is_refused(tiny):
  method = methods.lora(rank=2)
  theta, state = method.init(KEY, tiny.forward, tiny.params, tiny.calib)
  forward, params = setup(Shared(), X)
  with pytest.raises(FewshotError, match=r'never called encoder/block_\*/attn/query \(2\)'):
    methods.adapt(method, forward, theta, state)(params, X)


@pytest.mark.parametrize('where', ['join', 'norm|join'])
def test_lora_takes_linear_maps_over_the_last_axis(where):
  forward, params = setup(Odd(), X)
  with pytest.raises(FewshotError, match=r"'join' maps 1x float32\[5, 2, 4\] to \[5, 8\]"):
    start(methods.lora(where), forward, params, X)


def test_lora_does_not_take_a_sublayer(tiny):
  with pytest.raises(FewshotError, match=r"'encoder/block_0/attn' maps 2x float32\[6, 7, 32\]"):
    methods.lora('.*/attn').init(KEY, tiny.forward, tiny.params, tiny.calib)


def test_lora_does_not_take_an_embedding():
  forward, params = setup(Tied(), TOKENS)
  with pytest.raises(
    FewshotError, match=r"lora updates linear maps; 'embed' maps 1x int32\[4, 6\]"
  ):
    start(methods.lora('embed'), forward, params, TOKENS)


def test_a_kernel_with_several_output_axes_merges(perturb):
  forward, params = setup(Odd(), X)
  for method in (methods.lora('split', rank=2), methods.ia3('split', 'none')):
    theta, state = start(method, forward, params, X)
    moved = perturb(theta)
    merged = forward(methods.merge(method, moved, state, params), X)['features']
    applied = methods.adapt(method, forward, moved, state)(params, X)['features']
    np.testing.assert_allclose(merged, applied, atol=1e-5)


@pytest.mark.parametrize('where, holds', [('norm', 'bias, scale'), ('.*attn', 'key/bias')])
def test_what_is_no_linear_map_has_no_weight_form(tiny, where, holds):
  """Merged, it would silently be the base model."""
  forward, params, batch = tiny.forward, tiny.params, tiny.batch
  if where == 'norm':
    (forward, params), batch = setup(Odd(), X), X
  method = methods.ia3(where, 'none')
  theta, state = start(method, forward, params, batch)
  methods.adapt(method, forward, theta, state)(params, batch)
  with pytest.raises(
    FewshotError, match=f'has no weight form: it holds {holds}.*only a linear map'
  ):
    methods.merge(method, theta, state, params)


def test_a_site_that_returns_two_arrays_is_refused(tiny):
  with pytest.raises(FewshotError, match=r"'inputs' returns .*, not one floating array"):
    methods.adapter('inputs').init(KEY, tiny.forward, tiny.params, tiny.calib)


def plain():
  """Two layers without Flax."""
  params = {
    'w1': {'kernel': RNG.standard_normal((8, 6)), 'bias': RNG.standard_normal(6)},
    'head': {'kernel': RNG.standard_normal((6, 3)), 'bias': RNG.standard_normal(3)},
  }
  params = jax.tree.map(lambda x: x.astype(np.float32), params)

  def fn(p, x):
    features = jnp.tanh(x @ p['w1']['kernel'] + p['w1']['bias'])
    return {'features': features, 'logits': features @ p['head']['kernel'] + p['head']['bias']}

  return models.from_function(fn), params


def in_nnx():
  """The same in NNX."""

  class Net(nnx.Module):
    def __init__(self, rngs):
      self.w1, self.head = nnx.Linear(8, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
      features = jnp.tanh(self.w1(x))
      return {'features': features, 'logits': self.head(features)}

  return models.from_nnx(Net(nnx.Rngs(0)))


@pytest.mark.parametrize('make', [plain, in_nnx])
@pytest.mark.parametrize(
  'spelling', ['full()', 'bitfit()', 'linear_probe()', "chain(tune('w1/.*'), linear())", 'shift']
)
def test_models_without_linen_take_weight_methods_and_heads(make, spelling):
  forward, params = make()
  shift = in_weights('.*bias', lambda key, w: jnp.zeros_like(w), lambda t, w: w + t)
  method = shift if spelling == 'shift' else methods.parse(spelling)
  theta, state = start(method, forward, params, X)
  loss = fits.Loss(forward, method, params, objectives.classification())
  fit = fits.sgd(steps=3, lr=0.05, batch=5)
  after, _ = jax.jit(lambda t: fit(loss, t, state, fits.Data(X), KEY))(theta)
  assert loss(after, state, X)[0] < loss(theta, state, X)[0]
  assert list(paths.flatten(params)) == ['head/bias', 'head/kernel', 'w1/bias', 'w1/kernel']


def test_prototypes_classify_with_a_plain_function():
  forward, params = plain()
  method = methods.nearest_mean()
  theta, state = start(method, forward, params, X)
  loss = fits.Loss(forward, method, params, objectives.classification())
  theta, state = fits.prototypes()(loss, theta, state, fits.Data(X), KEY)
  unit = np.array(forward(params, X)['features'])
  unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
  means = np.stack([unit[X['labels'] == c].mean(0) for c in range(3)])
  np.testing.assert_allclose(state['head']['means'], means, atol=1e-6)
  want = unit @ (means / np.linalg.norm(means, axis=-1, keepdims=True)).T
  got = methods.adapt(method, forward, theta, state)(params, X)['logits']
  np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize('make', [plain, in_nnx])
def test_models_without_linen_refuse_activation_methods(make):
  forward, params = make()
  for spelling in ('lora()', 'ia3()', 'adapter()', 'as_weights(lora())'):
    with pytest.raises(FewshotError, match='no module call was seen'):
      start(methods.parse(spelling), forward, params, X)
  with pytest.raises(FewshotError, match='reads a table of tokens'):
    start(methods.soft_prompt(), forward, params, X)
