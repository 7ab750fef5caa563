"""What a sweep takes beyond its runs: 100 runs of several groups by `fewshot run`'s own parts.

A config of a random encoder on made texts: 5 groups of 20 runs, side by side, with their records,
claims, progress and the final table.  `overhead` is `rest_s` / (wall - compile), where the rest is
the wall time without compiling and the chunks' own times: imports, loading, planning, records, the
table.  Compiling is apart, for it is paid once and then cached.  Most of the rest does not grow
with the runs, so it is a share of how long they are: by default some 2 s, which is short.  Where
Python may not keep bytecode (PYTHONDONTWRITEBYTECODE), every import compiles anew, and that counts.

`writers` is the share of the wall time that the training thread spends in calls of the log's
`MetricWriter`, the last one, which closes it, included; of it the config has `log.jsonl` alone.

    fewshot bench overhead --repeats 1
"""

import argparse
import contextlib
import cProfile
import io
import json
import os
import pstats
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fewshot.bench import Case

CALLS = ('event', 'scalars', 'record', 'table', 'flush', 'close')  # Of a MetricWriter.
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
  """Two figures of one command, against nothing: the bars, 5 and 1 %, are shares of the time."""
  command = [str(Path(__file__))]
  return [
    Case('100 runs, beyond the runs', command, [], 'overhead', 'of the time'),
    Case('100 runs, in the metric writers', command, [], 'writers', 'of the wall time'),
  ]


def main() -> None:
  """Prints one JSON line; with --profile first the functions that take the time."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--steps', type=int, default=1500, help='1,500: 2 s a run')
  parser.add_argument('--profile', action='store_true', help='list where the time goes')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
    make(Path(folder))
    Path('config.py').write_text(CONFIG.format(steps=args.steps, rows=ROWS))
    profile = cProfile.Profile() if args.profile else None
    figures = measured(profile)
  if profile:
    text = io.StringIO()
    pstats.Stats(profile, stream=text).sort_stats('cumulative').print_stats(60)
    print(text.getvalue())
  print(json.dumps(figures))


def measured(profile: cProfile.Profile | None) -> dict[str, float]:
  """Runs the config, and adds up what its records say; parts of the rest beside it."""
  begun = time.perf_counter()
  from fewshot import cli, engine, experiment, prepared, records, tables, writers
  from fewshot.launch import groups, work  # noqa: F401

  parts = {'import_s': time.perf_counter() - begun}
  named = ((prepared, 'prepare'), (experiment, 'identity'), (records, 'append'))
  for module, name in (*named, (tables, 'write'), (engine, 'compile_programs')):
    _time(module, name, parts)
  calls: dict[str, float] = {}
  for name in CALLS:
    _time(writers.Log, name, calls)
  command = ['run', 'config.py']
  run = (lambda: profile.runcall(cli.main, command)) if profile else (lambda: cli.main(command))
  status = _quietly(run)
  wall = time.perf_counter() - begun
  assert status == 0
  lines = Path('runs/overhead/records.jsonl').read_text().splitlines()
  timings = [json.loads(line)['timings'] for line in lines]
  compiling = parts.pop('compile_programs_s')
  runs = sum(t['chunk_seconds'] / t['chunk_runs'] for t in timings)
  rest = wall - compiling - runs
  return {
    'overhead': rest / (wall - compiling),
    'writers': sum(calls.values()) / wall,
    'runs': len(timings),
    'wall_s': wall,
    'compile_s': compiling,
    'runs_s': runs,
    'rest_s': rest,
    'writers_s': sum(calls.values()),
    **parts,
  }


def _time(module: Any, name: str, parts: dict[str, float]) -> None:
  """Adds up the seconds of a function in `parts`, under its name."""
  timed, key = getattr(module, name), f'{name.strip("_")}_s'
  parts[key] = 0.0

  def call(*args: Any, **kwargs: Any) -> Any:
    begun = time.perf_counter()
    try:
      return timed(*args, **kwargs)
    finally:
      parts[key] += time.perf_counter() - begun

  setattr(module, name, call)


def _quietly(work: Callable[[], int]) -> int:
  """The tables go nowhere, for the figures are the last line."""
  with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
    return work()


def make(folder: Path) -> None:
  """A model of random weights in Hugging Face's format with a tokenizer, and texts of 3 classes."""
  import numpy as np
  import safetensors.numpy
  from tokenizers import Tokenizer, models, pre_tokenizers

  rng = np.random.default_rng(0)
  dim, depth, words = 64, 2, 300
  sizes = {'hidden_size': dim, 'num_hidden_layers': depth, 'num_attention_heads': 4,
           'intermediate_size': 4 * dim, 'max_position_embeddings': 32, 'type_vocab_size': 2,
           'vocab_size': words}  # fmt: skip
  (folder / 'model').mkdir()
  about = {'model_type': 'bert', 'hidden_act': 'gelu', 'layer_norm_eps': 1e-12, **sizes}
  (folder / 'model/config.json').write_text(json.dumps(about))
  shapes = {f'embeddings.{k}_embeddings.weight': (n, dim)
            for k, n in (('word', words), ('position', 32), ('token_type', 2))}  # fmt: skip
  shapes |= {f'embeddings.LayerNorm.{k}': (dim,) for k in ('weight', 'bias')}
  for i in range(depth):
    for name, (n, m) in _matrices(dim).items():
      shapes[f'encoder.layer.{i}.{name}.weight'] = (n, m)
      shapes[f'encoder.layer.{i}.{name}.bias'] = (n,)
    for name in ('attention.output', 'output'):
      shapes |= {f'encoder.layer.{i}.{name}.LayerNorm.{k}': (dim,) for k in ('weight', 'bias')}
  draw = lambda k, s: (0.1 * rng.standard_normal(s) + k.endswith('Norm.weight')).astype('float32')  # noqa: E731
  weights = {k: draw(k, s) for k, s in shapes.items()}
  safetensors.numpy.save_file(weights, folder / 'model/model.safetensors')
  vocab = {'[UNK]': 0} | {f'w{i}': i for i in range(1, words)}
  made = Tokenizer(models.WordLevel(vocab, unk_token='[UNK]'))
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  made.save(str(folder / 'model/tokenizer.json'))
  texts = [' '.join(f'w{w}' for w in rng.integers(1 + 90 * c, 100 + 90 * c, 12))
           for c in range(3) for _ in range(60)]  # fmt: skip
  rows = [f'{text},{"abc"[i // 60]}' for i, text in enumerate(texts)]
  (folder / 'texts.csv').write_text('\n'.join(['text,label', *rows]) + '\n')


def _matrices(dim: int) -> dict[str, tuple[int, int]]:
  """The products of a layer, with what comes out and goes in."""
  square = ('self.query', 'self.key', 'self.value', 'output.dense')
  found = {f'attention.{name}': (dim, dim) for name in square}
  return found | {'intermediate.dense': (4 * dim, dim), 'output.dense': (dim, 4 * dim)}


if __name__ == '__main__':
  main()
