"""Accuracy against what it costs: trained parameters, seconds, shots."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fewshot.figures import style
from fewshot.figures.groups import EPISODES, Group, best

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

BARS = 12  # Methods of which every one has its interval; of more only the front.
MOST = 8  # Series of a figure: as many as there are colours to tell apart.


Point = tuple[float, float]


def pareto(section: Sequence[Group]) -> 'Figure | None':
  """Accuracy against trained parameters; the front is what nothing beats with as few."""
  known = [g for g in section if g.row.mean is not None]
  return _trade(known, lambda g: float(g.row.trained), 'trained parameters')


def seconds(section: Sequence[Group]) -> 'Figure | None':
  """Accuracy against the seconds of a run; the front is what nothing beats as quickly."""
  known = [g for g in section if g.row.mean is not None and g.row.seconds]
  what = 'to test' if known and known[0].row.kind == EPISODES else 'a run, compilation excluded'
  return _trade(known, lambda g: float(g.row.seconds or 0), f'seconds {what}')


def front(points: Sequence[Point]) -> list[int]:
  """Which (cost, value) no other beats: none costs less or the same and is worth more.

  In order of cost; of equal points the first.

  >>> front([(1, 0.5), (2, 0.4), (3, 0.7), (3, 0.6)])
  [0, 2]
  """
  found: list[int] = []
  for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
    if not found or points[i][1] > points[found[-1]][1]:
      found.append(i)
  return found


def best_first(points: Sequence[Point]) -> list[int]:
  """The order of points by value.

  >>> best_first([(1, 0.5), (2, 0.7)])
  [1, 0]
  """
  return sorted(range(len(points)), key=lambda i: -points[i][1])


@style.styled
def _trade(known: Sequence[Group], cost: Callable[[Group], float], what: str) -> 'Figure | None':
  if len(known) < 2 or not any(cost(g) for g in known):
    return None
  least = min(cost(g) for g in known if cost(g))
  zero = 10 ** (math.floor(math.log10(least)) - 1)  # Where a logarithmic axis shows 0.
  points = [(max(cost(g), zero), 100 * (g.row.mean or 0)) for g in known]
  order = front(points)
  ahead = [points[i] for i in order]
  few = len(known) <= BARS
  figure, (axes,) = style.new(2.9)
  pairs = zip(points, known, strict=True)
  bars = [[abs(100 * end - p[1]) * (few or p in ahead) for end in g.bounds] for p, g in pairs]
  _marks(axes, points, bars, ahead)
  behind = [i for i in best_first(points) if i not in order] if few else []
  for n, i in enumerate(behind, len(order) + 1):
    _number(axes, n, points[i], style.GREY)
  axes.margins(0.06, 0.1)
  _logarithmic(axes, zero, max(x for x, _ in points) / min(x for x, _ in points))
  axes.set_xlabel(what)
  axes.set_ylabel('accuracy (%)')
  of = '' if few else ', of the front alone'
  style.note(axes, f'bars: {_intervals(known)}{of}; line: the front')
  shown = [f'{n} {known[i].label}' for n, i in enumerate([*order, *behind], 1)]
  most = BARS if few else MOST
  _key(figure, shown[:most] + [f'and {len(shown) - most} more'] * (len(shown) > most))
  return figure


def _marks(
  axes: 'Axes', points: Sequence[Point], bars: Sequence[Sequence[float]], ahead: Sequence[Point]
) -> None:
  """All points with their intervals in grey, the front as a line with numbers."""
  xs, ys = zip(*points, strict=True)
  axes.errorbar(
    xs, ys, [*zip(*bars, strict=True)], color=style.GREY, elinewidth=0.7, ls='none', alpha=0.55
  )
  axes.scatter(xs, ys, 11, style.GREY, alpha=0.55, lw=0)
  xs, ys = zip(*ahead, strict=True)
  axes.step(xs, ys, where='post', color=style.BLUE, lw=1.2, zorder=3)
  axes.scatter(xs, ys, 30, style.BLUE, zorder=4, edgecolors='white', lw=0.7)
  for n, at in enumerate(ahead, 1):
    _number(axes, n, at, style.BLUE)


def _number(axes: 'Axes', n: int, at: Point, colour: str) -> None:
  """The number of a point in the legend, of those of the front on alternate sides."""
  front = colour == style.BLUE
  aside, weight = (-6, 4) if front and n % 2 else (6, -11), 'bold' if front else 'normal'
  axes.annotate(
    f'{n}', at, aside, textcoords='offset points', ha='center', color=colour, fontsize=8,
    fontweight=weight, zorder=5,
  )  # fmt: skip


def _logarithmic(axes: 'Axes', zero: float, ratio: float) -> None:
  """A logarithmic axis with its numbers spelled out, and 0 where `zero` stands."""
  from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

  def text(x: float, position: int | None = None) -> str:
    return '0' if abs(x - zero) < zero / 100 else _short(x)

  axes.set_xscale('log')
  subs = (1.0, 2.0, 5.0) if ratio < 200 else (1.0,)
  axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=7))
  axes.xaxis.set_major_formatter(FuncFormatter(text))
  axes.xaxis.set_minor_locator(NullLocator())


def _short(x: float) -> str:
  """'1 M' of a million."""
  for unit, size in (('G', 1e9), ('M', 1e6), ('k', 1e3)):
    if x >= size:
      return f'{x / size:g} {unit}'
  return f'{x:g}'


def _key(figure: 'Figure', lines: Sequence[str]) -> None:
  """What the numbers of a figure stand for."""
  from matplotlib.lines import Line2D

  style.legend(figure, [Line2D([], [], lw=0) for _ in lines], list(lines))


@style.styled
def shots(section: Sequence[Group]) -> 'Figure | None':
  """Accuracy against shots, a line a method with the band of its 95 % interval."""
  lines: dict[str, list[Group]] = {}
  for g in section:
    if g.row.mean is not None:
      lines.setdefault(_line_of(g, section), []).append(g)
  several = {k: sorted(of, key=lambda g: g.row.k) for k, of in lines.items()}
  several = {k: of for k, of in several.items() if len({g.row.k for g in of}) > 1}
  if not several:
    return None
  top = {id(g) for g in best([of[-1] for of in several.values()], MOST)}
  figure, (axes,) = style.new(2.9)
  axes.set_xscale('log', base=2)
  handles, labels = [], []
  for (colour, mark, dash), (label, of) in zip(
    style.SERIES, ((k, of) for k, of in several.items() if id(of[-1]) in top), strict=False
  ):
    xs, ys = [g.row.k for g in of], [100 * (g.row.mean or 0) for g in of]
    low, high = zip(*(g.bounds for g in of), strict=True)
    axes.fill_between(
      xs, [100 * x for x in low], [100 * x for x in high], color=colour, alpha=0.15, lw=0
    )
    handles += axes.plot(xs, ys, color=colour, marker=mark, ms=4.5, ls=dash, lw=1.4)
    labels.append(label)
  ticks = sorted({g.row.k for of in several.values() for g in of})
  axes.set_xticks(ticks, [str(k) for k in ticks])
  axes.minorticks_off()
  axes.set_xlabel('shots: train examples a class')
  axes.set_ylabel('accuracy (%)')
  more = f'; best {MOST} of {len(several)}' if len(several) > MOST else ''
  style.note(axes, f'bands: {_intervals([g for of in several.values() for g in of])}{more}')
  style.legend(figure, handles, labels)
  return figure


def _line_of(g: Group, section: Sequence[Group]) -> str:
  """What the groups of one line share at all K: the method, and the fit where it has several."""
  alone = sum(other.row.method == g.row.method and other.row.k == g.row.k for other in section) < 2
  return g.row.method if alone else g.label


def _intervals(found: Sequence[Group]) -> str:
  """'95 % interval of the mean over 5 splits'."""
  ns = sorted({g.row.n for g in found})
  span = f'{ns[0]:,}' if len(ns) == 1 else f'{ns[0]:,} to {ns[-1]:,}'
  kind = {g.row.kind for g in found if g.row.n > 1} or {found[0].row.kind}
  unit = ' or '.join(sorted(k.partition('-')[0] for k in kind))
  return f'95 % interval of the mean over {span} {unit}{"s" if ns[-1] > 1 else ""}'
