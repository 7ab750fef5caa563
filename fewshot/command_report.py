"""`fewshot report` and `fewshot plot`: a page of a folder of records, and its figures as files.

Only what the arguments need is imported here: the command line imports this to say its help.
"""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fewshot.errors import FewshotError, nearest

# Each kind of figure, and what a folder lacks that has none.
KINDS = {
  'accuracy': 'no record is of splits; --kind episodes draws episodes',
  'pareto': 'it needs two methods with an accuracy, one of which trains something',
  'seconds': 'it needs two methods with an accuracy and their seconds',
  'shots': 'it needs a method that ran at two numbers of shots',
  'curves': 'no run recorded a training curve',
  'episodes': 'no record is of episodes',
  'confusion': 'the test labels were not kept beside the records (items/)',
  'calibration': 'the logits were not kept beside the records (outputs/)',
  'masks': 'the trained/frozen tables were not kept beside the records (preflight/)',
}


def add(command: Callable[[str, Callable[..., Any], str], argparse.ArgumentParser]) -> None:
  """Adds the two commands to the command line."""
  page = command('report', _report, 'write one HTML page: table, figures and every run of a folder')
  page.add_argument('-o', '--out', help='the file (default: report.html in the folder)')
  plot = command('plot', _plot, 'draw one kind of figure of a folder: svg, pdf or png')
  plot.add_argument('--kind', default='pareto', help=f'{", ".join(KINDS)} (default pareto)')
  plot.add_argument('-o', '--out', help='the file (default: KIND.svg in the folder)')
  for sub in (page, plot):
    sub.add_argument('folder', help='a folder with a records.jsonl')
    only = 'only records whose method, fit, task, model or id says these'
    sub.add_argument('--only', default='', metavar='WORDS', help=only)
    sub.add_argument('--json', action='store_true', help='print one JSON value as the last line')


def _report(args: argparse.Namespace, rest: list[str]) -> None:
  del rest
  report(args.folder, args.out, args.only, args.json)


def _plot(args: argparse.Namespace, rest: list[str]) -> None:
  del rest
  plot(args.folder, args.kind, args.out, args.only, args.json)


def report(folder: str, out: str | None, only: str, as_json: bool) -> None:
  """Writes the report of a folder: report.html in it, or where `out` says."""
  _needs_matplotlib()
  from fewshot import records
  from fewshot.console import note
  from fewshot.report import build

  with records.uncollected():
    made = build(folder, only)
  place = Path(out) if out else _folder(folder)
  file = place / 'report.html' if place.is_dir() else place
  records.replace(file, made.page)
  if as_json:
    row = {'file': str(file), 'bytes': len(made.page), 'rows': made.rows, 'runs': made.runs}
    print(json.dumps(row | {'left_out': made.left}))
    return
  for line in made.left:
    note(line)
  print(f'{file}: {made.rows:,} rows, {made.runs:,} runs, {len(made.page) / 1e6:.2f} MB')


def plot(folder: str, kind: str, out: str | None, only: str, as_json: bool) -> None:
  """Draws one kind of figure to a file, or to a file a setting where there are several."""
  if kind not in KINDS:
    raise FewshotError(f'--kind {kind!r}; {nearest(kind, KINDS)}')
  _needs_matplotlib()
  from fewshot import figures, records
  from fewshot.report import gathered, pictures

  place, _, found = gathered(folder, only)
  file = Path(out) if out else place / f'{kind}.svg'
  if file.suffix[1:] not in figures.FORMATS:
    raise FewshotError(f'--out {file} ends in {file.suffix or "nothing"}; give .svg, .pdf or .png')
  drawn = list(pictures.drawn(place, found, (kind,)))
  if not drawn:
    raise FewshotError(f'{folder} has nothing to draw for --kind {kind}: {KINDS[kind]}')
  written = []
  for i, picture in enumerate(drawn, 1):
    at = file if len(drawn) == 1 else file.with_stem(f'{file.stem}-{i}-{_slug(picture.section)}')
    records.replace(at, figures.render(picture.figure, file.suffix[1:]))
    written.append({'file': str(at), 'of': picture.section})
  if as_json:
    print(json.dumps(written))
    return
  for row in written:
    print(f'{row["file"]}: {row["of"]}')


def _folder(given: str) -> Path:
  """The folder of records that are given by it, or by their file."""
  return Path(given) if Path(given).is_dir() else Path(given).parent


def _slug(text: str) -> str:
  """What a section is called in a file's name.

  >>> _slug('trec, K = 16, minilm-l6')
  'trec-k-16-minilm-l6'
  """
  return re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')[:80]


def _needs_matplotlib() -> None:
  try:
    import matplotlib  # noqa: F401
  except ImportError:
    raise FewshotError(
      "figures need matplotlib; install it: pip install -e '.[report]' in the project's folder"
    ) from None
