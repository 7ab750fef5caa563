"""The figures of a report: which are drawn, and how they stand in its page."""

import base64
import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fewshot import figures, outputs
from fewshot.figures import Group, outcomes, style
from fewshot.figures.groups import best

if TYPE_CHECKING:
  from matplotlib.figure import Figure

SECTIONS = 4  # Of which figures are drawn: those with most rows.
MASKS = 6  # Methods whose trained modules are drawn.
TITLES = {
  'pareto': 'Accuracy against trained parameters',
  'seconds': 'Accuracy against seconds',
  'shots': 'Accuracy against shots',
  'curves': 'Learning curves',
  'episodes': 'Accuracy over episodes',
  'confusion': 'What is taken for what',
  'calibration': 'Calibration',
  'masks': 'Trained share of each module',
}
# The page gives these colours by its theme.
THEMED = {
  style.INK: 'ink', style.GREY: 'muted', style.RULE: 'rule', style.BLUE: 'blue',
  style.SKY: 'sky', style.VERMILION: 'vermilion', style.GREEN: 'green', style.PURPLE: 'purple',
  style.ORANGE: 'orange',
}  # fmt: skip


class Picture(NamedTuple):
  """A figure with the section and the kind that name it."""

  section: str
  kind: str
  figure: 'Figure'


def drawn(folder: Path, found: Sequence[Group], kinds: Sequence[str] = ()) -> Iterator[Picture]:
  """The figures of the largest sections, of the kinds given; by default those of a report."""
  wanted = kinds or tuple(TITLES)
  for section in _largest(figures.sections(found)):
    name = figures.title(section)
    for kind in ('accuracy', 'pareto', 'seconds', 'curves', 'episodes'):
      if kind in wanted and (figure := figures.KINDS[kind](section)):
        yield Picture(name, kind, figure)
    yield from (Picture(name, *p) for p in _of_outputs(folder, section, wanted))
  if 'shots' in wanted:
    for section in _largest(figures.sections(found, by_shots=False)):
      if figure := figures.shots(section):
        yield Picture(figures.title(section, by_shots=False), 'shots', figure)
  if 'masks' in wanted:
    yield from _masks(folder, found)


def _largest(sections: list[list[Group]]) -> list[list[Group]]:
  """The sections with most rows, in their order."""
  order = sorted(range(len(sections)), key=lambda i: -len(sections[i]))[:SECTIONS]
  return [sections[i] for i in sorted(order)]


def _masks(folder: Path, found: Sequence[Group]) -> Iterator[Picture]:
  """Which modules train, by the methods that are best in a section, each once."""
  ranked = [g for section in _largest(figures.sections(found)) for g in best(section, MASKS)]
  first = {(g.row.model, g.row.method): g for g in reversed(ranked) if g.row.trained}
  for g in sorted(first.values(), key=lambda g: (g.row.model, -(g.row.mean or 0)))[:MASKS]:
    kept = outputs.preflight(folder, g.records[0])
    if kept and (figure := figures.mask(kept['modules'], g.row.method)):
      yield Picture(f'What trains of {g.row.model}', 'masks', figure)


def _of_outputs(
  folder: Path, section: Sequence[Group], wanted: Sequence[str]
) -> Iterator[tuple[str, 'Figure']]:
  """Figures of what was kept beside the records: of the best method that has it."""
  ranked = best(section, len(section))
  if {'confusion', 'calibration'} & set(wanted):
    for g in ranked[:10]:
      if pooled := _pooled(folder, g):
        yield from ((k, f) for k, f in _of_predictions(g, *pooled) if k in wanted)
        break


def _pooled(folder: Path, g: Group) -> tuple[dict[str, Any], list[Any], list[Any]] | None:
  """The test items of a group, and the predictions and logits of its runs."""
  items = outputs.items(folder, g.records[0])
  if items is None:
    return None
  n, classes = len(items['labels']), len(items['classes'])
  runs = [r for r in g.records if len(r.get('predictions') or ()) == n]
  runs = [r for r in runs if max(r['predictions']) < classes]
  logits = [x for r in runs if (x := outputs.logits(folder, r)) is not None]
  sound = [x for x in logits if x.shape == (n, classes) and np.isfinite(x).all()]
  return (items, [r['predictions'] for r in runs], sound) if runs else None


def _of_predictions(
  g: Group, items: dict[str, Any], predictions: list[Any], logits: list[Any]
) -> Iterator[tuple[str, 'Figure']]:
  labels, classes = np.asarray(items['labels']), items['classes']
  of = lambda runs: f'{len(runs)} runs of {len(labels):,} items, {g.label}'  # noqa: E731
  matrix = np.sum([outcomes.counts(labels, p, len(classes)) for p in predictions], 0)
  yield 'confusion', figures.confusion(matrix, classes, of(predictions))
  if logits:
    p = outcomes.probabilities(np.stack(logits))
    right = p.argmax(-1) == labels
    yield 'calibration', figures.reliability(p.max(-1).ravel(), right.ravel(), of(logits))


def inline(picture: Picture, number: int) -> str:
  """A figure as HTML: SVG whose colours are the page's, with a caption."""
  svg = figures.render(picture.figure, salt=f'fewshot-{number}').decode()
  svg = svg[svg.index('<svg') :]
  svg = re.sub(r'(?<=<g) id="[^"]*"|<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
  svg = re.sub(r' (width|height)="[\d.]+pt"', '', svg, count=2)
  for colour, name in THEMED.items():
    svg = svg.replace(colour, f'var(--{name})')
  svg = re.sub(r'\n\s*', '\n', svg)
  title = html.escape(TITLES[picture.kind])
  label = html.escape(f'{TITLES[picture.kind]}: {picture.section}')
  svg = svg.replace('<svg', f'<svg role="img" aria-label="{label}"', 1)
  return f'<figure><figcaption>{title}</figcaption>{svg}</figure>'


def overlap(folder: Path) -> str:
  """The matrix that `fewshot overlap` left in the folder, as HTML; empty where there is none."""
  file = folder / 'overlap.png'
  if not file.exists():
    return ''
  picture = base64.b64encode(file.read_bytes()).decode()
  about = folder / 'overlap.md'
  text = about.read_text(encoding='utf-8').partition('\n\n')[0] if about.exists() else ''
  name = html.escape(text or 'What tasks choose to train, compared', quote=True)
  return (
    f'<figure><figcaption>What choices have in common</figcaption><img alt="{name}" '
    f'src="data:image/png;base64,{picture}"><p>{name}</p></figure>'
  )
