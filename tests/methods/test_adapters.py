"""Adapters: what they compute, which of their parts a training pass draws, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fewshot import methods, models
from fewshot.errors import FewshotError
from fewshot.methods import adapters, paths
from fewshot.methods.representation import outputs
from tests.models import decoders

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = {'x': RNG.standard_normal((6, 5, 8)).astype(np.float32), 'labels': np.arange(6) % 3}


class Small(nn.Module):
  """One module, called mlp."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(8, name='mlp')(x)


def small():
  params = jax.tree.map(np.asarray, Small().init(KEY, X['x'])['params'])
  return models.from_linen(Small()), params


def begun(method, perturb, forward, params, batch=X):
  theta, state = method.init(KEY, forward, params, methods.Calib(batch, 3))
  return perturb(theta), state


def apply(method, forward, theta, state, params, batch, key=None):
  return methods.adapt(method, forward, theta, state)(params, batch, key)['features']


def branch(t, x, act):
  return act(x @ t['down'] + t['down_bias']) @ t['up'] + t['up_bias']


def relu(x):
  return np.maximum(x, 0)


def test_pfeiffer_reads_what_the_mlp_returns(perturb):
  (forward, params), method = small(), methods.pfeiffer('mlp', width=3)
  theta, state = begun(method, perturb, forward, params)
  y = np.asarray(forward(params, X)['features'])
  want = y + branch(theta['mlp'], y, relu)
  np.testing.assert_allclose(apply(method, forward, theta, state, params, X), want, atol=1e-5)


def test_houlsby_is_the_adapter_with_the_norms(tiny, perturb):
  """The norms' part of theta stands for leaves of params, and the other is the adapter's."""
  method = methods.houlsby(width=2)
  theta, state = begun(method, perturb, tiny.forward, tiny.params, tiny.batch)
  norms = {p: t for p, t in theta.items() if not isinstance(t, dict)}
  assert set(norms) == {p for p in paths.flatten(tiny.params) if '/ln' in p}
  mask = methods.mask(method, tiny.forward, tiny.params, tiny.calib)
  assert {p for p, m in paths.flatten(mask.params).items() if m} == set(norms)
  sites = {p: t for p, t in theta.items() if isinstance(t, dict)}
  want = apply(
    methods.adapter(width=2), tiny.forward, sites, {}, paths.replace(tiny.params, norms), tiny.batch
  )
  got = apply(method, tiny.forward, theta, state, tiny.params, tiny.batch)
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_compacter_multiplies_by_a_sum_of_kronecker_products(perturb):
  """The rules are shared: one array, which every map of every site is made with."""
  (forward, params), method = small(), methods.compacter('mlp', width=4, n=2, rank=3)
  found = methods.sites(forward, params, X, 'mlp')
  rules, left, right = (RNG.standard_normal(s) for s in ((2, 2, 2), (2, 4, 3), (2, 3, 2)))
  product = sum(np.kron(a, s @ t) for a, s, t in zip(rules, left, right, strict=True))
  got = adapters._phm(
    jnp.asarray(X['x']), *(jnp.asarray(a, jnp.float32) for a in (rules, left, right))
  )
  np.testing.assert_allclose(got, X['x'] @ product, atol=1e-4)
  with pytest.raises(FewshotError, match=r'matches none of the 2 parameters'):
    method.init(KEY, forward, params, methods.Calib(X, 3))  # It has no norms to train.
  assert list(found) == ['mlp']


def test_the_rules_of_compacter_are_shared_by_all_sites(tiny, perturb):
  method = methods.compacter(width=4)
  theta, state = begun(method, perturb, tiny.forward, tiny.params, tiny.batch)
  assert theta['*']['rules'].shape == (4, 4, 4)
  assert [p for p, t in theta.items() if isinstance(t, dict) and 'rules' in t] == ['*']
  for path in ('encoder/block_0/attn', 'encoder/block_1/mlp'):  # Each reads them.
    alone = {p: t if p == '*' or not isinstance(t, dict) else jax.tree.map(np.zeros_like, t)
             for p, t in theta.items()} | {path: theta[path]}  # fmt: skip
    other = alone | {'*': {'rules': 2 * theta['*']['rules']}}
    runs = [apply(method, tiny.forward, t, state, tiny.params, tiny.batch) for t in (alone, other)]
    assert np.abs(np.asarray(runs[0]) - runs[1]).max() > 1e-4


def test_unipelt_with_closed_gates_is_the_base_function(tiny, perturb):
  """But for the prefix, whose keys and values are then zero: its queries still attend to it."""
  method = methods.unipelt(rank=2, length=2, width=4)
  theta, state = begun(method, perturb, tiny.forward, tiny.params, tiny.batch)
  shut = {p: t | {'gate_bias': np.full(1, -60, np.float32)} for p, t in theta.items()}
  blank = {p: jax.tree.map(np.zeros_like, t) if 'keys' in t else shut[p] for p, t in theta.items()}
  runs = [apply(method, tiny.forward, t, state, tiny.params, tiny.batch) for t in (shut, blank)]
  np.testing.assert_allclose(runs[0], runs[1], atol=1e-6)
  assert (
    np.abs(apply(method, tiny.forward, theta, state, tiny.params, tiny.batch) - runs[0]).max()
    > 1e-2
  )
  lora = methods.unipelt(2, 1, 1, attention='none', mlp='none')
  only = {p: t for p, t in shut.items() if 'a' in t}
  base = tiny.forward(tiny.params, tiny.batch)['features']
  np.testing.assert_allclose(
    apply(lora, tiny.forward, only, state, tiny.params, tiny.batch), base, atol=1e-6
  )


def test_the_gates_of_unipelt_do_not_see_padding(tiny, perturb):
  method = methods.unipelt(rank=2, length=2, width=4)
  theta, state = begun(method, perturb, tiny.forward, tiny.params, tiny.batch)
  longer = {k: np.pad(tiny.batch[k], ((0, 0), (0, 4))) for k in ('tokens', 'mask')}
  runs = [apply(method, tiny.forward, theta, state, tiny.params, b) for b in (tiny.batch, longer)]
  np.testing.assert_allclose(*runs, atol=1e-5)


@pytest.mark.parametrize('family', ['gpt2', 'llama'])
def test_unipelt_splits_keys_as_the_model_does_and_refuses_a_cache(family, perturb):
  model, method = decoders.tiny(family), methods.unipelt(rank=2, length=2, width=4)
  theta, state = begun(method, perturb, model.forward, model.params, model.batch)
  adapted = methods.adapt(method, model.forward, theta, state)
  out = adapted(model.params, model.batch | {'room': np.zeros(2)})
  with pytest.raises(FewshotError, match='gates of unipelt average whole inputs'):
    adapted(model.params, {'tokens': np.ones((3, 1), int), 'cache': out['cache']})


def test_sct_takes_the_channels_with_the_largest_norm_of_each_class(tiny, perturb):
  method = methods.sct(channels=5)
  _, state = begun(method, perturb, tiny.forward, tiny.params, tiny.batch)
  labels, mask = tiny.batch['labels'], tiny.batch['mask']
  seen = outputs(tiny.forward, tiny.params, tiny.batch, '.*/attn')
  for path, h in seen.items():
    h = np.where(mask[..., None], np.asarray(h), 0)
    norms = [np.linalg.norm(h[labels == c], axis=(0, 1)) for c in range(3)]
    want = np.sort(np.argsort(np.mean(norms, 0))[-5:])
    np.testing.assert_array_equal(state[path]['channels'], want)
  _, state = method.init(KEY, tiny.forward, tiny.params, methods.Calib(tiny.batch))
  h = np.where(mask[..., None], np.asarray(seen['encoder/block_0/attn']), 0)
  want = np.sort(np.argsort(np.linalg.norm(h, axis=(0, 1)))[-5:])  # With no classes: of all rows.
  np.testing.assert_array_equal(state['encoder/block_0/attn']['channels'], want)


def test_sct_changes_the_salient_channels_alone(perturb):
  (forward, params), method = small(), methods.sct('mlp', channels=3, scale=0.5)
  theta, state = begun(method, perturb, forward, params)
  y, s = np.asarray(forward(params, X)['features']), np.asarray(state['mlp']['channels'])
  want = y.copy()
  want[..., s] += 0.5 * (y[..., s] @ theta['mlp']['kernel'] + theta['mlp']['bias'])
  np.testing.assert_allclose(apply(method, forward, theta, state, params, X), want, atol=1e-5)


def test_adamix_trains_one_expert_a_pass_and_evaluates_their_mean(perturb):
  (forward, params), method = small(), methods.adamix('mlp', width=3, experts=4)
  start, _ = method.init(KEY, forward, params, methods.Calib(X, 3))
  assert np.ptp(start['mlp']['down'], axis=0).max() == 0  # They start alike.
  theta, state = begun(method, perturb, forward, params)
  loss = lambda t, key: (apply(method, forward, t, state, params, X, key) ** 2).sum()  # noqa: E731
  grads = [jax.grad(loss)(theta, jax.random.key(i))['mlp']['down'] for i in range(12)]
  moved = [np.flatnonzero(np.abs(g).max((1, 2))) for g in grads]
  assert all(len(m) == 1 for m in moved) and len({int(m[0]) for m in moved}) > 1
  t = theta['mlp']
  one = t | {n: t[n].mean(0) for n in ('down', 'down_bias')}
  y = np.asarray(forward(params, X)['features'])
  want = y + branch(one, y, lambda x: np.asarray(nn.gelu(x)))
  np.testing.assert_allclose(apply(method, forward, theta, state, params, X), want, atol=1e-5)


@pytest.mark.parametrize(
  'spelling, why',
  [
    ('pfeiffer(width=0)', 'width is at least 1'),
    ('compacter(n=0)', 'n is at least 1'),
    ('unipelt(length=0)', 'length is at least 1'),
    ('sct(channels=0)', 'channels is at least 1'),
    ('adamix(experts=0)', 'experts is at least 1'),
  ],
)
def test_sizes_below_one_are_refused(spelling, why):
  with pytest.raises(FewshotError, match=why):
    methods.parse(spelling)


def test_sizes_that_do_not_fit_the_model_are_refused(tiny):
  for method, why in (
    (methods.compacter(width=6), r'compacter\(width=6, n=4\): n divides the width and 32 channels'),
    (methods.sct(), r"sct\(channels=96\) is more than the 32 of 'encoder/block_0/attn'"),
  ):
    with pytest.raises(FewshotError, match=why):
      method.init(KEY, tiny.forward, tiny.params, tiny.calib)
