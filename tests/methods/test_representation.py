"""Interventions on representations: what they edit and where, and what they start from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fewshot import methods, models, objectives
from fewshot.errors import FewshotError
from fewshot.methods import paths, representation
from fewshot.models import t5
from tests.models import decoders

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = {'x': RNG.standard_normal((8, 5, 8)).astype(np.float32), 'labels': np.arange(8) % 2}
LAST = 'encoder/block_1'


class Heads(nn.Module):
  """Logits that depend on the last of four heads alone."""

  @nn.compact
  def __call__(self, x):
    y = Core(name='core')(x.reshape(*x.shape[:-1], 4, 2))
    out = nn.Dense(3, name='out', use_bias=False)(y.reshape(x.shape))
    return {'features': out.mean(1), 'logits': 5 * y[..., 3, :].mean(1)}


class Core(nn.Module):
  @nn.compact
  def __call__(self, x):
    return x


def begun(method, perturb, model, batch):
  theta, state = method.init(KEY, model.forward, model.params, methods.Calib(batch, 3))
  return perturb(theta), state


def run(method, model, theta, state, batch):
  return methods.adapt(method, model.forward, theta, state)(model.params, batch)


def test_loreft_sets_the_subspace_and_leaves_its_complement(tiny, perturb):
  """R^T h' = W^T h + b, and what is orthogonal to R stays."""
  method = methods.loreft(LAST, rank=3)
  theta, state = begun(method, perturb, tiny, tiny.batch)
  t, h = theta[LAST], np.asarray(tiny.forward(tiny.params, tiny.batch)['hidden'])
  got = np.asarray(run(method, tiny, theta, state, tiny.batch)['hidden'])
  r = np.asarray(representation._orthonormal(jnp.asarray(t['rotation'])))
  np.testing.assert_allclose(r.T @ r, np.eye(3), atol=1e-5)
  np.testing.assert_allclose(got @ r, h @ t['source'] + t['bias'], atol=1e-4)
  np.testing.assert_allclose(got - got @ r @ r.T, h - h @ r @ r.T, atol=1e-4)


def test_an_orthonormal_rotation_is_itself():
  q = np.linalg.qr(RNG.standard_normal((7, 3)))[0].astype(np.float32) * np.float32([1, -1, 1])
  np.testing.assert_allclose(representation._orthonormal(jnp.asarray(q)), q, atol=1e-6)


@pytest.mark.parametrize('first, last', [(1, 0), (0, 2), (1, 2), (9, 0)])
def test_loreft_edits_the_first_and_last_real_tokens(tiny, perturb, first, last):
  method = methods.loreft(LAST, rank=2, first=first, last=last)
  theta, state = begun(method, perturb, tiny, tiny.batch)
  longer = {k: np.pad(tiny.batch[k], ((0, 0), (0, 3))) for k in ('tokens', 'mask')}
  base = np.asarray(tiny.forward(tiny.params, longer)['hidden'])
  got = np.asarray(run(method, tiny, theta, state, longer)['hidden'])
  for row, moved in zip(longer['mask'], np.abs(got - base).max(-1) > 1e-4, strict=True):
    n = row.sum()
    want = [i < n and (i < first or i >= n - last) for i in range(len(row))]
    assert moved.tolist() == want


def test_loreft_leaves_what_is_decoded_to_the_prompt(perturb):
  """With positions a continued pass is the base's on the cache it is given; without, it edits."""
  model, new = decoders.tiny('gpt2'), np.array([[4], [5], [6]])
  for method, edits in ((methods.loreft(last=1, rank=2), False), (methods.loreft(rank=2), True)):
    theta, state = begun(method, perturb, model, model.batch)
    cache = run(method, model, theta, state, model.batch | {'room': np.zeros(2)})['cache']
    batch = {'tokens': new, 'cache': cache}
    then = run(method, model, theta, state, batch)['hidden']
    base = model.forward(model.params, batch)['hidden']
    assert (np.abs(np.asarray(then) - base).max() > 1e-3) == edits


def test_loreft_does_not_take_what_returns_two_arrays(tiny):
  with pytest.raises(FewshotError, match=r"'inputs' returns .*, not one floating array"):
    methods.loreft('inputs').init(KEY, tiny.forward, tiny.params, tiny.calib)


def test_positions_of_a_decoder_are_not_those_of_the_mask():
  config = t5.Config(vocab=9, dim=8, depth=1, decoder_depth=1, heads=2, head_dim=4, width=16)
  forward, params, calib = (
    t5.forward(config),
    t5.init(config, KEY),
    methods.Calib(t5.example(config)),
  )
  theta, _ = methods.loreft(rank=2).init(KEY, forward, params, calib)
  assert set(theta) == {'encoder/block_0', 'decoder/block_0'}
  with pytest.raises(FewshotError, match="which is not of 'decoder/block_0'; choose other blocks"):
    methods.loreft(rank=2, first=1).init(KEY, forward, params, calib)


def test_red_without_a_bias_keeps_theta(perturb):
  model = decoders.tiny('llama')
  method = methods.red()
  theta, state = begun(method, perturb, model, model.batch)
  with pytest.raises(FewshotError, match='red merges its shift into a bias'):
    methods.merge(method, theta, state, model.params)


def test_red_scales_and_shifts_what_the_mlp_adds(tiny, perturb):
  method = methods.red('.*/mlp')
  theta, state = begun(method, perturb, tiny, tiny.batch)
  add = representation.outputs(tiny.forward, tiny.params, tiny.batch, 'encoder/block_0/mlp')
  adapted = methods.adapt(method, tiny.forward, theta, state)
  got = representation.outputs(adapted, tiny.params, tiny.batch, 'encoder/block_0/ln2')
  base = representation.outputs(tiny.forward, tiny.params, tiny.batch, 'encoder/block_0/ln1')
  t, (y,), (x,) = theta['encoder/block_0/mlp'], add.values(), base.values()
  ln = tiny.params['encoder']['block_0']['ln2']
  z = np.asarray(x) + np.asarray(y) * t['scale'] + t['shift']
  z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-12)
  np.testing.assert_allclose(*got.values(), z * ln['scale'] + ln['bias'], atol=1e-4)


def test_lofit_finds_the_head_that_matters():
  forward = models.from_linen(Heads())
  params = jax.tree.map(np.asarray, Heads().init(KEY, X['x'])['params'])
  calib = methods.Calib(X, 2, objectives.classification().loss)
  planned = methods.lofit('core', top=0.25, steps=5).plan(forward, params, calib)
  assert methods.spell(planned) == "lofit(where='core', heads=(('core', (3,)),))"
  again = methods.parse(methods.spell(planned))
  assert again.plan is None
  theta, state = again.init(KEY, forward, params, calib)
  assert theta['core']['offset'].shape == (1, 2)
  with pytest.raises(FewshotError, match=r"merges into the bias of 'out'.*has none; keep theta"):
    methods.merge(again, theta, state, params)


@pytest.mark.parametrize('headed', [True, False])
def test_lofit_plans_with_the_models_head_or_one_of_its_own(tiny, headed, perturb):
  params = tiny.params if headed else {k: v for k, v in tiny.params.items() if k != 'head'}
  planned = methods.lofit(top=0.25, steps=3).plan(tiny.forward, params, tiny.calib)
  chosen = dict(planned.made.named)['heads']
  assert sum(len(h) for _, h in chosen) == 2  # Of 2 x 4.
  theta, state = begun(planned, perturb, tiny, tiny.batch)
  assert methods.count(theta) == 2 * 8 and set(theta) == {p for p, _ in chosen}
  got = run(planned, tiny, theta, state, tiny.batch)['features']
  merged = methods.merge(planned, theta, state, tiny.params)
  np.testing.assert_allclose(got, tiny.forward(merged, tiny.batch)['features'], atol=1e-5)
  before, after = paths.flatten(tiny.params), paths.flatten(merged)
  moved = {p for p, x in before.items() if np.abs(x - np.asarray(after[p])).max() > 0}
  assert moved == {f'{p.removesuffix("core")}out/bias' for p in theta}


def test_lofit_needs_a_loss_and_heads_that_exist(tiny):
  with pytest.raises(FewshotError, match='lofit scores heads by the loss'):
    methods.lofit().plan(tiny.forward, tiny.params, methods.Calib(tiny.batch, 3))
  method = methods.lofit(heads=(('encoder/block_0/attn/core', (0, 4)),))
  with pytest.raises(FewshotError, match=r'has the heads 0 to 3, not all of \(0, 4\)'):
    method.init(KEY, tiny.forward, tiny.params, tiny.calib)


def test_a_steering_vector_is_the_difference_of_two_classes(tiny):
  method = methods.bias_steering(alpha=2.0, positive=2, negative=0)
  theta, state = method.init(KEY, tiny.forward, tiny.params, tiny.calib)
  h = np.asarray(tiny.forward(tiny.params, tiny.batch)['hidden'])  # Of the last block.
  mask, labels = tiny.batch['mask'], tiny.batch['labels']
  means = np.stack([row[m].mean(0) for row, m in zip(h, mask, strict=True)])
  want = 2 * (means[labels == 2].mean(0) - means[labels == 0].mean(0))
  np.testing.assert_allclose(theta[LAST]['vector'], want, atol=1e-5)
  one = {LAST: theta[LAST]}
  got = run(method, tiny, one, state, tiny.batch)['hidden']
  np.testing.assert_allclose(got, h + want, atol=1e-5)


def test_a_contrast_needs_labels(tiny):
  batch = {k: tiny.batch[k] for k in ('tokens', 'mask')}
  with pytest.raises(FewshotError, match='starts from labels, and the batch has none'):
    methods.bias_steering(alpha=1.0).init(KEY, tiny.forward, tiny.params, methods.Calib(batch))


@pytest.mark.parametrize(
  'spelling, why',
  [
    ('loreft(rank=0)', 'rank is at least 1'),
    ('loreft(last=-1)', 'positions at least 0'),
    ('lofit(top=0.0)', r'top is in \(0, 1\]'),
    ('bias_steering(positive=0)', 'contrasts two labels; both are 0'),
  ],
)
def test_arguments_out_of_range_are_refused(spelling, why):
  with pytest.raises(FewshotError, match=why):
    methods.parse(spelling)


def test_which_tokens_are_real():
  x, mask = np.zeros((2, 3, 4)), np.array([[True, False], [True, True]])
  real = lambda **batch: representation.real(batch, x).tolist()  # noqa: E731
  assert real(mask=mask) == [[False, True, False], [False, True, True]]
  everything = [[True] * 3] * 2
  assert real() == everything == real(mask=mask, image=x) == real(mask=np.ones((3, 3), bool))


@pytest.mark.parametrize('order', ['chain({0}, {1})', 'chain({1}, {0})'])
@pytest.mark.parametrize(
  'beside', ["lora(where='.*/attn/out', rank=2)", "oft(where='.*/attn/out')"]
)
def test_lofit_merges_into_what_the_others_made_of_the_weight(tiny, perturb, order, beside):
  method = methods.parse(order.format('lofit()', beside))
  theta, state = method.init(KEY, tiny.forward, tiny.params, tiny.calib)
  theta = perturb(theta)
  applied = methods.adapt(method, tiny.forward, theta, state)(tiny.params, tiny.batch)
  merged = tiny.forward(methods.merge(method, theta, state, tiny.params), tiny.batch)
  np.testing.assert_allclose(merged['features'], applied['features'], atol=1e-4)
