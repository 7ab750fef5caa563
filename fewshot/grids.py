"""A pivot as text: heads, lines of shown cells, and a caption that says how they were made."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from fewshot import statistics
from fewshot.errors import FewshotError, nearest
from fewshot.pivots import ABSENT, Cell, Comparison, Label, Pivot, Place

SCORES = ('mean', 'median', 'min', 'iqm')
SPREADS = ('std', 'half')  # Either stands beside the mean, behind ±.
PLAIN = ('task', 'model', 'method', 'fit', 'prompt')  # Fields whose values explain themselves.
DAGGER = '†'
TESTS = {
  'permutation': 'permutation test of signs',
  'bootstrap': 'bootstrap test',
  't': 't-test, which takes differences for normal',
}


class Shown(NamedTuple):
  """The text of a cell and how it stands among those it is compared with."""

  text: str
  rank: int = 0  # 1: the best mean, 2: the second, 0: neither, or nothing to compare with.
  apart: bool = False  # Differs from the best.


class Grid(NamedTuple):
  """What a renderer lays out."""

  names: Label  # Of the leading columns: the rows' fields.
  heads: list[tuple[str, str]]  # Of the others: the columns' values, and the statistic.
  lines: list[tuple[Label, list[Shown]]]
  caption: str


def grid(pivot: Pivot, stats: Sequence[str]) -> Grid:
  """The statistics of every cell as text; 'mean,std' share a column, each other has its own.

  Raises:
    FewshotError: there is no such statistic.

  >>> cell = Cell('split', {0: 0.5, 1: 0.7}, runs=2)
  >>> one = Pivot(('method',), ('task',), {(('linear()',), ('trec',)): cell}, {})
  >>> found = grid(one, ['mean', 'std', 'n'])
  >>> found.heads
  [('trec', 'mean ± std over splits'), ('trec', 'n')]
  >>> [shown.text for shown in found.lines[0][1]]
  ['60.0 ± 14.1', '2']
  """
  for stat in stats:
    if stat not in STATS:
      raise FewshotError(f'there is no statistic {stat!r}; {nearest(stat, STATS)}')
  parts = _parts(stats)
  heads = [(head, part) for head in pivot.heads for part in parts]
  standing, marks = _standing(pivot), _letters(pivot) if 'letters' in stats else {}
  lines = []
  for row in pivot.lines:
    shown = []
    for head, part in heads:
      cell = pivot.cells.get((row, head))
      text = _shown(cell, part, _over(pivot, head), marks.get((row, head), ABSENT))
      rank, apart = standing.get((row, head), (0, False)) if part[0] == 'mean' else (0, False)
      shown.append(Shown(text, rank, apart))
    lines.append((row, shown))
  names = [(_title(pivot.columns, h), _head(part, _over(pivot, h))) for h, part in heads]
  return Grid(pivot.rows, names, lines, caption(pivot, stats))


def _title(fields: Label, values: Label) -> str:
  """'trec', or 'way = 5, k = 1' where the values alone do not say what they are."""
  plain = [value if name in PLAIN else f'{name.rpartition(".")[2]} = {value}'
           for name, value in zip(fields, values, strict=True)]  # fmt: skip
  return ', '.join(plain)


def _parts(stats: Sequence[str]) -> list[tuple[str, ...]]:
  spread = next((s for s in stats if s in SPREADS), '')
  if 'mean' not in stats or not spread:
    return [(s,) for s in dict.fromkeys(stats)]
  return [('mean', spread) if s == 'mean' else (s,) for s in dict.fromkeys(stats) if s != spread]


def _over(pivot: Pivot, head: Label) -> str:
  """What most cells of a column are over; those of another kind say so."""
  kinds = [c.over for (_, column), c in pivot.cells.items() if column == head and c.n > 1]
  return max(kinds, key=kinds.count, default='run')


def _head(part: Sequence[str], over: str) -> str:
  names = {'std': f'std over {over}s', 'ci': f'95 % CI over {over}s'}
  names['half'] = f'half of 95 % CI over {over}s'
  return ' ± '.join(names.get(what, what) for what in part)


def _shown(cell: Cell | None, part: Sequence[str], over: str, mark: str) -> str:
  if cell is None:
    return ABSENT
  if part[0] == 'letters':
    return mark
  text = STATS[part[0]](cell)
  if len(part) > 1 and cell.n > 1:
    text = f'{text} ± {STATS[part[1]](cell)}'
  if part[0] in ('mean', *SPREADS, 'ci') and cell.n > 1 and cell.over != over:
    text = f'{text} ({cell.n} {cell.over}s)'
  lost = [(n, what) for n, what in ((cell.failed, 'failed'), (cell.collapsed, 'collapsed')) if n]
  if part[0] in SCORES and lost:
    text = f'{text} ({", ".join(f"{n} {what}" for n, what in lost)} of {cell.runs})'
  return text


def _percent(what: str) -> Callable[[Cell], str]:
  def shown(cell: Cell) -> str:
    value = cell.of(what)
    return ABSENT if value is None else f'{100 * value:.{2 if cell.over == "episode" else 1}f}'

  return shown


def _interval(cell: Cell) -> str:
  if cell.interval is None:
    return ABSENT
  digits = 2 if cell.over == 'episode' else 1
  return ' to '.join(f'{100 * x:.{digits}f}' for x in cell.interval)


def _trained(cell: Cell) -> str:
  share = f' ({100 * cell.trained / cell.total:.2f} %)' if cell.total else ''
  return f'{cell.trained:,}{share}'


def _quantity(value: float | None, scale: float, unit: str) -> str:
  if value is None:
    return ABSENT
  return f'{value / scale:,.{2 if value < 10 * scale else 1}f} {unit}'


STATS: dict[str, Callable[[Cell], str]] = {
  **{what: _percent(what) for what in ('mean', *SPREADS)},
  'ci': _interval,
  **{what: _percent(what) for what in ('median', 'min', 'iqm')},
  'n': lambda cell: f'{cell.n:,}',
  'runs': lambda cell: f'{cell.runs:,}',
  'collapse': _percent('collapse'),
  'letters': lambda cell: '',  # Of a comparison, not of a cell.
  'trained': _trained,
  'flops': lambda cell: _quantity(cell.flops, 1e9, 'GFLOP'),
  'seconds': lambda cell: _quantity(cell.seconds, 1, 's'),
  'memory': lambda cell: _quantity(cell.memory, 2**20, 'MiB'),
}


def _standing(pivot: Pivot) -> dict[Place, tuple[int, bool]]:
  """Of the cells that are compared: their rank by mean, and whether they differ from the best."""
  found = {}
  for family in pivot.comparisons:
    means = [pivot.cells[place].of('mean') for place in family.places]
    ranks = {mean: i for i, mean in enumerate(dict.fromkeys(means), 1)}
    apart = {j for i, j in family.apart if i == 0}
    for i, place in enumerate(family.places):
      rank = ranks[means[i]]
      found[place] = (rank if rank < 3 else 0, i in apart)
  return found


def _letters(pivot: Pivot) -> dict[Place, str]:
  """Cells of a test that share a letter cannot be told apart."""
  found: dict[Place, str] = {}
  for family in pivot.comparisons:
    found |= dict(
      zip(family.places, statistics.letters(len(family.places), family.apart), strict=True)
    )
  return found


def caption(pivot: Pivot, stats: Sequence[str]) -> str:
  """How the numbers came about, in full sentences."""
  cells = list(pivot.cells.values())
  known = {name: value for name, value in pivot.shared.items() if value != ABSENT}
  told = ', '.join(
    f'{name} = {value}'
    for name, value in known.items()
    if name not in (*pivot.rows, *pivot.columns)
  )
  parts = [f'Accuracy in %{f"; {told}" if told else ""}.']
  spread = {
    'std': 'std is the sample standard deviation (ddof = 1)',
    'ci': 'CI by t',
    'half': 'CI by t',
  }
  of = '; '.join(dict.fromkeys(text for stat, text in spread.items() if stat in stats))
  parts.append(f'{_counts(cells)}{f"; {of}" if of else ""}.')
  if any(c.tuning == 'dev' for c in cells):
    parts.append('Hyper-parameters of some rows were chosen on a dev set.')
  if any(c.lost for c in cells):
    parts.append('Runs without an accuracy are counted but cannot enter it.')
  if 'flops' in stats:
    parts.append('FLOPs are those of a training step of one run, as the compiler counts.')
  if 'memory' in stats:
    parts.append('Memory is that of the largest chunk of runs that were computed together.')
  return ' '.join([*parts, *_compared(pivot, stats)])


def _counts(cells: Sequence[Cell]) -> str:
  by = {
    kind: sorted({c.n for c in cells if c.over == kind}) for kind in ('split', 'seed', 'episode')
  }
  spans = [f'{_span(ns)} {kind}s' for kind, ns in by.items() if ns and ns[-1]]
  items = sorted({n for c in cells for n in c.items if c.over != 'episode'})
  tested = f', test items n = {_span(items)}' if items else ''
  return f'Cells are over n = {" or ".join(spans) or "0 runs"}{tested}'


def _span(numbers: Sequence[int]) -> str:
  return ' to '.join(f'{n:,}' for n in dict.fromkeys((numbers[0], numbers[-1])))


def _compared(pivot: Pivot, stats: Sequence[str]) -> list[str]:
  """What bold, underlined, daggers and letters mean, and whether the test could find anything."""
  if not pivot.comparisons or not {'mean', 'letters'} & set(stats):
    return []
  most = max(pivot.comparisons, key=lambda family: len(family.places))
  test = f'paired {TESTS[pivot.test]}, Holm over all pairs of a test set, p < {statistics.LEVEL}'
  parts = []
  if 'mean' in stats:
    parts.append(
      'Of the cells of one task and setting the best mean is bold, the second underlined; '
      f'{DAGGER} differs from the best ({test}).'
    )
  if 'letters' in stats:
    parts.append(f'Cells that share a letter cannot be told apart ({test}).')
  if any(family.open for family in pivot.comparisons):
    parts.append('Cells with fewer than two results in common are not compared.')
  if all(_mute(family, pivot.test) for family in pivot.comparisons):
    p = min(1.0, max(1, len(most.ps)) * statistics.least(most.n, pivot.test))
    parts.append(
      f'With n = {most.n} and {len(most.ps)} pairs the smallest corrected p of this test is '
      f'{p:.2g}: it cannot show a difference.'
    )
  return parts


def _mute(family: Comparison, test: str) -> bool:
  return len(family.ps) * statistics.least(family.n, test) >= statistics.LEVEL
