"""Networks beside the backbone: the ladder and its gradient, parallel adapters, split ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fewshot import methods, models
from fewshot.errors import FewshotError
from fewshot.methods import paths

KEY = jax.random.key(0)
X = {'x': np.random.default_rng(0).standard_normal((6, 5, 8)).astype(np.float32)}


class Stack(nn.Module):
  @nn.compact
  def __call__(self, x):
    for i in range(2):
      x = jnp.tanh(nn.Dense(8, name=f'block_{i}')(x))
    return x


class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(8, name='mlp')(Stack(name='encoder')(x))


def net():
  params = jax.tree.map(np.asarray, Net().init(KEY, X['x'])['params'])
  return models.from_linen(Net()), params


def begun(method, perturb, forward, params, batch=X):
  theta, state = method.init(KEY, forward, params, methods.Calib(batch))
  return perturb(theta), state


def apply(method, forward, theta, state, params, batch=X, key=None):
  return methods.adapt(method, forward, theta, state)(params, batch, key)['features']


def test_the_ladder_climbs_the_outputs_of_the_blocks(perturb):
  (forward, params), method = net(), methods.lst(reduction=4)
  theta, state = begun(method, perturb, forward, params)
  dense = lambda p, x: x @ p['kernel'] + p['bias']  # noqa: E731
  x, z = X['x'], X['x'] @ theta['encoder']['in']
  for i in range(2):
    h, t = dense(params['encoder'][f'block_{i}'], x), theta[f'encoder/block_{i}']
    m = 1 / (1 + np.exp(-t['gate'] / 0.1))
    z = m * (h @ t['down']) + (1 - m) * z
    normed = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-5)
    z = z + np.asarray(nn.gelu(normed @ t['up'] + t['up_bias'])) @ t['back'] + t['back_bias']
    x = np.tanh(h)
  want = dense(params['mlp'], x + z @ theta['encoder']['out'])
  np.testing.assert_allclose(apply(method, forward, theta, state, params), want, atol=1e-5)


def flops(f, *args):
  return jax.jit(f).lower(*args).compile().cost_analysis()['flops']


def test_the_gradient_of_the_ladder_never_enters_the_backbone(tiny):
  """A backward pass through it costs as much as the forward pass and more, as LoRA's does."""

  def cost(method):
    theta, state = method.init(KEY, tiny.forward, tiny.params, tiny.calib)

    def loss(theta):
      return apply(method, tiny.forward, theta, state, tiny.params, tiny.batch).sum()

    return flops(jax.grad(loss), theta)

  forward = flops(lambda p: tiny.forward(p, tiny.batch)['features'], tiny.params)
  ladder, lora = cost(methods.lst(reduction=16)), cost(methods.lora(rank=1))
  assert ladder < 1.3 * forward and lora > 1.6 * forward


def test_what_the_ladder_reads_is_cut_from_the_gradient_of_others(perturb):
  """With the backbone's own output gone, nothing of the ladder's reaches what trains inside."""
  (forward, params), method = net(), methods.chain(methods.tune('encoder/.*'), methods.lst())
  theta, state = begun(method, perturb, forward, params)

  def added(theta):
    tuned = apply(methods.tune('encoder/.*'), forward, theta[0], {}, params)
    return (apply(method, forward, theta, state, params) - tuned).sum()

  inner, ladder = jax.grad(added)(theta)
  assert max(np.abs(g).max() for g in jax.tree.leaves(inner)) < 1e-6
  assert np.abs(ladder['encoder/block_0']['down']).max() > 1e-3


def test_a_ladder_climbs_beside_a_prompt(tiny, perturb):
  """The prompt is longer where the blocks are, and gone where the stack returns."""
  for both in (
    methods.chain(methods.soft_prompt(length=3), methods.lst()),
    methods.chain(methods.lst(), methods.soft_prompt(length=3)),
  ):
    theta, state = begun(both, perturb, tiny.forward, tiny.params, tiny.batch)
    got = apply(both, tiny.forward, theta, state, tiny.params, tiny.batch)
    assert got.shape == (6, 32) and np.isfinite(got).all()


def test_blocks_without_a_stack_are_refused():
  forward, params = models.from_linen(Stack()), net()[1]['encoder']
  with pytest.raises(FewshotError, match="what a stack of blocks returns; '' is none"):
    methods.lst('block_.*').init(KEY, forward, params, methods.Calib(X))


def branch(t, x, act):
  return act(x @ t['down'] + t['down_bias']) @ t['up'] + t['up_bias']


def test_the_parallel_adapter_reads_the_input_and_is_scaled(perturb):
  (forward, params), method = net(), methods.parallel('mlp', width=3, scale=2.0)
  theta, state = begun(method, perturb, forward, params)
  x = np.asarray(models.from_linen(Stack())(params['encoder'], X)['features'])
  want = x @ params['mlp']['kernel'] + params['mlp']['bias']
  want = want + 2 * branch(theta['mlp'], x, lambda h: np.maximum(h, 0))
  np.testing.assert_allclose(apply(method, forward, theta, state, params), want, atol=1e-5)


def test_mam_is_a_prefix_and_a_parallel_adapter(tiny, perturb):
  method = methods.mam(length=2, width=3, scale=2.0)
  parts = methods.chain(methods.prefix(2), methods.parallel(width=3, scale=2.0))
  theta, state = begun(method, perturb, tiny.forward, tiny.params, tiny.batch)
  assert methods.spell(method) == 'mam(length=2, width=3, scale=2.0)'
  runs = [apply(m, tiny.forward, theta, state, tiny.params, tiny.batch) for m in (method, parts)]
  np.testing.assert_array_equal(*runs)
  rows = methods.table(method, tiny.forward, tiny.params, tiny.calib)
  assert [r.rule for r in rows] == ['mam(length=2, width=3, scale=2.0)', 'frozen']


def test_the_experts_of_mosa_split_the_adapter(perturb):
  """A training pass reaches entries of one expert, and evaluation is the whole adapter."""
  (forward, params), method = net(), methods.mosa('mlp', width=4, experts=4, scale=0.5)
  theta, state = begun(method, perturb, forward, params)
  t, own = theta['mlp'], state['mlp']
  for name in ('down', 'up'):
    assert np.bincount(np.asarray(own[f'{name}_owner']).reshape(-1)).tolist() == [8] * 4

  loss = lambda t, key: (apply(method, forward, t, state, params, X, key) ** 2).sum()  # noqa: E731
  drawn = set()
  for i in range(10):
    grads = jax.grad(loss)(theta, jax.random.key(i))['mlp']
    for name in ('down', 'up'):
      reached = np.unique(np.asarray(own[f'{name}_owner'])[np.abs(grads[name]) > 0])
      assert len(reached) == 1
      drawn.add((name, int(reached[0])))
  assert len(drawn) > 4

  x = np.asarray(models.from_linen(Stack())(params['encoder'], X)['features'])
  base = x @ params['mlp']['kernel'] + params['mlp']['bias']
  gelu = lambda h: np.asarray(nn.gelu(h))  # noqa: E731
  got = apply(method, forward, theta, state, params)
  np.testing.assert_allclose(got, base + 0.5 * branch(t, x, gelu), atol=1e-5)
  trained = np.asarray(apply(method, forward, theta, state, params, X, jax.random.key(0)))
  passes = [
    t
    | {
      'down': np.where(own['down_owner'] == a, t['down'], own['down_start']),
      'up': np.where(own['up_owner'] == b, t['up'], 0),
    }
    for a in range(4)
    for b in range(4)
  ]
  gaps = [np.abs(base + 0.5 * branch(p, x, gelu) - trained).max() for p in passes]
  assert sorted(gaps)[0] < 1e-5 < sorted(gaps)[1]


@pytest.mark.parametrize(
  'spelling, why',
  [
    ('lst(reduction=0)', 'reduction is at least 1'),
    ('parallel(width=0)', 'width is at least 1'),
    ('mosa(experts=0)', 'experts is at least 1'),
    ('mam(length=0)', 'length is at least 1'),
  ],
)
def test_sizes_below_one_are_refused(spelling, why):
  with pytest.raises(FewshotError, match=why):
    methods.parse(spelling)


def test_a_ladder_has_a_rung_a_block_and_two_ends(tiny):
  theta, _ = methods.shapes(methods.lst(), tiny.forward, tiny.params, tiny.calib)
  assert set(theta) == {'encoder', 'encoder/block_0', 'encoder/block_1'}
  assert {p.rpartition('/')[2] for p in paths.flatten(theta['encoder'])} == {'in', 'out'}
