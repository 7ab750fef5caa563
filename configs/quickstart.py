"""The quickstart: nine ways to adapt a real encoder to a real few-shot task, on five splits.

    fewshot run configs/quickstart.py

all-MiniLM-L6-v2 (float32) learns to tell the six kinds of TREC questions apart (abbreviation,
description, entity, human, location, number) from 16 examples of each.  The task is chosen because
it is the telling one of those that arrive through PyPI: what a question asks for is not what it is
about, so frozen sentence features do badly and what is adapted matters; and questions are short,
so that the table takes minutes on two cores.

Rates and steps are fixed beforehand: they were chosen on the dev set of split 77, which is none of
the five (`--config.splits='(77,)' --config.dev_k=16 --config.grid.lr=...`).  Nothing is chosen on
test.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from fewshot.config import default


def get_config() -> ConfigDict:
  """What all rows share."""
  config = default().unlock()
  config.name = 'quickstart'
  config.k = 16
  config.max_test = 300
  return config.lock()


def sweep() -> Iterator[dict[str, str]]:
  """A row of the table each."""
  yield {'method': 'nearest_mean()', 'fit': 'prototypes()'}
  for method, lr in (
    ('linear()', 1e-2),
    ('bitfit()', 1e-2),
    ('layernorm()', 3e-3),
    ('ia3()', 3e-2),
    ('lora(rank=8)', 5e-3),
    ('adapter(width=48)', 5e-3),
    ('soft_prompt(length=10)', 3e-2),
    ('full()', 1e-4),
  ):
    yield {'method': method, 'fit': f'sgd(steps=20, lr={lr}, head_lr=0.01, batch=8)'}
