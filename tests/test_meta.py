"""Meta-training resumes, splits and dispatches without changing its result; evaluation is typed."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fewshot import learners, meta
from fewshot.episodes import labels_of, ledger, make_pool, sampler
from fewshot.errors import FewshotError
from fewshot.learners import evaluating, search
from fewshot.methods import paths
from fewshot.models import Model, conv4
from tests.learners import toys
from tests.test_docs import run_blocks


def same(a: object, b: object) -> None:
  """Bit for bit."""
  x, y = paths.flatten(a), paths.flatten(b)
  assert x.keys() == y.keys()
  for path in x:
    np.testing.assert_array_equal(x[path], y[path], err_msg=path)


@pytest.mark.parametrize('text', ['protonet()', 'maml(steps=1, lr=0.1)'])
def test_a_resumed_training_is_the_uninterrupted_one(text: str, tmp_path: Path) -> None:
  learner, model, episodes = learners.parse(text), toys.model(True), toys.episodes()
  go = {'steps': 4, 'meta_batch': 2, 'lr': optax.cosine_decay_schedule(1e-2, 4)}
  whole = meta.train(learner, model, episodes, **go)
  part = meta.train(learner, model, episodes, folder=tmp_path / 'a', minutes=1e-6, **go)
  assert part.step == 1 and np.isnan(part.curve[1:]).all()
  resumed = meta.train(learner, model, episodes, folder=tmp_path / 'a', save_every=1, **go)
  assert resumed.step == 4 and np.isfinite(resumed.curve).all()
  same(resumed.outer, whole.outer)
  same(resumed.curve, whole.curve)
  done = meta.train(learner, model, episodes, folder=tmp_path / 'a', **go)
  same(done.outer, whole.outer)


def test_what_a_training_writes_is_whole_when_ctrl_c_ends_it(tmp_path: Path) -> None:
  def interrupted(step: int, loss: float) -> None:
    if step == 2:
      raise KeyboardInterrupt

  model, episodes = toys.model(), toys.episodes()
  go = {'steps': 3, 'folder': tmp_path, 'save_every': 1, 'progress': interrupted}
  with pytest.raises(KeyboardInterrupt):
    meta.train(learners.protonet(), model, episodes, **go)
  assert [f.name for f in tmp_path.iterdir()] == ['1']  # Not a folder being filled.


def test_another_training_in_the_folder_is_refused(tmp_path: Path) -> None:
  model, episodes = toys.model(), toys.episodes()
  meta.train(learners.protonet(), model, episodes, steps=1, folder=tmp_path)
  with pytest.raises(FewshotError, match=r"learner 'protonet\(\)', and this one has 'r2d2\(\)'"):
    meta.train(learners.r2d2(), model, episodes, steps=1, folder=tmp_path)


def test_the_models_params_survive_training() -> None:
  model = toys.model()
  before = jax.tree.map(np.array, model.params)
  meta.train(learners.protonet(), model, toys.episodes(), steps=2)
  same(model.params, before)


def test_tasks_one_by_one_give_the_gradient_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
  learner, episodes = learners.parse('maml(steps=2, lr=0.1)'), toys.episodes()
  go = {'steps': 1, 'meta_batch': 3, 'optimizer': optax.sgd(0.1)}
  alone = meta.train(learner, toys.model(True), episodes, **go)
  monkeypatch.setattr(meta, 'slow_in_loops', lambda *args: False)
  together = meta.train(learner, toys.model(True), episodes, **go)
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)  # noqa: E731
  jax.tree.map(close, alone.outer, together.outer)
  close(alone.curve, together.curve)


def test_running_statistics_follow_the_episodes() -> None:
  run = meta.train(learners.protonet(), toys.model(True), toys.episodes(), steps=3)
  for path, x in run.outer['statistics'].items():
    assert bool((x != paths.flatten(toys.model().params)[path]).any()), path
  frozen = meta.train(learners.protonet(), toys.model(), toys.episodes(), steps=1)
  same(frozen.outer['statistics'], {p: paths.flatten(toys.model().params)[p]
                                    for p in frozen.outer['statistics']})  # fmt: skip


def test_two_devices_compute_what_one_does() -> None:
  code = """
import jax, numpy as np, optax
from fewshot import learners, meta
from tests.learners import toys
from tests.test_docs import run_blocks
for text in ('protonet()', 'maml(steps=1, lr=0.1)'):
  go = dict(steps=2, meta_batch=4, optimizer=optax.sgd(0.1))
  one, two = (meta.train(learners.parse(text), toys.model(True), toys.episodes(), devices=d, **go)
              for d in (1, 2))
  assert len(jax.local_devices()) == 2
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one.outer, two.outer)
print('same')
"""
  flags = {'XLA_FLAGS': '--xla_force_host_platform_device_count=2', 'JAX_PLATFORMS': 'cpu'}
  root = Path(__file__).resolve().parent.parent
  done = subprocess.run([sys.executable, '-c', code], cwd=root, env=os.environ | flags,
                        capture_output=True, text=True)  # fmt: skip
  assert done.returncode == 0 and done.stdout.strip().endswith('same'), done.stderr[-2000:]


def test_episodes_step_by_step_equal_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
  learner, keys = learners.parse('pmf(steps=3, rates=(0.0, 0.01))'), ledger('x', 4)
  alone = meta.evaluate(learner, toys.model(), {}, toys.episodes(), keys)
  monkeypatch.setattr(evaluating, 'slow_in_loops', lambda *args: False)
  np.testing.assert_allclose(
    meta.evaluate(learner, toys.model(), {}, toys.episodes(), keys), alone, atol=1e-6
  )


def test_all_paths_of_a_search_share_a_program() -> None:
  learner, traces = learners.nfts(steps=2), 0
  model = toys.model()

  def counted(params, batch, key=None):
    nonlocal traces
    traces += 1
    return model.forward(params, batch, key)

  outer = meta.train(learner, model, toys.episodes(), steps=2).outer
  run = meta.evaluator(learner, model._replace(forward=counted), toys.episodes())
  score = lambda path: run(outer, ledger('s', 2), {'path': search.encode((path,))[0]})  # noqa: E731
  score('f')
  first = traces
  assert [score(p).shape for p in 'tab'] == [(2,)] * 3 and traces == first > 0


def test_what_is_gated_off_stays() -> None:
  from fewshot.learners import adapting

  learner, model = learners.nfts(paths=('t',), steps=3), toys.model()
  setup = evaluating.setup_of(learner, model, toys.WAY)
  episode = toys.episodes()(jax.random.key(0))
  outer = learners.start(setup, jax.random.key(1), model.params, episode.support)
  chosen = adapting.options(setup)[0]
  i = adapting.inner(setup, model.params, outer, episode.support, jax.random.key(2), chosen)
  theta, _ = i.fit.finish(adapting.run(i))
  for path, t in theta.items():
    assert float(jnp.abs(t['delta']).max()) > 0 == float(jnp.abs(t['alpha']).max()), path


def test_batches_are_labelled_by_the_class_of_the_pool() -> None:
  pool = toys.pool()
  e = meta.batches(pool, 20)(jax.random.key(0))
  np.testing.assert_array_equal(e.query['labels'], labels_of(pool)[np.asarray(e.rows.query)])
  np.testing.assert_array_equal(e.query['x'], pool.images[np.asarray(e.rows.query)])


def test_the_summary_is_a_typed_interval() -> None:
  x = np.array([0.2, 0.4, 0.9, 0.7])
  got = meta.summary(x)
  assert got['kind'] == 'episode-ci95' and got['n'] == 4
  assert got['value'] == pytest.approx(x.mean())
  assert got['spread'] == pytest.approx(1.96 * x.std(ddof=1) / 2)
  assert meta.summary(x[:1])['spread'] is None
  with pytest.raises(FewshotError, match='give one for each episode'):
    meta.summary(np.zeros((2, 2)))


def test_mistakes_are_one_line() -> None:
  model, episodes = toys.model(), toys.episodes()
  with pytest.raises(FewshotError, match='learns nothing across episodes'):
    meta.train(learners.nearest_centroid(), model, episodes, steps=1)
  with pytest.raises(FewshotError, match='meta_batch of 3 must divide evenly'):
    meta.train(learners.protonet(), model, episodes, steps=1, meta_batch=3, devices=2)
  with pytest.raises(FewshotError, match='steps=0 is no whole number'):
    meta.train(learners.protonet(), model, episodes, steps=0)
  with pytest.raises(FewshotError, match='learned theta0; meta-train it first'):
    meta.evaluate(learners.maml(steps=1), model, {}, episodes, ledger('x', 1))
  with pytest.raises(FewshotError, match=r'a key for each episode, \[E\], not of shape \(\)'):
    meta.evaluate(learners.protonet(), model, {}, episodes, jax.random.key(0))


def test_the_page_on_episodes_runs(tmp_path: Path) -> None:
  names = run_blocks('docs/episodes.md', tmp_path)
  assert names['trained'].step == 5 and len(names['accuracies']) == len(names['mine']) == 20
  assert names['tested'].shape == (4,) and len(names['found']) == 2


def test_an_episode_of_600_images_trains() -> None:
  """With slices in `embed`, XLA:CPU of jaxlib 0.10.2 ends the process here."""
  images = np.random.default_rng(0).integers(0, 256, (600, 16, 16, 1)).astype(np.uint8)
  pool = make_pool('many', images, np.repeat(np.arange(60), 10), [str(i) for i in range(60)])
  config = conv4.Config(image_size=16, mean=(0.5,), std=(0.25,))
  params = conv4.init(config, jax.random.key(0))
  model = Model('conv4', conv4.forward(config, batch_stats=True), params,
                example=conv4.example(config))  # fmt: skip
  trained = meta.train(learners.protonet(), model, sampler(pool, 60, 5, 5), steps=1)
  assert np.isfinite(trained.curve).all()
