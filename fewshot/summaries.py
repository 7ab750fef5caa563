"""Sums up result records: one row per method, every run counted."""

import functools
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fewshot.errors import FewshotError

Record = Mapping[str, Any]
Key = tuple[str, str, int, str, str, str]
T = TypeVar('T')
SETTINGS = ('max_length', 'dtype', 'dropout', 'unlabelled')  # Keys of a config.


@dataclass(frozen=True)
class Row:
  """What the runs of one method, on one task with one model and K, came to.

  `mean` and `std` are fractions of 1. `std` is the sample standard deviation (ddof = 1) over the
  `n` splits, or seeds, that `kind` names; it is None when there is a single one. A run is `lost`
  when it has no accuracy, whatever its status; `failed` and `collapsed` count statuses, `retried`
  the attempts that died before the one that counts.
  `trained` and `trained_min` differ when what a dev set chose changes the number of parameters.
  `seconds` is the mean over runs, `memory` the bytes of the largest chunk, of `memory_runs` runs.

  >>> Row('vit', 'digits', 16, 'linear()', trained=5, total=1000).percent
  0.5
  """

  model: str
  task: str
  k: int
  method: str
  fit: str = ''
  mean: float | None = None
  std: float | None = None
  kind: str = 'split-std'
  n: int = 0
  runs: int = 0
  lost: int = 0
  failed: int = 0
  collapsed: int = 0
  retried: int = 0
  trained: int = 0
  trained_min: int | None = None
  total: int = 0
  seconds: float | None = None
  memory: int | None = None
  memory_runs: int | None = None
  tuning: str = 'fixed'
  test_items: tuple[int, ...] = ()
  dev_items: tuple[int, ...] = ()
  prompt: str = ''

  @property
  def key(self) -> Key:
    """The key of this row in `group`."""
    return self.model, self.task, self.k, self.prompt, self.method, self.fit

  @property
  def percent(self) -> float:
    """The trained share of the model's parameters, in percent."""
    return 100 * self.trained / self.total if self.total else 0.0


def summarise(records: Iterable[Record], mixed: bool = False) -> list[Row]:
  """Sums up records by (model, task, K, prompt, method, fit), in the order they are first seen.

  Of a grid, only the record that the dev set chose counts; a cell of the design (a split and a
  seed) of which none was chosen counts as one failed run. Seeds are averaged within a split
  first, so that with accuracies a_s over S splits::

      mean = Σ_s a_s / S,   std = sqrt(Σ_s (a_s - mean)² / (S - 1))

  Args:
    records: as `fewshot.records.read` gives them.
    mixed: whether results on different splits or test sets may stand in one table.

  Raises:
    FewshotError: the split or test hashes disagree, so that rows cannot be compared.

  >>> record = {'model': 'vit', 'task': 'digits', 'method': 'linear()', 'trained': 5, 'total': 10,
  ...           'seed': 0, 'status': 'ok', 'timings': {}, 'hashes': {}}
  >>> runs = [{**record, 'split': {'k': 4, 'seed': s}, 'scores': {'accuracy': {'value': a}}}
  ...         for s, a in [(0, 0.5), (1, 0.75)]]
  >>> [(row.method, row.mean, round(row.std, 4), row.n) for row in summarise(runs)]
  [('linear()', 0.625, 0.1768, 2)]
  """
  known = list(records)
  if not mixed:
    check_comparable(known)
  return [_row(key, members) for key, members in group(known).items()]


def group(records: Iterable[Record]) -> dict[Key, list[Record]]:
  """The records that count, by the row they belong to; of a repeated `id` the last one counts.

  Hyper-parameters chosen on a dev set read `name=dev` in the row's spelling, since they may
  differ between splits; those of a fixed grid read `name=value`, a row for each value.  So do
  settings (`SETTINGS`, and the weights) in which records of one spelling differ.

  >>> group([])
  {}
  """
  latest = {record.get('id', index): record for index, record in enumerate(records)}
  found: dict[Key, list[Record]] = {}
  for record in latest.values():
    method, fit = _spelling(record)
    shown = record.get('prompt', '')
    key = (record['model'], record['task'], record['split']['k'], shown, method, fit)
    found.setdefault(key, []).append(record)
  cells: dict[Key, dict[tuple[Any, int], list[Record]]] = {}
  for key, members in found.items():
    differ = _settings_that_differ(members)
    for record in members:
      beside = ' '.join(f'{name}={_setting(record, name)}' for name in differ)
      own = (*key[:-1], f'{key[-1]} {beside}'.strip())
      cell = (record['split'].get('seed'), record['seed'])
      cells.setdefault(own, {}).setdefault(cell, []).append(record)
  return {
    key: [record for cell in by_cell.values() for record in _chosen(cell)]
    for key, by_cell in cells.items()
  }


def _settings_that_differ(members: Sequence[Record]) -> list[str]:
  return [n for n in (*SETTINGS, 'weights') if len({_setting(r, n) for r in members}) > 1]


def _setting(record: Record, name: str) -> str:
  """What a record was computed with beside its spellings; empty where it does not say."""
  if name == 'weights':
    return str(record['hashes'].get('weights', ''))[:8]
  config = record.get('config') or {}
  return str(config[name]) if name in config else ''


def _chosen(cell: list[Record]) -> list[Record]:
  if attempts := [record for record in cell if 'attempt' in record]:
    # Of a dead run that was started anew the last attempt counts; the row says how many there were.
    last = max(attempts, key=lambda record: record['attempt']['number'])
    return [{**last, 'retried': len(cell) - 1}]
  chosen = [record for record in cell if record.get('chosen', True)]
  if chosen and chosen[-1].get('tuning') == 'dev':
    chosen = chosen[-1:]  # A run repeated with a larger grid chose anew.
  # A grid that was never decided is a run without a result: it must not vanish from the count.
  return chosen or [{**cell[0], 'status': 'failed', 'scores': {}, 'chosen': True}]


def _spelling(record: Record) -> tuple[str, str]:
  dev = record.get('tuning') == 'dev'
  shown = ((k.rpartition('.')[2], 'dev' if dev else str(v)) for k, v in
           (record.get('hyper') or {}).items())  # fmt: skip
  return _spelled(
    record['method'], record.get('fit', ''), tuple(shown), record.get('objective', '')
  )


@functools.cache  # The runs of a sweep are many, their spellings few.
def _spelled(
  method: str, fit: str, hyper: tuple[tuple[str, str], ...], objective: str
) -> tuple[str, str]:
  for name, value in hyper:
    shown = f'{name}={value}'
    setting = re.compile(rf'\b{re.escape(name)}=[^,()]*')
    if not setting.search(method + fit):
      fit = f'{fit} {shown}'.strip()
    literal = shown.replace('\\', r'\\')
    method, fit = setting.sub(literal, method), setting.sub(literal, fit)
  return method, f'{objective} by {fit}' if objective else fit


def accuracies(members: Iterable[Record]) -> tuple[list[float], str]:
  """The accuracies that a row's mean and std are over, and the kind of std that makes.

  Those are the means of each split when splits differ ('split-std'), else of each seed
  ('seed-std'). Runs without an accuracy are left out; `Row.lost` counts them.

  >>> runs = [{'split': {'seed': s}, 'seed': 0, 'scores': {'accuracy': {'value': v}}}
  ...         for s, v in [(0, 0.5), (1, 0.75)]]
  >>> accuracies(runs)
  ([0.5, 0.75], 'split-std')
  """
  values, kind = by_unit(members)
  return list(values.values()), kind


def by_unit(members: Iterable[Record]) -> tuple[dict[Any, float], str]:
  """The same accuracies by the split, or seed, that each is of: what a paired test needs.

  >>> by_unit([{'split': {'seed': 7}, 'seed': s, 'scores': {'accuracy': {'value': 0.5}}}
  ...          for s in (0, 1)])
  ({0: 0.5, 1: 0.5}, 'seed-std')
  """
  members = list(members)
  kind = 'split-std' if len({m['split'].get('seed') for m in members}) > 1 else 'seed-std'
  found: dict[Any, list[float]] = {}
  for member in members:
    value = accuracy(member)
    if value is not None:
      unit = member['split'].get('seed') if kind == 'split-std' else member['seed']
      found.setdefault(unit, []).append(value)
  return {unit: statistics.fmean(values) for unit, values in found.items()}, kind


def accuracy(record: Record) -> float | None:
  """The accuracy of a run; None of one that failed or has none.

  >>> accuracy({'status': 'failed', 'scores': {}})
  """
  if record.get('status') == 'failed':
    return None
  value = _score(record, 'accuracy').get('value')
  return None if value is None else float(value)


def _score(record: Record, name: str) -> Mapping[str, Any]:
  return (record['scores'] or {}).get(name) or {}


def _row(key: Key, members: list[Record]) -> Row:
  scored = [member for member in members if accuracy(member) is not None]
  values, kind = accuracies(members)
  seconds = _given((member['timings'] or {}).get('seconds') for member in scored)
  chunk = _largest([member.get('memory') or {} for member in scored])
  statuses = [member['status'] for member in members]
  trained = _given(member['trained'] for member in scored or members) or [0]
  model, task, k, prompt, method, fit = key
  return Row(
    model=model,
    task=task,
    k=k,
    method=method,
    fit=fit,
    mean=statistics.fmean(values) if values else None,
    std=statistics.stdev(values) if len(values) > 1 else None,
    kind=kind,
    n=len(values),
    runs=len(members),
    lost=len(members) - len(scored),
    failed=statuses.count('failed'),
    collapsed=statuses.count('collapsed'),
    retried=sum(member.get('retried', 0) for member in members),
    trained=max(trained),
    trained_min=min(trained),
    total=(scored or members)[0]['total'] or 0,
    seconds=statistics.fmean(seconds) if seconds else None,
    memory=chunk.get('bytes'),
    memory_runs=chunk.get('runs'),
    tuning=members[0].get('tuning', 'fixed'),
    test_items=_items(scored, 'accuracy'),
    dev_items=_items(scored, 'dev_accuracy'),
    prompt=prompt,
  )


def _largest(memories: Sequence[Mapping[str, int]]) -> Mapping[str, int]:
  return max(memories, key=lambda memory: memory.get('bytes') or 0, default={})


def _items(members: Iterable[Record], score: str) -> tuple[int, ...]:
  return tuple(sorted(set(_given(_score(m, score).get('n') for m in members))))


def _given(values: Iterable[T | None]) -> list[T]:
  return [value for value in values if value is not None]


def check_comparable(records: Iterable[Record], told: Sequence[str] = ()) -> None:
  """Refuses records of one task whose splits or test sets differ: one table cannot hold them.

  But where rows or columns tell them apart: `told` are those of 'split' and 'test' that do.

  >>> check_comparable([])
  """
  seen: dict[tuple[str, ...], str] = {}
  for record in records:
    own = [str(record['hashes'].get(kind)) for kind in told]
    split, task = record['split'], record['task']
    places = {
      'test': f'the test set of {task}',
      'split': f'{task} K={split["k"]} split {split.get("seed")}',
    }
    for kind, place in places.items():
      value = record['hashes'].get(kind)
      first = seen.setdefault((kind, place, *own), value) if value else value
      if first != value:
        raise FewshotError(
          f'the records disagree on {place}: hashes {first[:12]} and {value[:12]}; their rows '
          'cannot be compared; give each its own folder (--out), set the earlier aside (--fresh), '
          f'or tell them apart in a table: --rows method,hashes.{kind}'
        )


def sections(rows: Iterable[Row]) -> list[list[Row]]:
  """Rows by (model, task, K, prompt): each section is one table, with one caption.

  What was shown in other words is not compared: it stands in a table of its own.

  >>> rows = [Row('vit', 'digits', k, method) for k in (4, 16) for method in ('a()', 'b()')]
  >>> [len(section) for section in sections(rows)]
  [2, 2]
  """
  found: dict[tuple[Any, ...], list[Row]] = {}
  for row in rows:
    found.setdefault(row.key[:4], []).append(row)
  return list(found.values())
