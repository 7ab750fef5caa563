"""Updates of convolution kernels, against the convolutions they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fewshot import methods
from fewshot.errors import FewshotError

RNG = np.random.default_rng(0)


def normal(*shape):
  return RNG.standard_normal(shape).astype(np.float32)


def convolve(x, w, stride=1):
  pad = [(n // 2, n // 2) for n in w.shape[:2]]
  dims = ('NHWC', 'HWIO', 'NHWC')
  return jax.lax.conv_general_dilated(x, w, (stride, stride), pad, dimension_numbers=dims)


def changed(method, t, w):
  return method.weights({'conv_0/kernel': t}, {}, {'conv_0': {'kernel': w}})['conv_0']['kernel']


def start(method, w):
  theta, _ = method.init(jax.random.key(0), None, {'conv_0': {'kernel': w}}, None)
  assert list(theta) == ['conv_0/kernel']
  return theta['conv_0/kernel']


@pytest.mark.parametrize('stride', [1, 2])
def test_conv_lora_is_a_convolution_to_r_channels_and_one_by_one(stride):
  method, w, x = methods.conv_lora(rank=2, alpha=6.0), normal(3, 3, 4, 5), normal(2, 6, 6, 4)
  t = start(method, w)
  assert not t['b'].any() and np.abs(t['a']).max() <= 1 / 6
  t = t | {'b': normal(2, 5)}
  want = convolve(x, w, stride) + 3 * convolve(x, t['a'], stride) @ t['b']
  np.testing.assert_allclose(convolve(x, changed(method, t, w), stride), want, atol=1e-4)


def test_flora_is_a_tucker_product_without_flattening():
  method, w = methods.flora(rank=3, kernel_rank=2, scale=0.5), normal(3, 1, 4, 5)
  t = start(method, w)
  assert t['core'].shape == (2, 1, 3, 3) and not t['core'].any()
  t = {k: normal(*v.shape) for k, v in t.items()}
  factors = (t[f'u{i}'] for i in range(4))
  want = 0.5 * np.einsum('abcd,ha,wb,ic,od->hwio', t['core'], *factors)
  np.testing.assert_allclose(changed(method, t, w) - w, want, atol=1e-4)


def test_flora_of_a_matrix_has_two_modes():
  method, w = methods.flora('.*', rank=2, scale=1.0), normal(6, 5)
  t = {k: normal(*v.shape) for k, v in start(method, w).items()}
  want = t['u0'] @ t['core'] @ t['u1'].T
  np.testing.assert_allclose(changed(method, t, w) - w, want, atol=1e-4)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [1, 3])
def test_tsa_is_the_one_by_one_convolution_beside(size, stride):
  method, w = methods.tsa('.*'), normal(size, size, 4, 5)
  x, alpha = normal(2, 7, 6, 4), normal(4, 5)
  assert start(method, w)['alpha'].shape == (4, 5)
  want = convolve(x, w, stride) + convolve(x, alpha[None, None], stride)
  got = convolve(x, changed(method, {'alpha': alpha}, w), stride)
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_tsa_of_channels_scales_the_input_that_it_adds():
  method, w, x = methods.tsa('.*', form='channel'), normal(3, 3, 4, 4), normal(2, 5, 5, 4)
  alpha = normal(*start(method, w)['alpha'].shape)
  assert alpha.shape == (4,)
  got = convolve(x, changed(method, {'alpha': alpha}, w))
  np.testing.assert_allclose(got, convolve(x, w) + x * alpha, atol=1e-4)
  assert start(method, normal(3, 3, 4, 6))['alpha'].shape == (4, 6)  # No vector maps 4 to 6.


@pytest.mark.parametrize(
  'spelling', ["conv_lora(where='.*')", "flora(where='.*')", "tsa(where='.*')"]
)
def test_a_vector_is_refused(spelling):
  with pytest.raises(FewshotError, match=r'shape \[4\]; end the pattern'):
    start(methods.parse(spelling), normal(4))


def test_arguments_and_even_kernels_are_refused():
  with pytest.raises(FewshotError, match='centre of a kernel'):
    start(methods.tsa('.*'), normal(2, 2, 4, 4))
  with pytest.raises(FewshotError, match=r"known: 'channel', 'matrix'"):
    methods.tsa(form='vector')
  for spelling in ('conv_lora(rank=0)', 'flora(rank=0)', 'flora(kernel_rank=0)'):
    with pytest.raises(FewshotError, match='at least 1'):
      methods.parse(spelling)


def test_default_patterns_select_convolutions_of_blocks():
  shapes = ('stem/conv_0', 'stage_0/block_0/conv_1', 'stage_0/block_0/shortcut/conv_0')
  params = {f'{p}/kernel': jnp.zeros((1, 1, 2, 2)) for p in shapes} | {
    'head/kernel': jnp.zeros((2, 2))
  }
  chosen = lambda m: sorted(m.init(jax.random.key(0), None, params, None)[0])  # noqa: E731
  assert chosen(methods.conv_lora()) == sorted(f'{p}/kernel' for p in shapes)
  assert chosen(methods.tsa()) == ['stage_0/block_0/conv_1/kernel']


class Net(nn.Module):
  """One convolution, strided."""

  @nn.compact
  def __call__(self, x):
    return nn.Conv(3, (3, 3), 2, [(1, 1)] * 2, use_bias=False, name='conv_0')(x)


def net(params, batch, key=None):
  return {'y': Net().apply({'params': params}, batch['x'])}


def test_conv_adapter_is_a_convolution_where_its_units_are_positive():
  method, x = methods.conv_adapter('conv_0', reduction=2), np.abs(normal(2, 7, 6, 4))
  params, batch = {'conv_0': {'kernel': normal(3, 3, 4, 3)}}, {'x': x}
  theta, _ = method.init(jax.random.key(0), net, params, methods.Calib(batch))
  t = theta['conv_0']
  assert {k: v.shape for k, v in t.items()} == {'down': (3, 3, 2, 2), 'up': (2, 3), 'scale': (3,)}
  assert not t['up'].any()
  t = {'down': np.abs(normal(3, 3, 2, 2)), 'up': normal(2, 3), 'scale': normal(3)}
  full = np.zeros((3, 3, 4, 2), 'f')  # Unit 0 reads channels 0 and 1, unit 1 the others.
  full[:, :, :2, 0], full[:, :, 2:, 1] = t['down'][..., 0], t['down'][..., 1]
  want = convolve(x, params['conv_0']['kernel'] + full @ t['up'] * t['scale'], 2)
  got = methods.adapt(method, net, {'conv_0': t}, {})(params, batch)['y']
  np.testing.assert_allclose(got, want, atol=1e-4)
  negative = {'conv_0': t | {'down': -t['down']}}
  got = methods.adapt(method, net, negative, {})(params, batch)['y']
  np.testing.assert_allclose(got, net(params, batch)['y'], atol=1e-5)


def test_conv_adapter_checks_its_reduction():
  calib = methods.Calib({'x': normal(1, 4, 4, 4)})
  params = {'conv_0': {'kernel': normal(3, 3, 4, 3)}}
  with pytest.raises(FewshotError, match='reduction=3 does not divide 4'):
    methods.conv_adapter('conv_0', reduction=3).init(jax.random.key(0), net, params, calib)
  with pytest.raises(FewshotError, match='reduction is at least 1'):
    methods.conv_adapter(reduction=0)


def test_conv_adapter_refuses_a_dense_layer(tiny):
  with pytest.raises(FewshotError, match=r"query' is no dense convolution of odd size"):
    method = methods.conv_adapter('.*/query')
    method.init(jax.random.key(0), tiny.forward, tiny.params, tiny.calib)
