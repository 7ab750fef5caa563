"""The 45 runs of a few-shot table: three methods x three rates on the five given splits of SST-2.

Ours is one process, in which each method is one sweep of 15 runs.  The peer is HF PEFT on PyTorch,
a process a run: three of the 45, one a method, are run and the sum is taken 15 times.  The same
MiniLM, splits, 60 steps of 32, and 500 test sentences.  Reads the splits from the folder
FEWSHOT_DATA (text_lmbff_kshot/SST-2).

    fewshot bench protocol
"""

import argparse
import json
import time
from pathlib import Path

from fewshot.bench import Case

RATES = {  # As of benchmarks/peers/extrapolated.py in the middle.
  'lora(rank=8)': (5e-4, 1e-3, 2e-3),
  'bitfit()': (1e-3, 3e-3, 1e-2),
  'full()': (5e-5, 1e-4, 2e-4),
}


def cases() -> list[Case]:
  """The same commands, two figures."""
  from fewshot import folders

  data = str((folders.data() or Path('FEWSHOT_DATA')).absolute())
  ours = [str(Path(__file__))]
  peer = [str(Path(__file__).parent / 'peers' / 'extrapolated.py'), data]
  return [
    Case('45 runs, whole processes', ours, peer, 'wall_s', 's'),
    Case('45 runs, train and score', ours, peer, 'total_s', 's'),
  ]


def main() -> None:
  """Runs ours, and prints one JSON line; `compiled` counts the programs of each method's sweep.

  JAX counts them itself.  Two are a sweep's own, one that fits and one that scores, whatever the
  number of its runs; the others are eager operations before the first step, of which later sweeps
  find most.
  """
  start = time.perf_counter()
  parser = argparse.ArgumentParser()
  parser.add_argument('--steps', type=int, default=60)
  args = parser.parse_args()
  import jax
  from sweep import TASK, data_folder, given_splits

  from fewshot import fits, methods, models, tasks
  from fewshot.sweep import sweep

  model = models.load('minilm-l6')
  task, splits = given_splits(data_folder() / TASK)
  data = tasks.encode(task, splits, model.tokenizer, max_length=128)
  fit = fits.sgd(steps=args.steps, head_lr=1e-2, batch=32)
  chunks, compiling, accuracy, compiled = 0.0, 0.0, {}, dict.fromkeys(RATES, 0)

  def count(event: str, seconds: float, **kwargs: object) -> None:
    compiled[text] += event == '/jax/core/compile/backend_compile_duration'

  jax.monitoring.register_event_duration_secs_listener(count)
  for text, rates in RATES.items():
    method = methods.chain(methods.parse(text), methods.linear())
    results = list(sweep(model, data, method, fit, classes=2, grid={'lr': list(rates)}))
    chunks += sum(r.timings['chunk_seconds'] / r.timings['chunk_runs'] for r in results)
    compiling += results[0].timings['compile_seconds']
    accuracy[text] = [round(float((r.predictions == data.labels).mean()), 4) for r in results]
  figures = {
    'wall_s': time.perf_counter() - start,
    'total_s': chunks,
    'compile_s': compiling,
    'compiled': compiled,
    'accuracy': accuracy,
  }
  print(json.dumps(figures))


if __name__ == '__main__':
  main()
