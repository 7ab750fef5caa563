"""SetFit on the five given 16-shot splits of SST-2: 40 pairs an example, scored on 500 sentences.

Ours is one process of five vmapped runs.  The peer is the SetFit package on PyTorch, one split
after another in one process; the same MiniLM, splits, test sentences, pairs, rate and head.  Once
with start-up, loading and compiling, once without.  Reads the splits from the folder FEWSHOT_DATA
(text_lmbff_kshot/SST-2).

    fewshot bench setfit
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from fewshot.bench import Case

STEPS = 2 * 20 * 32 // 16  # 20 iterations of 32 examples, in batches of 16 pairs.


def cases() -> list[Case]:
  """The same commands, two figures; what both score is printed beside."""
  from fewshot import folders

  data = str((folders.data() or Path('FEWSHOT_DATA')).absolute())
  ours, peer = [str(Path(__file__))], ['setfit_fewshot.py', '--data', data, '--task', 'SST-2']
  return [
    Case('SetFit, 5 splits, whole process', ours, peer, 'wall_s', 's'),
    Case('SetFit, 5 splits, train and score', ours, peer, 'total_s', 's'),
  ]


def main() -> None:
  """Runs ours, and prints one JSON line."""
  start = time.perf_counter()
  parser = argparse.ArgumentParser()
  parser.add_argument('--steps', type=int, default=STEPS)
  args = parser.parse_args()
  from sweep import TASK, data_folder, given_splits

  from fewshot import fits, methods, models, tasks
  from fewshot.sweep import sweep

  model = models.load('minilm-l6')
  task, splits = given_splits(data_folder() / TASK)
  data = tasks.encode(task, splits, model.tokenizer, max_length=128)
  method = methods.parse('chain(full(), unit_features(), linear())')
  results = list(sweep(model, data, method, fits.setfit(steps=args.steps), classes=2))
  accuracy = [round(float((r.predictions == data.labels).mean()), 4) for r in results]
  chunks = sum(r.timings['chunk_seconds'] / r.timings['chunk_runs'] for r in results)
  figures = {
    'wall_s': time.perf_counter() - start,
    'total_s': chunks,
    'compile_s': results[0].timings['compile_seconds'],
    'accuracy': accuracy,
    'accuracy_mean': statistics.fmean(accuracy),
    'accuracy_std': statistics.stdev(accuracy),
    'engine': results[0].engine,
  }
  print(json.dumps(figures))


if __name__ == '__main__':
  main()
