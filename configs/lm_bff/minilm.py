"""Few-shot text classification on LM-BFF's given 16-shot splits with a sentence encoder.

    fewshot run configs/lm_bff/minilm.py

The tasks and the five splits are those of Gao et al. 2021 (arXiv:2012.15723), as published; the
encoder is all-MiniLM-L6-v2.  Rates and steps are fixed beforehand: of SetFit those of its paper
(40 pairs an example), of the others 60 steps at rates that were compared on TREC's dev sets of the
seeds 13 and 21 alone.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from fewshot import config as configs

CLASSES = {'sst-2': 2, 'trec': 6, 'subj': 2, 'cr': 2, 'mr': 2, 'sst-5': 5}
SEEDS = (13, 21, 42, 87, 100)


def get_config() -> ConfigDict:
  """What all rows share."""
  changes = {'name': 'lm-bff', 'splits': SEEDS, 'max_length': 128}
  return configs.with_changes(configs.default(), changes)


def rows(classes: int) -> Iterator[dict[str, str]]:
  """The methods on a task of so many classes, 16 examples each."""
  pairs = 2 * 20 * 16 * classes
  yield {'method': 'neighbours()', 'fit': 'memory()'}
  yield {'method': 'linear()', 'fit': 'logistic()'}
  for method, lr in (
    ('lora(rank=8)', 1e-3),
    ('bitfit()', 3e-3),
    ('ia3()', 1e-2),
    ('full()', 1e-4),
  ):
    yield {'method': method, 'fit': f'sgd(steps=60, lr={lr}, head_lr=1e-2, batch=32)'}
  setfit = 'chain(full(), unit_features(), linear())'
  yield {'method': setfit, 'fit': f'setfit(steps={pairs // 16})'}


def sweep() -> Iterator[dict[str, str]]:
  """Each method on each task."""
  for task, classes in CLASSES.items():
    for row in rows(classes):
      yield {'task': f'lmbff/{task}', **row}
