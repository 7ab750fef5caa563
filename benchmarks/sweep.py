"""K=16 TREC, five given splits, LoRA: trained and scored, from process start to last accuracy.

The peer is HF PEFT on PyTorch, which runs the splits one after another with dynamic padding; the
same MiniLM, splits (LM-BFF's seeds), 60 steps of 32, rates, and 500 test questions on both sides.
Reads the splits from the folder FEWSHOT_DATA (text_lmbff_kshot/trec).

    fewshot bench sweep
"""

import csv
import json
import os
import time
from pathlib import Path
from typing import Any

from fewshot.bench import Case
from fewshot.errors import FewshotError

SEEDS = (13, 21, 42, 87, 100)


def cases() -> list[Case]:
  """The whole process, and the same without start-up and loading (ours: without compiling too)."""
  peer = ['peft_fewshot.py', '--data', str(data_folder()), '--task', 'TREC', '--method', 'lora']
  ours = [str(Path(__file__))]
  return [
    Case('trec lora 5 splits, whole process', ours, peer, 'wall_s', 's'),
    Case('trec lora 5 splits, train and score', ours, peer, 'total_s', 's'),
  ]


def data_folder() -> Path:
  """The folder of real data sets."""
  folder = Path(os.environ.get('FEWSHOT_DATA', '../shared/data'))
  return folder


def trec_folder() -> Path:
  """The folder of the given splits; a machine without it is told what to set."""
  folder = data_folder()
  if not (folder / 'text_lmbff_kshot' / 'trec').is_dir():
    raise FewshotError(
      f'{folder} holds no text_lmbff_kshot/trec; set FEWSHOT_DATA to a folder that does'
    )
  return folder / 'text_lmbff_kshot' / 'trec'


def given_splits(folder: Path) -> tuple[Any, list[Any]]:
  """The task, and its five splits as LM-BFF gives them."""
  import numpy as np

  from fewshot import tasks
  from fewshot.tasks.splits import content_hash

  files = [folder / f'16-{s}' / 'train.csv' for s in SEEDS] + [folder / 'test.csv']
  parts = [list(csv.reader(f.open(newline='', encoding='utf-8'))) for f in files]
  ends = np.cumsum([len(p) for p in parts])
  rows = [r for p in parts for r in p]
  test = np.arange(ends[-2], ends[-1])
  task = tasks.make('trec', [r[1] for r in rows], [r[0] for r in rows], test)
  splits = [
    tasks.Split(seed, 16, np.arange(end - len(p), end), np.array([], int), test, '', '')
    for seed, end, p in zip(SEEDS, ends, parts, strict=False)
  ]
  hashed = [s._replace(hash=content_hash(task, s.train), test_hash='test') for s in splits]
  return task, hashed


def main() -> None:
  """Runs ours, and prints one JSON line."""
  start = time.perf_counter()
  from fewshot import fits, methods, models, tasks
  from fewshot.sweep import sweep

  model = models.load('minilm-l6')
  task, splits = given_splits(trec_folder())
  data = tasks.encode(task, splits, model.tokenizer, max_length=128)
  method = methods.parse('chain(lora(rank=8), linear())')
  fit = fits.sgd(steps=60, lr=1e-3, head_lr=1e-2, batch=32)
  results = list(sweep(model, data, method, fit, classes=len(task.classes)))
  accuracy = [float((r.predictions == data.labels).mean()) for r in results]
  timings = results[0].timings
  print(
    json.dumps(
      {
        'wall_s': time.perf_counter() - start,
        'total_s': timings['chunk_seconds'],
        'compile_s': timings['compile_seconds'],
        'accuracy': accuracy,
        'accuracy_mean': sum(accuracy) / len(accuracy),
      }
    )
  )


if __name__ == '__main__':
  main()
