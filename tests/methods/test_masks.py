"""Which leaves the methods of masks.py take, and that the others keep their bits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fewshot import methods, models, objectives
from fewshot.errors import FewshotError
from fewshot.methods import paths
from tests.parity import errors

KEY = jax.random.key(0)


def taken(method: methods.Method, params) -> list[str]:
  """The paths of theta; a method of this file starts as the params, bit for bit."""
  theta, state = method.init(KEY, None, params, None)
  flat = paths.flatten(params)
  assert state == {} and all(np.array_equal(x, flat[p]) for p, x in theta.items())
  return list(theta)


def blocks(names, module: str = 'w', stack: str = 'encoder/') -> dict:
  return {f'{stack}{n}/{module}': np.ones(2, np.float32) for n in names}


def test_attention_only_takes_the_maps_of_attention_alone(tiny):
  found = taken(methods.attention_only(), tiny.params)
  pattern = r'encoder/block_[01]/attn/(query|key|value|out)/(kernel|bias)'
  assert len(found) == 16 and all(re.fullmatch(pattern, p) for p in found)


def test_embeddings_are_what_precedes_the_first_block(tiny):
  assert taken(methods.embeddings(), tiny.params) == [
    'embed/embedding',
    'inputs/ln/bias',
    'inputs/ln/scale',
    'inputs/positions/embedding',
    'inputs/types/embedding',
  ]


@pytest.mark.parametrize(
  ('first', 'last', 'want'),
  [(0, -1, [0, 1, 2]), (1, 1, [1]), (-2, -1, [1, 2]), (0, 1, [0, 1]), (1, -1, [1, 2])],
)
def test_layers_are_counted_from_both_ends(first, last, want):
  params = blocks(f'block_{i}' for i in range(3)) | {'head/bias': np.ones(2, np.float32)}
  assert taken(methods.layers(first, last), params) == [f'encoder/block_{i}/w' for i in want]


def test_block_ten_comes_after_block_nine():
  params = blocks(f'block_{i}' for i in range(11))
  assert set(taken(methods.last_layers(2), params)) == {'encoder/block_9/w', 'encoder/block_10/w'}


def test_blocks_are_counted_through_stages_and_in_each_stack():
  cnn = blocks(['stage_0/block_0', 'stage_1/block_0', 'stage_1/block_1'], stack='')
  assert taken(methods.layers(1, 1), cnn) == ['stage_1/block_0/w']
  towers = blocks(['block_0'], stack='text/') | blocks(['block_0', 'block_1'], stack='image/')
  assert taken(methods.last_layers(), towers) == ['image/block_1/w', 'text/block_0/w']


def test_a_where_takes_some_leaves_of_the_layers(tiny):
  where = methods.at('.*/mlp/.*') & ~methods.at('.*/bias')
  found = taken(methods.layers(1, 1, where), tiny.params)
  assert found == ['encoder/block_1/mlp/down/kernel', 'encoder/block_1/mlp/up/kernel']


@pytest.mark.parametrize(
  ('make', 'said'),
  [
    (lambda: methods.layers(2, 1), 'is empty; first is at most last'),
    (lambda: methods.last_layers(0), 'k is at least 1'),
    (lambda: methods.tokens(()), 'ids of different tokens'),
    (lambda: methods.tokens((3, 3)), 'ids of different tokens'),
    (lambda: methods.tokens((-1,)), 'ids of different tokens'),
  ],
)
def test_arguments_that_select_nothing_are_refused(make, said):
  with pytest.raises(FewshotError, match=said):
    make()


@pytest.mark.parametrize(
  ('method', 'said'),
  [
    (methods.layers(0, 2), 'there is no block 2; encoder has 2, 0 to 1'),
    (methods.last_layers(3), 'there is no block -3; encoder has 2'),
    (methods.layers(where='head/.*'), 'no leaf in common'),
    (methods.tokens((50,)), 'there is no token 50; the table has 50 rows'),
  ],
)
def test_what_a_model_lacks_is_refused(tiny, method, said):
  with pytest.raises(FewshotError, match=said):
    method.init(KEY, tiny.forward, tiny.params, tiny.calib)


def test_a_model_without_blocks_is_refused():
  with pytest.raises(FewshotError, match=r'there are no blocks .* among dense_\*/kernel \(2\)'):
    taken(methods.layers(), {f'dense_{i}/kernel': np.ones(2, np.float32) for i in range(2)})


def test_tokens_change_their_rows_and_no_other(tiny):
  method, ids = methods.tokens((7, 3)), [7, 3]
  table = tiny.params['embed']['embedding']
  theta, state = method.init(KEY, tiny.forward, tiny.params, tiny.calib)
  np.testing.assert_array_equal(theta['embed/embedding'], table[ids])
  new = {'embed/embedding': theta['embed/embedding'] + np.float32([[1], [2]])}
  after = np.asarray(method.weights(new, state, tiny.params)['embed']['embedding'])
  np.testing.assert_array_equal(after[ids], table[ids] + np.float32([[1], [2]]))
  others = [i for i in range(len(table)) if i not in ids]
  np.testing.assert_array_equal(after[others], table[others])


def test_the_gradient_of_tokens_is_the_tables_at_their_rows(tiny):
  """So training them is training the table with all other rows held."""
  method, loss = methods.tokens((7, 3)), objectives.classification()
  table = tiny.params['embed']['embedding']

  def value(theta):
    forward = methods.adapt(method, tiny.forward, theta, {})
    return loss.mean(forward(tiny.params, tiny.batch), tiny.batch)

  whole = tiny.calib.gradient(tiny.forward, tiny.params)['embed']['embedding']
  rows = jax.grad(value)({'embed/embedding': table[[7, 3]]})['embed/embedding']
  assert np.abs(rows).max() > 1e-4
  np.testing.assert_allclose(rows, whole[np.array([7, 3])], atol=1e-6)


@pytest.mark.parametrize('seed', [0, 1])
def test_random_half_takes_half_of_each_category_in_every_block(tiny, seed):
  found = taken(methods.random_half(seed), tiny.params)
  for i in range(2):
    own = {p.split('/', 2)[2].rpartition('/')[0] for p in found if f'block_{i}/' in p}
    count = {c: sum(m.startswith(c) for m in own) for c in ('attn', 'mlp', 'ln')}
    assert count == {'attn': 2, 'mlp': 1, 'ln': 1}
  outside = {p for p in paths.flatten(tiny.params) if 'block_' not in p}
  assert outside and outside <= set(found)
  module = lambda p: p.rpartition('/')[0]  # noqa: E731
  modules = {module(p) for p in found}  # A kernel is never without its bias.
  assert {p for p in paths.flatten(tiny.params) if module(p) in modules} == set(found)


def test_random_half_draws_anew_by_seed_and_always_the_same(tiny):
  draws = [taken(methods.random_half(s), tiny.params) for s in (0, 1, 2, 0)]
  assert draws[0] == draws[3] and len({tuple(d) for d in draws}) == 3


def test_of_three_matrices_half_of_the_blocks_train_two():
  params = {}
  for name in ('up', 'gate', 'down'):
    params |= blocks((f'block_{i}' for i in range(6)), f'mlp/{name}/kernel')
  found = taken(methods.random_half(), params)
  sizes = [sum(f'block_{i}/' in p for p in found) for i in range(6)]
  assert sorted(sizes) == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize('name', ['resnet-tiny', 'conv4-tiny', 'llama-tiny', 'dinov2-tiny'])
def test_random_half_is_about_half_of_the_blocks_of_other_families(name):
  params = models.load(str(errors.FIXTURES / name)).params
  leaves = {p: x.size for p, x in paths.flatten(params).items() if 'block_' in p}
  shares = [
    sum(leaves.get(p, 0) for p in taken(methods.random_half(seed), params)) / sum(leaves.values())
    for seed in range(20)
  ]
  assert 0.35 < np.mean(shares) < 0.65, np.mean(shares)


SOFT = {'block_0/w/kernel': (3, 4), 'block_0/w/bias': (4,), 'head/kernel': (4, 2)}


def soft(tx, found, **kwargs) -> dict[str, np.ndarray]:
  """The update of one step by gradients of 1, divided by that of `tune`."""
  score = methods.Score(lambda *_: {p: jnp.asarray(s) for p, s in found.items()})
  params = {p: np.ones(s, np.float32) for p, s in SOFT.items()}
  steps = []
  for method in (methods.soft_mask(score, **kwargs), methods.tune()):
    theta, state = method.init(KEY, None, params, None)
    inner = optax.with_extra_args_support(method.optimizer(tx))
    extra = {'step': 0, 'key': KEY, 'method_state': state, 'frozen': params}
    steps.append(inner.update(params, inner.init(theta), theta, **extra)[0])
  return {p: np.asarray(steps[0][p] / u) for p, u in steps[1].items()}


@pytest.mark.parametrize('tx', [optax.sgd(0.1), optax.adamw(0.1, weight_decay=0.3)])
def test_a_soft_mask_multiplies_updates_by_importance(tx):
  rng = np.random.default_rng(0)
  found = {p: rng.standard_normal(s).astype(np.float32) for p, s in SOFT.items() if 'w/' in p}
  share = {p: np.abs(s) / np.abs(s).max() for p, s in found.items()}
  for keep, want in (('largest', share), ('smallest', {p: 1 - i for p, i in share.items()})):
    got = soft(tx, found, keep=keep)
    for p, f in want.items():
      np.testing.assert_allclose(got[p], f, atol=1e-6)
    np.testing.assert_allclose(got['head/kernel'], 1)  # What has no score trains as it would.


def test_a_soft_mask_of_columns_is_normalised_as_cofitunes():
  rng = np.random.default_rng(1)
  found = {p: rng.standard_normal(s).astype(np.float32) for p, s in SOFT.items()}
  got = soft(optax.sgd(0.1), found, keep='smallest', granularity='column', scale='tanh')
  for p, s in found.items():
    unit = s.mean(0) if s.ndim > 1 else s
    want = 1 - np.abs(np.tanh((unit - unit.mean()) / unit.std()))
    np.testing.assert_allclose(got[p], np.broadcast_to(want, s.shape), atol=1e-5)


@pytest.mark.parametrize(
  ('spelling', 'said'),
  [
    ("soft_mask(snip(), keep='most')", r"keep='most'\) is not known; take one of"),
    ("soft_mask(snip(), granularity='row')", 'is not known'),
    ("soft_mask(snip(), scale='log')", 'is not known'),
    ('soft_mask(head_norms())', 'takes scores of entries, and this one is of a head'),
  ],
)
def test_soft_masks_check_their_arguments(spelling, said):
  with pytest.raises(FewshotError, match=said):
    methods.parse(spelling)


def test_the_last_blocks_start_anew_and_what_follows_trains_them(tiny):
  both = methods.chain(methods.reinitialised(), methods.full())
  theta, state = both.init(KEY, tiny.forward, tiny.params, tiny.calib)
  base, fresh = paths.flatten(tiny.params), theta[1]  # Where full() starts.
  changed = {p for p, w in fresh.items() if (np.asarray(w) != base[p]).any()}
  assert changed == {p for p in base if p.startswith('encoder/block_1/')} == set(state[0])
  for p in changed:
    if p.endswith('bias'):
      assert not np.asarray(fresh[p]).any()
    elif p.endswith('scale'):
      assert (np.asarray(fresh[p]) == 1).all()
    else:  # 1,024 draws or more, whose deviation is known to 2 %.
      assert np.std(fresh[p]) == pytest.approx(0.02, rel=0.1)
  maps = [np.ravel(fresh[f'encoder/block_1/attn/{n}/kernel']) for n in ('key', 'out')]
  assert abs(np.corrcoef(*maps)[0, 1]) < 0.2  # Each is drawn by itself.
  other = both.init(jax.random.key(1), tiny.forward, tiny.params, tiny.calib)[0][1]
  kernel = 'encoder/block_1/mlp/up/kernel'
  assert (np.asarray(fresh[kernel]) != other[kernel]).any()
  merged = methods.merge(both, theta, state, tiny.params)
  np.testing.assert_array_equal(merged['encoder']['block_1']['mlp']['up']['kernel'], fresh[kernel])


def test_what_cannot_start_anew_is_refused(tiny):
  init = lambda method, params: method.init(KEY, tiny.forward, params, tiny.calib)  # noqa: E731
  with pytest.raises(FewshotError, match='no block -3; encoder has 2'):
    init(methods.reinitialised(3), tiny.params)
  packed = {
    f'encoder/block_0/mlp/up/kernel/{n}': np.ones((2, 2), np.float32) for n in ('qvalue', 'scale')
  }
  with pytest.raises(FewshotError, match='mlp/up/kernel is quantised'):
    init(methods.reinitialised(), packed)
  with pytest.raises(FewshotError, match='std is above 0'):
    methods.reinitialised(std=0.0)
