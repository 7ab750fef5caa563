"""Figures of training: learning curves, and which parts of a model train."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fewshot.figures import style
from fewshot.figures.groups import Group, best

if TYPE_CHECKING:
  from matplotlib.figure import Figure

MOST = 6  # Bands that can be told apart where they overlap.


@style.styled
def curves(section: Sequence[Group]) -> 'Figure | None':
  """Training loss by step: the mean over runs, with the band from the lowest to the highest."""
  known = [(g, _stacked(g)) for g in best(section, len(section))]
  drawn = [(g, c) for g, c in known if c is not None]
  if not drawn:
    return None
  figure, (axes,) = style.new(2.9)
  handles, labels = [], []
  for (colour, _, dash), (g, losses) in zip(style.SERIES, drawn[:MOST], strict=False):
    steps = np.arange(1, losses.shape[1] + 1)
    low, mean, high = losses.min(0), losses.mean(0), losses.max(0)
    axes.fill_between(steps, low, high, color=colour, alpha=0.12, lw=0)
    handles += axes.plot(steps, mean, color=colour, ls=dash, lw=1.4)
    labels.append(f'{g.label} (n = {len(losses)})')
  axes.set_ylim(bottom=0)
  axes.margins(x=0.01)
  axes.set_xlabel('step')
  axes.set_ylabel('training loss (nats)')
  more = f'; best {MOST} of {len(drawn)}' if len(drawn) > MOST else ''
  style.note(axes, f'lines: mean over n runs, bands: lowest to highest{more}')
  style.legend(figure, handles, labels)
  return figure


def _stacked(g: Group) -> np.ndarray | None:
  """The curves of a group's runs as [runs, steps], as long as the shortest."""
  found = [c for r in g.records if (c := r.get('curve')) and None not in c]
  if not found:
    return None
  return np.array([c[: min(map(len, found))] for c in found], np.float64)


@style.styled
def mask(modules: Mapping[str, Sequence[int]], label: str) -> 'Figure | None':
  """A heat map of what trains: layers down, modules across, per cent of a module's parameters.

  Args:
    modules: [trained, all] parameters by module path, as `fewshot.outputs.by_module` gives them;
      a method that adds more than a module has shows more than 100.
    label: the method.
  """
  cells, outside = by_layer(modules)
  if not any(cells.values()):
    return None
  layers = list(dict.fromkeys(layer for layer, _ in cells))
  names = list(dict.fromkeys(name for _, name in cells))
  values = np.full((len(layers), len(names)), np.nan)
  for (layer, name), share in cells.items():
    values[layers.index(layer), names.index(name)] = share
  figure, (axes,) = style.new(1.5 + 0.19 * min(len(layers), 40))
  axes.grid(False)
  top = float(np.nanmax(values))
  image = axes.imshow(values, cmap='Blues', vmin=0, vmax=top, aspect='auto', interpolation='none')
  axes.set_xticks(range(len(names)), names, rotation=40, ha='right', rotation_mode='anchor')
  axes.set_yticks(range(len(layers)), layers)
  if len(names) <= 9 and len(layers) <= 24:
    for (i, j), x in np.ndenumerate(values):
      if x == x:
        shade = '#ffffff' if x > 0.55 * top else '#000000'
        axes.text(j, i, _share(x)[:-2], ha='center', va='center', fontsize=6.5, color=shade)
  figure.colorbar(image, ax=axes, pad=0.02).set_label('trained (%)')
  beyond = ', '.join(f'{k} {_share(x)}' for k, x in outside.items() if x > 0) or 'nothing'
  axes.set_title(style.wrapped(label, 64), fontsize=8)
  axes.set_xlabel(style.wrapped(f'beside these train: {beyond}', 80, 3))
  axes.xaxis.label.set_fontsize(7)
  return figure


def by_layer(
  modules: Mapping[str, Sequence[int]],
) -> tuple[dict[tuple[str, str], float], dict[str, float]]:
  """Trained per cent by (layer, module of it), and of what lies outside the numbered layers.

  >>> by_layer({'enc/block_0/mlp/up': [2, 8], 'head': [3, 0]})
  ({('block_0', 'mlp/up'): 25.0}, {'head': inf})
  """
  cells: dict[tuple[str, str], float] = {}
  outside: dict[str, float] = {}
  for path, (trained, total) in modules.items():
    share = 100 * trained / total if total else float('inf' if trained else 'nan')
    found = re.fullmatch(r'(?:(.*)/)?([^/]*_\d+)(?:/(.*))?', path)
    if found and total:
      cells[found[2], found[3] or found[2]] = share
    else:
      outside[path] = share
  return cells, outside


def _share(x: float) -> str:
  if x == float('inf'):
    return '(new)'
  return f'{x:.2g} %' if x < 10 else f'{x:.0f} %'
