"""CRaSh: an emulator by clusters, what trains on it, and what of it goes back into the model."""

from typing import Any

import jax
import numpy as np
import pytest

from fewshot import fits, methods, models, papers, programs, stages, tasks
from fewshot.errors import FewshotError
from fewshot.methods import activations, paths
from fewshot.models import mlp
from fewshot.programs import offsite, steps
from fewshot.tasks.encode import Encoded

FIT = fits.sgd(steps=8, lr=0.02, batch=6)
CONFIG = mlp.Config(inputs=5, dim=6, depth=8, activation='gelu')
BLOCKS = [f'encoder/block_{i}' for i in range(8)]


@pytest.fixture(scope='module')
def model() -> models.Model:
  params = jax.tree.map(lambda w: 1.5 * w, mlp.init(CONFIG, jax.random.key(3)))
  return models.Model('mlp', mlp.forward(CONFIG), params, example=mlp.example(CONFIG))


@pytest.fixture(scope='module')
def data() -> Encoded:
  rng = np.random.default_rng(0)
  x = rng.normal(size=(60, 5)).astype(np.float32)
  task = tasks.from_arrays(x, (x[:, 0] > 0).astype(int))
  return tasks.encode(task, tasks.kshot(task, 6, [0]))


@pytest.fixture(scope='module')
def out(model, data) -> stages.Outcome:
  return stages.run(programs.crash(clusters=2, ends=2, fit=FIT), model, data, classes=2)


def leaves(params: Any, block: str) -> list[np.ndarray]:
  return [np.asarray(w) for p, w in paths.flatten(params).items() if p.startswith(f'{block}/')]


def similarity(x: np.ndarray, y: np.ndarray) -> float:
  """Linear CKA by its definition."""
  x, y = x - x.mean(0), y - y.mean(0)
  cross = np.linalg.norm(x.T @ y) ** 2
  return float(cross / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y))


def test_crash_trains_the_ends_around_shared_layers_and_plugs_them_back(model, data, out):
  hosted = papers.read(papers.FILE.read_text())['crash']['hosted_by']
  assert [s.name for s in programs.parse(hosted).stages] == ['emulate', 'train', 'plug']
  base, final = model.params, out.carried['params']
  seen = activations.outputs(model.forward, base, out.setting.calib('task').batch, '.*block_.')
  y = [np.asarray(seen[b]) for b in BLOCKS]
  near = [similarity(y[i], y[i + 1]) for i in (2, 3, 4)]  # Of the middle ones, 2 to 5.
  cut = 3 + int(np.argmin(near))
  clusters = out.notes[0]['clusters']
  assert clusters == [BLOCKS[2:cut], BLOCKS[cut:6]]
  # The emulator: one block stands for all of its cluster, the ends are the model's.
  emulated, _ = offsite.emulate(2).run(out.setting, {'params': base}, 0)
  for group in clusters:
    stays = leaves(base, group[len(group) // 2])
    for block in group:
      jax.tree.map(np.testing.assert_array_equal, leaves(emulated['params'], block), stays)
  # What trains is the ends, on the emulator alone; they come back, the middle is the model's own.
  train = steps.train(methods.tune(), FIT, where='selection')
  tuned, _ = train.run(out.setting, emulated, 0)
  for i, block in enumerate(BLOCKS):
    source = base if 2 <= i < 6 else tuned['params']
    jax.tree.map(np.testing.assert_array_equal, leaves(final, block), leaves(source, block))
    assert 2 <= i < 6 or any((a != b).any() for a, b in zip(leaves(final, block),
                             leaves(base, block), strict=True))  # fmt: skip
  np.testing.assert_array_equal(final['head']['kernel'], tuned['params']['head']['kernel'])


def test_a_cluster_of_all_and_clusters_of_one(model, out):
  one, _ = offsite.emulate(1).run(out.setting, {'params': model.params}, 0)
  assert len({leaves(one['params'], b)[0].tobytes() for b in BLOCKS[2:6]}) == 1
  each, _ = offsite.emulate(4).run(out.setting, {'params': model.params}, 0)
  jax.tree.map(np.testing.assert_array_equal, each['params'], model.params)


def test_mistakes_are_named(model, data):
  with pytest.raises(FewshotError, match='both are at least 1'):
    programs.crash(clusters=0)
  with pytest.raises(FewshotError, match='needs 9 blocks, and the model has 8'):
    stages.run(programs.crash(clusters=5, fit=FIT), model, data, classes=2)
