"""Few-shot text classification on LM-BFF's given 16-shot splits with sentence encoders.

    fewshot run configs/lm_bff/encoders.py

The tasks and the five splits are those of Gao et al. 2021 (arXiv:2012.15723), as published; the
encoders are all-MiniLM-L6-v2, and all-mpnet-base-v2 on two of the tasks.  Rates and steps are fixed
beforehand: of SetFit those of its paper (40 pairs an example), of the others 60 steps at rates that
were compared on TREC's dev sets of the seeds 13 and 21 alone.  PERFECT shows the text before two
mask tokens and has the head's rate of its paper.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from fewshot import config as configs

CLASSES = {'sst-2': 2, 'trec': 6, 'subj': 2, 'cr': 2, 'mr': 2, 'sst-5': 5}
SEEDS = (13, 21, 42, 87, 100)
LARGER = ('probe', 'lora', 'perfect', 'setfit')  # Of mpnet-base, on the first two tasks.


def get_config() -> ConfigDict:
  """What all rows share."""
  changes = {'name': 'lm-bff', 'splits': SEEDS, 'max_length': 128}
  return configs.with_changes(configs.default(), changes)


def rows(classes: int) -> dict[str, dict[str, str]]:
  """The methods on a task of so many classes, 16 examples each."""
  trained = {'lora': ('lora(rank=8)', 1e-3), 'bitfit': ('bitfit()', 3e-3), 'ia3': ('ia3()', 1e-2)}
  sgd = 'sgd(steps=60, lr={}, head_lr=1e-2, batch=32)'
  steps = 2 * 20 * 16 * classes // 16
  return {
    'majority': {'method': 'majority()', 'fit': 'untrained()'},
    'knn': {'method': 'neighbours()', 'fit': 'memory()'},
    'probe': {'method': 'linear()', 'fit': 'logistic()'},
    **{name: {'method': m, 'fit': sgd.format(lr)} for name, (m, lr) in trained.items()},
    'full': {'method': 'full()', 'fit': sgd.format(1e-4)},
    'perfect': {
      'method': 'chain(adapter(), label_embeddings(tokens=2, prototypes=True))',
      'fit': 'perfect(steps=60, lr=1e-3, head_lr=1e-1, batch=32)',
      'objective': 'hinge()',
      'prompt': "cloze('{text} {mask}{mask}')",
    },
    'setfit': {
      'method': 'chain(full(), unit_features(), linear())',
      'fit': f'setfit(steps={steps})',
    },
  }


def sweep() -> Iterator[dict[str, str]]:
  """Each method on each task."""
  for task, classes in CLASSES.items():
    for row in rows(classes).values():
      yield {'model': 'minilm-l6', 'task': f'lmbff/{task}', **row}
  for task in ('sst-2', 'trec'):
    for name in LARGER:
      yield {'model': 'mpnet-base', 'task': f'lmbff/{task}', **rows(CLASSES[task])[name]}
