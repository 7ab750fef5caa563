"""`fewshot reproduce`: published numbers beside ours, from committed records or run here."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewshot import records, reproductions
from fewshot.console import stdout
from fewshot.reproduction_pages import minutes, spreads, theirs, write_all
from fewshot.reproductions import measured


def show(name: str | None, as_json: bool, folder: str | Path | None = None) -> int:
  """Prints published, ours, the difference and the verdict of a claim; trains nothing."""
  rows = reproductions.rows(name, folder)
  if as_json:
    print(json.dumps({'rows': rows}))
  else:
    _show_claims(rows)
  return 0


def overview(
  prefix: str, paper: str | None, all_of_them: bool, as_json: bool, folder: str | None = None
) -> int:
  """Prints the claims whose names begin so and, without a prefix, a line for each paper.

  `paper` and `all_of_them` print every number, of one paper or of all.
  """
  if prefix:
    rows, lines = reproductions.rows(folder=folder, prefix=prefix), []
  else:
    rows = reproductions.everything(folder, paper)
    lines = reproductions.papers(rows)
    if not (paper or all_of_them):
      rows = [r for r in rows if r['name']]
  if as_json:
    print(json.dumps({'rows': rows, 'papers': lines}))
    return 0
  _show_claims([r for r in rows if r['name']])
  _show_unclaimed([r for r in rows if not r['name']])
  _show_papers(lines)
  return 0


def _show_claims(rows: Sequence[Mapping[str, Any]]) -> None:
  """A heading and a narrow table a claim; what is long stands below, and wraps between words."""
  from rich import box
  from rich.table import Table

  for name in dict.fromkeys(r['name'] for r in rows):
    here = [r for r in rows if r['name'] == name]
    tasks = {r['task'] for r in here}
    on = f', {here[0]["task"]}' if len(tasks) == 1 else ''
    _say(name, 'bold')
    _say(f'{here[0]["paper"]}: {here[0]["method"]}, {here[0]["backbone"]}{on}')
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    for head in ('setting', 'published', 'ours', 'margin', 'verdict'):
      right = head in ('published', 'ours', 'margin')
      table.add_column(head, justify='right' if right else 'left', no_wrap=head != 'verdict')
    for r in here:
      setting = r['setting'] if len(tasks) == 1 else f'{r["task"]}, {r["setting"]}'
      table.add_row(setting, theirs(r), measured(r), f'{r["margin"]:.1f}', r['verdict'])
    stdout.print(table, soft_wrap=False)
    for said, settings in _remarks(here, len(tasks) > 1).items():
      _say(f'{", ".join(settings)}: {said}')
    _say(spreads(here))
    stdout.print()


def _say(text: str, style: str = '') -> None:
  """A paragraph, wrapped between words."""
  stdout.print(text, style=style, soft_wrap=False)


def _remarks(rows: Sequence[Mapping[str, Any]], several: bool) -> dict[str, list[str]]:
  """Why each verdict, how long it was trained and took; settings of which the same is said once."""
  said: dict[str, list[str]] = {}
  for r in rows:
    said.setdefault(r['why'], []).append(r['task'] if several else r['setting'])
  for r in rows:
    took = f'took {minutes(r)}' if r['train_s'] else ''
    text = ', '.join(filter(None, (r['schedule'], took)))
    if text:
      said.setdefault(text, []).append(r['task'] if several else r['setting'])
  return said


def _show_unclaimed(rows: Sequence[Mapping[str, Any]]) -> None:
  """A line a number that no claim answers to, under the heading of its table."""
  heading = None
  for r in rows:
    named = (r['paper'], r['table'], r['method'], r['backbone'] or 'unstated')
    if named != heading:
      _say(f'{named[0]}, {named[1]}: {named[2]}, {named[3]}', 'bold')
      heading = named
    metric = '' if r['metric'] == 'accuracy' else f' {r["metric"]}'
    _say(f'  {r["task"]}, {r["setting"]}:{metric} {theirs(r)}, not run: {r["why"]}')


def _show_papers(lines: Sequence[Mapping[str, Any]]) -> None:
  """A paragraph a paper; those of which only the abstract is known, together."""
  abstracts = [p for p in lines if p['abstract']]
  for p in lines:
    if p in abstracts and len(abstracts) > 1:
      continue
    counts = [f'{p[v]} {v}' for v in reproductions.VERDICTS if p[v]]
    needs = f' (needs {p["needs"]})' if p['needs'] else ''
    numbers = f'{p["numbers"]} number{"s" if p["numbers"] > 1 else ""}'
    _say(f'{p["paper"]}: {numbers}, {", ".join(counts)}{needs}')
  if len(abstracts) > 1:
    n = sum(p['numbers'] for p in abstracts)
    said = f'{len(abstracts)} papers more, of which only the abstract is known: {n} numbers'
    _say(f'{said}, not run')
  if lines:
    total = sum(p['numbers'] for p in lines)
    said = 'fewshot reproduce --list --paper NAME shows those of one, --all all of them.'
    stdout.print()
    _say(f'{total:,} published numbers of {len(lines)} papers. {said}')


def pages() -> int:
  """Writes the README of every folder of committed records."""
  for path in write_all():
    stdout.print(str(path.relative_to(reproductions.ROOT)))
  return 0


def run(name: str, minutes: float, out: str | None, as_json: bool) -> int:
  """Runs what is not recorded in the folder, then shows its rows."""
  from fewshot import command_run
  from fewshot import config as configs
  from fewshot.errors import FewshotError

  claim = reproductions.claim(name)
  if 'lacks' in claim:
    raise FewshotError(f'{name} cannot be run as it is: it needs {claim["lacks"]}')
  if 'config' not in claim:
    folder = records.prepare(out or f'runs/{name}')
    records.append(folder, reproductions.hausdorff_record())
    return show(name, as_json, folder)
  path, changes = reproductions.ROOT / claim['config'], claim.get('overrides', [])
  status = command_run.run(str(path), changes, out, False, False, minutes=minutes)
  return status or show(name, as_json, out or f'runs/{configs.load(path, changes)[0].name}')
