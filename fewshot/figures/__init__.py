"""Figures of results: vector, colour-blind safe, the same bytes for the same records.

A figure is of one section, that is of results that may be compared: `groups` reduces records,
`sections` keeps apart what is not comparable, a kind of `KINDS` draws it, `style.render` writes it.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fewshot.figures.dots import dot_plot
from fewshot.figures.episodes import histograms
from fewshot.figures.groups import Group, groups, sections, title
from fewshot.figures.outcomes import confusion, ece, reliability
from fewshot.figures.style import FORMATS, render
from fewshot.figures.trade import pareto, seconds, shots
from fewshot.figures.training import curves, mask

if TYPE_CHECKING:
  from matplotlib.figure import Figure

__all__ = [
  'FORMATS', 'KINDS', 'Group', 'confusion', 'curves', 'dot_plot', 'ece', 'groups', 'histograms',
  'mask', 'pareto', 'reliability', 'render', 'seconds', 'sections', 'shots', 'title',
]  # fmt: skip

# What can be drawn from records alone; None where a section has nothing of the kind.
KINDS: dict[str, 'Callable[[Sequence[Group]], Figure | None]'] = {
  'accuracy': dot_plot,
  'pareto': pareto,
  'seconds': seconds,
  'shots': shots,
  'curves': curves,
  'episodes': histograms,
}
