"""SetFit with all-MiniLM-L6-v2 on eight examples a class (Tunstall et al. 2022, arXiv:2209.11055).

    fewshot run configs/setfit/minilm.py

As in the authors' results: ten splits, 40 pairs an example in batches of 16, the whole test set.
Splits are drawn by our own seeds, so that they are of the same kind, not the same examples.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from fewshot import config as configs

K = 8
CLASSES = {'sst-5': 5, 'cr': 2}


def get_config() -> ConfigDict:
  """What both rows share."""
  changes = {
    'name': 'setfit-minilm',
    'model': 'minilm-l6',
    'k': K,
    'splits': tuple(range(10)),
    'max_test': 0,
    'method': 'chain(full(), unit_features(), linear())',
  }
  return configs.with_changes(configs.default(), changes)


def sweep() -> Iterator[dict[str, str]]:
  """A task each; the number of steps follows from that of the examples."""
  for task, classes in CLASSES.items():
    yield {'task': task, 'fit': f'setfit(steps={2 * 20 * K * classes // 16})'}
