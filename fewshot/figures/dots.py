"""The picture of a table: a dot plot of accuracy, a line a method."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewshot import summaries, tables
from fewshot.errors import FewshotError
from fewshot.figures.groups import EPISODES, Group
from fewshot.figures.style import BLUE, GREY, RULE, SKY, render
from fewshot.records import replace

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

TITLE = 66  # Characters of a line of the title.
INCHES = 0.155  # The height of a line of text in a label.
STYLE: dict[str, Any] = {
  'font.size': 9,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.spines.left': False,
  'axes.edgecolor': GREY,
  'xtick.color': GREY,
  'text.parse_math': False,
}


def accuracy(
  rows: Sequence[summaries.Row], records: Iterable[summaries.Record], path: str | Path
) -> None:
  """Draws a dot plot of accuracy as PNG: a line per method, a panel per (task, K, model).

  Faint dots are the splits (or seeds), the full dot with its bar is mean ± sample standard
  deviation in percent; the trained share of the parameters stands on the right.

  Args:
    rows: as `fewshot.summaries.summarise` gives them, drawn in that order.
    records: the records they were made from.
    path: the file; it is replaced as a whole.

  Raises:
    FewshotError: there is no row to draw, or the file cannot be written.

  >>> accuracy([], [], 'accuracy.png')
  Traceback (most recent call last):
  fewshot.errors.FewshotError: no row to draw in accuracy.png; run an experiment first
  """
  sections = summaries.sections(rows)
  if not sections:
    raise FewshotError(f'no row to draw in {path}; run an experiment first')
  members = summaries.group(records)
  values = {row.key: summaries.accuracies(members[row.key])[0] for row in rows}
  replace(path, render(_figure(sections, values), 'png'))


def dot_plot(section: Sequence[Group]) -> 'Figure | None':
  """The same of one section, as a figure; of splits or seeds, for episodes have `histograms`."""
  rows = [g.row for g in section]
  if not rows or rows[0].kind == EPISODES:
    return None
  return _figure([rows], {g.row.key: summaries.accuracies(g.records)[0] for g in section})


def _figure(
  sections: Sequence[Sequence[summaries.Row]], values: Mapping[summaries.Key, Sequence[float]]
) -> 'Figure':
  import matplotlib.style
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure
  from matplotlib.layout_engine import ConstrainedLayoutEngine

  # Below and above the rows stand the axis with its label, and the title.
  heights = [
    sum(sum(_room(*label)) for label in _labels(s)) + 0.7 + INCHES * (1 + _title(s).count('\n'))
    for s in sections
  ]
  with matplotlib.style.context(['default', STYLE]):
    figure = Figure(figsize=(7.2, sum(heights)), layout=ConstrainedLayoutEngine(h_pad=0.08))
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(sections), height_ratios=heights)
    first = None
    for index, section in enumerate(sections):
      axes = figure.add_subplot(grid[index], sharex=first)
      _panel(axes, section, [values[row.key] for row in section])
      first = first or axes
  return figure


def _panel(
  axes: 'Axes', section: Sequence[summaries.Row], values: Sequence[Sequence[float]]
) -> None:
  y, at = 0.0, []
  for row, (label, notes) in zip(section, _labels(section), strict=True):
    above, below = _room(label, notes)
    y += above
    at.append(y)
    where: dict[str, Any] = {'xycoords': axes.get_yaxis_transform(), 'textcoords': 'offset points'}
    up, va = (1, 'bottom') if notes else (0, 'center')
    axes.annotate(label, (0, y), (-8, up), ha='right', va=va, **where)
    if notes:
      small: dict[str, Any] = {'color': GREY, 'fontsize': 7.5}
      axes.annotate(notes, (0, y), (-8, -2), ha='right', va='top', **small, **where)
    axes.annotate(tables.percent(row), (1, y), (12, 0), va='center', color=GREY, **where)
    y += below
  _marks(axes, at, section, values)
  axes.set_ylim(y, 0)
  axes.set_yticks([])
  axes.set_xlabel(f'accuracy (%), mean ± std over {tables.over(section)}')
  over: dict[str, Any] = {'xycoords': ('figure fraction', 'axes fraction')}
  over |= {'textcoords': 'offset points', 'annotation_clip': False}
  axes.annotate(_title(section), (0, 1), (8, 6), fontweight='bold', fontsize=10, **over)
  corner: dict[str, Any] = {'xycoords': 'axes fraction', 'textcoords': 'offset points'}
  axes.annotate('trained', (1, 1), (12, 6), color=GREY, **corner)


def _title(section: Sequence[summaries.Row]) -> str:
  """The title on as many lines as it needs; it begins where the labels do."""
  return '\n'.join(textwrap.wrap(tables.title(section), TITLE))


def _marks(
  axes: 'Axes', at: Sequence[float], section: Sequence[summaries.Row],
  values: Sequence[Sequence[float]],
) -> None:  # fmt: skip
  """Lines, dots and bars of all rows: one call a kind, since each costs as much as many marks."""
  from matplotlib.collections import LineCollection

  across: Any = axes.get_yaxis_transform()
  rules = [[(0, y), (1, y)] for y in at]
  axes.add_collection(
    LineCollection(rules, colors=RULE, linewidths=0.8, zorder=0, transform=across), autolim=False
  )
  for y, row in zip(at, section, strict=True):
    if row.mean is None:
      text = 'no run has an accuracy'
      axes.text(
        0.5, y, text, ha='center', va='center', color=GREY, backgroundcolor='white',
        transform=across,
      )  # fmt: skip
  points = [(100 * p, y) for y, of in zip(at, values, strict=True) for p in of]
  means = [
    (100 * row.mean, y, np.nan if row.std is None else 100 * row.std)
    for y, row in zip(at, section, strict=True) if row.mean is not None
  ]  # fmt: skip
  if means:
    x, ys, bars = (np.array(part) for part in zip(*means, strict=True))
    there = np.isfinite(bars)
    style: dict[str, Any] = {'color': BLUE, 'capsize': 3, 'elinewidth': 1.6, 'ls': 'none'}
    axes.errorbar(x[there], ys[there], xerr=bars[there], zorder=2, **style)
    one, at_one = zip(*points, strict=True)
    axes.scatter(one, at_one, 26, SKY, alpha=0.6, lw=0, zorder=1)
    axes.scatter(x, ys, 44, BLUE, edgecolors='white', lw=0.8, zorder=3)


def _labels(section: Sequence[summaries.Row]) -> list[tuple[str, str]]:
  """Each row's method, wrapped, and below it what sets the row apart from the others."""
  differ = len({row.fit for row in section}) > 1
  labels = []
  for row, apart in zip(section, tables.fit_texts(section)[1], strict=True):
    notes = [apart] if differ else []
    if row.lost or row.failed or row.collapsed:
      notes.append(f'runs: {tables.runs(row)}')
    labels.append(('\n'.join(textwrap.wrap(row.method, 44)), '\n'.join(notes)))
  return labels


def _room(label: str, notes: str) -> tuple[float, float]:
  """Inches a row needs above and below its line."""
  lines = label.count('\n') + 1
  if not notes:
    return INCHES * lines / 2 + 0.08, INCHES * lines / 2 + 0.08
  return INCHES * lines + 0.08, 0.13 * (notes.count('\n') + 1) + 0.08
