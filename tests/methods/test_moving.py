"""Masks that move: what each rule activates, what optimizers keep of it, and that one program runs.

Gradients are random numbers, so that no model is needed: a rule sees them and theta alone.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fewshot import fits, methods, objectives
from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.methods.moving_rules import BOOLEAN, INDEXED, Rule, moving, stacked

DEPTH = 4
BLOCK = {
  **{f'attn/{n}/kernel': (3, 4) for n in ('query', 'key', 'value', 'out')},
  'mlp/up/kernel': (4, 5), 'mlp/down/kernel': (5, 4), 'ln1/scale': (4,), 'ln2/scale': (4,),
}  # fmt: skip
SHAPES = {f'encoder/block_{i}/{p}': s for i in range(DEPTH) for p, s in BLOCK.items()}
SHAPES |= {'embed/embedding': (6, 4), 'encoder/ln/scale': (4,), 'head/kernel': (4, 2)}
BLOCKS = DEPTH * sum(math.prod(s) for s in BLOCK.values())


def draw(shapes: Any, seed: int) -> Any:
  rng = np.random.default_rng(seed)
  return {p: rng.standard_normal(s).astype(np.float32) for p, s in shapes.items()}


PARAMS = draw(SHAPES, 0)


class Step(NamedTuple):
  """One step of an optimizer."""

  grads: dict[str, np.ndarray]
  before: dict[str, np.ndarray]
  after: dict[str, np.ndarray]
  opt: Any

  @property
  def mask(self) -> dict[str, np.ndarray]:
    return self.opt[1]

  @property
  def moved(self) -> dict[str, np.ndarray]:
    return {p: self.after[p] != w for p, w in self.before.items()}

  @property
  def leaves(self) -> set[str]:
    """The leaves of which every entry moved; no other leaf may have moved in part."""
    assert all(m.all() or not m.any() for m in self.moved.values())
    return {p for p, m in self.moved.items() if m.all()}


def run(
  method: methods.Method, steps: int, tx: Any = None, params: Any = None, calib: Any = None,
  forward: Any = None, seed: int = 0,
) -> list[Step]:  # fmt: skip
  """Steps of `method`, all of them by one compiled program."""
  params = PARAMS if params is None else params
  theta, state = method.init(jax.random.key(0), forward, params, calib)
  inner = optax.with_extra_args_support(method.optimizer(tx or optax.sgd(0.1)))
  theta = jax.tree.map(jnp.asarray, theta)
  opt, traced, seen = inner.init(theta), [], []

  @jax.jit
  def step(theta: Any, opt: Any, grads: Any, t: Any, frozen: Any) -> Any:
    traced.append(t)
    key = jax.random.fold_in(jax.random.key(seed), t)
    extra = {'step': t, 'key': key, 'method_state': state, 'frozen': frozen}
    updates, opt = inner.update(grads, opt, theta, **extra)
    return optax.apply_updates(theta, updates), opt

  for t in range(steps):
    grads = draw({p: x.shape for p, x in theta.items()}, 100 + t)
    after, opt = step(theta, opt, grads, jnp.int32(t), params)
    seen.append(Step(grads, *jax.tree.map(np.asarray, (theta, after, opt))))
    theta = after
  assert len(traced) == 1, 'a mask that moves must not compile anything'
  return seen


# The wrapper.


FORMS = {
  'boolean': (BOOLEAN, lambda on: {p: on[p] for p in on}),
  'indexed': (INDEXED, lambda on: {p: jnp.flatnonzero(m, size=2) for p, m in on.items()}),
  'stacked': (
    stacked(lambda theta: {'a head b': list(theta)}),
    lambda on: {'a head b': jnp.flatnonzero(jnp.stack([m.any() for m in on.values()]), size=1)},
  ),
}
ON = [  # What is active at each step, of two leaves [2, 2].
  {'a': [[1, 1], [0, 0]], 'head/b': [[0, 0], [1, 1]]},
  {'a': [[1, 1], [0, 0]], 'head/b': [[0, 0], [1, 1]]},
  {'a': [[1, 0], [1, 0]], 'head/b': [[0, 1], [1, 0]]},
  {'a': [[0, 0], [1, 1]], 'head/b': [[0, 1], [1, 0]]},
  {'a': [[1, 1], [0, 0]], 'head/b': [[1, 1], [0, 0]]},
]
WHOLE = [{'a': np.full((2, 2), a), 'head/b': np.full((2, 2), not a)} for a in (1, 1, 0, 0, 1)]


def reference(grads: list, masks: list, theta: Any, lr: float, decay: float) -> Any:
  """AdamW in which an entry's moments vanish while it is not active."""
  m = v = {p: np.zeros((2, 2)) for p in theta}
  for t, (g, on) in enumerate(zip(grads, masks, strict=True)):
    m = {p: np.where(on[p], 0.9 * m[p] + 0.1 * g[p], 0) for p in theta}
    v = {p: np.where(on[p], 0.999 * v[p] + 0.001 * g[p] ** 2, 0) for p in theta}
    hats = {p: (m[p] / (1 - 0.9 ** (t + 1)), v[p] / (1 - 0.999 ** (t + 1))) for p in theta}
    step = {p: a / (np.sqrt(b) + 1e-8) + decay * theta[p] for p, (a, b) in hats.items()}
    theta = {p: theta[p] - lr * np.where(on[p], step[p], 0) for p in theta}
  return theta


@pytest.mark.parametrize('form', FORMS)
def test_active_entries_take_adams_steps_and_the_others_none(form):
  """Decay included; moments stay with an entry while it is active, and start at zero."""
  moves = WHOLE if form == 'stacked' else ON
  masks = [{p: np.asarray(m, bool) for p, m in on.items()} for on in moves]
  kind, of = FORMS[form]
  table = jax.tree.map(lambda *m: jnp.stack(m), *masks)
  pick = lambda t: of({p: m[t] for p, m in table.items()})  # noqa: E731
  blank = lambda theta: jax.tree.map(jnp.zeros_like, pick(0))  # noqa: E731
  rule = Rule(blank, lambda s: pick(s.step), lambda t: (t == 0) | (t > 1), kind)
  adam = optax.adamw(0.1, weight_decay=0.5)
  groups = optax.partition(  # As `sgd` makes them.
    {'body': adam, 'head': adam},
    lambda tree: jax.tree_util.tree_map_with_path(
      lambda p, _: 'head' if 'head' in paths.keystr(p) else 'body', tree
    ),
  )
  theta = draw({'a': (2, 2), 'head/b': (2, 2)}, 1)
  method = methods.full()._replace(optimizer=lambda tx: moving(tx, rule))
  seen = run(method, len(masks), groups, theta)
  want = reference([s.grads for s in seen], masks, theta, 0.1, 0.5)
  for p, w in seen[-1].after.items():
    np.testing.assert_allclose(w, want[p], rtol=2e-5)
  for s, on in zip(seen, masks, strict=True):
    assert all((s.moved[p] == on[p]).all() for p in on)


def test_a_statistic_of_a_whole_leaf_survives_a_move():
  """Adafactor's row means are shaped as no mask."""
  tx = optax.adafactor(0.1, min_dim_size_to_factor=2)
  seen = run(methods.gmt(0.5)._replace(optimizer=methods.id3(0.5, 3).optimizer), 4, tx)
  assert all(np.isfinite(w).all() for w in seen[-1].after.values())


# Rules of entries.


def test_gmt_moves_the_steepest_entries_of_each_tensor():
  for s in run(methods.gmt(0.2), 4):
    for p, g in s.grads.items():
      n = math.ceil(0.2 * g.size)
      want = np.abs(g) >= np.sort(np.abs(g).ravel())[-n]
      assert want.sum() == n and (s.moved[p] == want).all()
      np.testing.assert_allclose(s.after[p], s.before[p] - 0.1 * want * g, atol=1e-6)


def test_gmt_keeps_moments_between_masks():
  """Entries come and go each step; Adam's moments are those of the masked gradient throughout."""
  steps = run(methods.gmt(0.3, where='head/.*'), 5, optax.adam(0.1))
  m = 0
  for s in steps:
    m = 0.9 * m + 0.1 * s.grads['head/kernel'] * s.moved['head/kernel']
  np.testing.assert_allclose(steps[-1].opt[0][0].mu['head/kernel'], m, rtol=1e-5)


@pytest.mark.parametrize(
  ('score', 'merit'),
  [
    ('magnitude()', lambda w, g: np.abs(w)),
    ('gradient()', lambda w, g: np.abs(g)),
    ('snip()', lambda w, g: np.abs(w * g)),
    ('taylor(signed=True)', lambda w, g: -w * g),
    ('d3(eps=0.1)', lambda w, g: np.abs(g) / (np.abs(w) + 0.1)),
  ],
)
def test_salient_finds_the_best_of_all_tensors_anew_each_period(score, merit):
  """Until then what was found trains; what falls out stays where it has come to."""
  steps = run(methods.parse(f"salient({score}, 19, period=3, where='.*')"), 7)
  flat = lambda tree: np.concatenate([np.ravel(tree[p]) for p in PARAMS])  # noqa: E731
  masks = []
  for t, s in enumerate(steps):
    if t % 3 == 0:
      best = np.argsort(-merit(flat(s.before), flat(s.grads)), kind='stable')[:19]
      masks.append(np.isin(np.arange(flat(s.mask).size), best))
    assert (flat(s.mask) == masks[-1]).all()
    want = flat(s.before) - 0.1 * masks[-1] * flat(s.grads)
    np.testing.assert_allclose(flat(s.after), want, atol=1e-6)
  assert (masks[0] != masks[1]).any()


def test_salient_draws_a_random_control_and_refuses_scores_that_look_further():
  first, second = (run(methods.parse('salient(random(), 0.1)'), 1, seed=i)[0].mask for i in (0, 1))
  size = sum(m.size for m in first.values())
  assert sum(m.sum() for m in first.values()) == math.ceil(0.1 * size)
  assert any((first[p] != second[p]).any() for p in first)
  for bad in ('fisher()', 'head_norms()'):
    with pytest.raises(FewshotError, match=r'looks further; take magnitude'):
      methods.parse(f'salient({bad}, 0.1)')
  with pytest.raises(FewshotError, match=r'a fraction up to 1.0'):
    methods.parse('salient(snip(), 1.5)')


@pytest.mark.parametrize('exp', [0.0, 1.0])
def test_id3_unmasks_the_best_of_all_tensors_until_its_budget(exp):
  budget, steps = 23, 5
  seen = run(methods.id3(budget, steps, exp=exp, eps=0.01), steps + 2)
  names, mask = list(PARAMS), np.zeros(sum(w.size for w in PARAMS.values()), bool)
  flat = lambda tree: np.concatenate([np.ravel(tree[p]) for p in names])  # noqa: E731
  for t, s in enumerate(seen):
    merit = np.abs(flat(s.grads)) / (np.abs(flat(s.before)) + 0.01) ** exp
    merit[mask] = -1
    more = budget // steps + (t < budget % steps) if t < steps else 0
    mask[np.argsort(-merit)[:more]] = True
    assert (flat(s.mask) == mask).all() and (flat(s.moved) == mask).all()
  assert mask.sum() == budget
  assert (flat(seen[-1].after)[~mask] == flat(PARAMS)[~mask]).all()


def test_id3_takes_a_fraction_and_no_more_than_there_is():
  size = sum(w.size for w in PARAMS.values())
  share = run(methods.id3(0.1, 3), 4)[-1].mask
  assert sum(m.sum() for m in share.values()) == math.ceil(0.1 * size)
  whole = run(methods.id3(10**6, 3), 4)[-1].mask
  assert all(m.all() for m in whole.values())


def test_id3_masks_what_another_method_trains():
  """Of LoRA's matrices so many numbers as the budget says move, the others keep their bits."""
  leaves = {f'encoder/block_{i}/map/kernel': (6, 5) for i in range(2)}
  shapes = {p.removesuffix('/kernel'): {'a': (6, 2), 'b': (2, 5)} for p in leaves}
  theta = {p: draw(s, i) for i, (p, s) in enumerate(shapes.items())}
  inner = methods.full()._replace(init=lambda *_: (theta, {}), made=methods.full().made)
  method = methods.id3(11, 4, exp=1.0, method=inner)
  tx = optax.with_extra_args_support(method.optimizer(optax.adamw(0.1, weight_decay=0.5)))
  now, opt, mask = theta, tx.init(theta), None
  for t in range(6):
    grads = jax.tree.map(lambda x, t=t: draw({'g': x.shape}, 9 + t)['g'], theta)
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])  # noqa: E731
    mask = np.zeros(flat(theta).size, bool) if mask is None else mask
    merit = np.where(mask, -1, np.abs(flat(grads)) / (np.abs(flat(now)) + 1e-3))
    mask[np.argsort(-merit)[: (11 // 4 + (t < 3)) if t < 4 else 0]] = True
    extra = {'step': t, 'key': jax.random.key(t), 'method_state': {}, 'frozen': {}}
    updates, opt = tx.update(grads, opt, now, **extra)
    np.testing.assert_array_equal(flat(updates) != 0, mask)
    now = optax.apply_updates(now, updates)
  assert mask.sum() == 11 and (flat(now)[~mask] == flat(theta)[~mask]).all()


def test_id3_of_a_method_keeps_the_rule_of_that_method():
  plus = methods.id3(0.5, 2, method=methods.lora_plus(rank=2))
  assert methods.spell(plus) == 'id3(0.5, 2, method=lora_plus(rank=2))'
  with pytest.raises(FewshotError, match='give where= to the method itself'):
    methods.id3(0.5, 2, where='.*/kernel', method=methods.lora())


def principal(w: np.ndarray, rank: int, n: int) -> np.ndarray:
  u, s, v = np.linalg.svd(w, full_matrices=False)
  return np.sort(np.argsort(-np.abs((u[:, :rank] * s[:rank]) @ v[:rank]).ravel())[:n])


def test_lift_refreshes_principal_weights_and_carries_their_moments():
  params = draw({'mlp/up/kernel': (8, 12)}, 3)
  method = methods.lift_refresh('.*', rank=1, filter_rank=2, period=3)
  seen, n, m = run(method, 7, optax.adam(0.3), params), 20, np.zeros(96)
  old = np.zeros(0)
  for t, s in enumerate(seen):
    index = s.mask['mlp/up/kernel']
    if t % 3 == 0:
      want = principal(s.before['mlp/up/kernel'], 2, n)
      assert t == 0 or 0 < len(np.intersect1d(want, old)) < n  # Some stay, some are new.
      old = want
    np.testing.assert_array_equal(index, want)
    on = np.isin(np.arange(96), want)
    np.testing.assert_array_equal(s.moved['mlp/up/kernel'].ravel(), on)
    m = np.where(on, 0.9 * m + 0.1 * s.grads['mlp/up/kernel'].ravel(), 0)
    mu = s.opt[0][0].mu['mlp/up/kernel']
    assert mu.shape == (n,)
    np.testing.assert_allclose(mu, m[want], rtol=1e-5, atol=1e-7)


def test_rigl_drops_the_small_and_grows_the_steep():
  params, drop, steps, n = draw({'w': (10, 10)}, 4), 0.5, 8, 20
  method = methods.rigl(0.2, steps, where='w', drop=drop, period=2)
  seen, index = run(method, 11, params=params), None
  for t, s in enumerate(seen):
    d, g = s.before['w'].ravel(), np.abs(s.grads['w'].ravel())
    if t == 0:
      index = np.sort(s.mask['w'])
      assert len(set(index.tolist())) == n
    elif t % 2 == 0 and t <= steps:
      count = math.floor(drop / 2 * (1 + math.cos(math.pi * t / steps)) * n + 1e-4)
      kept = index[np.argsort(-np.abs(d[index]))[: n - count]]
      g[kept] = -1
      index = np.sort(np.concatenate([kept, np.argsort(-g)[:count]]))
    np.testing.assert_array_equal(np.sort(s.mask['w']), index)
    assert np.isin(np.flatnonzero(s.after['w']), index).all()  # The rest is as it was pretrained.
    assert s.opt[1]['w'].size == n
  assert np.count_nonzero(seen[-1].after['w']) == n
  assert not np.array_equal(np.sort(seen[0].mask['w']), index)


def test_rigl_starts_where_the_key_says():
  first = [run(methods.rigl(0.2, 8), 1, seed=s)[0].mask for s in (0, 0, 1)]
  p = 'encoder/block_0/attn/query/kernel'
  assert (first[0][p] == first[1][p]).all() and set(first[0][p]) != set(first[2][p])


def test_child_tuning_f_draws_a_child_each_step():
  steps, total = run(methods.child_tuning_f(p=0.25), 6), 0
  size = sum(w.size for w in PARAMS.values())
  for s in steps:
    on = s.mask
    for p, g in s.grads.items():
      np.testing.assert_allclose(s.after[p], s.before[p] - 0.1 * on[p] * g / 0.25, rtol=1e-5)
    total += sum(m.sum() for m in on.values())
  assert abs(total / (6 * size) - 0.25) < 0.03
  p = 'embed/embedding'
  assert len({s.mask[p].tobytes() for s in steps}) == 6
  assert (
    steps[0].mask['encoder/block_0/mlp/up/kernel'] != steps[0].mask['encoder/block_1/mlp/up/kernel']
  ).any()


def linear(params, batch, key=None):
  """Logits of a linear model whose kernels are those of two blocks and a head."""
  p = paths.flatten(params)
  x = jnp.tanh(batch['x'] @ p['encoder/block_0/w']) @ p['encoder/block_1/w']
  return {'features': x, 'logits': x @ p['head/kernel']}


def test_child_tuning_d_chooses_by_fisher_information():
  params = draw(
    {'encoder/block_0/w': (3, 4), 'encoder/block_1/w': (4, 5), 'head/kernel': (5, 3)}, 5
  )
  batch = draw({'x': (7, 3)}, 6) | {'labels': np.arange(7, dtype=np.int32) % 3}
  calib = methods.Calib(batch, 3, objectives.classification().loss)
  steps = run(methods.child_tuning_d(p=0.3), 3, optax.adamw(0.1), params, calib, linear)
  fisher = {p: np.zeros(w.shape) for p, w in params.items()}
  for i in range(7):
    one = {k: v[i : i + 1] for k, v in batch.items()}
    g = jax.grad(lambda p, one=one: calib.loss(linear(p, one), one).sum())(params)
    fisher = {p: fisher[p] + np.asarray(g[p]) ** 2 / 7 for p in g}
  inside = [p for p in params if 'block' in p]
  least = np.sort(np.concatenate([fisher[p].ravel() for p in inside]))[-math.ceil(0.3 * 32)]
  for s in steps:
    assert s.moved['head/kernel'].all()
    assert all((s.moved[p] == (fisher[p] >= least)).all() for p in inside)


# Rules of leaves.


def test_hft_trains_half_of_each_category_and_draws_it_anew_each_round():
  steps = run(methods.hft(2), 8, optax.adamw(0.1))
  outside = {p for p in SHAPES if 'block_' not in p}
  halves = []
  for s in steps:
    assert outside <= s.leaves
    for i in range(DEPTH):
      own = [p.split('/', 2)[2] for p in s.leaves if f'block_{i}/' in p]
      count = {c: sum(p.startswith(c) for p in own) for c in ('attn', 'mlp', 'ln')}
      assert count == {'attn': 2, 'mlp': 1, 'ln': 1}
    halves.append(frozenset(s.leaves))
  assert all(halves[t] == halves[t + 1] for t in (0, 2, 4, 6)) and len(set(halves)) == 4


def test_of_an_odd_category_half_of_the_blocks_train_the_larger_part():
  shapes = {f'encoder/block_{i}/mlp/{n}/kernel': (2, 2) for i in range(6) for n in 'abc'}
  for s in run(methods.hft(1), 3, params=draw(shapes, 1)):
    sizes = [sum(f'block_{i}/' in p for p in s.leaves) for i in range(6)]
    assert sorted(sizes) == [1, 1, 1, 2, 2, 2]


def test_lisa_trains_few_layers_at_a_time_and_the_rest_always():
  steps = run(methods.lisa(layers=2, period=3), 24, optax.adamw(0.1))
  outside, chosen = {p for p in SHAPES if 'block_' not in p}, []
  for s in steps:
    on = {p.split('/')[1] for p in s.leaves - outside}
    assert len(on) == 2 and outside <= s.leaves
    assert s.leaves - outside == {f'encoder/{b}/{p}' for b in on for p in BLOCK}
    chosen.append(frozenset(on))
  rounds = [chosen[t : t + 3] for t in range(0, 24, 3)]
  assert all(len(set(r)) == 1 for r in rounds) and len(set(chosen)) > 2
  assert frozenset.union(*chosen) == {f'block_{i}' for i in range(DEPTH)}


def test_lisas_moments_are_those_of_its_slots():
  opt = run(methods.lisa(layers=1, period=3), 1, optax.adam(0.1))[0].opt
  outside = sum(w.size for p, w in PARAMS.items() if 'block_' not in p)
  sizes = [sum(x.size for x in jax.tree.leaves(m)) for m in (opt[0][0].mu, opt[0][0].nu)]
  assert sizes == [outside + BLOCKS // DEPTH] * 2


def test_unfreezing_goes_from_the_last_block_down():
  for t, s in enumerate(run(methods.unfreeze(2), 14, optax.adamw(0.1))):
    rounds = t // 2
    blocks = range(max(0, DEPTH - rounds), DEPTH)
    want = {f'encoder/block_{i}/{p}' for i in blocks for p in BLOCK}
    want |= {'encoder/ln/scale', 'head/kernel'}
    assert s.leaves == want | ({'embed/embedding'} if rounds > DEPTH else set())


# In a fit.

EACH = [
  'gmt(0.3)', 'id3(12, 3)', "lift_refresh('.*/w', rank=1, filter_rank=1, period=2)",
  "rigl(0.3, 4, where='.*/w', period=2)",
  'child_tuning_f(p=0.5)', 'child_tuning_d(p=0.5)', 'hft(2)', 'lisa(layers=1, period=2)',
  'unfreeze(2)',
]  # fmt: skip


@pytest.mark.parametrize('spelling', EACH)
def test_a_fit_of_several_runs_is_each_of_them(spelling):
  """Through `sgd` inside one scan, with a head of its own, vmapped over keys."""
  shapes = {'encoder/block_0/w': (4, 4), 'encoder/block_1/w': (4, 4), 'head/kernel': (4, 3)}
  params = draw(shapes, 5)
  data = fits.Data(draw({'x': (9, 4)}, 6) | {'labels': np.arange(9, dtype=np.int32) % 3})
  calib = methods.Calib(data.train, 3, objectives.classification().loss)
  method = methods.chain(methods.parse(spelling), methods.linear())
  loss = fits.Loss(linear, method, params, objectives.classification())
  fit = fits.sgd(steps=6, lr=0.05, batch=3, weight_decay=0.1)

  def fitted(key):
    theta, state = method.init(key, linear, params, calib)
    return fit(loss, theta, state, data, key)[0]

  keys = jax.random.split(jax.random.key(3), 2)
  both = jax.jit(jax.vmap(fitted))(keys)
  for i, key in enumerate(keys):
    one = jax.jit(fitted)(key)
    jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=2e-5), both, one)
    assert any((w != params[p]).any() for p, w in one[0].items() if p in params)


@pytest.mark.parametrize(
  ('spelling', 'said'),
  [
    ('gmt(0.0)', r'gmt\(fraction=0.0\) is a share, above 0 and at most 1'),
    ('id3(0, 10)', r'id3\(budget=0\): a count from 1'),
    ('id3(1.5, 10)', 'or a fraction up to 1.0'),
    ('id3(5, 0)', r'steps=0\) is too small'),
    ('id3(5, 5, eps=0.0)', 'eps is above 0'),
    ('lift_refresh(rank=0)', 'rank is at least 1'),
    ('rigl(0.1, 10, drop=2.0)', r'rigl\(drop=2.0\) is a share'),
    ('sara(threshold=0.0)', 'the threshold is above 0'),
    ('child_tuning_f(p=1.5)', r'p=1.5\) is a share'),
    ('child_tuning_d(p=0.0)', r'p=0.0\) is a share'),
    ('hft(0)', 'period is at least 1'),
    ('lisa(layers=0)', 'layers is at least 1'),
    ('unfreeze(0)', 'period is at least 1'),
  ],
)
def test_arguments_are_checked(spelling, said):
  with pytest.raises(FewshotError, match=said):
    methods.parse(spelling)


@pytest.mark.parametrize(
  ('method', 'shapes', 'said'),
  [
    (methods.lisa(layers=5), SHAPES, r'lisa\(layers=5\) is more than the 4 blocks'),
    (methods.lisa(), {'block_0/w': (2,), 'block_1/w': (3,)}, r'block_\*/w is not alike in all'),
    (methods.lisa(layers=1), {'block_0/w': (2,), 'block_1/b': (2,)}, 'blocks of one shape'),
    (methods.hft(2), {'w': (2,)}, 'there are no blocks'),
    (methods.unfreeze(2), {'w': (2,)}, 'there are no blocks'),
    (methods.lift_refresh('w'), {'w': (2,)}, 'lift_refresh takes kernels'),
  ],
)
def test_models_that_do_not_fit_are_refused(method, shapes, said):
  with pytest.raises(FewshotError, match=said):
    method.init(jax.random.key(0), None, draw(shapes, 0), None)
