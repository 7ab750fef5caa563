"""Draws every kind of figure that docs/reports.md shows, into docs/figures/plots.

    python docs/figures/plots.py            # those of committed records: the same bytes each time
    python docs/figures/plots.py --tiny     # also those that need outputs: a tiny model is trained

Each is what `fewshot plot` writes, of the first setting; the commands are those of `COMMITTED`.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent / 'plots'
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT))  # The tiny model is that of the tests.

from fewshot import cli, figures, records  # noqa: E402
from fewshot.report import gathered, pictures  # noqa: E402

# The kind, its folder and --only.
COMMITTED = (
  ('accuracy', 'experiments/lm_bff', 'minilm trec'),
  ('pareto', 'experiments/lm_bff', 'minilm trec'),
  ('seconds', 'experiments/selection', 'trec'),
  ('shots', 'experiments/cifar_fs', 'conv4'),
  ('curves', 'experiments/selection', 'trec'),
  ('episodes', 'experiments/omniglot', 'omniglot-vinyals-test'),
)
TINY = ('confusion', 'calibration', 'masks')
ROWS = (
  (
    "chain(sparse(where=top(gradient(), 0.05, where='.*/(attn|mlp)/.*/kernel')), linear())",
    'sgd(steps=60, lr=0.01, batch=12)',
  ),
  ('chain(lora(rank=2), linear())', 'sgd(steps=60, lr=0.01, batch=12)'),
)


def main(tiny: bool) -> list[Path]:
  """Draws the figures; returns the files."""
  HERE.mkdir(exist_ok=True)
  written = [_draw(kind, ROOT / folder, only) for kind, folder, only in COMMITTED]
  return [*written, *(_of_a_tiny_run() if tiny else ())]


def _draw(kind: str, folder: Path, only: str) -> Path:
  place, _, found = gathered(folder, only)
  picture = next(pictures.drawn(place, found, (kind,)))
  file = HERE / f'{kind}.svg'
  records.replace(file, figures.render(picture.figure))
  return file


def _of_a_tiny_run() -> list[Path]:
  from tests.robustness import workplace

  with tempfile.TemporaryDirectory() as base:
    folder = workplace.make(Path(base) / 'work', ROWS)
    os.chdir(folder)
    whole = workplace.FIXTURE / 'model.safetensors'
    (folder / 'model' / 'model.safetensors').write_bytes(whole.read_bytes())
    (folder / 'model' / 'config.json').write_bytes((workplace.FIXTURE / 'config.json').read_bytes())
    (folder / 'animals.csv').write_text(workplace.csv(100))
    if cli.main(['run', 'config.py', '--config.k=8']):
      raise SystemExit('the tiny run failed')
    return [_draw(kind, folder / 'runs' / 'tiny', '') for kind in TINY]


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description='Draws the figures of docs/reports.md.')
  parser.add_argument('--tiny', action='store_true', help='also those that need outputs')
  print(*main(parser.parse_args().tiny), sep='\n')
