"""A folder of records to report: two methods at two K on two splits, and one that fails."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from fewshot import outputs, records

TEST = 'feedfeedfeedfeed'
NASTY = '</script><img src=x onerror=alert(1)><!-- "quoted" & \u2028 é'
PREDICTIONS = ([0, 1, 1, 0], [0, 1, 0, 0])
VALUES = {'linear()': (0.25, 0.75), 'chain(lora(rank=4), linear())': (0.75, 0.75)}


def run(method: str = 'linear()', k: int = 4, split: int = 0, **more: Any) -> dict[str, Any]:
  """A record of a split."""
  score = {'value': 0.5, 'spread': 0.25, 'kind': 'item-bootstrap', 'n': 4}
  return {
    'id': '0' * 16, 'config': {'k': k, 'engine': {'loop': 'scan'}, 'name': 'pets'}, 'model': 'tiny',
    'method': method, 'fit': 'sgd(steps=3)', 'task': 'toy', 'split': {'k': k, 'seed': split},
    'seed': 0, 'hyper': {}, 'hashes': {'test': TEST, 'weights': 'aa'}, 'versions': {'jax': '1'},
    'tuning': 'fixed', 'trained': 10 if method == 'linear()' else 40, 'total': 100, 'chosen': True,
    'scores': {'accuracy': score}, 'timings': {'seconds': 1.0 + split}, 'memory': {'bytes': 2**20},
    'status': 'ok', 'cause': None, 'predictions': PREDICTIONS[split % 2], 'curve': [2.0, 1.0, 0.5],
  } | more  # fmt: skip


def make(folder: Path, kept: bool = True) -> Path:
  """Writes the folder, with what is kept beside the records or without."""
  folder.mkdir(parents=True)
  made = [
    run(method, k, split, scores={'accuracy': {'value': v, 'spread': 0.1, 'kind': 'x', 'n': 4}})
    for k in (4, 8)
    for method, values in VALUES.items()
    for split, v in enumerate(values)
  ]
  lost = {'status': 'failed', 'cause': 'the loss was not finite', 'scores': {}}
  made += [run('broken()', 4, s, **lost, predictions=None, curve=[2.0, None]) for s in (0, 1)]
  made[-3] |= {'status': 'collapsed', 'cause': 'every test item got the same class'}
  made = [r | {'id': f'{i:016x}'} for i, r in enumerate(made)]
  write(folder, made)
  if kept:
    keep_items(folder)
    for r in made:
      if r['predictions']:
        _keep(folder, r)
  return folder


def write(folder: Path, made: list[dict[str, Any]]) -> None:
  """Writes records as lines."""
  text = ''.join(json.dumps(r) + '\n' for r in made)
  (folder / records.NAME).write_text(text)


def keep_items(folder: Path) -> None:
  """The test items, one of which would break a page that takes texts for HTML."""
  (folder / 'items').mkdir()
  texts = [NASTY, 'a dog barks', 'a cat sleeps', 'a dog sleeps']
  items = {'task': 'toy', 'classes': ['cat', 'dog'], 'labels': [0, 1, 0, 1], 'texts': texts}
  (folder / 'items' / f'{TEST}.json').write_text(json.dumps(items))


def _keep(folder: Path, record: dict[str, Any]) -> None:
  logits = np.eye(2, dtype=np.float16)[record['predictions']]
  for file, content in {
    outputs._logits_file(folder, record): safetensors.numpy.save({'logits': logits}),
    outputs._preflight_file(folder, record): json.dumps(PREFLIGHT).encode(),
  }.items():
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)


PREFLIGHT = {
  'rows': [
    {'rule': 'lora(rank=4)', 'count': 30, 'leaves': 'block_*/attn/query/a (2)'},
    {'rule': 'frozen', 'count': 60, 'leaves': 'block_*/attn/query/kernel (2)'},
  ],
  'modules': {'enc/block_0/attn/query': [15, 30], 'enc/block_1/attn/query': [15, 30]},
  'machine': {'cores': 2, 'device': 'cpu'},
  'command': 'fewshot run pets.py',
}
