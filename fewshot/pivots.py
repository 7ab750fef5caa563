"""Records by any of their fields: rows, columns, and a cell of runs where they meet."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from fewshot import episode_tables, statistics, summaries
from fewshot.errors import FewshotError, brief, nearest

Record = Mapping[str, Any]
Label = tuple[str, ...]
Place = tuple[Label, Label]  # Of a row and a column.
# What makes runs comparable: cells that share these were measured on the same test.
TEST = ('task', 'split.k', 'split.way', 'split.query', 'hashes.episodes')
# What a table refuses to mix, unless its rows or columns name it.
DATA = {'hashes.split': 'split', 'hashes.test': 'test'}
# What a cell never mixes: where one of these differs, rows are told apart by it.
IDENTITY = ('task', 'split.k', 'split.way', 'split.query', 'model')
# What a cell never mixes either; said only where it would.
WITHIN = (
  *('method', 'fit', 'prompt'),
  *('training.learner', 'training.pool', 'training.steps', 'training.name', 'seed'),
  *('config.max_length', 'config.dtype', 'config.dropout', 'config.unlabelled', 'hashes.weights'),
)
ABSENT = '–'
OF: dict[str, Callable[[np.ndarray], Any]] = {
  'mean': np.mean, 'median': np.median, 'min': np.min, 'iqm': statistics.iqm,
  'std': lambda x: x.std(ddof=1),
  'half': lambda x: (found := statistics.student(x)).high - found.value,
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
  """The runs that a row and a column share, and what they came to.

  `values` are accuracies by what they are over: splits, seeds or episodes, as `over` says.
  """

  over: str
  values: Mapping[Any, float] = field(default_factory=dict, repr=False)
  runs: int = 0
  lost: int = 0  # Without an accuracy, whatever their status.
  failed: int = 0
  collapsed: int = 0
  trained: int = 0
  total: int = 0
  flops: float | None = None  # Of a step of a run.
  seconds: float | None = None  # Of a run, the mean.
  memory: int | None = None  # Bytes of the largest chunk of runs.
  tuning: str = 'fixed'
  items: tuple[int, ...] = ()
  test: Label = ()  # What it was measured on: equal for cells that can be compared.

  @property
  def n(self) -> int:
    """How many values there are."""
    return len(self.values)

  def of(self, what: str) -> float | None:
    """The mean, std (ddof = 1), median, min or iqm of the values, or a collapse rate.

    'half' is that of the 95 % interval of the mean.

    >>> Cell('split', {0: 0.5, 1: 0.7}).of('median')
    0.6
    """
    x = np.fromiter(self.values.values(), np.float64)
    if what == 'collapse':
      return self.collapsed / self.runs if self.runs else None
    if not len(x) or (what in ('std', 'half') and len(x) < 2):
      return None
    return float(OF[what](x))

  @property
  def interval(self) -> tuple[float, float] | None:
    """The 95 % interval of the mean, by t, cut to [0, 1]; None of fewer than two values.

    >>> Cell('split', {0: 0.7, 1: 0.9}).interval
    (0.0, 1.0)
    """
    if self.n < 2:
      return None
    found = statistics.student(list(self.values.values()))
    return max(0.0, found.low), min(1.0, found.high)


@dataclass(frozen=True)
class Comparison:
  """The cells of one test, each paired with each."""

  places: tuple[Place, ...]  # The best mean first.
  ps: Mapping[tuple[int, int], float]  # Of pairs of these, corrected by Holm; else not compared.
  n: int  # Pairs of values in the smallest of the tests.

  @property
  def apart(self) -> list[tuple[int, int]]:
    """The pairs that differ."""
    return [pair for pair, p in self.ps.items() if p < statistics.LEVEL]

  @property
  def open(self) -> list[tuple[int, int]]:
    """The pairs that could not be compared: fewer than two values in common."""
    return [c for c in combinations(range(len(self.places)), 2) if c not in self.ps]


@dataclass(frozen=True)
class Pivot:
  """A table as data; a renderer makes text of it."""

  rows: Label  # The fields.
  columns: Label
  cells: Mapping[Place, Cell]
  shared: Mapping[str, str]  # Fields that are the same everywhere.
  comparisons: tuple[Comparison, ...] = ()
  test: str = 'permutation'

  @property
  def lines(self) -> list[Label]:
    """The values of the rows' fields, in the order of the records."""
    return list(dict.fromkeys(row for row, _ in self.cells))

  @property
  def heads(self) -> list[Label]:
    """The values of the columns' fields, in the order of the records."""
    return list(dict.fromkeys(column for _, column in self.cells))


def pivot(
  found: Iterable[Record], rows: Sequence[str] = ('method',), columns: Sequence[str] = ('task',),
  where: Sequence[str] = (), test: str = 'permutation',
) -> Pivot:  # fmt: skip
  """Records by the values of their fields, dotted for what is within: `split.k`, `hyper.lr`.

  Of a grid only what the dev set chose counts, as in `summaries.summarise`.  A cell never mixes
  tasks, shots, models, methods, fits or prompts: where it would, these fields join the rows.
  Cells of the same task and shots are compared pair by pair on the splits, seeds or episodes that
  both have, and the p-values of all pairs corrected by Holm.  Records of other splits or another
  test set are refused, unless `hashes.split` or `hashes.test` is among the fields.

  Args:
    where: 'field=value', all of which hold.
    test: one of `statistics.TESTS`.

  Raises:
    FewshotError: no record has such a field or value, or records cannot be compared.

  >>> record = {'model': 'vit', 'task': 'digits', 'method': 'linear()', 'trained': 5, 'total': 10,
  ...           'seed': 0, 'status': 'ok', 'timings': {}, 'hashes': {}}
  >>> runs = [{**record, 'split': {'k': 4, 'seed': s}, 'scores': {'accuracy': {'value': a}}}
  ...         for s, a in [(0, 0.5), (1, 0.75)]]
  >>> pivot(runs).cells[('linear()',), ('digits',)].of('mean')
  0.625
  """
  counted = _where(counting(found), where)
  _check_fields(counted, [*rows, *columns])
  told = [name for name in DATA if name in (*rows, *columns)]
  if not episode_tables.of_episodes(counted):
    summaries.check_comparable(counted, [DATA[name] for name in told])
  tests = (*TEST, *told)
  values = [{name: text(r, name) for name in {*rows, *columns, *IDENTITY, *WITHIN, *tests}}
            for r in counted]  # fmt: skip
  rows = (*rows, *_mixed(values, rows, columns))
  members: dict[Place, list[int]] = {}
  for i, v in enumerate(values):
    place = tuple(v[name] for name in rows), tuple(v[name] for name in columns)
    members.setdefault(place, []).append(i)
  cells = {
    place: _cell([counted[i] for i in at], tuple(values[at[0]][name] for name in tests))
    for place, at in members.items()
  }
  shared = {n: values[0][n] for n in (*IDENTITY, *WITHIN) if len({v[n] for v in values}) == 1}
  return Pivot(tuple(rows), tuple(columns), cells, shared, compare(cells, test), test)


def counting(found: Iterable[Record]) -> list[Record]:
  """The records that count, their method and fit as tables spell them."""
  found = list(found)
  if not found:
    raise FewshotError('there is no finished run; run an experiment into this folder first')
  if episode_tables.of_episodes(found):
    return list({r.get('id', i): r for i, r in enumerate(found)}.values())
  return [
    {**r, 'method': key[4], 'fit': key[5]}
    for key, members in summaries.group(found).items()
    for r in members
  ]


def text(record: Record, name: str) -> str:
  """The value of a field, dotted for what is within, as text; a dash where there is none.

  >>> text({'split': {'k': 16}, 'hyper': {'fit.lr': 0.1}}, 'hyper.fit.lr')
  '0.1'
  """
  value = _value(record, name)
  return ABSENT if value is None else str(value)


def _value(record: Record, name: str) -> Any:
  if name in record:
    return record[name]
  first, _, rest = name.partition('.')
  inner = record.get(first) if rest else None
  return _value(inner, rest) if isinstance(inner, dict) else None


def _where(counted: list[Record], where: Sequence[str]) -> list[Record]:
  for condition in where:
    name, equals, value = condition.partition('=')
    if not equals:
      raise FewshotError(f'--where {condition} has no value; write --where split.k=16')
    _check_fields(counted, [name])
    kept = [r for r in counted if text(r, name) == value]
    if not kept:
      there = brief(list(dict.fromkeys(text(r, name) for r in counted)))
      raise FewshotError(f'no record has {name}={value}; there are {there}')
    counted = kept
  return counted


def _check_fields(counted: Sequence[Record], names: Sequence[str]) -> None:
  for name in names:
    if all(_value(r, name) is None for r in counted):
      known = {n for r in counted for n in _names(r, '')}
      raise FewshotError(f'no record has a field {name!r}; {nearest(name, known)}')


def _names(value: Record, before: str) -> Iterable[str]:
  for name, inner in value.items():
    if isinstance(inner, dict):
      yield from _names(inner, f'{before}{name}.')
    elif not isinstance(inner, list):
      yield f'{before}{name}'


def _mixed(
  values: Sequence[Mapping[str, str]], rows: Sequence[str], columns: Sequence[str]
) -> list[str]:
  """Which fields join the rows, so that no column, or no cell, mixes what differs in them."""
  found: list[str] = []
  for name in (*IDENTITY, *WITHIN):
    of_test = [row for row in rows if row in IDENTITY]
    by = (*(of_test if name in IDENTITY else rows), *found, *columns)
    if name in (*rows, *columns) or (name == 'seed' and values[0]['hashes.episodes'] == ABSENT):
      continue
    seen: dict[Label, str] = {}
    if any(seen.setdefault(tuple(v[b] for b in by), v[name]) != v[name] for v in values):
      found.append(name)
  return found


def _cell(members: Sequence[Record], test: Label) -> Cell:
  """The cell of these records; those of episodes are one."""
  over, values = _values(members)
  scored = [m for m in members if summaries.accuracy(m) is not None]
  statuses = [m['status'] for m in members]
  given = lambda *path: [  # noqa: E731
    x for m in scored or members if (x := _value(m, '.'.join(path))) is not None
  ]
  seconds = given('timings', 'seconds') or given('timings', 'test_s')
  return Cell(
    over,
    values,
    runs=len(members),
    lost=len(members) - len(scored),
    failed=statuses.count('failed'),
    collapsed=statuses.count('collapsed'),
    trained=max(given('trained') or [0]),
    total=max(given('total') or [0]),
    flops=max(given('timings', 'step_flops'), default=None),
    seconds=math.fsum(seconds) / len(seconds) if seconds else None,
    memory=max(given('memory', 'bytes'), default=None),
    tuning=members[0].get('tuning', 'fixed'),
    items=tuple(sorted({m['scores']['accuracy'].get('n') or 0 for m in scored})),
    test=test,
  )


def _values(members: Sequence[Record]) -> tuple[str, dict[Any, float]]:
  if 'episodes' in members[0]:
    return 'episode', {
      i: x for i, x in enumerate(members[-1]['episodes']) if x is not None
    }  # fmt: skip
  values, kind = summaries.by_unit(members)
  return kind.removesuffix('-std'), values


def compare(cells: Mapping[Place, Cell], test: str) -> tuple[Comparison, ...]:
  """Every pair of the cells of a test, on what both have values for; a test of one is none."""
  families: dict[Label, list[Place]] = {}
  for place, cell in cells.items():
    if cell.n:
      families.setdefault((*cell.test, cell.over), []).append(place)
  return tuple(_family(cells, of, test) for of in families.values() if len(of) > 1)


def _family(cells: Mapping[Place, Cell], places: Sequence[Place], test: str) -> Comparison:
  mean = lambda place: cells[place].of('mean') or 0.0  # noqa: E731
  order = tuple(sorted(places, key=lambda place: -mean(place)))
  pairs, differences = [], []
  for i, j in combinations(range(len(order)), 2):
    a, b = cells[order[i]].values, cells[order[j]].values
    both = a.keys() & b.keys() if a.keys() != b.keys() else a.keys()
    if len(both) > 1:
      pairs.append((i, j))
      differences.append(np.array([a[u] - b[u] for u in a if u in both]))
  ps = statistics.holm(statistics.p_values(differences, test))
  n = min((len(d) for d in differences), default=0)
  return Comparison(order, dict(zip(pairs, ps, strict=True)), n)
