"""What a sweep takes beyond its runs: 100 runs of several groups by `fewshot run`'s own parts.

A process of its own runs a config of a random encoder on made texts: 5 groups of 20 runs, side by
side in chunks, with records, states, claims, progress and the final table.  `overhead` is (wall -
compile - the chunks' own times) / (wall - compile): loading, planning and writing, all imports
included, but not the start of Python.  Compiling is apart, for it is paid once and then cached.

    fewshot bench overhead
"""

import argparse
import cProfile
import contextlib
import io
import json
import os
import pstats
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fewshot.bench import Case

ROWS = ('linear()', 'bitfit()', 'lora(rank=2)', 'lora(rank=4)', 'ia3()')
CONFIG = """
from fewshot.config import default


def get_config():
  config = default().unlock()
  config.name, config.model, config.task = 'overhead', 'model', 'texts.csv'
  config.k, config.splits, config.seeds = 4, (0, 1, 2, 3, 4), (0, 1, 2, 3)
  config.max_length, config.fit = 16, 'sgd(steps={steps}, lr=1e-3)'
  return config.lock()


def sweep():
  for method in {rows!r}:
    yield {{'method': method}}
"""


def cases() -> list[Case]:
  """One, against nothing: the bar is a share of the wall time."""
  return [Case('100 runs, beyond the runs', [str(Path(__file__))], [], 'overhead', 'of the time')]


def main() -> None:
  """Prints one JSON line; with --profile first where the rest goes."""
  begun = time.perf_counter()
  parser = argparse.ArgumentParser()
  parser.add_argument('--steps', type=int, default=400)
  parser.add_argument('--profile', action='store_true', help='list the functions of the rest')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
    make(Path(folder))
    Path('config.py').write_text(CONFIG.format(steps=args.steps, rows=ROWS))
    profile = cProfile.Profile() if args.profile else None
    prepared = time.perf_counter() - begun
    figures = measured(begun + prepared, profile)
  if profile:
    text = io.StringIO()
    pstats.Stats(profile, stream=text).sort_stats('cumulative').print_stats(60)
    print(text.getvalue())
  print(json.dumps(figures))


def measured(begun: float, profile: cProfile.Profile | None) -> dict[str, float]:
  """Runs the config, and adds up what its records say."""
  status = _quietly(lambda: _run(profile))
  wall = time.perf_counter() - begun
  assert status == 0
  lines = Path('runs/overhead/records.jsonl').read_text().splitlines()
  timings = [json.loads(line)['timings'] for line in lines]
  groups = {(t['compile_seconds']) for t in timings}
  runs = sum(t['chunk_seconds'] / t['chunk_runs'] for t in timings)
  rest = wall - sum(groups)
  return {
    'overhead': (rest - runs) / rest,
    'runs': len(timings),
    'groups': len(groups),
    'wall_s': wall,
    'compile_s': sum(groups),
    'runs_s': runs,
    'rest_s': rest - runs,
  }
