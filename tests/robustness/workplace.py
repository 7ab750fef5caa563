"""A folder to run experiments in: a tiny BERT in Hugging Face's format, a CSV and a config."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from tokenizers import Tokenizer, models, pre_tokenizers

FIXTURE = Path(__file__).parents[1] / 'parity' / 'fixtures' / 'bert-tiny'
CLASSES = ('bird', 'fish', 'worm')
CHEAP = (('nearest_mean()', 'prototypes()'), ('linear()', 'sgd(steps=3, lr=0.01)'))
CONFIG = """
from fewshot.config import default

ROWS = {rows!r}


def get_config():
  config = default().unlock()
  config.name, config.model, config.task = 'tiny', 'model', 'animals.csv'
  config.k, config.splits, config.max_length = 2, (0, 1), 8
  config.method, config.fit = ROWS[0]
  return config.lock()


def sweep():
  for method, fit in ROWS:
    yield {{'method': method, 'fit': fit}}
"""


def enter(folder: Path, monkeypatch: Any) -> Path:
  """Makes the folder and works in it; the tests' own cache of compiled programs stays in place."""
  from fewshot import engine

  monkeypatch.setattr(engine, 'keep_compiled', lambda: None)
  monkeypatch.chdir(make(folder))
  return folder


def make(folder: Path, rows: Any = CHEAP) -> Path:
  """Fills a folder with `model/`, `animals.csv` and `config.py`; records go to runs/tiny."""
  (folder / 'model').mkdir(parents=True)
  weights = safetensors.numpy.load_file(FIXTURE / 'model.safetensors')
  first = {k: v for k, v in weights.items() if 'layer.1.' not in k}  # Half is traced in half.
  safetensors.numpy.save_file(first, folder / 'model' / 'model.safetensors')
  shape = json.loads((FIXTURE / 'config.json').read_text()) | {'num_hidden_layers': 1}
  (folder / 'model' / 'config.json').write_text(json.dumps(shape))
  tokenizer(folder / 'model', size=100)
  (folder / 'animals.csv').write_text(csv())
  config(folder, rows)
  return folder


def config(folder: Path, rows: Any) -> None:
  """Writes a config with these (method, fit) rows."""
  (folder / 'config.py').write_text(CONFIG.format(rows=tuple(rows)))


def tokenizer(folder: Path, size: int) -> None:
  """Writes a tokenizer.json of so many whole words."""
  vocab = {'[UNK]': 0} | {f'w{i}': i for i in range(1, size)}
  made = Tokenizer(models.WordLevel(vocab, unk_token='[UNK]'))
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  made.save(str(folder / 'tokenizer.json'))


def csv(per_class: int = 12) -> str:
  """Texts whose words give the class away, mostly."""
  rng = np.random.default_rng(0)
  lines = ['text,label']
  for c, name in enumerate(CLASSES):
    for _ in range(per_class):
      words = rng.integers(1 + 33 * c, 30 + 33 * c, rng.integers(3, 7))
      lines.append(' '.join(f'w{w}' for w in words) + f',{name}')
  return '\n'.join(lines) + '\n'


def records(folder: Path) -> list[dict[str, Any]]:
  """The whole lines of runs/tiny/records.jsonl."""
  file = folder / 'runs' / 'tiny' / 'records.jsonl'
  lines = file.read_text().split('\n')[:-1] if file.exists() else []
  return [json.loads(line) for line in lines]


def lines(text: str) -> list[str]:
  """What was printed, and that no traceback was."""
  assert 'Traceback' not in text, text
  return text.strip().splitlines()
