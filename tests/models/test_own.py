"""Forwards of one's own: Linen, NNX, a plain function; and the hash that names weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from fewshot import methods, models, objectives
from fewshot.methods import paths


class Net(nn.Module):
  """Two inputs, dropout, a dict for an output where asked."""

  named: bool = False

  @nn.compact
  def __call__(self, x, shift):
    y = nn.Dense(4, name='up')(x) + shift
    if self.has_rng('dropout'):
      y = y * jax.random.bernoulli(self.make_rng('dropout'), 0.5, y.shape)
    return {'features': y, 'logits': y[:, :2]} if self.named else y


X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def test_linen_with_several_inputs_and_a_key():
  batch = {'x': X, 'shift': np.ones((5, 1), np.float32), 'labels': np.zeros(5, int)}
  params = Net().init(jax.random.key(0), X, batch['shift'])['params']
  forward = models.from_linen(Net(), inputs=('x', 'shift'))
  want = X @ params['up']['kernel'] + params['up']['bias'] + 1
  np.testing.assert_allclose(forward(params, batch)['features'], want, atol=1e-6)
  a, b = (forward(params, batch, jax.random.key(i))['features'] for i in (0, 1))
  assert (a != b).any()
  named = models.from_linen(Net(named=True), inputs=('x', 'shift'))(params, batch)
  assert set(named) == {'features', 'logits'}


def test_activation_methods_see_a_linen_module_of_ones_own():
  forward = models.from_linen(Net(), inputs=('x', 'shift'))
  batch = {'x': X, 'shift': np.ones((5, 1), np.float32)}
  params = Net().init(jax.random.key(0), X, batch['shift'])['params']
  method = methods.chain(methods.lora('up', rank=2), methods.linear())
  theta, _ = method.init(jax.random.key(0), forward, params, methods.Calib(batch, 3))
  assert methods.count(theta) == 2 * (3 + 4) + 3 * 4 + 3


def test_nnx_weight_methods_apply():
  forward, params = models.from_nnx(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
  want = X @ params['kernel'] + params['bias']
  np.testing.assert_allclose(forward(params, {'x': X})['features'], want, atol=1e-6)
  method = methods.chain(methods.bitfit(), methods.linear())
  theta, _ = method.init(jax.random.key(0), forward, params, methods.Calib({'x': X}, 2))
  assert set(paths.flatten(theta[0])) == {'bias'}


def test_a_plain_function_with_gradient():
  forward = models.from_function(lambda w, x: x @ w, output='logits')
  loss = lambda w: objectives.classification().mean(  # noqa: E731
    forward(w, {'x': X}), {'labels': np.array([0, 1, 0, 1, 0])}
  )
  assert np.abs(jax.grad(loss)(jnp.zeros((3, 2)))).max() > 1e-2


@pytest.mark.parametrize(
  'other',
  [
    {'a': np.array([1.0, 2.5]), 'b': np.zeros(2)},
    {'a': np.array([1.0, 2.0]), 'c': np.zeros(2)},
    {'a': np.array([1.0, 2.0], np.float32), 'b': np.zeros(2)},
    {'a': np.array([[1.0, 2.0]]), 'b': np.zeros(2)},
    {'a': np.array([1.0, 2.0])},
  ],
)
def test_the_hash_of_weights_sees_value_path_dtype_and_shape(other):
  tree = {'a': np.array([1.0, 2.0]), 'b': np.zeros(2)}
  assert models.hash_params(tree) == models.hash_params(jax.tree.map(np.array, tree))
  assert models.hash_params(tree) != models.hash_params(other)


def test_the_hash_of_weights_is_of_values_not_of_memory_layout():
  x = np.arange(6.0).reshape(2, 3)
  assert models.hash_params({'w': x}) == models.hash_params({'w': np.asfortranarray(x)})
  assert len(models.hash_params({'w': jnp.ones(3, jnp.bfloat16), 's': np.float32(1)})) == 16
