"""LM-BFF's table (Gao et al. 2021, arXiv:2012.15723): its manual prompts for a masked model.

    fewshot run configs/lm_bff/masked.py

The model is the paper's, roberta-large, from the Hugging Face hub; `--config.model=FOLDER` takes
another masked model, in that format.  Each task is fine-tuned with its prompt, then with
demonstrations too; rates are chosen on the dev set, which is as large as the train set.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from fewshot import config as configs

SEEDS = (13, 21, 42, 87, 100)
FEELING = ('{text} It was {mask}.', 'terrible, great')
PAIR = '{premise}? {mask}, {hypothesis}'
PROMPTS = {
  'sst-2': FEELING,
  'sst-5': ('{text} It was {mask}.', 'terrible, bad, okay, good, great'),
  'mr': FEELING,
  'cr': FEELING,
  'mpqa': FEELING,
  'subj': ('{text} This is {mask}.', 'subjective, objective'),
  'trec': ('{mask}: {text}', 'Description, Entity, Expression, Human, Location, Number'),
  'cola': ('{text} This is {mask}.', 'incorrect, correct'),
  'snli': (PAIR, 'No, Yes, Maybe'),
  'mnli': (PAIR, 'No, Yes, Maybe'),
  'rte': (PAIR, 'Yes, No'),
  'qnli': ('{question}? {mask}, {sentence}', 'Yes, No'),
  'mrpc': ('{sentence1} {mask}, {sentence2}', 'No, Yes'),
  'qqp': ('{question1} {mask}, {question2}', 'No, Yes'),
}


def get_config() -> ConfigDict:
  """What all rows share."""
  changes = {
    'name': 'lm-bff-masked',
    'model': 'roberta-large',
    'splits': SEEDS,
    'dev_k': 16,
    'max_test': 0,
    'max_length': 128,
    'method': 'full()',
    'fit': 'sgd(steps=1000, lr=1e-5, batch=8, schedule="linear", eval_every=100)',
    'grid.lr': (1e-5, 2e-5, 5e-5),
  }
  return configs.with_changes(configs.default(), changes)


def sweep() -> Iterator[dict[str, object]]:
  """Each task by its prompt, then with demonstrations, which make texts twice as long."""
  for task, (template, words) in PROMPTS.items():
    shown = f'{template!r}, {words!r}'
    yield {'task': f'lmbff/{task}', 'prompt': f'cloze({shown})'}
    more = {'prompt': f"cloze({shown}, demonstrations=16, similar='minilm-l6')", 'max_length': 256}
    yield {'task': f'lmbff/{task}', **more}
