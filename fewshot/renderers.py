"""A grid in a format: terminal, Markdown, LaTeX, HTML; a pivot's numbers as CSV and JSON."""

import csv
import html
import io
import re
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from fewshot import layout
from fewshot.grids import DAGGER, SCORES, SPREADS, Grid, Shown
from fewshot.pivots import Pivot
from fewshot.tables import markdown_row

SPELLED = ('method', 'fit', 'prompt')  # Code, not prose.
LATEX = {
  **{c: f'\\{c}' for c in '&%$#_{}'},
  '\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}',
  '±': r'$\pm$', '–': '--', DAGGER: r'$^\dagger$', '<': r'$<$', '>': r'$>$', '|': r'$|$',
}  # fmt: skip


def _markdown(grid: Grid) -> str:
  """The best bold, the second underlined, as GitHub shows them."""
  tags = {0: '{}', 1: '**{}**', 2: '<u>{}</u>'}
  head = [*grid.names, *(': '.join(filter(None, head)) for head in grid.heads)]
  lines = [markdown_row(head)]
  lines.append(markdown_row([*['---'] * len(grid.names), *['---:'] * len(grid.heads)]))
  for row, cells in grid.lines:
    names = [
      f'`{value}`' if name in SPELLED else value
      for name, value in zip(grid.names, row, strict=True)
    ]
    lines.append(markdown_row([*names, *(_marked(cell, tags, DAGGER) for cell in cells)]))
  return '\n'.join([*lines, '', grid.caption, ''])


def _latex(grid: Grid) -> str:
  """A table environment of the package booktabs."""
  tags = {0: '{}', 1: r'\textbf{{{}}}', 2: r'\underline{{{}}}'}
  leads = len(grid.names)
  columns = 'l' * leads + 'r' * len(grid.heads)
  lines = [r'\begin{table}', r'\centering', rf'\caption{{{tex(grid.caption)}}}', _label(grid)]
  lines += [rf'\begin{{tabular}}{{{columns}}}', r'\toprule', *_latex_heads(grid)]
  lines += [
    _latex_row([*map(tex, grid.names), *(tex(stat) for _, stat in grid.heads)]),
    r'\midrule',
  ]
  for row, cells in grid.lines:
    names = [
      rf'\texttt{{{tex(value)}}}' if name in SPELLED else tex(value)
      for name, value in zip(grid.names, row, strict=True)
    ]
    shown = [_marked(cell._replace(text=tex(cell.text)), tags, LATEX[DAGGER]) for cell in cells]
    lines.append(_latex_row([*names, *shown]))
  return '\n'.join([*lines, r'\bottomrule', r'\end{tabular}', r'\end{table}', ''])


def _label(grid: Grid) -> str:
  """What the text refers to: the rows' fields, and of the columns the values."""
  words = '-'.join((*grid.names, *dict.fromkeys(head for head, _ in grid.heads)))
  return rf'\label{{tab:{re.sub("[^a-z0-9]+", "-", words.lower()).strip("-")[:60]}}}'


def _latex_heads(grid: Grid) -> list[str]:
  """The columns' values, each over its statistics, and a rule under each."""
  cells, rules, at = [''] * len(grid.names), [], len(grid.names) + 1
  for head, width in _spans(grid):
    cells.append(rf'\multicolumn{{{width}}}{{c}}{{{tex(head)}}}')
    rules.append(rf'\cmidrule(lr){{{at}-{at + width - 1}}}')
    at += width
  return [_latex_row(cells), ' '.join(rules)] if any(head for head, _ in _spans(grid)) else []


def _latex_row(cells: Sequence[str]) -> str:
  line = ' & '.join(cells) + r' \\'
  return '{}' + line if line.startswith('[') else line  # Else an argument of the rule above.


def tex(text: str) -> str:
  r"""Text as LaTeX shows it.

  >>> print(tex('60.0 ± 7.9 %, a_b()'))
  60.0 $\pm$ 7.9 \%, a\_b()
  """
  return re.sub('[' + re.escape(''.join(LATEX)) + ']', lambda found: LATEX[found[0]], text)


def _html(grid: Grid) -> str:
  """A table element without style: it takes that of the page it stands in."""
  tags = {0: '{}', 1: '<strong>{}</strong>', 2: '<u>{}</u>'}
  heads = [f'<th rowspan="2" scope="col">{html.escape(name)}</th>' for name in grid.names]
  heads += [
    f'<th colspan="{width}" scope="colgroup">{html.escape(head)}</th>'
    for head, width in _spans(grid)
  ]
  lines = ['<table>', f'<caption>{html.escape(grid.caption)}</caption>', '<thead>']
  lines.append(f'<tr>{"".join(heads)}</tr>')
  stats = ''.join(f'<th scope="col">{html.escape(stat)}</th>' for _, stat in grid.heads)
  lines += [f'<tr>{stats}</tr>', '</thead>', '<tbody>']
  for row, cells in grid.lines:
    names = [
      f'<code>{html.escape(value)}</code>' if name in SPELLED else html.escape(value)
      for name, value in zip(grid.names, row, strict=True)
    ]
    shown = [_marked(c._replace(text=html.escape(c.text)), tags, f'<sup>{DAGGER}</sup>')
             for c in cells]  # fmt: skip
    scoped = ''.join(f'<th scope="row">{name}</th>' for name in names)
    lines.append(f'<tr>{scoped}{"".join(f"<td>{cell}</td>" for cell in shown)}</tr>')
  return '\n'.join([*lines, '</tbody>', '</table>', ''])


FORMATS: dict[str, Callable[[Grid], str]] = {'markdown': _markdown, 'latex': _latex, 'html': _html}


def _marked(cell: Shown, tags: dict[int, str], dagger: str) -> str:
  return tags[cell.rank].format(cell.text) + (dagger if cell.apart else '')


def _spans(grid: Grid) -> list[tuple[str, int]]:
  return [(head, len([*of])) for head, of in groupby(head for head, _ in grid.heads)]


def terminal(grid: Grid, console: Any) -> None:
  """Prints the grid on a rich console; spellings fold, numbers do not."""
  from rich.text import Text

  styles = {0: '', 1: 'bold', 2: 'underline'}
  cells = layout.Cells(
    [*grid.names, *('\n'.join(filter(None, head)).replace(' = ', '=') for head in grid.heads)],
    [[*row, *(c.text + DAGGER * c.apart for c in shown)] for row, shown in grid.lines],
    len(grid.names),
    [[*[''] * len(row), *(styles[c.rank] for c in shown)] for row, shown in grid.lines],
  )
  cells, shared = layout.brief(cells, console.width)
  layout.show(cells, console)
  console.print('', Text(grid.caption + shared), '', sep='\n', soft_wrap=False)


def records(pivot: Pivot, stats: Sequence[str]) -> list[dict[str, Any]]:
  """The cells as plain dicts: numbers as they are, fractions of 1; what they are over, always."""
  rows = []
  for (row, column), cell in pivot.cells.items():
    numbers: dict[str, Any] = {s: cell.of(s) for s in (*SCORES, *SPREADS, 'collapse') if s in stats}
    if 'ci' in stats:
      numbers['ci_low'], numbers['ci_high'] = cell.interval or (None, None)
    costs = ('trained', 'flops', 'seconds', 'memory')
    numbers |= {s: getattr(cell, s) for s in costs if s in stats}
    counts = {s: getattr(cell, s) for s in ('over', 'n', 'runs', 'failed', 'collapsed')}
    labels = zip((*pivot.rows, *pivot.columns), (*row, *column), strict=True)
    rows.append(dict(labels) | counts | numbers | _compared(pivot, (row, column)))
  return rows


def _compared(pivot: Pivot, place: Any) -> dict[str, Any]:
  """How the cell stands to the best of its test: p is corrected; None where it is not compared."""
  for family in pivot.comparisons:
    if place in family.places:
      at = family.places.index(place)
      return {'place': at + 1, 'p': family.ps.get((0, at))}
  return {'place': None, 'p': None}


def as_csv(pivot: Pivot, stats: Sequence[str]) -> str:
  """A line a cell; what is not there is empty."""
  rows = records(pivot, stats)
  out = io.StringIO()
  writer = csv.DictWriter(out, list(rows[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return out.getvalue()
