"""The arguments of the commands that run experiments, and their calls."""

import argparse
import contextlib
import re
from collections.abc import Callable
from typing import Any

from fewshot.errors import FewshotError

Command = Callable[[str, Callable[..., Any], str], argparse.ArgumentParser]
LAUNCHERS = ('here', 'processes', 'slurm', 'local')
KEYS = "Any key of the config can be set: --config.k=8 --config.method='lora(rank=4)'"


def add_runs(command: Command) -> None:
  """`run`, `sweep` and `status`."""
  _add_run(command('run', _run, 'run an experiment: fit, score, record, print its table'))
  _add_sweep(command('sweep', _sweep, 'run an experiment by several workers, also on a cluster'))
  status = command('status', _status, 'say where the runs of a folder stand')
  status.add_argument('folder', help='the folder of a run or sweep')
  status.add_argument('--watch', action='store_true', help='show it until all runs are done')
  status.add_argument('--json', action='store_true', help='print one JSON value')


def _add_run(run: argparse.ArgumentParser) -> None:
  run.add_argument('config', help='a file such as configs/quickstart.py')
  run.add_argument('--dry-run', action='store_true', help='print what would run, and run nothing')
  run.add_argument('--devices', help='--dry-run: plan for so many devices, such as 1,8,64')
  run.add_argument('--fresh', action='store_true', help='set earlier records aside and start over')
  run.add_argument('--out', help='the folder of the records (default: runs/<config.name>)')
  run.add_argument('--profile', action='store_true', help='trace the run: a page in OUT/profile')
  run.add_argument(
    '--minutes', type=minutes, default=0.0, help='episodes: stop, saved, after so long (status 75)'
  )
  run.add_argument('--json', action='store_true', help='print one JSON value as the last line')
  run.epilog = KEYS


def _add_sweep(sweep: argparse.ArgumentParser) -> None:
  sweep.add_argument('config', nargs='?', help='a file such as configs/quickstart.py')
  sweep.add_argument('--plan', action='store_true', help='print groups, memory, FLOPs and time')
  sweep.add_argument('--resume', metavar='DIR', help='go on with a folder, in place of a config')
  sweep.add_argument('--launcher', choices=LAUNCHERS, default='here', help='who runs the workers')
  sweep.add_argument('--workers', type=count, help='how many (default: one a GPU, or one)')
  sweep.add_argument(
    '--time', type=count, help='slurm, local: minutes until a worker is queued again (default 60)'
  )
  sweep.add_argument('--gres', help='slurm: such as gpu:1')
  sweep.add_argument('--partition', help='slurm: where')
  sweep.add_argument('--cpus', type=count, help='slurm: of a worker')
  sweep.add_argument('--memory', type=gigabytes, help='slurm: GB of a worker')
  sweep.add_argument(
    '--fresh', action='store_true', help='set earlier records aside and start over'
  )
  sweep.add_argument('--out', help='the folder of the records (default: runs/<config.name>)')
  sweep.add_argument('--json', action='store_true', help='print one JSON value as the last line')
  sweep.epilog = KEYS


def _run(args: argparse.Namespace, rest: list[str]) -> int:
  from fewshot import command_run

  overrides = [arg.removeprefix('--config.') for arg in rest]
  if args.devices and not (args.dry_run and re.fullmatch(r'[1-9]\d*(,[1-9]\d*)*', args.devices)):
    raise FewshotError(f'--devices {args.devices} goes with --dry-run, as in --devices 1,8,64')
  if args.dry_run:
    devices = [int(n) for n in args.devices.split(',')] if args.devices else []
    return command_run.dry_run(args.config, overrides, args.json, devices)
  return command_run.run(args.config, overrides, args.out, args.fresh, args.json, args.profile,
                         args.minutes)  # fmt: skip


def _sweep(args: argparse.Namespace, rest: list[str]) -> int:
  from fewshot import command_sweep

  overrides = [arg.removeprefix('--config.') for arg in rest]
  if bool(args.config) == bool(args.resume):
    raise FewshotError('fewshot sweep takes a config, or --resume and a folder that one began')
  config, out = args.config, args.out
  if args.resume:
    if args.fresh or args.out:
      raise FewshotError('--resume goes on in its folder; leave --fresh and --out away')
    config, overrides = command_sweep.resume(args.resume, overrides)
    out = args.resume
  if args.plan:
    return command_sweep.plan(config, overrides, args.json)
  if args.launcher == 'here' and (args.workers or 1) > 1:
    raise FewshotError(
      f'--launcher here is one worker; --workers {args.workers} goes with --launcher processes, '
      'slurm or local'
    )
  options = ('time', 'gres', 'partition', 'cpus', 'memory')
  wanted = {k: v for k in options if (v := getattr(args, k)) is not None}
  return command_sweep.run(
    config, overrides, out, args.launcher, args.workers or 0, wanted, args.fresh, args.json
  )


def _status(args: argparse.Namespace, rest: list[str]) -> int:
  del rest
  from fewshot import command_sweep

  return command_sweep.status(args.folder, args.json, args.watch)


def minutes(text: str) -> float:
  """A number of minutes above 0."""
  return _above_zero(text, 'minutes')


def gigabytes(text: str) -> float:
  """A number of gigabytes above 0."""
  return _above_zero(text, 'GB')


def _above_zero(text: str, unit: str) -> float:
  with contextlib.suppress(ValueError):
    if 0 < float(text) < float('inf'):
      return float(text)
  raise argparse.ArgumentTypeError(f'{text} is no number of {unit} above 0')


def count(text: str) -> int:
  """A whole number above 0, and below what any machine has."""
  with contextlib.suppress(ValueError):
    if 0 < int(text) < 10**6:
      return int(text)
  raise argparse.ArgumentTypeError(f'{text[:40]} is no whole number above 0')
