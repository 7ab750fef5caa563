"""Configs: ml_collections files, overrides from the command line, and sweeps over them."""

import ast
import importlib.util
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fewshot.errors import FewshotError, nearest

VARIED = ('lr', 'head_lr', 'weight_decay', 'l2')


def default() -> ConfigDict:
  """Every key of an experiment with its default; a config file changes some and adds none.

  >>> default().k
  16
  """
  config = ConfigDict(
    {
      'name': 'experiment',
      'model': 'minilm-l6',  # `fewshot models`, or a Hugging Face folder.
      'task': 'trec',  # `fewshot tasks`, or the path of a CSV.
      'text': 'text',  # Columns of the CSV; several are fields, 'premise,hypothesis'.
      'label': 'label',
      'k': 16,  # Train examples a class.
      'dev_k': 0,  # Dev examples a class, at most k.
      'splits': (0, 1, 2, 3, 4),  # Seeds of the K-shot draws, or of a task's given splits.
      'seeds': (0,),  # Seeds of the initialisation.
      'prompt': '',  # Shown as "cloze('{text} It was {mask}.', 'bad, good')"; '' as it is.
      'calibration': 'none',  # Of label words: contextual or domain.
      'unlabelled': 0,  # Train examples without their labels, for programs that use some.
      'max_length': 64,  # Tokens; longer texts are cut.
      'max_test': 500,  # Test items, drawn once; 0 for all.
      'method': 'lora(rank=8)',
      'head': 'linear()',  # Chained to a method that gives no logits; not where a prompt has words.
      'objective': 'classification()',  # What is minimised, see `fewshot.objectives`.
      'fit': 'sgd(steps=40, lr=1e-3, head_lr=1e-2)',
      'program': '',  # Stages in place of method and fit: 'lt_sft(fit=sgd(steps=40))'.
      'retries': 0,  # A collapsed or diverged run starts anew from other keys, at most so often.
      'grid': dict.fromkeys(VARIED, ()),  # Values tried by each run, chosen on dev.
      'halving': 0,  # Of a grid the best 1/halving on dev go on at each rung; 0: all of them.
      'dtype': 'float32',  # Of the frozen weights; int8 takes the extra fewshot[int8].
      'dropout': 0.0,
      'out': '',  # The folder of the records; runs/<name> when empty.
      'save_every': 60.0,  # Seconds between two states that a killed run goes on from.
      'checkpoints': False,  # Saves theta of every run under out/checkpoints.
      'memory_gb': 0.0,  # Bounds a compiled chunk of runs; 0 for what the device has free.
      # How runs are computed, see `fewshot.engine.Options`.
      'engine': {
        **dict.fromkeys(('loop', 'packing', 'prefix', 'devices'), 'auto'),
        'remat': 'off',
        'runs': 0,  # At once; 0 for as many as memory holds.
      },
      **_dashboards(),
    }
  )
  return config.lock()


def episodes() -> ConfigDict:
  """Every key of an experiment of episodes with its default, as `default` has those of texts.

  >>> episodes().test.episodes
  600
  """
  config = ConfigDict(
    {
      'name': 'episodes',
      'learner': 'protonet()',  # Which is tested, see `fewshot learners`.
      'model': 'conv4(image_size=28, mean=(1.0,), std=(-1.0,))',  # Or pretrained('vit-b16').
      'statistics': 'train',  # Norms use those of their batch: in training, always or never.
      'train': {
        'learner': '',  # Which the backbone is trained as, where that is not the tested one.
        'pool': "glyphs(part='train')",  # See `fewshot.backbones`; omniglot(part='trainval').
        'way': 20,
        'shot': 1,
        'query': 5,
        'images': 0,  # A step takes so many single images instead of episodes: `baseline`.
        'steps': 1000,  # 0 leaves the backbone as it is.
        'meta_batch': 1,
        'lr': 1e-3,
        'schedule': 'cosine',  # constant, cosine, or halved every 2,000 steps.
        'save_every': 100,
      },
      'test': {
        'pool': "glyphs(part='test')",
        'way': 5,
        'shot': 1,
        'query': 15,
        'episodes': 600,
        'ledger': 'test',  # Its name decides the episodes, the same for every learner.
      },
      'seed': 0,  # Of the backbone and of the training episodes.
      'out': '',  # The folder of the records; runs/<name> when empty.
      **_dashboards(),
    }
  )
  return config.lock()


def _dashboards() -> dict[str, Any]:
  """Where numbers are shown as well, see docs/logging.md."""
  return {
    'wandb': {
      'mode': 'disabled',  # online, offline or disabled.
      'project': 'fewshot',
      'group': '',  # What joins several experiments.
      'tags': '',  # 'first, second'.
    },
    'tensorboard': False,  # Writes out/tensorboard.
  }


def load(path: str | Path, overrides: Iterable[str] = ()) -> list[ConfigDict]:
  """The configs that a file asks for: one, or one for each entry of its `sweep()`.

  Overrides ('k=8', "method='lora(rank=4)'") win; where they set a key that `sweep()` sets, the
  sweep is not run.

  Raises:
    FewshotError: no such file, no `get_config()`, an unknown key or a value of another type.
  """
  base, rows = _read(Path(path))
  changes = dict(_parse_override(base, o) for o in overrides)
  if any(set(row) & set(changes) for row in rows):
    rows = [{}]
  return [with_changes(base, {**row, **changes}) for row in rows]


def with_changes(base: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
  """A copy of `base` with dotted keys set; unknown keys and other types are refused.

  >>> with_changes(default(), {'k': 8, 'wandb.mode': 'offline'}).wandb.mode
  'offline'
  """
  config = base.copy_and_resolve_references()
  for key, value in changes.items():
    _check_value(key, _field(config, key), value)
    *parents, leaf = key.split('.')
    node = config
    for p in parents:
      node = node[p]
    try:
      node[leaf] = value
    except (TypeError, ValueError):  # Of a dict with a key that has a dot the second.
      kind = type(node[leaf]).__name__
      raise FewshotError(f'config.{key} is of type {kind}, not {value!r}') from None
  return config.lock()


def grid(config: ConfigDict) -> dict[str, tuple[float, ...]]:
  """The hyper-parameters that are varied, with their values."""
  return {k: tuple(float(x) for x in v) for k, v in config.grid.items() if len(v)}


def _read(path: Path) -> tuple[ConfigDict, list[Mapping[str, Any]]]:
  """What the file's get_config() and sweep() return, checked; whatever they raise is named."""
  try:
    module = _module(path)
    if not hasattr(module, 'get_config'):
      raise FewshotError(f'{path} has no get_config(); a config file defines one')
    base = module.get_config()
    rows = list(module.sweep()) if hasattr(module, 'sweep') else [{}]
  except FewshotError:
    raise
  except (Exception, SystemExit) as e:
    raise FewshotError(f'{path} does not run: {type(e).__name__}: {_line(e)}') from None
  if not isinstance(base, ConfigDict):
    raise FewshotError(f'get_config() of {path} returns no ConfigDict; start from config.default()')
  if not rows or not all(isinstance(r, Mapping) for r in rows):
    raise FewshotError(f'sweep() of {path} yields no rows, or not dicts as {{"method": "lora()"}}')
  known = episodes() if 'learner' in base else default()
  return with_changes(known, _flat(base)), rows


def _check_value(key: str, current: Any, value: Any) -> None:
  """What ConfigDict lets through: None and True for numbers, any elements in a tuple."""
  odd = value is None or (isinstance(value, bool) and not isinstance(current, bool))
  if odd:
    raise FewshotError(f'config.{key} is of type {type(current).__name__}, not {value!r}')
  if isinstance(value, str) and '\0' in value:
    raise FewshotError(f'config.{key} holds a null character; leave it out')
  if not isinstance(current, tuple) or not isinstance(value, (tuple, list)):
    return
  kinds, noun = ((int, float), 'numbers') if key.startswith('grid.') else ((int,), 'seeds')
  for v in value:
    seed = noun == 'seeds' and isinstance(v, int) and not 0 <= v < 2**31
    if not isinstance(v, kinds) or isinstance(v, bool) or seed or not math.isfinite(v):
      raise FewshotError(f'config.{key} is a tuple of {noun}, not {str(value)[:80]}')


def _line(error: BaseException) -> str:
  return ' '.join(str(error).split())[:300]


def _module(path: Path) -> Any:
  if not path.is_file():
    raise FewshotError(f'there is no config file {path}; see the folder configs/')
  spec = importlib.util.spec_from_file_location(f'fewshot_config_{path.stem}', path)
  if spec is None or spec.loader is None:
    raise FewshotError(f'{path} is no Python file; a config is configs/NAME.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _parse_override(base: ConfigDict, text: str) -> tuple[str, Any]:
  """'k=8' -> ('k', 8): strings are taken as they are, the rest is a Python literal."""
  key, eq, raw = text.partition('=')
  if not eq:
    shown = repr(text[:80])[1:-1]
    raise FewshotError(f'--config.{shown} has no value; write --config.{shown}=VALUE')
  current = _field(base, key)
  if isinstance(current, str):
    quoted = len(raw) > 1 and raw[0] == raw[-1] and raw[0] in '\'"'
    return key, raw[1:-1] if quoted else raw
  try:
    value = ast.literal_eval(raw)
  except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
    kind = type(current).__name__
    raise FewshotError(f'config.{key} is of type {kind}, not {raw[:80]!r}') from None
  if isinstance(current, tuple):
    value = tuple(value) if isinstance(value, (tuple, list)) else (value,)
  return key, value


def _field(config: ConfigDict, key: str) -> Any:
  known = _flat(config)
  if key not in known:
    raise FewshotError(f'unknown config key {key[:80]!r}; {nearest(key, known)}')
  return known[key]


def _flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, (ConfigDict, dict)):
      flat |= _flat(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


def as_dict(config: ConfigDict) -> dict[str, Any]:
  """The config as plain JSON, for records: without where files lie."""
  plain = config.to_dict()
  plain.pop('out')
  for key in {'model', 'task'} & set(
    plain
  ):  # A folder or a file by its name: records hold no path.
    if os.path.isabs(os.path.expanduser(plain[key])):
      plain[key] = Path(plain[key]).name
  return {k: _plain(v) for k, v in plain.items()}


def _plain(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, str):  # A folder within a spelling, image_folder('/data/pics'), by its name.
    return re.sub(r"""(['"])[/~][^'"]*/([^/'"]+)/?\1""", r'\1\2\1', value)
  return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
