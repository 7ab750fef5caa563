"""K=16 SST-2, five given splits x three rates, LoRA: trained, and scored on 500 sentences.

Ours is one sweep of 15 runs.  The peer is HF PEFT on PyTorch with dynamic padding, which runs them
one after another, a process each (benchmarks/peers/fifteen.py); the same MiniLM, splits (LM-BFF's
seeds), 60 steps of 32 and rates.  Once with start-up, loading and compiling, once without.  Reads
the splits from the folder FEWSHOT_DATA (text_lmbff_kshot/SST-2).

    fewshot bench sweep
"""

import argparse
import csv
import json
import os
import random
import time
from pathlib import Path
from typing import Any

from fewshot.bench import Case
from fewshot.errors import FewshotError

SEEDS = (13, 21, 42, 87, 100)
RATES = (5e-4, 1e-3, 2e-3)
TASK = 'text_lmbff_kshot/SST-2'


def cases() -> list[Case]:
  """The same commands, two figures."""
  rates = ','.join(map(str, RATES))
  peer = [str(Path(__file__).parent / 'peers' / 'fifteen.py'), str(data_folder()), rates]
  ours = [str(Path(__file__))]
  return [
    Case('15 runs, whole processes', ours, peer, 'wall_s', 's', bars=(0.45, 0.05)),
    Case('15 runs, train and score', ours, peer, 'total_s', 's', bars=(0.45, 0.05)),
  ]


def data_folder() -> Path:
  """The folder of real data sets."""
  folder = Path(os.environ.get('FEWSHOT_DATA', '../shared/data')).absolute()
  if not (folder / TASK).is_dir():
    raise FewshotError(f'there is no {TASK} in FEWSHOT_DATA; set it to a folder that has one')
  return folder


def given_splits(folder: Path, most: int = 500) -> tuple[Any, list[Any]]:
  """SST-2 with at most so many test sentences, and its five splits as LM-BFF gives them."""
  import numpy as np

  from fewshot import tasks
  from fewshot.tasks.splits import content_hash

  files = [folder / f'16-{s}' / 'train.tsv' for s in SEEDS] + [folder / 'test.tsv']
  parts = [list(csv.reader(f.open(newline='', encoding='utf-8'), delimiter='\t', quoting=3))[1:]
           for f in files]  # fmt: skip
  kept = sorted(random.Random(0).sample(range(len(parts[-1])), most))  # As the peer's.
  parts[-1] = [parts[-1][i] for i in kept]
  ends = np.cumsum([len(p) for p in parts])
  rows = [r for p in parts for r in p]
  test = np.arange(ends[-2], ends[-1])
  task = tasks.make('sst-2', [r[0] for r in rows], [r[1] for r in rows], test)
  splits = [
    tasks.Split(seed, 16, np.arange(end - len(p), end), np.array([], int), test, '', '')
    for seed, end, p in zip(SEEDS, ends, parts, strict=False)
  ]
  hashed = [s._replace(hash=content_hash(task, s.train), test_hash='test') for s in splits]
  return task, hashed


def main() -> None:
  """Runs ours, and prints one JSON line."""
  start = time.perf_counter()
  parser = argparse.ArgumentParser()
  parser.add_argument('--method', default='lora(rank=8)')
  parser.add_argument('--packing', default='auto')
  parser.add_argument('--prefix', default='auto')
  parser.add_argument('--steps', type=int, default=60)
  args = parser.parse_args()
  from fewshot import fits, methods, models, tasks
  from fewshot.sweep import Options, sweep

  model = models.load('minilm-l6')
  task, splits = given_splits(data_folder() / TASK)
  data = tasks.encode(task, splits, model.tokenizer, max_length=128)
  method = methods.chain(methods.parse(args.method), methods.linear())
  fit = fits.sgd(steps=args.steps, lr=1e-3, head_lr=1e-2, batch=32)
  options = Options(packing=args.packing, prefix=args.prefix)
  grid = {'lr': list(RATES)}
  results = list(sweep(model, data, method, fit, classes=2, grid=grid, options=options))
  accuracy = [float((r.predictions == data.labels).mean()) for r in results]
  # Of all chunks: each of a chunk's runs has the chunk's own times.
  total = lambda key: sum(r.timings[key] / r.timings['chunk_runs'] for r in results)  # noqa: E731
  compiling = results[0].timings['compile_seconds']
  figures = {
    'wall_s': time.perf_counter() - start,
    'total_s': total('chunk_seconds'),
    'compile_s': compiling,
    'step_ms': 1e3 * total('fit_seconds') / args.steps,
    'score_s': total('score_seconds'),
    'sweep_s': total('chunk_seconds') + compiling,
    'engine': results[0].engine,
    'accuracy': accuracy,
    'accuracy_mean': sum(accuracy) / len(accuracy),
  }
  print(json.dumps(figures))


if __name__ == '__main__':
  main()
