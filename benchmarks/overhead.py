"""What a sweep takes beyond its runs: 100 runs of several groups by `fewshot run`'s own parts.

A process of its own runs a config of a random encoder on made texts: 5 groups of 20 runs, side by
side in chunks, with records, states, claims, progress and the final table.  `overhead` is (wall -
compile - the chunks' own times) / (wall - compile): loading, planning and writing, all imports
included, but not the start of Python.  Compiling is apart, for it is paid once and then cached.

    fewshot bench overhead
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


def _run(profile: cProfile.Profile | None) -> int:
  from fewshot import cli

  command = ['run', 'config.py']
  return profile.runcall(cli.main, command) if profile else cli.main(command)


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
