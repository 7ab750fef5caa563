"""Draws results of `fewshot bench`: ratios against their bars, and how time and memory grow.

    fewshot bench step --json > step.json
    fewshot bench scale --json > scale.json
    python benchmarks/plots.py step.json scale.json -o figures

Writes ratios.svg and scale.svg, each where there is something to draw; the same bytes for the same
results.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fewshot.errors import FewshotError
from fewshot.figures.dots import STYLE
from fewshot.figures.style import BLUE, GREY, RULE

BAR = '#D55E00'  # Of Okabe and Ito, as the others; it differs from blue in lightness too.
# Colour, marker and dashes each tell the axes apart.
AXES = {
  'seeds': ('#0072B2', 'o', '-'),
  'shots': ('#D55E00', 's', '--'),
  'classes': ('#009E73', '^', ':'),
}


def main(files: list[str], out: str) -> list[Path]:
  """Draws what the files hold; returns the figures written."""
  results = [_read(Path(f)) for f in files]
  ratios = [(r, [x for x in r['rows'] if x['ratio'] is not None]) for r in results]
  ratios = [(r, rows) for r, rows in ratios if rows]
  growth = {}
  for row in (row for r in results for row in r['rows']):
    printed = row.get('printed') or {}
    if 'points' in printed:
      growth[printed['axis']] = printed
  if not ratios and not growth:
    raise FewshotError(f'{", ".join(files)}: no row has a ratio or points to draw')
  folder = Path(out)
  folder.mkdir(parents=True, exist_ok=True)
  drawn = [_ratios(ratios, folder / 'ratios.svg')] if ratios else []
  return [*drawn, _growth(growth, folder / 'scale.svg')] if growth else drawn


def _read(path: Path) -> dict[str, Any]:
  """A result: the whole file, or its last line where a program printed more."""
  try:
    text = path.read_text(encoding='utf-8').strip()
  except OSError as e:
    raise FewshotError(f'cannot read {path}: {e.strerror}') from None
  for part in (text, text[text.rfind('\n') + 1 :]):
    try:
      found = json.loads(part)
    except ValueError:
      continue
    if isinstance(found, dict) and isinstance(found.get('rows'), list):
      return found
  raise FewshotError(f'{path} holds no result of fewshot bench --json')


def _ratios(results: list[tuple[dict[str, Any], list[dict[str, Any]]]], path: Path) -> Path:
  """A panel a result, a bar a row; an upright stroke is the ratio to reach."""
  heights = [0.28 * len(rows) + 0.8 for _, rows in results]
  figure, panels = _figure(len(results), 1, (7.2, sum(heights)), height_ratios=heights)
  for axes, (result, rows) in zip(panels, results, strict=True):
    y = range(len(rows))
    axes.barh(y, [r['ratio'] for r in rows], 0.6, color=BLUE, zorder=2)
    bars = [(i, r['bar']) for i, r in enumerate(rows) if r.get('bar') is not None]
    for i, bar in bars:
      axes.plot([bar, bar], [i - 0.42, i + 0.42], color=BAR, linewidth=2.5, zorder=3)
    for i, r in enumerate(rows):
      axes.annotate(f'{r["ratio"]:.2f}', (1, i), (6, 0), axes.get_yaxis_transform(),
                    'offset points', va='center', color=GREY)  # fmt: skip
    axes.axvline(1, color=GREY, linewidth=0.8, zorder=1)
    axes.set_yticks(y, [r['name'] for r in rows])
    axes.tick_params(axis='y', length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.05 * max([1.0, *(r['ratio'] for r in rows), *(b for _, b in bars)]))
    axes.set_title(f'{result["machine"]}\n{result.get("date", "")}', loc='left', fontsize=8)
  panels[-1].set_xlabel("ours / peer's, less is better; the stroke is the ratio to reach")
  return _save(figure, path)


def _growth(growth: dict[str, dict[str, Any]], path: Path) -> Path:
  """Seconds and bytes in logarithms; the labels have the fitted exponents."""
  figure, panels = _figure(1, 2, (7.2, 3.2))
  for axes, what in zip(panels, ('seconds', 'bytes'), strict=True):
    for name, g in growth.items():
      color, marker, dashes = AXES[name]
      label = f'{name}: n^{g[f"{what}_exponent"]:.2f} (r² {g[f"{what}_r2"]:.2f})'
      n, y = zip(*((p['n'], p[what]) for p in g['points']), strict=True)
      axes.loglog(n, y, color=color, marker=marker, linestyle=dashes, label=label)
    axes.grid(color=RULE)
    axes.set_xlabel('n')
    axes.set_title(what, loc='left', fontsize=9)
    axes.legend(frameon=False, fontsize=7.5)
  return _save(figure, path)


def _figure(rows: int, columns: int, size: tuple[float, float], **grid: Any) -> tuple[Any, Any]:
  import matplotlib.style
  from matplotlib.figure import Figure

  with matplotlib.style.context(['default', STYLE, {'svg.hashsalt': 'fewshot'}]):
    figure = Figure(figsize=size, layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False, gridspec_kw=grid or None)
  return figure, panels.ravel()


def _save(figure: Any, path: Path) -> Path:
  import matplotlib.style

  with matplotlib.style.context(['default', STYLE, {'svg.hashsalt': 'fewshot'}]):
    figure.savefig(path, metadata={'Date': None})
  return path


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description='Draws results of fewshot bench --json.')
  parser.add_argument('files', nargs='+', metavar='results.json')
  parser.add_argument('-o', '--out', default='.', help='the folder of the figures')
  args = parser.parse_args()
  try:
    print(*main(args.files, args.out), sep='\n')
  except FewshotError as e:
    sys.exit(f'plots: {e}')
