"""Sound records: what a run could have written, whoever wrote the file."""

import contextlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fewshot import records

Record = Mapping[str, Any]


def malformed(record: Record) -> str:
  """Which field of a record has a type that no run writes; empty when none has.

  >>> malformed({'split': 3})
  'split'
  """
  texts = ('model', 'method', 'task', 'status', 'id', 'fit', 'prompt', 'objective')
  tables = ('scores', 'hashes', 'timings', 'memory', 'hyper', 'split')
  counts = ('trained', 'total', 'seed')
  bad = [k for k in texts if not isinstance(record.get(k, ''), str)]
  bad += [k for k in tables if not isinstance(record.get(k, {}), dict)]
  bad += [k for k in counts if not isinstance(v := record.get(k, 0), int) or not -1 < v < 2**53]
  if bad:
    return bad[0]
  numbers = (
    {f'split.{k}': record['split'].get(k) for k in ('k', 'seed')} if 'split' in record else {}
  )
  numbers |= {f'{t}.{k}': v for t in ('timings', 'memory') for k, v in record.get(t, {}).items()}
  for name, score in record.get('scores', {}).items():
    if not isinstance(score, dict):
      return f'scores.{name}'
    numbers |= {f'scores.{name}.{k}': score.get(k) for k in ('value', 'spread', 'n')}
  given = {k: v for k, v in numbers.items() if v is not None or k.startswith('split')}
  wrong = [k for k, v in given.items() if not _is_count(v)] + _odd_parts(record)
  hashes = [k for k, v in record.get('hashes', {}).items() if not isinstance(v, str)]
  return (wrong + [f'hashes.{k}' for k in hashes] + [''])[0]


def _odd_parts(record: Record) -> list[str]:
  """Which of the parts that not every record has are not what a run writes."""
  attempt = record.get('attempt', {'number': 1, 'of': ''})
  whole = isinstance(attempt, dict) and isinstance(attempt.get('of'), str)
  found = {
    'attempt': whole and _is_count(attempt.get('number')),
    'retried': _is_count(record.get('retried', 0)),
    'config': isinstance(record.get('config', {}), dict),
    'predictions': _are_classes(record.get('predictions')),
    'curve': _is_list(record.get('curve'), {int, float, type(None)}),
  }
  return [name for name, sound in found.items() if not sound]


def _are_classes(values: Any) -> bool:
  """None, or a list of whole numbers from 0 on; those below 256 are looked at in one call."""
  if isinstance(values, list):
    with contextlib.suppress(TypeError, ValueError):
      return bytes(values) is not None
  return _is_list(values, {int}) and (not values or (min(values) >= 0 and max(values) < 10**6))


def _is_list(values: Any, kinds: set[type]) -> bool:
  """None, or a list of nothing else than these; of long lists no element costs a call."""
  return values is None or (isinstance(values, list) and set(map(type, values)) <= kinds)


def _is_count(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53


def usable(path: str | Path) -> list[dict[str, Any]]:
  """The records that a run could have written; others are left out with a warning line."""
  return sound(records.read(path, strict=False), path)


def sound(known: Iterable[dict[str, Any]], path: str | Path) -> list[dict[str, Any]]:
  """Those of the records of `path` that are not malformed; a warning line for each that is.

  >>> sound([], 'runs/none')
  []
  """
  found = []
  for i, record in enumerate(known, 1):
    if field := malformed(record):
      print(
        f'fewshot: record {i} of {path} is left out: its field {field} is not what a run writes',
        file=sys.stderr,
      )
    else:
      found.append(record)
  return found
