"""`fewshot run` and `fewshot table`: preflight, the runs with their progress, and the table."""

import contextlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewshot import assets, records, summaries, tables
from fewshot import config as configs
from fewshot.console import Bars, note, stdout
from fewshot.errors import FewshotError


def run(path: str, overrides: Sequence[str], out: str | None, fresh: bool, as_json: bool) -> int:
  """Runs every row of a config, appends a record for each run, then writes and prints the table."""
  todo = configs.load(path, overrides)
  folder = _folder(todo[0], out)
  use_cache()
  from fewshot import experiment, methods
  from fewshot.logging import open_log

  prepared = experiment.prepare(todo)
  records.prepare(folder)
  log = open_log(folder, todo[0].name, todo[0].wandb, configs.as_dict(todo[0]))
  note(f'{todo[0].name}: {len(todo)} rows, records in {folder}', style='bold')
  _show_preflight(prepared)
  if fresh:
    _set_aside(folder)
  earlier = _earlier(folder)
  summaries.check_comparable([*earlier, *(r for p in prepared for r in experiment.identities(p))])
  # Failed runs are run again.
  done = {r.get('id', '') for r in earlier if r['status'] != 'failed'}
  planned = {i for p in prepared for i in experiment.plan(p)}
  kept = len(planned & done)
  try:
    with Bars(len(planned) - kept) as bars:
      for p in prepared:
        there = done.issuperset(experiment.plan(p))
        bars.method(methods.spell(p.method) + (': recorded before' if there else ''))
        for record in experiment.execute(p, folder, log, bars.phase, done):
          bars.advance()
          log.event('timings', run=record['id'], **record['timings'])
  except KeyboardInterrupt:
    n = len({r.get('id', '') for r in _earlier(folder)})
    note(
      f'interrupted: {n} finished runs are kept in {folder}; the same command goes on from there'
    )
    return 130
  finally:
    log.close()
  if kept:
    note(f'{kept} runs were recorded before and not run again; --fresh runs them anew')
  return _finish(folder, as_json)


def dry_run(path: str, overrides: Sequence[str], as_json: bool) -> int:
  """Prints config, trained/frozen table, counts, memory and FLOPs of every row; runs nothing."""
  todo = configs.load(path, overrides)
  use_cache()
  from fewshot import experiment, methods

  prepared = experiment.prepare(todo)
  if not as_json:
    stdout.print(json.dumps(configs.as_dict(todo[0]), indent=1))
    _show_preflight(prepared, every=True)
  rows = []
  for p in prepared:
    n = len(experiment.plan(p))
    cost = experiment.cost(p)
    rows.append(
      {
        'method': methods.spell(p.method),
        'fit': p.config.fit,
        'trained': p.trained,
        'total': p.total,
        'runs': n,
        **cost,
      }
    )
    if not as_json:
      stdout.print(
        f'{methods.spell(p.method)}: {n} runs in chunks of {cost["chunk"]}, '
        f'{cost["memory_bytes"] / 2**20:,.0f} MiB, {cost["step_flops"] / 1e9:,.1f} GFLOP a step'
      )
  if as_json:
    print(json.dumps({'config': configs.as_dict(todo[0]), 'rows': rows}))
  return 0


def show_table(folder: str, as_json: bool) -> None:
  """Rebuilds table.md and accuracy.png of a run from its records, and prints the table."""
  rows = tables.write(folder)
  if as_json:
    print(json.dumps([_row_as_json(r) for r in rows]))
  else:
    tables.render_terminal(rows, stdout)


def use_cache() -> None:
  """Keeps compiled programs in the user's cache, so that a second run need not compile."""
  import jax

  folder = assets.cache_dir() / 'xla'
  with contextlib.suppress(OSError):  # A read-only cache costs time, not the run.
    folder.mkdir(parents=True, exist_ok=True)
  if os.access(folder, os.W_OK) and not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def _finish(folder: Path, as_json: bool) -> int:
  rows = tables.write(folder)
  if as_json:
    print(json.dumps([_row_as_json(r) for r in rows]))
  else:
    tables.render_terminal(rows, stdout)
    note(f'written: {folder}/{{records.jsonl, table.md, accuracy.png, log.jsonl}}')
  failed = sum(r.failed for r in rows)
  if failed:
    note(f'{failed} runs failed; their records say why (field cause)')
  return int(failed > 0)


def _row_as_json(row: tables.Row) -> dict[str, Any]:
  import dataclasses

  return dataclasses.asdict(row) | {'percent': row.percent}


def _show_preflight(prepared: Sequence[Any], every: bool = False) -> None:
  """Which rule took which leaves, how many parameters train, for each method."""
  from fewshot import methods

  where = stdout if every else None
  say = where.print if where else note
  for p in prepared:
    say(f'{methods.spell(p.method)}  trains {p.trained:,} of {p.total:,}')
    for row in p.rows if every else p.rows[:-1]:
      say(f'    {row.rule:32s} {methods.count(row.leaves):>12,}  {row.text}')


def _folder(config: Any, out: str | None) -> Path:
  if not (out or config.out) and not re.fullmatch(r'\w[\w .-]*', config.name):
    raise FewshotError(
      f'config.name is {config.name!r}, which names no folder of runs/; use letters, digits, '
      '_ and -, or give --out'
    )
  return Path(out or config.out or f'runs/{config.name}')


def _earlier(folder: Path) -> list[dict[str, Any]]:
  """The records that are there already."""
  return summaries.usable(folder) if (folder / records.NAME).exists() else []


def _set_aside(folder: Path) -> None:
  """Earlier records are never deleted: they move to records.<n>.jsonl."""
  current = folder / records.NAME
  if not current.exists():
    return
  n = next(i for i in range(1, 10**6) if not (folder / f'records.{i}.jsonl').exists())
  try:
    current.rename(folder / f'records.{n}.jsonl')
  except OSError as e:
    raise FewshotError(f'cannot set aside {current}: {e.strerror}') from None
  note(f'earlier records are now {folder}/records.{n}.jsonl')
