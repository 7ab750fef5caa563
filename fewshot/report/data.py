"""What a report's page reads: rows, runs and what they share, within a budget of bytes."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fewshot import outputs
from fewshot.figures.groups import EPISODES, Group
from fewshot.figures.outcomes import probabilities
from fewshot.summaries import Record

POINTS = 200_000  # Of all curves together.
PREDICTIONS = 1_000_000  # Of all runs together.
CHARACTERS = 6_000_000  # Of all test texts together.
BINS = 25  # Of a run's episodes.
SHARED = ('versions', 'hashes')
BESIDE = {'hyper': dict, 'cause': str, 'objective': str, 'stages': list, 'training': dict}
FIELDS = (
  'method', 'fit', 'prompt', 'task', 'model', 'k', 'n', 'runs', 'lost', 'failed', 'collapsed',
  'trained', 'total', 'seconds', 'memory', 'tuning',
)  # fmt: skip


class Limits(NamedTuple):
  """How much of a folder a page holds."""

  points: int = POINTS
  predictions: int = PREDICTIONS
  characters: int = CHARACTERS


def collect(
  folder: Path, found: Sequence[Group], records: int, limits: Limits | None = None
) -> dict[str, Any]:
  """The page's data, as JSON: the same records give the same.

  Args:
    folder: of the records, beside which `fewshot.outputs` keeps more.
    found: as `fewshot.figures.groups` gives them.
    records: how many records there are in all; a grid's are more than count.
    limits: see `Limits`; what is over them is named in 'left'.
  """
  limits = limits or Limits()
  runs = [(i, r) for i, g in enumerate(found) for r in g.records]
  left: list[str] = []
  if records > len(runs):
    left.append(
      f'{records - len(runs):,} records are not shown: runs of a grid that the dev set did not '
      'choose, or earlier records of a repeated run. They are in records.jsonl.'
    )
  sets = _sets(folder, [r for _, r in runs], limits, left)
  shown = _with_predictions(runs, sets, limits, left)
  points = max(10, min(100, limits.points // max(1, len(runs))))
  if points < max((len(r.get('curve') or ()) for _, r in runs), default=0):
    left.append(
      f'Training curves are thinned to {points} points each; all points are in records.jsonl.'
    )
  configs = [_flat(r['config'] or {}) for _, r in runs]
  base = configs[0] if configs else {}
  shared = _Shared(folder)
  data_runs = [
    _run(r, points)
    | {'row': i, 'config': _difference(config, base)}
    | shared.of(r)
    | (_predicted(folder, r, sets) if n in shown else _said(r))
    for n, ((i, r), config) in enumerate(zip(runs, configs, strict=True))
  ]
  return {
    'rows': [_row(g) for g in found],
    'runs': data_runs,
    'base': base,
    'sets': {k: _set(s) for k, s in sets.items()},
    'shared': shared.values,
    'left': left,
  }


def _set(items: Mapping[str, Any]) -> dict[str, Any]:
  found = items.get('texts') or items.get('ids') or []
  return {'classes': items['classes'], 'labels': items['labels'], 'items': found}


def _row(g: Group) -> dict[str, Any]:
  r = g.row
  return {k: getattr(r, k) for k in FIELDS} | {
    'label': g.label,
    'setting': g.setting,
    'mean': _rounded(r.mean),
    'std': _rounded(r.std),
    'spread': g.spread,
  }


def _run(r: Record, points: int) -> dict[str, Any]:
  """What every run has; `timings` in seconds, episodes as a histogram."""
  score = r['scores'].get('accuracy') or {}
  seconds = r['timings'].get('seconds', r['timings'].get('test_s'))
  run = {
    'id': r.get('id', ''),
    'split': r['split'].get('seed'),
    'seed': r['seed'],
    'value': score.get('value') if r['status'] != 'failed' else None,
    'spread': score.get('spread'),
    'n': score.get('n'),
    'status': r['status'],
    'seconds': None if seconds is None else round(seconds, 3),
    'trained': r['trained'],
  }
  run |= {k: r[k] for k, kind in BESIDE.items() if isinstance(r.get(k), kind) and r[k]}
  if r.get('curve'):
    run |= {'curve': thinned(r['curve'], points), 'steps': len(r['curve'])}
  if score.get('kind') == EPISODES and r.get('episodes'):
    values = np.array([x for x in r['episodes'] if x is not None])
    run['episodes'] = np.histogram(values, BINS, (0, 1))[0].tolist()
    worst = np.argsort(values, kind='stable')[:5]
    run['worst'] = [[int(i), float(values[i])] for i in worst]
  return run


def thinned(curve: Sequence[float | None], points: int) -> list[float | None]:
  """At most so many points of a curve at even steps, the first and the last among them.

  >>> thinned([4.0, 3.0, 2.0, 1.0, 0.5], 3)
  [4.0, 2.0, 0.5]
  """
  at = np.unique(np.linspace(0, len(curve) - 1, min(points, len(curve))).round().astype(int))
  return [None if (x := curve[i]) is None else float(f'{x:.4g}') for i in at]


def _said(r: Record) -> dict[str, Any]:
  """How often each class was predicted, of a run whose predictions are not shown one by one."""
  predictions = r.get('predictions')
  return {'said': np.bincount(predictions).tolist()} if predictions else {}


def _predicted(folder: Path, r: Record, sets: Mapping[str, Any]) -> dict[str, Any]:
  """The predictions of a run and their confidence in per cent, where logits were kept."""
  found = {'set': r['hashes']['test'], 'predictions': r['predictions']}
  logits = outputs.logits(folder, r)
  if logits is None or logits.shape[0] != len(r['predictions']):
    return found
  top = probabilities(logits).max(-1)
  return found | {'confidence': np.nan_to_num(100 * top).round().astype(int).tolist()}


def _sets(
  folder: Path, records: Iterable[Record], limits: Limits, left: list[str]
) -> dict[str, Any]:
  """The test sets that are kept, by hash, as many as there is room for."""
  found: dict[str, Any] = {}
  room, out = limits.characters, 0
  first = {r['hashes'].get('test', ''): r for r in reversed(list(records))}
  for name, r in sorted(first.items()):
    kept = outputs.items(folder, r)
    if kept is None:
      continue
    size = sum(map(len, kept.get('texts') or kept.get('ids') or []))
    if size > room:
      out += 1
      continue
    room -= size
    found[name] = kept
  if out:
    left.append(f'The items of {out:,} test sets are not shown; they are in items/.')
  return found


def _with_predictions(
  runs: Sequence[tuple[int, Record]], sets: Mapping[str, Any], limits: Limits, left: list[str]
) -> set[int]:
  """Which runs show their predictions: one of each row, then a second, while there is room."""
  able = [
    (i, n) for n, (i, r) in enumerate(runs)
    if (s := sets.get(r['hashes'].get('test', ''))) and r.get('predictions')
    and len(r['predictions']) == len(s['labels'])
    and max(r['predictions']) < len(s['classes'])
  ]  # fmt: skip
  shown: set[int] = set()
  room = limits.predictions
  for n in _in_turn(able):
    room -= len(runs[n][1]['predictions'])
    if room < 0:
      break
    shown.add(n)
  if len(shown) < len(able):
    left.append(
      f'Predictions are shown of {len(shown):,} of {len(able):,} runs, the same number of each row '
      'as far as possible. A report of fewer records shows more: fewshot report DIR --only WORDS.'
    )
  return shown


def _in_turn(pairs: Iterable[tuple[int, int]]) -> Iterator[int]:
  """The second of each pair: the first one of every first, then the next one of every first.

  >>> list(_in_turn([(0, 10), (0, 11), (1, 20)]))
  [10, 20, 11]
  """
  by: dict[int, list[int]] = {}
  for i, n in pairs:
    by.setdefault(i, []).append(n)
  rounds = itertools.zip_longest(*by.values())
  return (n for of in rounds for n in of if n is not None)


class _Shared:
  """What many runs have in common, each value kept once; a run has its position."""

  def __init__(self, folder: Path) -> None:
    self.values: dict[str, list[Any]] = {k: [] for k in (*SHARED, 'preflight', 'machine')}
    self._folder = folder
    self._at: dict[tuple[str, str], int] = {}
    self._kept: dict[tuple[Any, ...], dict[str, Any]] = {}

  def of(self, r: Record) -> dict[str, int]:
    """The positions of a record's values."""
    key = (*(r.get(k) for k in ('model', 'method', 'task', 'prompt')), r['hashes'].get('weights'))
    if key not in self._kept:
      self._kept[key] = outputs.preflight(self._folder, r) or {}
    kept = self._kept[key]
    found = {k: r[k] for k in SHARED} | {'machine': r.get('machine') or kept.get('machine') or {}}
    found['preflight'] = {k: kept.get(k) for k in ('rows', 'command')}
    return {k: self._put(k, v) for k, v in found.items()}

  def _put(self, name: str, value: Any) -> int:
    position = self._at.setdefault((name, repr(value)), len(self.values[name]))
    if position == len(self.values[name]):
      self.values[name].append(value)
    return position


def _flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """A config as one level of dotted names.

  >>> _flat({'a': {'b': 1}, 'c': []})
  {'a.b': 1, 'c': []}
  """
  found: dict[str, Any] = {}
  for name, value in config.items():
    if isinstance(value, Mapping) and value:
      found |= _flat(value, f'{prefix}{name}.')
    else:
      found[f'{prefix}{name}'] = value
  return found


def _difference(config: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
  """What a config says otherwise than the first one; null where it has no such key."""
  changed = {k: v for k, v in config.items() if k not in base or base[k] != v}
  return changed | {k: None for k in base if k not in config}


def _rounded(x: float | None) -> float | None:
  return None if x is None else round(x, 6)


def digest(file: Path) -> str:
  """16 hex digits of the SHA-256 of a file."""
  return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
