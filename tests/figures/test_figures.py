"""Figures: what they reduce records to, what they draw, and that they are the same bytes twice."""

import re
from pathlib import Path

import numpy as np
import pytest

from fewshot import command_report, figures
from fewshot.errors import FewshotError
from fewshot.figures import episodes, outcomes, trade, training

COLOURS = {'#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9'}


def run(method='linear()', k=4, split=0, value=0.5, trained=10, **more):
  """A record of a split, as short as one can be."""
  return {
    'id': f'{method}-{k}-{split}', 'config': {}, 'model': 'tiny', 'method': method, 'fit': 'sgd()',
    'task': 'toy', 'split': {'k': k, 'seed': split}, 'seed': 0, 'trained': trained, 'total': 100,
    'scores': {'accuracy': {'value': value, 'spread': 0.1, 'kind': 'item-bootstrap', 'n': 10}},
    'hashes': {}, 'timings': {'seconds': 2.0}, 'versions': {}, 'status': 'ok', 'memory': {},
    'predictions': [0, 1], 'curve': [2.0, 1.0, 0.5],
  } | more  # fmt: skip


def episode(method='protonet()', k=1, accuracies=(0.5, 0.75, 1.0, 0.75), pool='omni', seed=0):
  """A record of episodes; its ± is 1.96 std / sqrt(n)."""
  x = np.array(accuracies)
  half = 1.96 * x.std(ddof=1) / len(x) ** 0.5
  return {
    'id': f'{method}-{k}-{pool}-{seed}', 'config': {'train': {'images': 0, 'way': 5}},
    'model': 'conv4()', 'method': method, 'task': 'omni-test', 'seed': seed,
    'split': {'k': k, 'seed': seed, 'way': 2, 'query': 2, 'episodes': len(x), 'ledger': 'test'},
    'training': {'name': pool, 'learner': 'protonet()', 'pool': pool, 'steps': 9},
    'scores': {'accuracy': {'value': x.mean(), 'spread': half, 'kind': 'episode-ci95',
                            'n': len(x)}},
    'episodes': list(accuracies), 'trained': 5, 'total': 5, 'hashes': {'test': 't'},
    'timings': {'test_s': 1.0, 'train_s': 9.0}, 'versions': {}, 'status': 'ok',
  }  # fmt: skip


def texts(figure):
  """All that a figure says, in one string."""
  svg = figures.render(figure).decode()
  return ' '.join(re.findall(r'<text[^>]*>([^<]*)', svg))


@pytest.fixture(scope='module')
def found():
  methods = {'linear()': (0.5, 10), 'lora()': (0.8, 40), 'full()': (0.7, 100), 'none()': (0.4, 0)}
  return figures.groups(
    [
      run(m, k, s, mean + 0.02 * s + 0.001 * k, trained)
      for m, (mean, trained) in methods.items()
      for k in (4, 16)
      for s in (0, 1, 2)
    ]
  )


def test_a_group_has_the_interval_of_student(found):
  """Of 0.504, 0.524, 0.544: s = 0.02, t_{0.975, 2} = 4.302653, so 4.302653 * 0.02 / sqrt(3)."""
  g = found[0]
  assert (g.row.method, g.row.n, g.row.kind) == ('linear()', 3, 'split-std')
  assert g.half == pytest.approx(0.0496827, rel=1e-5)
  assert g.spread == 'std, n = 3 splits' and g.setting == 'K = 4'
  alone = figures.groups([run()])[0]
  assert alone.half is None and alone.spread == 'no spread, n = 1'


def test_no_band_or_bar_leaves_what_an_accuracy_can_be():
  """Of 0.9, 1.0 and 1.0 the interval by t is 0.9667 ± 0.1434."""
  runs = [run(m, k, s, v, trained) for m, trained in (('a()', 1), ('b()', 2)) for k in (4, 8)
          for s, v in enumerate((0.9, 1.0, 1.0))]  # fmt: skip
  found = figures.groups(runs)
  assert found[0].bounds == pytest.approx((0.8232449, 1.0), abs=1e-6)
  for figure in (figures.shots(found), figures.pareto(found[:2])):
    drawn = [p for c in figure.axes[0].collections for path in c.get_paths() for p in path.vertices]
    ends = [y for _, y in drawn if y > 1]  # Markers have paths about 0.
    assert min(ends) == pytest.approx(82.32449) and max(ends) <= 100 + 1e-9


def test_episodes_are_told_apart_by_as_little_as_is_needed():
  records = [episode(), episode(pool='glyphs'), episode('maml()'), episode(k=5)]
  made = figures.groups(records)
  assert [g.label for g in made] == [
    'protonet(), protonet() on omni, 5-way', 'protonet(), protonet() on glyphs, 5-way', 'maml()',
    'protonet()',
  ]  # fmt: skip
  assert made[0].half == pytest.approx(1.96 * 0.2041241 / 2, rel=1e-6)
  assert made[0].spread == 'half of 95 % interval, n = 4 episodes'
  assert [len(s) for s in figures.sections(made)] == [3, 1]
  assert [len(s) for s in figures.sections(made, by_shots=False)] == [4]
  assert figures.title(figures.sections(made)[0]) == 'omni-test, 2-way 1-shot, conv4()'


def test_splits_and_episodes_do_not_mix():
  with pytest.raises(FewshotError, match='records of episodes and of splits'):
    figures.groups([run(), episode()])


def test_the_front_is_what_nothing_beats():
  points = [(0, 0.4), (10, 0.5), (40, 0.8), (100, 0.7), (40, 0.8), (5, 0.3)]
  assert trade.front(points) == [0, 1, 2]


def test_pareto_numbers_its_front_and_shows_zero(found):
  section = figures.sections(found)[0]
  figure = figures.pareto(section)
  said = texts(figure)
  assert all(f'{n} {m}' in said for n, m in enumerate(('none()', 'linear()', 'lora()'), 1))
  assert '4 full()' in said and 'trained parameters' in said and 'accuracy (%)' in said
  assert '95 % interval of the mean over 3 splits' in said
  labels = [t.get_text() for t in figure.axes[0].get_xticklabels()]
  assert '0' in labels
  assert figures.pareto(section[:1]) is None
  assert 'seconds a run, compilation excluded' in texts(figures.seconds(section))


def test_shots_draws_a_band_for_each_method(found):
  section = figures.sections(found, by_shots=False)[0]
  figure = figures.shots(section)
  axes = figure.axes[0]
  assert [t.get_text() for t in axes.get_xticklabels()] == ['4', '16']
  line = axes.lines[0]
  np.testing.assert_allclose(line.get_ydata(), [52.4, 53.6])
  band = axes.collections[0].get_paths()[0].vertices
  assert band[:, 1].min() == pytest.approx(52.4 - 4.96827, rel=1e-5)
  assert figures.shots(figures.sections(found)[0]) is None


def test_curves_draw_the_mean_of_the_runs():
  records = [run(split=s, curve=[2.0 + s, 1.0, 0.5][: 3 - s]) for s in (0, 1)]
  figure = figures.curves(figures.groups(records))
  np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [2.5, 1.0])
  assert 'linear() (n = 2)' in texts(figure) and 'training loss (nats)' in texts(figure)
  assert figures.curves(figures.groups([run(curve=None)])) is None
  assert figures.curves(figures.groups([run(curve=[1.0, None])])) is None


def test_histograms_count_every_episode():
  section = figures.groups([episode(), episode('maml()', accuracies=(0.25, 1.0, 0.0, 1.0))])
  figure = figures.histograms(section)
  heights = [[p.get_height() for p in axes.patches[:-1]] for axes in figure.axes]
  assert [sum(h) for h in heights] == [4, 4]
  assert '75.00 ± 20.00 %, n = 4' in texts(figure)
  assert figures.histograms(figures.groups([run()])) is None


def test_bins_hold_what_an_episode_can_score():
  edges = episodes.bins({'way': 20, 'query': 15}, 0.0)
  assert len(edges) <= 52 and edges[0] < 0 and edges[-1] > 100
  possible = 100 * np.arange(301) / 300
  assert np.abs(possible[:, None] - edges).min() > 0.1


def test_ece_by_hand():
  """Two bins: (0, 0.5] holds 0.3 right and 0.5 wrong, (0.5, 1] 0.9 right, 0.7 right, 0.8 wrong.

  2/5 |1/2 - 0.4| + 3/5 |2/3 - 0.8| = 0.04 + 0.08.
  """
  c = figures.ece([0.3, 0.5, 0.9, 0.7, 0.8], [True, False, True, True, False], bins=2)
  assert c.ece == pytest.approx(0.12) and c.number.tolist() == [2, 3]
  np.testing.assert_allclose(c.accuracy, [0.5, 2 / 3])
  np.testing.assert_allclose(c.confidence, [0.4, 0.8])


def test_ece_of_edges_and_of_certainty():
  """3/15 ends the third bin; a probability of 0 is in the first; sure and right is no error."""
  assert figures.ece([0.2, 0.0, 1.0], [1, 1, 1]).number.nonzero()[0].tolist() == [0, 2, 14]
  assert figures.ece([1.0, 1.0], [True, True]).ece == 0.0
  with pytest.raises(FewshotError, match='2 confidences and 1 outcomes'):
    figures.ece([0.5, 0.5], [True])


def test_ece_of_the_calibrated_is_small_and_of_the_sure_large():
  rng = np.random.default_rng(0)
  p = rng.uniform(0.5, 1, 20_000)
  right = rng.uniform(size=20_000) < p
  assert figures.ece(p, right).ece < 0.01
  assert figures.ece(np.sqrt(p), right).ece == pytest.approx((np.sqrt(p) - p).mean(), abs=0.01)


def test_reliability_and_confusion_say_n_and_what_they_are_of():
  said = texts(figures.reliability([0.9, 0.8, 0.6, 0.6], [1, 1, 1, 0], '1 run, toy'))
  assert 'ECE 12.5 % in 15 bins, n = 4: 1 run, toy' in said and 'confidence' in said
  matrix = outcomes.counts([0, 0, 1, 1], [0, 1, 1, 1], 2)
  assert matrix.tolist() == [[1, 1], [0, 2]]
  said = texts(figures.confusion(matrix, ['bird', '<b>$x$'], '1 run'))
  assert 'n = 4: 1 run' in said and 'bird' in said and '&lt;b&gt;$x$' in said
  many = figures.confusion(np.eye(40, dtype=int), [f'c{i}' for i in range(40)], '1 run')
  assert 'true class (number)' in texts(many)


def test_the_mask_shows_layers_modules_and_the_rest():
  modules = {
    'enc/block_0/attn/query': [3, 12], 'enc/block_0/mlp': [0, 8], 'enc/block_1/attn/query': [6, 12],
    'enc/block_1/mlp': [0, 8], 'emb': [0, 50], 'head': [5, 0],
  }  # fmt: skip
  cells, outside = training.by_layer(modules)
  assert cells[('block_0', 'attn/query')] == 25 and cells[('block_1', 'attn/query')] == 50
  assert outside == {'emb': 0.0, 'head': float('inf')}
  figure = figures.mask(modules, 'lora(rank=4)')
  assert figure.axes[0].images[0].get_array().tolist() == [[25, 0], [50, 0]]
  assert {'25', '50', 'block_1', 'attn/query'} <= set(texts(figure).split())
  assert 'beside these train: head (new)' in texts(figure)
  assert figures.mask({'w': [1, 2]}, 'm') is None
  assert figures.mask({'block_0/q': [0, 2], 'head': [3, 0]}, 'linear()') is None


def test_every_kind_is_drawn_in_the_docs():
  """By docs/figures/plots.py; an SVG without a date, small enough to be committed."""
  docs = Path(__file__).parents[2] / 'docs'
  page = (docs / 'reports.md').read_text()
  for kind in command_report.KINDS:
    file = docs / 'figures' / 'plots' / f'{kind}.svg'
    assert f'--kind {kind}' in page and f'](figures/plots/{kind}.svg)' in page
    assert 5_000 < file.stat().st_size <= 150_000 and b'dc:date' not in file.read_bytes()


def test_a_long_title_stands_beside_what_it_names():
  """Of a dot plot: on lines of its own, not over the heads of the columns."""
  long = run(prompt="cloze('" + 'a long template with many words ' * 3 + "{text} {mask}')")
  figure = figures.KINDS['accuracy'](figures.groups([long]))
  shown = [t for t in figure.axes[0].texts if t.get_text().startswith('toy, K = 4')]
  assert max(map(len, shown[0].get_text().split('\n'))) <= 66
  assert figure.get_figheight() > figures.KINDS['accuracy'](figures.groups([run()])).get_figheight()


@pytest.mark.parametrize('format', figures.FORMATS)
def test_figures_are_the_same_bytes_twice_whatever_the_settings(found, format):
  import matplotlib

  draw = lambda: figures.render(figures.pareto(figures.sections(found)[0]), format)  # noqa: E731
  first = draw()
  with matplotlib.rc_context({'font.size': 20, 'axes.facecolor': 'red', 'svg.hashsalt': 'x'}):
    assert draw() == first
  if format == 'svg':
    used = set(re.findall(r'#[0-9a-f]{6}', first.decode()))
    assert used <= COLOURS | {'#1f2328', '#5f6368', '#e8eaed', '#ffffff'}, used
