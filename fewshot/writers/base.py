"""What every writer of a run's numbers answers to, and what writers share."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

POINTS = 200  # Of a curve, on dashboards; the JSONL has every one.


class MetricWriter(Protocol):
  """Takes the numbers of an experiment; a call may raise, `behind.Behind` deals with that."""

  def event(self, kind: str, **fields: Any) -> None:
    """Something that happened, such as the timings of a run."""

  def scalars(self, run: str, step: int, values: Mapping[str, float]) -> None:
    """Numbers of a run that is going on, at a step."""

  def record(self, record: Mapping[str, Any]) -> None:
    """The scores and the training curve of a finished run."""

  def table(self, rows: Sequence[Mapping[str, Any]], markdown: str) -> None:
    """The final table: its rows as dicts of one set of keys, and as it is read."""

  def flush(self) -> None:
    """All so far is to be seen; asked for when nothing waits to be written."""

  def close(self) -> None:
    """Nothing more will come."""


def label(record: Mapping[str, Any]) -> str:
  """What a run is called: method, what is varied, split and seed, and how its id begins.

  >>> label({'id': 'beef0123', 'method': 'bitfit()', 'split': {'seed': 3}, 'seed': 0})
  'bitfit() split 3 seed 0 beef01'
  """
  varied = [f'{k}={v:g}' for k, v in (record.get('hyper') or {}).items()]
  drawn = [f'split {record["split"]["seed"]}', f'seed {record["seed"]}', record['id'][:6]]
  return ' '.join([record['method'], *varied, *drawn])


def scores(record: Mapping[str, Any]) -> dict[str, float]:
  """The values of a record's scores; a run that failed may have none.

  >>> scores({'scores': {'accuracy': {'value': 0.5, 'n': 8}, 'dev_accuracy': {'value': None}}})
  {'accuracy': 0.5}
  """
  return {k: v['value'] for k, v in record['scores'].items() if v['value'] is not None}


def thinned(curve: Sequence[float] | None) -> list[tuple[int, float]]:
  """(step, loss) of at most `POINTS` steps, evenly apart, the first and the last among them.

  >>> thinned([0.5, 0.25])
  [(0, 0.5), (1, 0.25)]
  >>> len(thinned(range(1000))), thinned(range(1000))[1], thinned(range(1000))[-1]
  (200, (5, 5.0), (999, 999.0))
  """
  curve = curve or ()
  at = np.linspace(0, len(curve) - 1, min(len(curve), POINTS)).round().astype(int)
  return [(int(i), float('nan') if curve[i] is None else float(curve[i])) for i in at]


def numbers(fields: Mapping[str, Any]) -> dict[str, float]:
  """Those fields that can be drawn.

  >>> numbers({'run': 'a', 'seconds': 2, 'ok': True})
  {'seconds': 2.0}
  """
  plain = {k: v for k, v in fields.items() if isinstance(v, int | float)}
  return {k: float(v) for k, v in plain.items() if not isinstance(v, bool)}


def as_json(fields: Any) -> str:
  """A line of JSON, which has no NaN: null stands for it.

  >>> as_json({'loss': float('nan')})
  '{"loss": null}'
  """
  try:
    return json.dumps(fields, allow_nan=False)
  except ValueError:
    return json.dumps(json.loads(json.dumps(fields), parse_constant=lambda _: None))
