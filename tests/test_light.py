"""Light-PEFT: what is pruned of the model and of LoRA, and what trains of the rest."""

from typing import Any

import jax
import numpy as np
import pytest

from fewshot import fits, methods, papers, programs, stages, sweep
from fewshot.errors import FewshotError
from fewshot.methods import activations, paths
from fewshot.programs import light, steps

FIT, EARLY = fits.sgd(steps=3, lr=0.01, batch=6), fits.sgd(steps=4, lr=0.05, batch=6)
STAGE = light.prune_early(EARLY, heads=0.5, width=0.25, modules=0.5, ranks=0.6, rank=4, l1=0.01)
WHERE = r'.*/(query|value)'


@pytest.fixture(scope='module')
def setting(tiny) -> stages.Setting:
  return stages.Setting(tiny.model, {'task': stages.only(tiny.encoded, 0)}, 3)


@pytest.fixture(scope='module')
def early(tiny, setting) -> Any:
  """The run that the stage looks at, by itself."""
  method = methods.chain(methods.lora(WHERE, rank=4), *light.masks(0.01), methods.tune('head/.*'))
  (result,) = sweep.sweep(tiny.model, setting.of('task'), method, EARLY, classes=3, seeds=(0,))
  return result


def test_light_peft_prunes_model_and_lora_and_trains_the_rest(tiny, setting, early):
  hosted = papers.read(papers.FILE.read_text())['light-peft']['hosted_by']
  assert [s.name for s in programs.parse(hosted).stages] == ['prune_early', 'train_ranks']
  written, notes = STAGE.run(setting, {'params': tiny.params}, 0)
  pruned, ranks = written['params'], written['ranks']
  # Half of each layer's 4 heads and three quarters of its 64 channels are zero where they are read.
  before, after = paths.flatten(tiny.params), paths.flatten(pruned)
  masks = {p: np.abs(np.asarray(t['mask'])) for part in early.theta[1:3] for p, t in part.items()}
  for i in (0, 1):
    for core, kernel, width, kept in (('attn/core', 'attn/out', 8, 2), ('mlp/down',) * 2 + (1, 16)):
      m = masks[f'encoder/block_{i}/{core}']
      on = np.repeat(m >= np.sort(m)[-kept], width)[:, None]
      name = f'encoder/block_{i}/{kernel}/kernel'
      np.testing.assert_array_equal(after[name], before[name] * on)
      before.pop(name)
  assert all((np.asarray(after[p]) == w).all() for p, w in before.items())
  assert notes['pruned'] == 2 * (16 + 48) * 32
  # LoRA: the two of four modules that change most, and of their eight ranks the best five.
  ratios = {}
  for p, x in activations.inputs(
    tiny.forward, tiny.params, setting.calib('task').batch, WHERE
  ).items():
    t, w = early.theta[0][p], tiny.params
    for key in f'{p}/kernel'.split('/'):
      w = w[key]
    change = 16 / 4 * np.asarray(x) @ np.asarray(t['a']) @ np.asarray(t['b'])
    ratios[p] = np.linalg.norm(change) / np.linalg.norm(np.asarray(x) @ w)
  assert set(ranks) <= set(sorted(ratios, key=lambda p: -ratios[p])[:2])
  assert sum(int(n) for n in ranks.values()) == 5
  # What is left trains, and nothing that was pruned comes back.
  out = stages.run(
    programs.program(STAGE, light.train_ranks(FIT)), tiny.model, tiny.encoded, classes=3
  )
  assert out.notes[1]['trained'] == 5 * 2 * 32 + 3 * 33
  moved = steps.changed(out.carried['params'], pruned)
  found = {p for p, x in paths.flatten(moved).items() if np.any(x) and not p.startswith('head/')}
  assert found == {f'{p}/kernel' for p in ranks}
  for p, n in ranks.items():
    assert np.linalg.matrix_rank(paths.flatten(moved)[f'{p}/kernel'], 1e-6) == n


def test_masks_are_pulled_to_zero_by_their_penalty(tiny, setting):
  heads, channels = light.masks(0.5)
  for part, name in ((heads, 'attn/core'), (channels, 'mlp/down')):
    theta, _ = part.init(jax.random.key(0), tiny.forward, tiny.params, tiny.calib)
    assert set(theta) == {f'encoder/block_{i}/{name}' for i in (0, 1)}
    size = sum(t['mask'].size for t in theta.values())
    assert float(part.penalty(None, theta, {}, None, None, None, None)) == 0.5 * size
    half = jax.tree.map(lambda x: -0.5 * x, theta)
    assert float(part.penalty(None, half, {}, None, None, None, None)) == 0.25 * size


def test_a_ranks_effect_is_the_sum_of_its_numbers():
  theta = {'q': {'a': np.array([[1.0, 2], [3, 4]]), 'b': np.array([[1.0, -1, 2], [0, 5, 1]])}}
  slopes = {'q': {'a': np.array([[1.0, 1], [-1, 0]]), 'b': np.array([[1.0, 1, 1], [9, 0, -2]])}}
  np.testing.assert_allclose(light.taylor(theta, slopes)['q'], [4 + 4, 2 + 2])


def test_mistakes_are_named():
  with pytest.raises(FewshotError, match=r'prune_early\(heads=0.0\) is the share that stays'):
    light.prune_early(heads=0.0)
  with pytest.raises(FewshotError, match='weight of a penalty'):
    light.prune_early(l1=-1.0)
