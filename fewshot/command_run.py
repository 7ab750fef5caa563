"""`fewshot run`: preflight, the runs with their progress, and the table."""

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewshot import config as configs
from fewshot import records, stopping, summaries, tables
from fewshot.console import Bars, note, stdout
from fewshot.errors import FewshotError
from fewshot.sound import usable


def run(
  path: str, overrides: Sequence[str], out: str | None, fresh: bool, as_json: bool,
  profile: bool = False, minutes: float = 0.0,
) -> int:  # fmt: skip
  """Runs every row of a config, appends a record for each run, then writes and prints the table."""
  todo = configs.load(path, overrides)
  folder = folder_of(todo[0], out)
  if 'learner' in todo[0]:
    from fewshot import command_episodes

    return command_episodes.run_all(todo, folder, fresh, as_json, minutes)
  if minutes:
    raise FewshotError('--minutes is for configs of episodes; other runs resume by themselves')
  return _run_splits(todo, folder, fresh, as_json, profile)


def _run_splits(
  todo: Sequence[Any], folder: Path, fresh: bool, as_json: bool, profile: bool
) -> int:
  """The runs of configs of texts: splits and seeds of a task."""
  _join(todo)
  from fewshot import experiment, parallel, preflight
  from fewshot.launch import plans
  from fewshot.launch.groups import groups
  from fewshot.prepared import prepare
  from fewshot.writers import open_log

  prepared = prepare(todo)
  if not parallel.writes():
    return _follow(prepared, folder, fresh)
  records.prepare(folder)
  log = open_log(folder, todo)
  note(f'{todo[0].name}: {len(todo)} rows, records in {folder}', style='bold')
  preflight.disk(prepared, folder)
  _show_preflight(prepared)
  if fresh and (aside := records.set_aside(folder)):
    note(f'earlier records are now {folder}/{aside}')
  if fresh:
    plans.forget(folder)
  earlier = _earlier(folder)
  summaries.check_comparable([*earlier, *(r for p in prepared for r in experiment.identities(p))])
  try:
    kept = _execute(groups(prepared), folder, log, profile)
  except KeyboardInterrupt:
    note(f'interrupted: {_kept(folder)}')
    return 130
  except stopping.Stopped:
    note(f'asked to end: {_kept(folder)}')
    return stopping.UNFINISHED
  else:
    if kept and todo[0].checkpoints:
      note('checkpoints are saved while runs are computed: of those recorded before none are new')
    if kept:
      note(f'{kept} runs were recorded before and not run again; --fresh runs them anew')
    return _finish(folder, as_json, log)
  finally:
    log.close()


def _kept(folder: Path) -> str:
  n = len({r.get('id', '') for r in _earlier(folder)})
  return f'{n} finished runs are kept in {folder}; the same command goes on from there'


def _execute(todo: Sequence[Any], folder: Path, log: Any, profile: bool) -> int:
  """Runs what has no result yet, with its progress and maybe a trace; how many runs had one."""
  from fewshot import profiling
  from fewshot.launch import plans, work, worker

  done = records.Tail(folder).read()
  left = sum(len(work.remaining(g, done)) for g in todo)
  dtype = todo[0].rows[0].config.dtype.replace('int8', 'float32')  # What int8 is multiplied as.
  traced = profiling.profile(folder / 'profile', dtype) if profile else contextlib.nullcontext()
  with traced, stopping.on_signal(), Bars(left) as bars:
    jobs = [_job(g, folder, log, bars) for g in todo]
    plans.write(folder, jobs)
    worker.work(jobs, folder)
  return sum(len(g.runs) for g in todo) - left


def _job(group: Any, folder: Path, log: Any, bars: Bars) -> Any:
  """The group as a worker takes it: with its progress on the terminal and in its claim."""
  from fewshot.launch import work, worker

  def run(done: Any, held: Any) -> None:
    def tick(phase: str, part: float) -> None:
      held.says = f'{phase} {part:.0%}'
      bars.phase(phase, part)

    bars.method(group.label)
    for i, record in enumerate(work.execute(group, folder, log, tick, done)):
      bars.advance()
      if not i:
        _show_engine(record['engine'])
      log.event('timings', run=record['id'], **record['timings'])

  missing = lambda done: len(work.remaining(group, done))  # noqa: E731
  retries = group.rows[0].config.retries
  return worker.Job(group.id, group.label, tuple(group.runs), missing, run, retries)


def dry_run(path: str, overrides: Sequence[str], as_json: bool, devices: Sequence[int] = ()) -> int:
  """Prints config, trained/frozen table, counts, memory and FLOPs of every row; runs nothing.

  With `devices`, the memory and FLOPs of a step on each such number of them, of shapes alone.
  """
  todo = configs.load(path, overrides)
  if 'learner' in todo[0]:
    from fewshot import command_episodes

    if devices:
      raise FewshotError('--devices plans runs of texts; leave it out for a config of episodes')
    return command_episodes.dry_run(todo, as_json)
  from fewshot import models, planning, preflight
  from fewshot.prepared import prepare

  prepared = prepare(todo, planning.load if devices else models.load)
  space = preflight.disk(prepared, folder_of(todo[0], None))
  if not as_json:
    stdout.print(json.dumps(configs.as_dict(todo[0]), indent=1))
    _show_preflight(prepared, every=True)
    gib = {k: n / 2**30 for k, n in space.items()}
    stdout.print(
      f'disk: {gib["free_bytes"]:.1f} GiB free, at most {gib["needed_bytes"]:.3f} needed'
    )
  rows = []
  for p in prepared:
    rows.append(_described(p, devices, as_json))
    if not as_json and not devices and not p.program:
      _show_cost(rows[-1])
  if as_json:
    print(json.dumps({'config': configs.as_dict(todo[0]), 'disk': space, 'rows': rows}))
  return 0


def _described(p: Any, devices: Sequence[int], as_json: bool) -> dict[str, Any]:
  """What a row would train, on what, and at which cost."""
  from fewshot import experiment, planning, preflight

  row = {
    'method': p.label,
    'fit': p.fitted,
    'trained': p.trained,
    'total': p.total,
    'runs': len(experiment.plan(p)),
    'hashes': preflight.hashes(p),
  }
  if p.program:  # Its stages compile one after another, each from what the last one wrote.
    return row | {'stages': [stage.name for stage in p.program.stages]}
  if devices:
    job = planning.job(p.config, p.method, p.data, len(p.task.classes))
    return row | {'plans': [_planned(planning.plan(job, n), as_json) for n in devices]}
  return row | experiment.cost(experiment.compiled(p, list(experiment.plan(p).values())))


def _show_cost(row: dict[str, Any]) -> None:
  stdout.print(
    f'{row["method"]}: {row["runs"]} runs in chunks of {row["chunk"]}, '
    f'{row["memory_bytes"] / 2**20:,.0f} MiB, {row["step_flops"] / 1e9:,.1f} GFLOP a step'
  )
  for what, decided in row['engine'].items():
    stdout.print(f'    {what:10s} {decided}')


def _planned(plan: dict[str, Any], as_json: bool) -> dict[str, Any]:
  """The plan, printed as soon as it is made: each takes minutes."""
  by_hand = plan['closed_form_flops']
  gib, tflop = plan['memory_bytes_per_device'] / 2**30, plan['flops_per_device'] / 1e12
  line = f'  {plan["devices"]} devices {plan["axes"]}: {gib:.2f} GiB and {tflop:.3g} TFLOP a step'
  if by_hand:
    line += f'; by hand {by_hand / 1e12:.3g} in all'
  (note if as_json else stdout.print)(line)
  return plan


def _follow(prepared: Sequence[Any], folder: Path, fresh: bool) -> int:
  """What a process does that shares the runs and leaves the records to the first one."""
  from fewshot.launch import work
  from fewshot.launch.groups import groups

  done = {} if fresh else dict(records.Tail(folder).read())
  for g in groups(prepared):
    for _ in work.execute(g, folder, None, lambda phase, done: None, done):
      pass
  return 0


def _show_engine(decided: dict[str, str]) -> None:
  """Which shortcuts the runs of a method took, and why not where they did not."""
  for what in ('packing', 'prefix', 'memory'):
    if decided.get(what, 'off') != 'off':
      note(f'    {what}: {decided[what]}')


def _join(todo: Sequence[Any]) -> None:
  """Where rows are split over hosts, joins them; that comes before all other work of JAX."""
  if any(c.engine.devices == 'hosts' for c in todo):
    from fewshot import parallel

    parallel.join_hosts()


def _finish(folder: Path, as_json: bool, log: Any) -> int:
  rows = tables.write(folder)
  log.table(tables.as_json(rows), tables.render_markdown(rows))
  if as_json:
    print(json.dumps(tables.as_json(rows)))
  else:
    tables.render_terminal(rows, stdout)
    note(f'written: {folder}/{{records.jsonl, table.md, accuracy.png, log.jsonl}}')
  failed = sum(r.failed for r in rows)
  if failed:
    note(f'{failed} runs failed; their records say why (field cause)')
  return int(failed > 0)


def _show_preflight(prepared: Sequence[Any], every: bool = False) -> None:
  """Which rule took which leaves, how many parameters train, for each method; leaves once."""
  from fewshot import preflight

  where = stdout if every else None
  say = where.print if where else note
  shown: list[Any] = []
  tables_shown: list[list[str]] = []
  for p in prepared:
    row = [p.data] if every else [other.data for other in prepared if other.config is p.config]
    if p.data is not row[0]:  # Another split of it, whose texts show other examples.
      continue
    if not any(p.data is data for data in shown):
      shown.append(p.data)
      _show_texts(p, row, say)
    if p.program:
      say(f'{p.label}  {", ".join(stage.name for stage in p.program.stages)}')
      continue
    say(f'{p.label}  trains {p.trained:,} of {p.total:,}')
    if every:
      for what, known in preflight.hashes(p).items():
        say(f'    hash of {what:16s} {", ".join(known)}')
    for said in filter(None, (r.said for r in p.rooms)):
      say(f'    {said}')
    table = [r.line for r in (p.rows if every else p.rows[:-1])]
    if table not in tables_shown:  # That of a method is the same on many tasks.
      tables_shown.append(table)
      for line in table:
        say(f'    {line}')


def _show_texts(p: Any, row: Sequence[Any], say: Any) -> None:
  """How texts are shown and what stands for which class; how many of a row's data are cut."""
  from fewshot.tasks import prompts

  if p.wording:
    tokens, mask = (p.data.train[k][0, 0] for k in ('tokens', 'mask'))
    for line in prompts.describe(p.wording, p.model.tokenizer, p.task.classes, tokens[mask]):
      say(f'    {line}')
  cut, rows = sum(data.cut for data in row), sum(data.rows for data in row)
  if cut:
    say(
      f'    {cut:,} of {rows:,} texts of {p.task.name} are longer than {p.config.max_length} '
      'tokens: cut'
    )


def folder_of(config: Any, out: str | None) -> Path:
  """Where the records go: as given, as the config says, or runs/<its name>."""
  if not (out or config.out) and not re.fullmatch(r'\w[\w .-]*', config.name):
    raise FewshotError(
      f'config.name is {config.name!r}, which names no folder of runs/; use letters, digits, '
      '_ and -, or give --out'
    )
  return Path(out or config.out or f'runs/{config.name}')


def _earlier(folder: Path) -> list[dict[str, Any]]:
  """The records that are there already."""
  return usable(folder) if (folder / records.NAME).exists() else []
