"""LoRA's options, its optimizers LoRA+ and LoRA-Pro, and EVA's ranks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from fewshot import methods, models, objectives
from fewshot.errors import FewshotError
from fewshot.methods.lowrank import adjusted, sylvester

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
X = {'x': RNG.standard_normal((20, 8)).astype(np.float32), 'labels': np.arange(20) % 3}


class Two(nn.Module):
  """A map whose inputs vary in every direction, and one whose inputs do so in two."""

  @nn.compact
  def __call__(self, x):
    flat = jnp.concatenate([x[:, :2]] * 4, 1)
    return nn.Dense(6, name='up')(x) @ jnp.ones((6, 3)) + nn.Dense(3, name='down')(flat)


def setup():
  forward = models.from_linen(Two(), output='logits')
  params = Two().init(KEY, X['x'])['params']
  return forward, params, methods.Calib(X, 3, objectives.classification().loss)


def begin(method):
  forward, params, calib = setup()
  return forward, params, *method.init(KEY, forward, params, calib)


@pytest.mark.parametrize('scaling, s', [('alpha/r', 8.0), ('alpha/sqrt(r)', 16 / 2**0.5)])
def test_the_update_is_scaled(scaling, s):
  method = methods.lora('up', rank=2, scaling=scaling)
  _, params, theta, state = begin(method)
  theta['up']['b'] += 1.0
  merged = methods.merge(method, theta, state, params)
  want = params['up']['kernel'] + s * theta['up']['a'] @ np.ones((2, 6))
  np.testing.assert_allclose(merged['up']['kernel'], want, rtol=1e-4)


def test_ranks_by_pattern():
  _, _, theta, _ = begin(methods.lora('up|down', rank=4, ranks=(('u.*', 1), ('up|down', 2))))
  assert theta['up']['a'].shape == (8, 1) and theta['down']['b'].shape == (2, 3)


@pytest.mark.parametrize('init', ['pissa', 'lora_ga', 'corda_knowledge'])
def test_a_start_that_is_not_zero_is_taken_off(init):
  method = methods.lora('up', rank=2, init=init)
  forward, params, theta, state = begin(method)
  got = methods.adapt(method, forward, theta, state)(params, X)['logits']
  np.testing.assert_allclose(got, forward(params, X)['logits'], atol=1e-5)
  np.testing.assert_array_equal(theta['up']['a'], state['up']['a0'])
  np.testing.assert_allclose(8.0 * theta['up']['b'], state['up']['b0'], rtol=1e-6)


@pytest.mark.parametrize('freeze, trained', [('a', 'b'), ('b', 'a')])
def test_one_factor_trains_alone(freeze, trained):
  """Asymmetric LoRA: the other is in the state."""
  _, _, theta, state = begin(methods.lora('up', rank=2, freeze=freeze, init='pissa'))
  assert list(theta['up']) == [trained] and freeze in state['up']


def test_dropout_acts_in_training_only_and_on_average_not_at_all():
  method = methods.lora('up', rank=2, dropout=0.5)
  forward, params, theta, state = begin(method)
  theta['up']['b'] += 1.0
  run = lambda key: methods.adapt(method, forward, theta, state)(params, X, key)['logits']  # noqa: E731
  whole = run(None)
  np.testing.assert_array_equal(whole, run(None))
  many = np.asarray(jax.vmap(run)(jax.random.split(KEY, 2000)))
  assert np.abs(many[0] - whole).max() > 0.1
  spread = many.std(0) / 2000**0.5
  assert (np.abs(many.mean(0) - whole) < 5 * spread + 1e-4).all()


@pytest.mark.parametrize(
  'spelling, match',
  [
    ("lora(scaling='r')", "is neither 'alpha/r' nor"),
    ('lora(dropout=1.0)', 'no rate'),
    ("lora(ranks=('up', 2))", r'not of the form \(\(pattern, rank\)'),
    ("lora(ranks=(('up', 0),))", 'ranks >= 1'),
    ("lora(init='pisa')", "did you mean 'pissa'"),
    ("lora(freeze='c')", 'names no factor'),
    ("lora(freeze='b')", "freezes B at zero; take init='pissa'"),
    ('lora(rho=2.0)', "above 1 for init='eva'"),
    ("lora(alpha=0.0, init='pissa')", 'gives no update'),
    ('lora_plus(ratio=0.0)', 'ratio is above 0'),
  ],
)
def test_what_makes_no_sense_is_refused(spelling, match):
  with pytest.raises(FewshotError, match=match):
    methods.parse(spelling)


def test_an_init_by_gradient_needs_a_loss():
  forward, params, calib = setup()
  with pytest.raises(FewshotError, match='needs a loss to start from'):
    methods.lora('up', rank=2, init='lora_ga').init(KEY, forward, params, calib._replace(loss=None))


def test_eva_gives_ranks_to_the_sites_whose_directions_explain_most():
  """Two directions explain all of what `down` reads, so that the other ranks go to `up`."""
  forward, params, calib = setup()
  planned = methods.lora('up|down', rank=3, init='eva', rho=2.0).plan(forward, params, calib)
  assert "ranks=(('down', 2), ('up', 4))" in methods.spell(planned)
  assert methods.spell(methods.parse(methods.spell(planned))) == methods.spell(planned)
  theta, _ = planned.init(KEY, forward, params, calib)
  assert theta['down']['a'].shape == (8, 2) and theta['up']['a'].shape == (8, 4)
  assert planned.plan is None


def test_eva_leaves_out_sites_that_get_no_rank():
  forward, params, calib = setup()
  planned = methods.lora('up|down', rank=1, init='eva', rho=2.0).plan(forward, params, calib)
  theta, _ = planned.init(KEY, forward, params, calib)
  assert {p: t['a'].shape[1] for p, t in theta.items()} == {'down': 2}


def test_lora_plus_moves_b_faster():
  method = methods.lora_plus('up', rank=2, ratio=16.0)
  _, params, theta, state = begin(method)
  tx = optax.with_extra_args_support(method.optimizer(optax.adam(0.1)))
  grads = jax.tree.map(jnp.ones_like, theta)
  extra = {'method_state': state, 'frozen': params, 'step': 0, 'key': KEY}
  updates, _ = tx.update(grads, tx.init(theta), theta, **extra)
  np.testing.assert_allclose(updates['up']['a'], -0.1, rtol=1e-5)
  np.testing.assert_allclose(updates['up']['b'], -1.6, rtol=1e-5)


def test_lora_pro_moves_the_weight_as_near_as_it_can_to_its_gradient():
  d, r, k, s = 7, 2, 5, 1.7
  g, a, b = (RNG.standard_normal(n) for n in ((d, k), (d, r), (r, k)))
  plain = {'a': s * g @ b.T, 'b': s * a.T @ g}
  t = {n: jnp.asarray(x, jnp.float32) for n, x in (('a', a), ('b', b))}
  new = adjusted({n: jnp.asarray(x, jnp.float32) for n, x in plain.items()}, t, s)
  moved = lambda x: s * (x['a'] @ b + a @ x['b'])  # noqa: E731
  on = lambda x: x @ np.linalg.pinv(x)  # noqa: E731
  best = g - (np.eye(d) - on(a)) @ g @ (np.eye(k) - on(b.T))  # The projection on what A, B reach.
  np.testing.assert_allclose(moved(new), best, atol=1e-3)
  assert np.linalg.norm(moved(new) - g) < np.linalg.norm(moved(plain) - g)
  for other in RNG.standard_normal((5, r, r)):  # Of all that move W so, it is nearest to plain.
    turned = {'a': new['a'] + a @ other, 'b': new['b'] - other @ b}
    np.testing.assert_allclose(moved(turned), best, atol=1e-3)
    far = lambda x: sum(np.sum((np.asarray(x[n]) - plain[n]) ** 2) for n in x)  # noqa: E731
    assert far(new) < far(turned)


def test_lora_pro_takes_a_step_from_where_b_is_zero():
  method = methods.lora_pro('up', rank=2)
  _, params, theta, state = begin(method)
  tx = optax.with_extra_args_support(method.optimizer(optax.sgd(0.1)))
  grads = {'up': {'a': jnp.zeros_like(theta['up']['a']), 'b': jnp.ones((2, 6))}}
  extra = {'method_state': state, 'frozen': params, 'step': 0, 'key': KEY}
  updates, _ = tx.update(grads, tx.init(theta), theta, **extra)
  assert not updates['up']['a'].any() and np.abs(updates['up']['b']).min() > 1e-4


def test_sylvester():
  m, n = (
    x @ x.T + np.eye(len(x)) for x in (RNG.standard_normal((3, 3)), RNG.standard_normal((2, 2)))
  )
  c = RNG.standard_normal((3, 2))
  x = np.asarray(sylvester(*(jnp.asarray(v, jnp.float32) for v in (m, n, c))))
  np.testing.assert_allclose(m @ x + x @ n, c, atol=1e-4)


@pytest.mark.parametrize('spelling', ['{}', 'chain({}, linear())', 'chain(linear(), {})'])
def test_a_gradient_does_not_depend_on_a_head_that_starts_at_zero(tiny, spelling):
  """Such a head gives none, and a model may have none at all: class means stand in."""
  params = {k: v for k, v in tiny.params.items() if k != 'head'}
  unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
  features = lambda p: unit(tiny.forward(p, tiny.batch)['features'])  # noqa: E731
  labels = tiny.batch['labels']
  means = unit(jnp.stack([features(params)[labels == c].sum(0) for c in range(3)]))
  loss = lambda p: tiny.calib.loss({'logits': features(p) @ means.T}, tiny.batch).mean()  # noqa: E731
  gradient = jax.grad(loss)(params)['encoder']['block_0']['attn']['query']['kernel']
  inner = "lora(where='.*/block_0/attn/query', rank=2, init='lora_ga')"
  theta, _ = methods.parse(spelling.format(inner)).init(
    jax.random.key(0), tiny.forward, params, tiny.calib
  )
  parts = theta if isinstance(theta, tuple) else (theta,)
  (a,) = (unit(t['a'].T) for part in parts for p, t in part.items() if p != 'head')
  u = jnp.linalg.svd(gradient)[0][:, :2]
  np.testing.assert_allclose(jnp.abs(a @ u), np.eye(2), atol=1e-3)
