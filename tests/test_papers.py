"""papers.json: every row is checked, wrong ones are refused; what defines the systems it hosts.

A system that is one method is tested with that method; here are those made of several.
"""

import json
import re

import jax
import numpy as np
import optax
import pytest

from fewshot import cli, fits, methods, models, objectives, papers
from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.models import bert
from tests import conftest
from tests.laws import laws

TASK = objectives.classification()


@pytest.fixture(scope='module')
def table() -> dict[str, dict[str, str]]:
  return papers.read(papers.FILE.read_text())


def test_every_system_is_listed_once_and_every_row_holds(capsys):
  assert cli.main(['papers', '--json']) == 0
  out, err = capsys.readouterr()
  rows = json.loads(out)
  assert err == '' and len(rows) == len({row['id'] for row in rows}) == 376
  for row in rows:
    assert set(row) >= {'id', 'status', 'hosted_by', 'test', 'missing', 'kind', 'title', 'year'}
    assert row['status'] in papers.STATUSES
    assert (row['status'] == 'not yet') == (row['hosted_by'] is None) == (row['test'] is None)
    assert (row['status'] == 'partial') == (row['missing'] is not None)
    assert row['arxiv'] is None or re.fullmatch(r'\d{4}\.\d{5}', row['arxiv'])
    assert row['year'] is None or 2015 <= row['year'] <= 2026


def test_arxiv_numbers_are_of_one_system_each(table):
  numbers = [row['arxiv'] for row in table.values() if 'arxiv' in row]
  assert len(numbers) == len(set(numbers)) > 10


def test_the_table_for_people_counts_by_kind_and_status(table, capsys):
  assert cli.main(['papers', 'grafting']) == 0
  assert 'grafting()' in capsys.readouterr().out
  assert cli.main(['papers', 'no such words']) == 2
  assert "no published system says 'no such words'" in capsys.readouterr().err
  assert cli.main(['papers']) == 0
  lines = [line.split() for line in capsys.readouterr().out.splitlines()]
  assert lines[0] == ['kind', 'hosted', 'partial', 'not', 'yet', 'all']
  assert [line[0] for line in lines[1:]] == [*sorted({r['kind'] for r in table.values()}), 'all']
  numbers = [[int(n) for n in line[1:]] for line in lines[1:]]
  assert all(sum(n[:3]) == n[3] for n in numbers) and numbers[-1][3] == 376
  assert numbers[-1] == [sum(column) for column in zip(*numbers[:-1], strict=True)]


GOOD = {
  'title': 'A', 'kind': 'prompt', 'hosted_by': 'lora(rank=4)',
  'test': 'tests/test_papers.py::test_every_system_is_listed_once_and_every_row_holds',
}  # fmt: skip


@pytest.mark.parametrize(
  'change',
  [
    {},
    {'hosted_by': 'sgd(steps=5)'},
    {'hosted_by': 'nfts(steps=5)'},
    {'hosted_by': 'lt_sft(budget=9)'},
    {'hosted_by': 'configs/quickstart.py'},
    {'hosted_by': 'fewshot/fits/closed.py::prototypes'},
    {'test': 'tests/laws/test_library.py::test_dtypes[full()-bert]'},
    {'missing': 'the rest'},
  ],
)
def test_what_hosts_a_system(change):
  papers.check({'a': GOOD | change})


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    ({'hosted_by': 'lorra(rank=4)'}, "unknown method 'lorra'; did you mean 'lora'"),
    ({'hosted_by': 'sgd(step=5)'}, "did you mean 'steps'"),
    ({'hosted_by': 'nfts(step=5)'}, "did you mean 'steps'"),
    ({'hosted_by': 'configs/nothing.py'}, 'there is no file configs/nothing.py'),
    ({'test': 'tests/test_nothing.py::test_x'}, 'there is no file tests/test_nothing.py'),
    ({'test': 'tests/test_papers.py::test_x'}, 'tests/test_papers.py has no test_x'),
    ({'test': 'tests/test_papers.py'}, 'is no test; write'),
    ({'test': ''}, "it has no 'test'"),
    ({'hostd_by': 'x'}, "unknown key 'hostd_by'; did you mean 'hosted_by'"),
    ({'title': ''}, "it has no 'title'"),
  ],
)
def test_a_wrong_row_is_refused_in_one_line(change, said):
  with pytest.raises(FewshotError, match=re.escape(said)) as e:
    papers.check({'good': GOOD, 'bad': GOOD | change, 'worse': {'title': 'B'}})
  assert 'papers.json is wrong at bad: ' in str(e.value) and '(and 1 rows more)' in str(e.value)


def test_a_test_without_what_it_tests_is_refused():
  row = {k: v for k, v in GOOD.items() if k != 'hosted_by'}
  with pytest.raises(FewshotError, match=r"bad: it has 'test' but no 'hosted_by'"):
    papers.check({'bad': row})


@pytest.mark.parametrize(
  ('text', 'said'),
  [('{"a": {}, "a": {}}', "papers.json has 'a' twice"), ('{"a": }', 'is no JSON: line 1')],
)
def test_a_damaged_file_is_refused(text, said):
  with pytest.raises(FewshotError, match=said):
    papers.read(text)


def test_the_command_says_what_is_wrong(monkeypatch, tmp_path, capsys):
  file = tmp_path / 'papers.json'
  file.write_text(json.dumps({'x': GOOD | {'hosted_by': 'lorra()'}}))
  monkeypatch.setattr(papers, 'FILE', file)
  assert cli.main(['papers']) == 2
  out, err = capsys.readouterr()
  assert out == '' and err.startswith('fewshot: papers.json is wrong at x: ')
  assert err.count('\n') == 1


def trained(spelling: str, on: laws.Instance, steps: int = 2):
  """params before and after some steps of Adam, merged; what has no weight form keeps theirs."""
  method = methods.parse(spelling)
  loss = fits.Loss(on.model.forward, method, on.model.params, TASK)
  theta, state = method.init(jax.random.key(0), on.model.forward, on.model.params, on.calib)
  tx = optax.adam(1e-2)

  @jax.jit
  def step(theta, opt):
    value = lambda t: loss(t, state, on.batch, jax.random.key(0))[0]  # noqa: E731
    updates, opt = tx.update(jax.grad(value)(theta), opt, theta)
    return optax.apply_updates(theta, updates), opt

  opt = tx.init(theta)
  for _ in range(steps):
    theta, opt = step(theta, opt)
  return method, theta, state


def moved(method, theta, state, params) -> set[str]:
  """The leaves of params that differ after merging."""
  after = paths.flatten(methods.merge(method, theta, state, params))
  return {p for p, x in paths.flatten(params).items() if not np.array_equal(x, after[p])}


def instance(tiny) -> laws.Instance:
  return laws.Instance('bert', tiny.model, tiny.batch, conftest.CLASSES)


def matching(pattern: str, params) -> set[str]:
  return {p for p in paths.flatten(params) if re.fullmatch(pattern, p)}


def test_hft_trains_another_half_each_round(tiny):
  """Two rounds: in each, half of every block keeps its bits; the second draws another half."""
  on, halves = instance(tiny), []
  for seed in (0, 1):
    done = trained(f'random_half(seed={seed})', on)
    halves.append({p for p in moved(*done, on.model.params) if 'block_' in p})
    on = on._replace(model=on.model._replace(params=methods.merge(*done, on.model.params)))
  blocks = matching('.*block_.*', tiny.params)
  sizes = [sum(paths.flatten(tiny.params)[p].size for p in s) for s in (*halves, blocks)]
  assert all(0.45 < n / sizes[-1] < 0.55 for n in sizes[:2]), sizes
  assert halves[0] - halves[1] and halves[1] - halves[0]


def test_attention_only_leaves_the_mlps_of_a_vit():
  on = laws.fixture('vit-tiny')
  found = moved(*trained('attention_only()', on), on.model.params)
  attention = matching('.*/attn/.*', on.model.params)
  blind = matching('.*/key/bias', on.model.params)  # Softmax is blind to it.
  assert attention - blind <= found <= attention


def test_telly_freezes_the_embeddings_and_the_bottom_blocks(tiny):
  method, theta, state = trained('chain(layers(first=1), linear())', instance(tiny))
  found = moved(method, theta, state, tiny.params)
  assert found - matching('.*/key/bias', tiny.params) == matching(
    r'encoder/block_1/(?!attn/key/bias).*|head/.*', tiny.params
  )


SPAFIT = "chain(layers(first=1, where='.*/bias'), lora(where='.*/block_2/attn/(query|value)'))"


def test_spafit_tunes_each_stratum_by_its_own_method():
  """The first stratum frozen, biases from the second on, LoRA in the third."""
  config = bert.Config(vocab=50, dim=32, depth=3, heads=4, width=64, positions=64, types=2)
  params = conftest.random_params(config)
  batch = conftest.random_batch((6, 7), np.random.default_rng(1))
  model = models.Model('three', bert.forward(config), params)
  found = moved(*trained(SPAFIT, laws.Instance('three', model, batch, 3)), params)
  blind = r'(?!attn/key/bias)'
  want = rf'encoder/block_[12]/{blind}.*bias|encoder/block_2/attn/(query|value)/kernel'
  assert found - matching('.*/key/bias', params) == matching(want, params)


def test_perfect_trains_adapters_norms_and_label_embeddings_alone(tiny):
  spelling = 'chain(adapter(width=4), layernorm(), label_embeddings(tokens=2))'
  method, theta, _ = trained(spelling, instance(tiny))
  start, _ = method.init(jax.random.key(0), tiny.forward, tiny.params, tiny.calib)
  adapters, norms, head = theta
  assert set(adapters) == {f'encoder/block_{i}/{s}' for i in (0, 1) for s in ('attn', 'mlp')}
  assert set(norms) == matching(r'.*/ln\d?/(scale|bias)', tiny.params)
  assert jax.tree.map(np.shape, head) == {'head': {'labels': (3, 2, 32)}}
  same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), start, theta)
  assert not any(jax.tree.leaves(same))


def test_ia3_rescales_keys_values_and_hidden_units(tiny):
  """Vectors alone: each column of keys and values, each row of the second map of the MLP."""
  method, theta, state = trained('chain(ia3(), linear())', instance(tiny))
  merged = paths.flatten(methods.merge(method, theta, state, tiny.params))
  before = paths.flatten(tiny.params)
  for i in (0, 1):
    for name, axis in (('attn/key', 0), ('attn/value', 0), ('mlp/down', 1)):
      path = f'encoder/block_{i}/{name}/kernel'
      ratio = merged[path] / before[path]
      np.testing.assert_allclose(ratio, ratio.mean(axis, keepdims=True).repeat(
        ratio.shape[axis], axis), rtol=1e-4)  # fmt: skip
      assert np.ptp(ratio) > 1e-3
  assert all(x.ndim == 1 for x in jax.tree.leaves(theta[0]))


def test_clip_lora_adapts_both_towers(table):
  model = models.load(str(papers.ROOT / 'tests/parity/fixtures/clip-tiny'))
  batch = laws.errors.read('clip-tiny').batch
  method = methods.parse(table['clip-lora']['hosted_by'])
  theta, _ = method.init(jax.random.key(0), model.forward, model.params, methods.Calib(batch))
  assert all(t['a'].shape[-1] == 2 for t in theta.values())
  want = {p.rpartition('/')[0] for p in matching('.*/(query|key|value)/kernel', model.params)}
  assert set(theta) == want and {p.split('/')[0] for p in want} == {'image', 'text'}


def test_prolip_trains_the_visual_projector_alone(table):
  model = models.load(str(papers.ROOT / 'tests/parity/fixtures/clip-tiny'))
  method = methods.parse(table['prolip']['hosted_by'])
  theta, state = method.init(jax.random.key(0), model.forward, model.params, None)
  assert list(theta) == ['image/project/kernel']
  batch = laws.errors.read('clip-tiny').batch
  shifted = jax.tree.map(lambda x: x + 0.1, theta)
  got = methods.adapt(method, model.forward, shifted, state)(model.params, batch)
  want = model.forward(model.params, batch)
  assert np.abs(got['image_features'] - want['image_features']).max() > 1e-3
  np.testing.assert_array_equal(got['text_features'], want['text_features'])
