"""How accuracies are spread over episodes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fewshot.figures import style
from fewshot.figures.groups import Group, best

if TYPE_CHECKING:
  from matplotlib.figure import Figure
  from matplotlib.ticker import Locator

MOST = 6


@style.styled
def histograms(section: Sequence[Group]) -> 'Figure | None':
  """Episodes by accuracy, a panel a learner on one axis: bars, the mean and its 95 % interval."""
  drawn = [g for g in best(section, len(section)) if g.records[0].get('episodes')][:MOST]
  if not drawn:
    return None
  values = [100 * np.array([x for x in g.records[0]['episodes'] if x is not None]) for g in drawn]
  edges = bins(drawn[0].records[0]['split'], min(float(v.min()) for v in values))
  figure, panels = style.new(0.75 + 0.92 * len(drawn), len(drawn), sharex=True, sharey=True)
  for axes, g, accuracies in zip(panels, drawn, values, strict=True):
    axes.hist(accuracies, edges.tolist(), color=style.SKY, edgecolor='white', lw=0.4)
    mean, half = 100 * (g.row.mean or 0), 100 * (g.half or 0)
    axes.axvspan(*(100 * end for end in g.bounds), color=style.BLUE, alpha=0.25, lw=0)
    axes.axvline(mean, color=style.BLUE, lw=1.3)
    text = f'{style.wrapped(g.label, lines=1)}\n{mean:.2f} ± {half:.2f} %, n = {len(accuracies):,}'
    axes.set_title(text, fontsize=7.5, fontweight='normal')
    axes.grid(False)
    axes.yaxis.set_major_locator(_few())
  panels[-1].set_xlabel('accuracy of an episode (%)')
  figure.supylabel('episodes', fontsize=9, color=style.INK)
  note = 'line, shade and ±: mean and half of its 95 % interval over n episodes'
  figure.suptitle(note, x=0.98, ha='right', fontsize=7.5, color=style.GREY)
  return figure


def bins(split: dict[str, int], low: float) -> np.ndarray:
  """Edges in per cent so that every accuracy an episode can have lies within a bin, not between.

  Of way x query items those are the multiples of 1 / (way x query); at most 50 bins.

  >>> bins({'way': 2, 'query': 2}, 50.0)
  array([ 37.5,  62.5,  87.5, 112.5])
  """
  items = split['way'] * split['query']
  first = round(low * items / 100)
  width = -(-(items - first + 1) // 50)  # So many possible accuracies in a bin.
  ends = np.arange(items, first - 1 - width, -width)[::-1]
  return 100 * (ends + 0.5) / items


def _few() -> 'Locator':
  from matplotlib.ticker import MaxNLocator

  return MaxNLocator(3, integer=True)
