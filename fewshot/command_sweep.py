"""`fewshot sweep` and `fewshot status`: many workers on one folder, and where it stands."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fewshot import command_run, command_table, leaks, records, stopping
from fewshot import config as configs
from fewshot.console import note, stderr, stdout
from fewshot.errors import FewshotError
from fewshot.launch import launchers, plans
from fewshot.launch.launchers import Worker

COMMAND, CONFIG = 'command.json', 'config.py'
COLOURS = {'done': 'green', 'running': 'cyan', 'failed': 'red', 'waiting': 'dim'}


def run(
  config: str, overrides: Sequence[str], out: str | None, launcher: str, workers: int,
  wanted: dict[str, Any], fresh: bool, as_json: bool,
) -> int:  # fmt: skip
  """Starts the workers of a config's folder and, where they are processes, shows how they fare."""
  launchers.check(launcher, wanted)
  todo = configs.load(config, overrides)
  folder = records.prepare(command_run.folder_of(todo[0], out))
  if launcher == 'here':
    _remember(folder, config, overrides)
    return command_run.run(config, overrides, str(folder), fresh, as_json)
  if fresh and (aside := records.set_aside(folder)):
    note(f'earlier records are now {folder}/{aside}')
  if fresh:
    plans.forget(folder)
  _remember(folder, config, overrides)
  plans.write(folder, [])  # The workers say what there is to do, once they run.
  worker = Worker(config, overrides, str(folder))
  if launcher == 'processes':
    return _processes(worker, workers or len(launchers.gpu_names()) or 1, as_json)
  ids = launchers.submitted(worker, workers or 1, launcher, wanted)
  if as_json:
    print(json.dumps({'folder': str(folder), 'jobs': ids}))
  note(f'{len(ids)} workers are queued as {", ".join(ids)}; see fewshot status {folder}')
  return 0


def _processes(worker: Worker, n: int, as_json: bool) -> int:
  folder = Path(worker.folder)
  watched = plans.Watch(folder)
  note(f'{n} workers, what they print is in {folder}/{launchers.LOGS}', style='bold')
  with stopping.on_signal(), Live(console=stderr, auto_refresh=False) as live:

    def show() -> None:
      if stderr.is_terminal:
        live.update(_table(watched.status()) if plans.read(folder) else Text('starting'))
        live.refresh()

    try:
      status = launchers.processes(worker, n, show)
    except KeyboardInterrupt:
      status = 130
  if status in (130, stopping.UNFINISHED):
    note(f'the workers have saved themselves; fewshot sweep --resume {folder} goes on from there')
    return status
  if status not in (0, 1):
    said = launchers.last_line(folder)
    note(f'a worker ended with status {status}: {said}; see {folder}/{launchers.LOGS}')
    return status
  command_table.again(str(folder), as_json)
  return status


def resume(folder: str, overrides: Sequence[str]) -> tuple[str, list[str]]:
  """The config and the overrides that a folder was made by.

  Raises `FewshotError` where the folder does not say.
  """
  earlier, config = _overrides(Path(folder) / COMMAND), Path(folder) / CONFIG
  if earlier is None or not config.is_file():
    raise FewshotError(
      f'{folder} does not say what made it ({COMMAND}, {CONFIG}); '
      f'run fewshot sweep CONFIG --out {folder}'
    )
  if overrides:
    raise FewshotError(f'--resume goes on with {folder} as it was begun; leave --config. out')
  return str(config), earlier


def _overrides(file: Path) -> list[str] | None:
  """Those that a folder was made with; None where its file is not there, or damaged."""
  try:
    found = json.loads(file.read_bytes())['overrides']
  except (OSError, ValueError, TypeError, KeyError, RecursionError):
    return None
  whole = isinstance(found, list) and all(isinstance(o, str) for o in found)
  return found if whole else None


def _remember(folder: Path, config: str, overrides: Sequence[str]) -> None:
  """Copies the config beside the records, so that the folder alone can go on."""
  text = Path(config).read_bytes()
  said = {'overrides': [o for o in overrides if not o.startswith('out=')]}
  try:
    leaks.check({'config': text.decode(errors='replace'), **said})
  except FewshotError as e:
    note(f'{folder} will not say what made it: {e}')
    return
  records.replace(folder / CONFIG, text)
  records.replace(folder / COMMAND, (json.dumps(said) + '\n').encode())


def plan(config: str, overrides: Sequence[str], as_json: bool) -> int:
  """Prints the groups of a config: runs, memory, FLOPs and, measured on a step, the time."""
  from fewshot.launch.estimates import estimate
  from fewshot.launch.groups import groups
  from fewshot.prepared import prepare

  todo = configs.load(config, overrides)
  if 'learner' in todo[0]:
    return command_run.dry_run(config, overrides, as_json)
  found = []
  for group in groups(prepare(todo)):
    found.append(estimate(group))
    if not as_json:
      stdout.print(_estimated(found[-1]))
  total = sum(g.get('eta_seconds', 0) + g.get('compile_seconds', 0) for g in found)
  runs = sum(g['runs'] for g in found)
  if as_json:
    print(json.dumps({'groups': found, 'runs': runs, 'eta_seconds': round(total, 1)}))
  else:
    untimed = sum('stages' in g for g in found)
    more = f'; {untimed} groups of stages are not timed' if untimed else ''
    stdout.print(
      f'{len(found)} groups, {runs} runs, about {_clock(total)} with compiling, by one worker{more}'
    )
  return 0


def _estimated(g: dict[str, Any]) -> str:
  line = f'{g["id"]}  {g["label"]}: {g["runs"]} runs'
  if 'stages' in g:
    return f'{line}, stages {", ".join(g["stages"])}; not timed'
  return (
    f'{line} in chunks of {g["chunk"]}, {g["memory_bytes"] / 2**20:,.0f} MiB, '
    f'{g["step_flops"] / 1e9:,.1f} GFLOP a step of {g["step_seconds"]:.3g} s, '
    f'about {_clock(g["eta_seconds"])}'
  )


def status(folder: str, as_json: bool, watch: bool) -> int:
  """Prints where a folder stands, again and again until all is done if asked to watch."""
  watched = plans.Watch(Path(folder))
  found = watched.status()
  if as_json:
    print(json.dumps(found))
    return 0
  if not watch:
    stdout.print(_table(found))
    return 0
  with Live(_table(found), console=stdout, auto_refresh=False) as live:
    while not found['runs'] or any(j['state'] in ('running', 'waiting') for j in found['jobs']):
      time.sleep(1)
      found = watched.status()
      live.update(_table(found), refresh=True)
  return 0


def _table(found: dict[str, Any]) -> Table:
  """A line a job, and the sums below."""
  eta = found['eta_seconds']
  left = '' if not eta else f', about {_clock(eta)} left'
  best = found['best']
  top = f', best run {100 * best["accuracy"]:.1f} % on test, by {best["method"]}' if best else ''
  lost = ', '.join(f'{found[k]} {k}' for k in ('failed', 'collapsed') if found[k])
  caption = f'{found["done"]} of {found["runs"]} runs{", " + lost if lost else ""}{left}{top}'
  caption = caption if found['runs'] else 'no worker has begun yet'
  table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=Text(caption), caption_justify='left')
  table.add_column('job', overflow='fold')
  for name in ('state', 'runs', 'best', 'now'):
    table.add_column(name, justify='right' if name in ('runs', 'best') else 'left')
  for job in found['jobs']:
    value = f'{100 * job["best"]["accuracy"]:.1f} %' if job['best'] else ''
    state = Text(job['state'], style=COLOURS[job['state']])
    table.add_row(Text(job['label']), state, f'{job["done"]}/{job["runs"]}', value, job['says'])
  return table


def _clock(seconds: float) -> str:
  """Seconds as a person says them: 42 s, 3.5 min, 2.1 h."""
  if seconds < 120:
    return f'{seconds:.0f} s'
  return f'{seconds / 60:.1f} min' if seconds < 7200 else f'{seconds / 3600:.1f} h'
