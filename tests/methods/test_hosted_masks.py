"""What papers.json says of systems that choose what to train: its spellings, by what they move.

Where a score is not computed here anew, it has its own test in tests/methods/scoring.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import methods, objectives, papers
from fewshot.methods import paths, scoring
from fewshot.methods.activations import outputs
from fewshot.methods.leaves import floats
from fewshot.models import bert
from tests.conftest import CLASSES, Tiny, random_batch, random_params

KEY = jax.random.key(0)
Masks = dict[str, np.ndarray]


@pytest.fixture(scope='module')
def table() -> dict[str, dict[str, str]]:
  return papers.read(papers.FILE.read_text())


@pytest.fixture(scope='module')
def information(tiny: Tiny) -> Masks:
  """The mean squared gradient of log p(y | x), by a loop over examples."""
  n, sums = len(tiny.batch['labels']), dict.fromkeys(floats(tiny.params), 0.0)

  @jax.jit
  def slope(params: Any, row: Any) -> Any:
    def log_p(p: Any) -> jax.Array:
      return jax.nn.log_softmax(tiny.forward(p, row)['logits'])[0, row['labels'][0]]

    return jax.grad(log_p)(params)

  for i in range(n):
    g = paths.flatten(slope(tiny.params, {k: v[i : i + 1] for k, v in tiny.batch.items()}))
    sums = {p: s + np.asarray(g[p]) ** 2 / n for p, s in sums.items()}
  return sums


def moved(spelling: str, on: Any) -> Masks:
  """The entries that differ once 1 is added to all that trains; before that none do."""
  method = methods.parse(spelling)
  if method.plan is not None:
    method = method.plan(on.forward, on.params, on.calib)
  theta, state = jax.jit(lambda p: method.init(KEY, on.forward, p, on.calib))(on.params)
  before = paths.flatten(on.params)

  def masks(theta: Any) -> Masks:
    after = paths.flatten(methods.merge(method, theta, state, on.params))
    return {p: np.asarray(after[p]) != w for p, w in before.items() if not p.startswith('head/')}

  assert not any(m.any() for m in masks(theta).values())
  found = masks(jax.tree.map(lambda x: x + 1, theta))
  return {p: m for p, m in found.items() if m.any()}


def scored(score: methods.Score, on: Tiny) -> dict[str, Any]:
  return jax.jit(lambda p: score(KEY, on.forward, p, on.calib))(on.params)


def test_the_layers_of_the_largest_fisher_information_train(table, tiny, information):
  found = moved(table['fim-score-surgical-fine-tuning']['hosted_by'], tiny)
  sums = [sum(s.sum() for p, s in information.items() if f'block_{i}/' in p) for i in (0, 1)]
  best = f'encoder/block_{np.argmax(sums)}/'
  assert set(found) == {p for p in information if p.startswith(best)}
  assert all(m.all() for m in found.values())


def an_input_a_unit(found: Masks, scores: Masks) -> None:
  """Of each kernel below the head one entry a column, which has the best score."""
  assert set(found) == {p for p in scores if p.endswith('/kernel') and not p.startswith('head/')}
  for p, mask in found.items():
    assert (mask.sum(0) == 1).all()
    np.testing.assert_allclose((scores[p] * mask).max(0), scores[p].max(0), rtol=1e-3)


def test_gps_trains_the_input_of_each_unit_with_the_steepest_contrastive_loss(table, tiny):
  labels = tiny.batch['labels']

  @jax.grad
  def slopes(params: Any) -> Any:
    f = tiny.forward(params, tiny.batch)['features']
    f = f / jnp.linalg.norm(f, axis=1, keepdims=True)
    loss = 0.0
    for i in range(len(labels)):
      rest = np.array([k for k in range(len(labels)) if k != i])
      z = f[rest] @ f[i] / 0.07
      loss -= jax.nn.log_softmax(z)[labels[rest] == labels[i]].mean() / len(labels)
    return loss

  g = {p: np.abs(x) for p, x in paths.flatten(jax.jit(slopes)(tiny.params)).items()}
  an_input_a_unit(moved(table['gps']['hosted_by'], tiny), g)


def test_landermt_trains_the_neurons_that_are_aware_of_the_task(table, tiny):
  found = moved(table['landermt']['hosted_by'], tiny)
  scores = scored(scoring.awareness(), tiny)
  n = int(0.1 * sum(map(len, scores.values())))
  least = np.sort(np.concatenate([*scores.values()]))[-n]
  assert sum(m.any(0).sum() for p, m in found.items() if p.endswith('/kernel')) == n
  for p, mask in found.items():
    site, name = p.rsplit('/', 1)
    want = np.asarray(scores[site]) >= least
    assert (mask == (want[None] if name == 'kernel' else want)).all()
  assert {p.rsplit('/', 1)[1] for p in found} == {'kernel', 'bias'}


def test_the_head_and_the_mlp_that_patching_finds_train_alone(table, tiny):
  """With counterfactual examples beside those of the task."""
  counter = random_batch((6, 7), np.random.default_rng(9))
  more = {f'counter_{k}': counter[k] for k in ('tokens', 'mask')}
  asked = tiny._replace(calib=tiny.calib._replace(batch=tiny.batch | more))
  found = moved(table['precise-head-mlp-tuning']['hosted_by'], asked)
  effects = scored(scoring.patching(), asked)
  core = max(effects, key=lambda p: float(effects[p].max()))
  own = np.repeat(np.arange(4) == int(effects[core].argmax()), 8)
  attention = core.removesuffix('core')
  want = {f'{attention}{n}/kernel': own[None] for n in ('query', 'key', 'value')}
  want |= {f'{attention}{n}/bias': own for n in ('query', 'key', 'value')}
  want[f'{attention}out/kernel'] = own[:, None]
  mlp = max(patched := mlps_patched(tiny, counter), key=patched.get)
  want |= {p: np.array(True) for p in floats(tiny.params) if p.startswith(f'{mlp}/')}
  assert set(found) == set(want) and len(patched) == 2
  assert all((found[p] == m).all() for p, m in want.items())
  np.testing.assert_allclose(scored(scoring.mlp_patching(), asked)[mlp], patched[mlp], rtol=1e-3)


def mlps_patched(tiny: Tiny, counter: Any) -> dict[str, float]:
  """What the loss gains by each MLP's output on the counterfactual, all heads as they were."""
  read = lambda batch, where: outputs(tiny.forward, tiny.params, batch, where)  # noqa: E731
  heads, other = read(tiny.batch, '.*/core'), read(counter, '.*/mlp')

  def loss(given: Any) -> float:
    ts = {p: {'y': y} for p, y in given.items()}
    run = methods.in_activations('.*', dict, lambda t, f, *args: t['y']).wrap(tiny.forward, ts, {})
    out = run(tiny.params, tiny.batch)
    return float(tiny.calib.loss(out, tiny.batch).mean())

  return {p: loss(heads | {p: y}) - loss({}) for p, y in other.items()}


def test_ram_trains_the_modules_of_the_largest_conductance(table, tiny):
  assert table['ram']['hosted_by'] == table['ram-2']['hosted_by']
  found = moved(table['ram']['hosted_by'], tiny)
  assert all(m.all() for m in found.values())
  chosen = {p.rpartition('/')[0] for p in found}
  scores = scored(scoring.ram(), tiny)
  size = {m: sum(w.size for p, w in floats(tiny.params).items() if p.startswith(m + '/'))
          for m in scores}  # fmt: skip
  order = sorted(scores, key=lambda m: -float(scores[m]))
  assert chosen == set(order[: len(chosen)])
  used, room = sum(size[m] for m in chosen), 0.3 * sum(size.values())
  assert used <= room < used + size[order[len(chosen)]]


def test_s2ft_moves_the_rows_of_a_head_and_of_some_channels(table, tiny):
  found = moved(table['s2ft']['hosted_by'], tiny)
  names = [('attn/out', 8), ('mlp/down', 1)]  # Rows that belong together.
  assert set(found) == {f'encoder/block_{i}/{n}/kernel' for i in (0, 1) for n, _ in names}
  for p, mask in found.items():
    units = mask.reshape(-1, dict(names)[p[16:-7]] * mask.shape[1])
    assert units.all(1).sum() == units.any(1).sum() == 1


CONFIG = bert.Config(vocab=50, dim=8, depth=1, heads=2, width=16, positions=8, types=1)
METRICS = ('magnitude()', 'gradient()', 'snip()', 'taylor(signed=True)', 'taylor()', 'synflow()',
           'grasp()', 'fisher()')  # fmt: skip


@pytest.mark.parametrize('metric', METRICS)
def test_every_salience_of_the_study_chooses_sparse_changes(metric):
  """FORCE is there -w g, and Taylor-FO its square."""
  batch = random_batch((5, 6), np.random.default_rng(1))
  calib = methods.Calib(batch, CLASSES, objectives.classification().loss)
  forward, params = bert.forward(CONFIG), random_params(CONFIG)
  score = methods.spelling.parse(metric, scoring.SCORES)
  values = jax.jit(lambda p: score(KEY, forward, p, calib))(params)
  where = 'encoder/block_0/(attn/value|mlp/up)/kernel'
  method = methods.parse(f"sparse(where='{where}', budget=5, score={metric})")
  theta, state = jax.jit(lambda p: method.init(KEY, forward, p, calib))(params)
  assert len(theta) == 2
  for p, t in theta.items():
    assert not t['value'].any() and t['value'].shape == (5,)
    best = np.sort(np.argsort(-np.ravel(values[p]), kind='stable')[:5])
    np.testing.assert_array_equal(np.sort(state[p]['index']), best)
