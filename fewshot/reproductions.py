"""Published numbers beside ours: what was claimed, what our records say, and a verdict."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewshot import matrices, records, statistics, summaries, tables
from fewshot.episode_tables import cells, of_episodes, render_markdown
from fewshot.episode_tables import setting as setting_of
from fewshot.errors import FewshotError, nearest
from fewshot.tables import markdown_row

FILE = Path(__file__).with_name('published.json')
ROOT = FILE.parents[1]  # Of a checkout: an installed package has no experiments.
KEYS = (
  *('paper', 'table', 'method', 'task', 'setting', 'published', 'ours', 'spread', 'n', 'margin'),
  *('verdict', 'why', 'schedule', 'train_s', 'name'),
)


def claims() -> dict[str, dict[str, Any]]:
  """What is published, by the name that `fewshot reproduce` takes."""
  return json.loads(FILE.read_text(encoding='utf-8'))


def claim(name: str) -> dict[str, Any]:
  """The published table of that name.

  >>> claim('protonet-omniglt')
  Traceback (most recent call last):
  fewshot.errors.FewshotError: there is no 'protonet-omniglt'; did you mean 'protonet-omniglot'?
  """
  known = claims()
  if name not in known:
    raise FewshotError(f'there is no {name!r}; {nearest(name, known)}')
  return known[name]


def rows(name: str | None = None, folder: str | Path | None = None) -> list[dict[str, Any]]:
  """A row for each published number of `name`, or of all: with ours, the margin and the verdict.

  The verdict is 'reproduced' or 'different' by `statistics.equivalence` with the stated margin, the
  standard error that of our episodes; 'not run' where there is no record.  Accuracies in %.

  Args:
    folder: of the records; by default the committed ones.
  """
  if folder and not Path(folder).is_dir():
    raise FewshotError(f'there is no folder {folder}; give that of a run, or leave --out away')
  named = claims() if name is None else {name: claim(name)}
  found = []
  for label, c in named.items():
    ours = records.read_if_any(folder or ROOT / c['records'])
    found += [_row(label, c, row, ours) for row in c['rows']]
  return found


def _row(
  name: str, c: Mapping[str, Any], row: Mapping[str, Any], ours: list[dict[str, Any]]
) -> dict[str, Any]:
  base = {'name': name} | {k: c[k] for k in ('paper', 'table', 'method', 'task')}
  base |= {k: row[k] for k in ('setting', 'published', 'margin')}
  match = [
    r
    for r in ours
    if (r['config']['name'], r['method'], r['task'], setting_of(r))
    == (c['experiment'], c['method'], c['task'], row['setting'])
  ]
  if not match:
    why = f'no record: fewshot reproduce {name}'
    return dict.fromkeys(KEYS) | base | {'verdict': 'not run', 'why': why}
  record = match[-1]
  score = record['scores']['accuracy']
  if score['value'] is None:
    return dict.fromkeys(KEYS) | base | {'verdict': 'different', 'why': record['status']}
  mean, spread = 100 * score['value'], 100 * (score['spread'] or 0.0)
  error = 0.0 if c.get('fixed') else spread / 1.96  # Published trials are no sample.
  test = statistics.equivalence(mean, error, row['published'], row['margin'])
  return dict.fromkeys(KEYS) | base | {
    'ours': round(mean, 2),
    'spread': round(spread, 2),
    'n': score['n'],
    'verdict': test.verdict,
    'why': _why(test, bool(c.get('fixed'))),
    'schedule': _schedule(c, record),
    'train_s': record['timings'].get('train_s'),
  }  # fmt: skip


def _why(test: Any, fixed: bool) -> str:
  """The difference, and how likely it is that of means further apart than the margin."""
  if fixed:
    return f'difference {test.difference:+.2f} on the same fixed trials'
  p = f'p = {test.p:.2g}'
  if not 0.001 <= test.p <= 0.999:
    p = 'p < 0.001' if test.p < 0.5 else 'p > 0.999'
  return f'difference {test.difference:+.2f}, {p}'


def _schedule(c: Mapping[str, Any], record: Mapping[str, Any]) -> str:
  """How long ours was trained and, where theirs took longer, that it is shorter."""
  if not c['schedule']:
    return ''
  steps, tasks = record['training']['steps'], record['config']['train']['meta_batch']
  ours = f'{steps:,} steps of {tasks} task' + ('s' if tasks > 1 else '')
  short = c['steps'] and steps < c['steps']
  return f'{ours}; theirs: {c["schedule"]}' + (' (ours is shorter)' if short else '')


def measured(row: Mapping[str, Any]) -> str:
  """Our number in a row of `rows`, with its interval; a dash where there is none."""
  if row['ours'] is None:
    return '–'
  return f'{row["ours"]:.2f} ± {row["spread"]:.2f} (n = {row["n"]:,})'


def write_pages() -> list[Path]:
  """Writes README.md of every folder of committed records, from those records alone."""
  written = []
  for file in sorted((ROOT / 'experiments').glob(f'*/{records.NAME}')):
    written.append(file.with_name('README.md'))
    records.replace(written[-1], page(str(file.parent.relative_to(ROOT))).encode())
  return written


def page(folder: str) -> str:
  """The README of a folder of records, such as 'experiments/omniglot': claims, commands, tables."""
  found = records.read(ROOT / folder)
  parts = [
    f'# {Path(folder).name}',
    '',
    'Written by `fewshot reproduce --pages` from the records.',
    '',
  ]
  for name, c in claims().items():
    if c['records'] == folder:
      parts += _claimed(name, c)
  if of_episodes(found):
    parts += ['## Everything that was measured', '', render_markdown(cells(found))]
    parts.append(_trained_on(found))
  else:
    parts += _compared(found)
  for file in sorted((ROOT / folder).glob('*overlap.md')):
    picture = file.with_suffix('.png').name
    parts += ['## Overlap', '', file.read_text(encoding='utf-8'), f'![overlap]({picture})', '']
  return '\n'.join([*parts, ''])


def _compared(found: list[dict[str, Any]]) -> list[str]:
  """The tables of runs on splits, by config."""
  parts: list[str] = []
  for name in dict.fromkeys(r['config']['name'] for r in found):
    rows = summaries.summarise(r for r in found if r['config']['name'] == name)
    parts += [f'## {name}', '', matrices.render_markdown(rows), tables.render_markdown(rows), '']
  return parts


def _trained_on(found: list[dict[str, Any]]) -> str:
  """How long the trainings took, and on what."""
  used = {(r['machine']['cores'], r['machine']['device']) for r in found if 'machine' in r}
  seconds = {r['training']['name']: r['timings'].get('train_s', 0) for r in found}
  on = ' and '.join(f'{device}, {cores} cores' for cores, device in sorted(used))
  minutes = f'{sum(seconds.values()) / 60:,.0f}'
  return f'Trained for {minutes} minutes in all on {on}, shared with other work.'


def _claimed(name: str, c: Mapping[str, Any]) -> list[str]:
  lines = [f'## {name}', '', f'{c["paper"]}, table {c["table"]} (as quoted by {c["source"]}).', '']
  lines += ['```sh', f'fewshot reproduce {name}']
  if c['config']:
    lines[-1] += ' --minutes 10   # on a CPU, as often as it takes; on a GPU without --minutes'
  lines += ['```', '']
  lines.append('| setting | published | ours (95 % CI) | margin | verdict | schedule |')
  lines.append('| --- | ---: | ---: | ---: | --- | --- |')
  for r in rows(name):
    verdict = f'{r["verdict"]} ({r["why"]})'
    row = [r['setting'], r['published'], measured(r), r['margin'], verdict, r['schedule'] or '–']
    lines.append(markdown_row(map(str, row)))
  return [*lines, '']


def hausdorff_record() -> dict[str, Any]:
  """The record of the modified Hausdorff distance on the published runs, 105 x 105 pixels."""
  from fewshot import data
  from fewshot.data import hausdorff
  from fewshot.episodes import ledger, ledger_hash
  from fewshot.experiment import versions
  from fewshot.meta import scored

  start, trials = time.monotonic(), data.lake_runs()
  right = (hausdorff.nearest_drawing(trials) == trials.answers).mean(1)
  config = {'name': 'lake-hausdorff', 'method': 'modified_hausdorff()', 'pool': 'lake_runs()'}
  hashes = {'test': trials.hash, 'episodes': ledger_hash(ledger('lake', len(right)))}
  return {
    'id': records.run_id({'config': config, 'hashes': hashes}),
    'config': config,
    'model': 'pixels',
    'method': config['method'],
    'task': trials.pool().name,
    'split': {'k': 1, 'seed': 0, 'way': 20, 'query': 1, 'episodes': len(right), 'ledger': 'lake'},
    'seed': 0,
    'training': {'name': '', 'learner': '', 'pool': '', 'steps': 0},
    **scored(right),
    'trained': 0,
    'total': 0,
    'hashes': hashes,
    'timings': {'test_s': round(time.monotonic() - start, 2)},
    'versions': versions(),
    'status': 'ok',
    'tuning': 'fixed',
  }  # fmt: skip
