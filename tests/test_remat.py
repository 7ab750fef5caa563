"""Rematerialisation: the same outputs and gradients, in less memory, whatever acts beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fewshot import methods, models
from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.models import bert, conv4
from fewshot.remat import POLICIES, compiler_options, remat
from tests.conftest import CONFIG
from tests.laws.laws import cast

INSIDE = ['lora(rank=2, dropout=0.3)', 'adapter(width=4)', 'ia3()', 'prefix(length=2)', 'bitfit()']
AROUND = ["parallel('.*/block_1', width=4)"]  # Of a whole block.
REST = ('dots', 'dots_no_batch')


def gradient(forward, method, theta, state, batch, key):
  """The gradient by theta of some function of the outputs."""

  def loss(theta):
    features = methods.adapt(method, forward, theta, state)(batch['params'], batch['x'], key)
    return (features['features'] ** 3).sum()

  return jax.grad(loss)(theta)


@pytest.mark.parametrize(
  'spelling, policy', [*((s, 'nothing') for s in INSIDE + AROUND), *((INSIDE[0], p) for p in REST)]
)
def test_gradients_are_the_same(tiny, perturb, spelling, policy):
  """In either order, with a key: dropout of the model and of the method draw the same."""
  forward = bert.forward(bert.Config(**(vars(CONFIG) | {'dropout': 0.2})))
  method, key = methods.parse(spelling), jax.random.key(7)
  outside = method._replace(  # The method's interceptor within ours.
    wrap=lambda forward, theta, state: remat(method.wrap(forward, theta, state), policy=policy)
  )
  with jax.enable_x64(True):  # Each is compiled its own way, and rounds so.
    params = cast(tiny.params, np.float64)
    theta, state = method.init(jax.random.key(0), forward, params, tiny.calib)
    theta, batch = perturb(theta), {'params': params, 'x': tiny.batch}
    want = gradient(forward, method, theta, state, batch, key)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(want)) > 1
    thrifty = gradient(remat(forward, policy=policy), method, theta, state, batch, key)
    other = gradient(forward, outside, theta, state, batch, key)
    equal = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)  # noqa: E731
    jax.tree.map(equal, thrifty, want)
    jax.tree.map(equal, other, want)


@pytest.fixture(scope='module')
def deep():
  """(forward, params, batch) of six blocks."""
  config = bert.Config(**(vars(CONFIG) | {'depth': 6}))
  forward, rng = bert.forward(config), np.random.default_rng(0)
  params = bert.init(config, jax.random.key(0))
  batch = {'tokens': rng.integers(1, 50, (8, 32)), 'mask': np.ones((8, 32), bool)}
  return forward, params, batch


def temporary(forward, params, batch) -> tuple[int, float]:
  """Bytes and FLOPs that a LoRA gradient step takes beside its arguments."""
  method = methods.lora(rank=2)
  theta, state = method.init(jax.random.key(0), forward, params, methods.Calib(batch))

  def loss(theta, params):
    return methods.adapt(method, forward, theta, state)(params, batch)['features'].sum()

  compiled = jax.jit(jax.grad(loss)).lower(theta, params).compile(compiler_options())
  return compiled.memory_analysis().temp_size_in_bytes, compiled.cost_analysis()['flops']


def test_memory_falls_and_flops_rise(deep):
  """Of all blocks more than of two of them."""
  forward, *rest = deep
  plain, base = temporary(forward, *rest)
  used = {p: temporary(remat(forward, policy=p), *rest) for p in POLICIES}
  assert used['nothing'][0] < 0.4 * plain
  assert used['nothing'][0] < used['dots_no_batch'][0] < used['dots'][0] < plain
  assert all(1.01 * base < flops < 1.6 * base for _, flops in used.values())
  two, _ = temporary(remat(forward, '.*/block_[12]'), *rest)
  assert used['nothing'][0] < 0.9 * two < 0.9 * 0.95 * plain


def test_nothing_selected_is_an_error(tiny):
  with pytest.raises(FewshotError, match=r"'layer_.*' matches none of the .* modules; there are"):
    remat(tiny.forward, 'layer_.*')(tiny.params, tiny.batch)


def test_a_selection_is_taken(tiny):
  where = paths.at('.*/block_0') | paths.at('.*/mlp')
  got = remat(tiny.forward, where)(tiny.params, tiny.batch)
  np.testing.assert_allclose(
    got['features'], tiny.forward(tiny.params, tiny.batch)['features'], atol=1e-6
  )


def test_unknown_policies_and_jitted_forwards_are_refused(tiny):
  with pytest.raises(FewshotError, match=r"policy='dot'. is unknown; did you mean 'dots'"):
    remat(tiny.forward, policy='dot')
  with pytest.raises(FewshotError, match='cannot reach into a jitted forward'):
    remat(jax.jit(tiny.forward))


def test_batch_statistics_are_refused():
  config = conv4.Config(width=4)
  forward, batch = conv4.forward(config, batch_stats=True), conv4.example(config)
  params = conv4.init(config, jax.random.key(0))
  with pytest.raises(FewshotError, match=r"block_0' updates collections .* take remat off"):
    remat(forward)(params, batch)
  assert remat(conv4.forward(config))(params, batch)['features'].shape[0] == 1


class Flagged(nn.Module):
  @nn.compact
  def __call__(self, x, *, double: bool, rest: tuple = ()):
    return nn.Dense(3)(x) * (2 if double else 1), rest


class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    return Flagged(name='block_0')(x, double=True, rest=(None, x))[0]


def test_flags_and_nested_arguments_stay_what_they_are():
  x = np.ones((2, 4), np.float32)
  params = Net().init(jax.random.key(0), x)['params']
  forward = models.from_linen(Net())
  got = jax.jit(remat(forward))(params, {'x': x})['features']
  np.testing.assert_allclose(got, forward(params, {'x': x})['features'], atol=1e-6)
