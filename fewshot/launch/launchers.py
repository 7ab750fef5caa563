"""Launchers: who starts the workers of a folder.  Every worker is the same `fewshot run`.

- `here`: this process.
- `processes`: one process for each device, or for a part of the cores.
- `slurm`, `local`: submitit's jobs, an array of workers that are requeued when they are preempted;
  `local` runs them as processes of this machine, to try what SLURM will do.
"""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fewshot import records, stopping
from fewshot.errors import FewshotError

LOGS = 'workers'
DEATHS = 3  # Of a worker in a row, without a record between them.


@dataclasses.dataclass
class Worker:
  """`fewshot run` of a config into a folder, as a command or as a call that submitit makes."""

  config: str
  overrides: Sequence[str]
  folder: str

  @property
  def command(self) -> list[str]:
    """The command line."""
    keys = [f'--config.{o}' for o in self.overrides]
    return [sys.executable, '-m', 'fewshot', 'run', self.config, *keys, '--out', self.folder]

  def __call__(self, index: int) -> int:
    """Runs as one of an array; the status of the command."""
    from fewshot import cli

    del index
    return cli.main(self.command[3:])

  def checkpoint(self, index: int) -> Any:
    """What submitit queues again after a preemption: the same, which goes on from what is saved."""
    from submitit.helpers import DelayedSubmission

    return DelayedSubmission(self, index)


def processes(worker: Worker, n: int, show: Callable[[], None]) -> int:
  """Runs n workers as processes side by side until all end; one that dies is started again.

  Each has a device, or a part of the cores, of its own; what it prints goes to workers/<i>.log of
  the folder.  `show` is called twice a second.  The status: 0, or that of a worker that is not.
  """
  logs = Path(worker.folder) / LOGS
  logs.mkdir(parents=True, exist_ok=True)
  places, tail = _places(n), records.Tail(worker.folder)
  running = {i: _start(worker, places[i], logs / f'{i}.log') for i in range(n)}
  deaths, known, statuses = dict.fromkeys(range(n), 0), 0, [0]
  with _ended(running):
    while running:
      time.sleep(0.5)
      show()
      if stopping.asked():
        for process in running.values():
          process.terminate()
      if (now := len(tail.read())) > known:
        known, deaths = now, dict.fromkeys(range(n), 0)
      for i, process in list(running.items()):
        if process.poll() is None:
          continue
        del running[i]
        deaths[i] += 1
        if process.returncode < 0 and deaths[i] < DEATHS and not stopping.asked():
          running[i] = _start(worker, places[i], logs / f'{i}.log')
        else:
          statuses.append(process.returncode)
  return _worst(statuses)


def _worst(statuses: Sequence[int]) -> int:
  """That to go on from, then a mistake, then a killed worker, then failed runs."""
  order = (stopping.UNFINISHED, 2, *sorted(s for s in statuses if s < 0), 1)
  found = next((s for s in order if s in statuses), max(statuses))
  return 128 - found if found < 0 else found


@contextlib.contextmanager
def _ended(running: dict[int, Any]) -> Iterator[None]:
  """No worker outlives what started it; each has the time to save itself."""
  try:
    yield
  finally:
    for process in running.values():
      process.terminate()
    for process in running.values():
      try:
        process.wait(30)
      except subprocess.TimeoutExpired:
        process.kill()


def _start(worker: Worker, place: dict[str, Any], log: Path) -> Any:
  cores = place.get('cores')
  pin = (lambda: os.sched_setaffinity(0, cores)) if cores else None
  with log.open('ab') as out:
    return subprocess.Popen(
      worker.command, stdout=out, stderr=out, stdin=subprocess.DEVNULL,
      env=os.environ | place.get('env', {}), preexec_fn=pin, start_new_session=True,
    )  # fmt: skip


def _places(n: int) -> list[dict[str, Any]]:
  """A GPU for each worker in turn where there are some, else a part of the cores."""
  if gpus := gpu_names():
    return [{'env': {'CUDA_VISIBLE_DEVICES': gpus[i % len(gpus)]}} for i in range(n)]
  if not hasattr(os, 'sched_getaffinity'):
    return [{}] * n
  cores = sorted(os.sched_getaffinity(0))
  parts = [cores[i * len(cores) // n : (i + 1) * len(cores) // n] for i in range(n)]
  return [{'cores': part or cores} for part in parts]


def gpu_names() -> list[str]:
  """The GPUs that a worker may be given, as CUDA_VISIBLE_DEVICES names them."""
  if (given := os.environ.get('CUDA_VISIBLE_DEVICES')) is not None:
    return [name for name in given.split(',') if name and name != '-1']
  if os.environ.get('JAX_PLATFORMS', '').startswith('cpu') or not shutil.which('nvidia-smi'):
    return []
  listed = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True, check=False).stdout
  return [str(i) for i, line in enumerate(listed.splitlines()) if line.startswith('GPU')]


def submitted(worker: Worker, n: int, cluster: str, wanted: dict[str, Any]) -> list[Any]:
  """Submits an array of n workers by submitit and returns its jobs.

  Args:
    cluster: slurm, or local.
    wanted: minutes, gres, partition, cpus and memory_gb of each worker, those that are given.

  Raises:
    FewshotError: submitit is not installed, or there is no SLURM.
  """
  try:
    import submitit
  except ImportError:
    raise FewshotError(
      "--launcher needs submitit; install it: pip install -e '.[slurm]' in the project's folder"
    ) from None
  if cluster == 'slurm' and not shutil.which('sbatch'):
    raise FewshotError('--launcher slurm: there is no sbatch; run on a machine of the cluster')
  executor = submitit.AutoExecutor(folder=Path(worker.folder) / cluster, cluster=cluster)
  names = {'minutes': 'timeout_min', 'cpus': 'cpus_per_task', 'memory_gb': 'mem_gb'}
  names |= {'gres': 'slurm_gres', 'partition': 'slurm_partition'}
  known = {names[k]: v for k, v in wanted.items() if v}
  executor.update_parameters(name='fewshot', slurm_array_parallelism=n, **known)
  try:
    return executor.map_array(worker, range(n))
  except Exception as e:  # What sbatch answered.
    raise FewshotError(
      f'the workers were not submitted: {" ".join(str(e).split())[:300]}'
    ) from None
