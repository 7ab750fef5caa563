"""Outputs: what a report shows of runs beyond their records, kept in files beside them.

outputs/<run id>.safetensors   logits [T, C] in float16, one file a run
items/<test hash>.json         classes, labels and texts of the test items, one file a test set
preflight/<hash>.json          the trained/frozen table, machine and command, one file a method
"""

import contextlib
import functools
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from fewshot import records
from fewshot.errors import FewshotError

LONGEST = 300  # Characters of a text that are kept.
HALF = float(np.finfo(np.float16).max)
Record = Mapping[str, Any]


class Kept(NamedTuple):
  """What is there of a run; None for what was not kept."""

  logits: np.ndarray | None  # [T, C] float32.
  items: dict[str, Any] | None  # 'classes', 'labels' and 'texts' or 'ids', in the test set's order.
  preflight: dict[str, Any] | None  # 'rows', 'modules', 'machine' and 'command'.


def save(folder: Path, prepared: Any, record: Record, result: Any) -> None:
  """Keeps the outputs of a run beside its record; a failure costs them alone, and says so once.

  Args:
    folder: that of the records.
    prepared: the `fewshot.prepared.Prepared` that ran.
    record: of the run; it names the files.
    result: the `fewshot.sweep.Result` that the record was made from.
  """
  logits = np.clip(result.logits, -HALF, HALF).astype(np.float16)
  files = {
    _logits_file(folder, record): lambda: safetensors.numpy.save({'logits': logits}),
    _items_file(folder, record): lambda: _json(items_of(prepared.task, prepared.data.splits[0])),
    _preflight_file(folder, record): lambda: _json(_preflight(prepared, result)),
  }
  try:
    for i, (file, made) in enumerate(files.items()):
      if file and (not i or not file.exists()):
        file.parent.mkdir(parents=True, exist_ok=True)
        records.replace(file, made())
  except (OSError, FewshotError) as e:
    _warn(str(folder), f'outputs are not kept ({e}); the runs go on')


def load(folder: str | Path, record: Record) -> Kept:
  """What `save` kept of a record's run.

  >>> load('no-such-run', {'id': '0123456789abcdef', 'hashes': {}})
  Kept(logits=None, items=None, preflight=None)
  """
  return Kept(logits(folder, record), items(folder, record), preflight(folder, record))


def logits(folder: str | Path, record: Record) -> np.ndarray | None:
  """The logits [T, C] of a run as float32, or None."""
  file = _logits_file(Path(folder), record)
  if file is None or not file.exists():
    return None
  try:
    found = safetensors.numpy.load(file.read_bytes())['logits']
  except (OSError, KeyError, safetensors.SafetensorError) as e:
    return _warn(str(file), f'{file} is damaged and left out ({e})')
  return found.astype(np.float32) if found.ndim == 2 else None


def items(folder: str | Path, record: Record) -> dict[str, Any] | None:
  """The test items that a record's predictions are of, or None."""
  found = _read(_items_file(Path(folder), record))
  sound = found and all(isinstance(found.get(k), list) for k in ('classes', 'labels'))
  return found if sound else None


def preflight(folder: str | Path, record: Record) -> dict[str, Any] | None:
  """The trained/frozen table of a record's method, or None."""
  found = _read(_preflight_file(Path(folder), record))
  return found if found and isinstance(found.get('modules'), dict) else None


def items_of(task: Any, split: Any) -> dict[str, Any]:
  """The test items of a split as JSON: texts cut to `LONGEST` characters, ids of other inputs.

  >>> import numpy as np
  >>> from fewshot import tasks
  >>> toy = tasks.make('toy', ['a', 'b', 'c', 'd'], ['x', 'y', 'x', 'y'], test=[2, 3])
  >>> items_of(toy, tasks.kshot(toy, k=1, seeds=[0])[0])
  {'task': 'toy', 'classes': ['x', 'y'], 'labels': [0, 1], 'texts': ['c', 'd']}
  """
  rows = split.test
  labelled = {
    'task': task.name,
    'classes': list(task.classes),
    'labels': np.asarray(task.labels)[rows].tolist(),
  }
  if not task.is_text:
    return labelled | {'ids': np.asarray(task.ids)[rows].tolist()}
  return labelled | {'texts': [_text(task.inputs[i]) for i in rows]}


def _text(fields: str | tuple[str, ...]) -> str:
  text = fields if isinstance(fields, str) else '\n'.join(fields)
  return text if len(text) <= LONGEST else f'{text[: LONGEST - 1]}…'


def _preflight(prepared: Any, result: Any) -> dict[str, Any]:
  """The trained/frozen table as counts by rule and by module, and where it ran."""
  import jax

  from fewshot import methods
  from fewshot.methods import paths
  from fewshot.prepared import counted

  p = prepared
  if p.method.plan and not p.program:
    p = counted(p._replace(method=result.method))
  rows = [{'rule': r.rule, 'count': methods.count(r.leaves), 'leaves': r.text} for r in p.rows]
  trained = {path: x for row in p.rows[:-1] for path, x in row.leaves.items()}
  sizes = {k: methods.count(v) for k, v in paths.flatten(p.model.params).items()}
  return {
    'rows': rows,
    'modules': by_module({k: methods.count(v) for k, v in trained.items()}, sizes),
    'machine': {'cores': os.cpu_count(), 'device': jax.devices()[0].device_kind},
    'command': _command(),
  }


def by_module(trained: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, list[int]]:
  """[trained, all] parameters by module, from counts by path of theta and of params.

  >>> by_module({'b_0/q/a': 6, 'head/bias': 2}, {'b_0/q/kernel': 9, 'b_0/q/bias': 3})
  {'b_0/q': [6, 12], 'head': [2, 0]}
  """
  found: dict[str, list[int]] = {}
  for path, n in sizes.items():
    found.setdefault(path.rpartition('/')[0] or path, [0, 0])[1] += n
  own = set(found)
  for path, n in trained.items():
    module = path
    while module not in own and '/' in module:
      module = module.rpartition('/')[0]
    module = module if module in own else path.rpartition('/')[0] or path
    found.setdefault(module, [0, 0])[0] += n
  return found


def _command() -> str | None:
  """The command line, where it is one of fewshot's and gives nothing of the machine away."""
  program = Path(sys.argv[0])
  if program.name != 'fewshot' and program.parts[-2:] != ('fewshot', '__main__.py'):
    return None
  with contextlib.suppress(FewshotError):
    for arg in sys.argv[1:]:
      records.check({'command': arg, 'value': arg.partition('=')[2]})
    return shlex.join(['fewshot', *sys.argv[1:]])
  return None


def _logits_file(folder: Path, record: Record) -> Path | None:
  return _file(folder / 'outputs', record.get('id'), '.safetensors')


def _items_file(folder: Path, record: Record) -> Path | None:
  return _file(folder / 'items', record['hashes'].get('test'), '.json')


def _preflight_file(folder: Path, record: Record) -> Path | None:
  decisive = {k: record.get(k) for k in ('model', 'method', 'task', 'prompt')}
  decisive['weights'] = record['hashes'].get('weights')
  return _file(folder / 'preflight', records.run_id(decisive), '.json')


def _file(folder: Path, name: Any, suffix: str) -> Path | None:
  """A record may come from anywhere: what is no hash names no file."""
  known = isinstance(name, str) and re.fullmatch(r'\w{1,64}', name)
  return folder / f'{name}{suffix}' if known else None


def _json(value: Any) -> bytes:
  return json.dumps(value).encode()


def _read(file: Path | None) -> dict[str, Any] | None:
  if file is None or not file.exists():
    return None
  try:
    found = json.loads(file.read_text(encoding='utf-8'))
  except (OSError, ValueError, RecursionError) as e:
    return _warn(str(file), f'{file} is damaged and left out ({e})')
  return found if isinstance(found, dict) else None


@functools.cache
def _warn(where: str, message: str) -> None:
  """A line, once for each place and message."""
  del where
  print(f'fewshot: {message}', file=sys.stderr)
