"""`fewshot table`: the table of a run as it was written, or records by any of their fields."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewshot import episode_tables, grids, pivots, records, renderers, tables
from fewshot.console import note, stdout
from fewshot.errors import FewshotError, nearest
from fewshot.table_options import EPISODES, STAT

FORMATS = ('terminal', 'csv', *renderers.FORMATS)
SUFFIXES = {'.md': 'markdown', '.tex': 'latex', '.csv': 'csv', '.html': 'html'}


def again(folder: str, as_json: bool) -> None:
  """Rebuilds table.md of a run from its records, and prints the table."""
  with records.uncollected():
    known = records.read(folder, strict=False)
    if episode_tables.of_episodes(known):
      from fewshot import command_episodes

      command_episodes.show(Path(folder), as_json)
      return
    rows = tables.write_text(folder, episode_tables.usable(known, folder))
    if as_json:
      print(json.dumps(tables.as_json(rows)))
    else:
      tables.render_terminal(rows, stdout)
  if tables.is_old(folder):
    note(f'{tables.PICTURE} is of fewer records; fewshot plot {folder} --kind accuracy draws these')


def show(
  folders: Sequence[str], as_json: bool, *, rows: str, columns: str, stat: str | None, test: str,
  where: Sequence[str], format: str | None, out: str | None,
) -> None:  # fmt: skip
  """Prints, or writes, the records of several folders by their fields."""
  form, chosen = _format(format, out), _names(stat or STAT, '--stat')
  fields = [name.strip() for name in columns.split(',') if name.strip()]
  with records.uncollected():
    known = read(folders)
    pivot = pivots.pivot(known, _names(rows, '--rows'), fields, where, test)
    stats = chosen if stat or not episode_tables.of_episodes(known) else EPISODES.split(',')
    grid = grids.grid(pivot, stats)
  if out:
    records.replace(out, _text(pivot, grid, stats, form).encode('utf-8', 'replace'))
    note(f'written: {out}')
  if as_json:
    print(json.dumps(renderers.records(pivot, stats)))
  elif not out and form == 'terminal':
    renderers.terminal(grid, stdout)
  elif not out:
    print(_text(pivot, grid, stats, form), end='')


def read(folders: Sequence[str]) -> list[dict[str, Any]]:
  """The sound records of all folders; what is left out is said."""
  found = []
  for folder in folders:
    found += episode_tables.usable(records.read(folder, strict=False), folder)
  return found


def _names(text: str, flag: str) -> list[str]:
  names = [name.strip() for name in text.split(',') if name.strip()]
  if not names:
    raise FewshotError(f'{flag} names nothing; leave it out for the usual')
  return names


def _format(form: str | None, out: str | None) -> str:
  if form and form not in FORMATS:
    raise FewshotError(f'there is no format {form!r}; {nearest(form, FORMATS)}')
  if out and form == 'terminal':
    raise FewshotError('--format terminal goes to no file; give markdown, latex, csv or html')
  suffix = Path(out).suffix if out else ''
  if out and not form and suffix not in SUFFIXES:
    raise FewshotError(f'--out {out} does not say a format; end it in {", ".join(SUFFIXES)}')
  return form or SUFFIXES.get(suffix, 'terminal')


def _text(pivot: pivots.Pivot, grid: grids.Grid, stats: Sequence[str], form: str) -> str:
  return renderers.as_csv(pivot, stats) if form == 'csv' else renderers.FORMATS[form](grid)
