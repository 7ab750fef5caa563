"""The README of a folder of committed records: claims, commands and tables, from these alone."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewshot import matrices, records, reproductions, summaries, tables
from fewshot.episode_tables import cells, of_episodes, render_markdown, usable
from fewshot.reproductions import ROOT, measured
from fewshot.tables import markdown_row

HEAD = ('setting', 'published', 'ours', 'margin', 'verdict', 'schedule', 'time')


def write_all() -> list[Path]:
  """Writes README.md of every folder of committed records."""
  written = []
  for file in sorted((ROOT / 'experiments').glob(f'*/{records.NAME}')):
    written.append(file.with_name('README.md'))
    records.replace(written[-1], page(str(file.parent.relative_to(ROOT))).encode())
  return written


def page(folder: str) -> str:
  """The README of a folder of records, such as 'experiments/omniglot'."""
  found = usable(records.read(ROOT / folder), folder)
  parts = [
    f'# {Path(folder).name}',
    '',
    'Written by `fewshot reproduce --pages` from the records.',
    '',
  ]
  compared = reproductions.rows()
  for name, c in reproductions.claims().items():
    if c['records'] == folder:
      parts += _claimed(name, c, [r for r in compared if r['name'] == name])
  if of_episodes(found):
    parts += ['## Everything that was measured', '', render_markdown(cells(found))]
  else:
    parts += _compared(found)
  parts += [_hardware(found), '']
  for file in sorted((ROOT / folder).glob('*overlap.md')):
    picture = file.with_suffix('.png').name
    parts += ['## Overlap', '', file.read_text(encoding='utf-8'), f'![overlap]({picture})', '']
  return '\n'.join(parts)


def _compared(found: Sequence[Mapping[str, Any]]) -> list[str]:
  """The tables of runs on splits, by config."""
  parts: list[str] = []
  for name in dict.fromkeys(r['config']['name'] for r in found):
    rows = summaries.summarise(r for r in found if r['config']['name'] == name)
    parts += [f'## {name}', '', matrices.render_markdown(rows), tables.render_markdown(rows), '']
  return parts


def _hardware(found: Sequence[Mapping[str, Any]]) -> str:
  """How long it took in all, and on what."""
  used = {(r['machine']['device'], r['machine']['cores']) for r in found if 'machine' in r}
  on = [f'{device}, {cores} cores' for device, cores in sorted(used)]
  on = on or sorted({r['versions']['backend'] for r in found})
  train = {r['training']['name']: r['timings'].get('train_s', 0) for r in found if 'training' in r}
  seconds = sum(train.values()) + sum(r['timings'].get('seconds') or 0 for r in found)
  versions = sorted({f'jax {r["versions"]["jax"]}' for r in found})
  return (
    f'Took {seconds / 60:,.0f} minutes in all on {" and ".join(on)}, shared with other work '
    f'({", ".join(versions)}).'
  )


def _claimed(name: str, c: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
  first = rows[0]
  backbone = f' with {first["backbone"]}' if first['backbone'] else ''
  lines = [
    f'## {name}',
    '',
    f'{c["cites"]}: {first["method"]}{backbone}, {first["table"]} (grade {first["grade"]}: '
    f'{first["source"]}). Ours is `{c["by"]}`.',
    '',
    '```sh',
    f'fewshot reproduce {name}',
  ]
  if 'config' in c and any(r['schedule'] for r in rows):
    lines[-1] += ' --minutes 10   # on a CPU, as often as it takes; on a GPU without --minutes'
  lines += ['```', '', markdown_row(HEAD)]
  lines.append(markdown_row(['---', '---:', '---:', '---:', '---', '---', '---:']))
  for r in rows:
    where = f'{r["task"]}, {r["setting"]}' if 'task' not in c else r['setting']
    why = f'{r["verdict"]} ({r["why"]})'
    row = [where, theirs(r), measured(r), r['margin'], why, r['schedule'] or '–', minutes(r)]
    lines.append(markdown_row(map(str, row)))
  return [*lines, '', spreads(rows), '']


def theirs(row: Mapping[str, Any]) -> str:
  """The published number with its spread and n, as far as they are known.

  >>> theirs({'published': 98.7, 'published_spread': None, 'published_n': None})
  '98.7'
  >>> theirs({'published': 84.8, 'published_spread': 5.1, 'published_n': 5})
  '84.8 ± 5.1 (n = 5)'
  """
  spread = '' if row['published_spread'] is None else f' ± {_number(row["published_spread"])}'
  n = '' if row['published_n'] is None else f' (n = {row["published_n"]:,})'
  return f'{_number(row["published"])}{spread}{n}'


def _number(value: float) -> str:
  """One or two decimals, as most papers print them."""
  return re.sub(r'(\.\d)0$', r'\1', f'{value:,.2f}')


def minutes(row: Mapping[str, Any]) -> str:
  """How long our number took to compute; a dash where it was not, or the record does not say."""
  seconds = row['train_s']
  if seconds is None:
    return '–'
  return f'{seconds / 60:,.0f} min' if seconds >= 60 else f'{seconds:.0f} s'


WORDS = {
  'episode-ci95': 'half of a 95 % interval over n episodes',
  'split-std': 'the standard deviation over n splits',
  'seed-std': 'the standard deviation over n seeds',
  'unknown': 'of a kind that is not stated',
}


def spreads(rows: Sequence[Mapping[str, Any]]) -> str:
  """What stands after ±, in a sentence; and that there is nothing, where nothing was published.

  >>> spreads([{'published_spread_kind': None, 'spread_kind': 'episode-ci95'}])
  '± of ours is half of a 95 % interval over n episodes; theirs is not given. Accuracies in %.'
  """
  said = []
  ours = [r['spread_kind'] for r in rows if r['spread_kind']]
  if ours:
    said.append(f'± of ours is {WORDS[ours[0]]}')
  kinds = [r['published_spread_kind'] for r in rows if r['published_spread_kind']]
  their = WORDS[kinds[0]] if kinds else 'not given'
  said.append(f'theirs is {their}' if ours else f'± of theirs is {their}')
  return f'{"; ".join(said)}. Accuracies in %.'
