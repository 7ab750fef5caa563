"""Launchers: who starts the workers of a folder.  Every worker is the same `fewshot run`.

- `here`: this process.
- `processes`: one process for each device, or for a part of the cores.
- `slurm`, `local`: submitit's jobs, an array of workers that save themselves and are queued again
  when their time is over or their place is wanted; `local` runs them as processes of this machine,
  to try what SLURM will do.
"""

import contextlib
import dataclasses
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fewshot import records, stopping
from fewshot.errors import FewshotError

LOGS = 'workers'
DEATHS = 3  # Of a worker in a row, without a record between them.
GRACE = 30.0  # Seconds to save itself, as SLURM gives by default.
MINUTES = {'slurm': 60, 'local': 7 * 24 * 60}  # Of a worker, until it is queued again.
REQUEUES = 100  # At most, of a worker whose time is over.
# What a launcher may be given, and submitit's name of it.
OPTIONS = {
  'here': {},
  'processes': {},
  'local': {'time': 'timeout_min'},
  'slurm': {
    'time': 'timeout_min',
    'gres': 'slurm_gres',
    'partition': 'slurm_partition',
    'cpus': 'cpus_per_task',
    'memory': 'mem_gb',
  },
}


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

  def __call__(self, index: int) -> None:
    """Runs as one of an array and exits with the status of the command.

    Told that its time is over (SIGUSR2), or that its place is wanted (SIGTERM), it saves itself
    first and only then does what submitit does: it queues itself again.
    """
    from fewshot import cli

    del index
    queue_again: Any = signal.getsignal(signal.SIGUSR2)
    told: list[int] = []

    def ask(number: int, frame: Any) -> None:
      told.append(number)
      stopping.ask()

    signal.signal(signal.SIGUSR2, ask)
    status = cli.main(self.command[3:])
    if status == stopping.UNFINISHED and (told or _is_preempted()):
      queue_again(signal.SIGUSR2, None)
    sys.exit(status)  # For submitit whatever is returned is a success.

  def checkpoint(self, index: int) -> Any:
    """What submitit queues again: the same, which goes on from what is saved."""
    from submitit.helpers import DelayedSubmission

    return DelayedSubmission(self, index)


def _is_preempted() -> bool:
  """Whether SLURM only wants the place back; a job that is cancelled is no longer running.

  A job that ends within the grace time of a preemption is not queued again by SLURM itself.
  """
  import submitit

  job = submitit.JobEnvironment()
  if job.cluster != 'slurm':
    return False
  command = ['squeue', '--noheader', '--format=%T', f'--jobs={job.job_id}']
  with contextlib.suppress(OSError, subprocess.TimeoutExpired):
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    return done.stdout.strip() == 'RUNNING'
  return False


def processes(worker: Worker, n: int, show: Callable[[], None]) -> int:
  """Runs n workers as processes side by side until all end; one that dies is started again.

  Each has a device, or a part of the cores, of its own; what it prints goes to workers/<i>.log of
  the folder.  `show` is called twice a second.  The status is that of the command: of a worker that
  saw all recorded, and `stopping.UNFINISHED` where this process was asked to end.
  """
  logs = Path(worker.folder) / LOGS
  logs.mkdir(parents=True, exist_ok=True)
  places, tail = _places(n), records.Tail(worker.folder)
  running = {i: _start(worker, places[i], logs / f'{i}.log') for i in range(n)}
  deaths, known, statuses = dict.fromkeys(range(n), 0), 0, list[int]()
  with _ended(running):
    while running and not stopping.asked():
      time.sleep(0.5)
      show()
      if (now := len(tail.read())) > known:
        known, deaths = now, dict.fromkeys(range(n), 0)
      for i, process in list(running.items()):
        if process.poll() is None:
          continue
        del running[i]
        deaths[i] += 1
        if process.returncode < 0 and deaths[i] < DEATHS:
          running[i] = _start(worker, places[i], logs / f'{i}.log')
        else:
          statuses.append(process.returncode)
  return stopping.UNFINISHED if running else _status(statuses)


def _status(statuses: Sequence[int]) -> int:
  """Of all workers: of one that saw all recorded; else to go on, a mistake, killed, whatever else.

  >>> _status([-9, 0]), _status([0, 1]), _status([2, 75]), _status([-9, -9])
  (0, 1, 75, 137)
  """
  if whole := [s for s in statuses if s in (0, 1)]:
    return max(whole)
  killed = [s for s in statuses if s < 0]
  found = next(s for s in (stopping.UNFINISHED, 2, *killed, *statuses) if s in statuses)
  return 128 - found if found < 0 else found


def last_line(folder: Path) -> str:
  """What a worker of `processes` said last, of all."""
  newest = max((folder / LOGS).glob('*.log'), key=lambda f: f.stat().st_mtime)
  lines = newest.read_text(errors='replace').strip().splitlines() or ['nothing']
  return lines[-1].removeprefix('fewshot: ')[:300]


@contextlib.contextmanager
def _ended(running: dict[int, Any]) -> Iterator[None]:
  """No worker outlives what started it; each has the time to save itself."""
  try:
    yield
  finally:
    for process in running.values():  # Once: a second signal would end it while it saves.
      process.terminate()
    end = time.monotonic() + GRACE
    for process in running.values():
      try:
        process.wait(max(end - time.monotonic(), 0))
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


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
    shared = {'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{0.75 / -(-n // len(gpus)):.2f}'}
    more = shared if n > len(gpus) else {}  # JAX would take three quarters for each of them.
    return [{'env': more | {'CUDA_VISIBLE_DEVICES': gpus[i % len(gpus)]}} for i in range(n)]
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
  gpus = [line for line in listed.splitlines() if line.startswith('GPU')]  # Not their parts.
  return [str(i) for i in range(len(gpus))]


def check(launcher: str, wanted: Mapping[str, Any]) -> None:
  """Refuses what a launcher cannot do, before anything is written.

  Raises `FewshotError` where it takes no such option, submitit is missing, or there is no SLURM.

  >>> check('processes', {'gres': 'gpu:1'})
  Traceback (most recent call last):
  fewshot.errors.FewshotError: --gres is of --launcher slurm; leave it out with --launcher processes
  """
  for option in wanted:
    if option not in OPTIONS[launcher]:
      known = ' and '.join(name for name in OPTIONS if option in OPTIONS[name])
      raise FewshotError(
        f'--{option} is of --launcher {known}; leave it out with --launcher {launcher}'
      )
  if launcher in ('slurm', 'local'):
    try:
      import submitit  # noqa: F401
    except ImportError:
      raise FewshotError(
        f"--launcher {launcher} needs submitit; install it: pip install -e '.[slurm]' in the "
        "project's folder"
      ) from None
  if launcher == 'slurm' and not (shutil.which('sbatch') and shutil.which('srun')):
    raise FewshotError('--launcher slurm: there is no sbatch; run on a machine of the cluster')


def submitted(worker: Worker, n: int, launcher: str, wanted: Mapping[str, Any]) -> list[str]:
  """Submits an array of n workers by submitit; the ids of the jobs.

  Args:
    launcher: slurm, or local.
    wanted: what each worker gets, by the names of `OPTIONS`.

  Raises:
    FewshotError: SLURM refuses the jobs.
  """
  import submitit

  folder = Path(worker.folder) / launcher
  limits = {f'{launcher}_max_num_timeout': REQUEUES}
  given = {OPTIONS[launcher][k]: v for k, v in wanted.items()}
  try:
    executor = submitit.AutoExecutor(folder=folder, cluster=launcher, **limits)
    executor.update_parameters(**{'name': 'fewshot', 'timeout_min': MINUTES[launcher]} | given)
    with contextlib.redirect_stderr(io.StringIO()):  # What sbatch says is in the exception too.
      jobs = executor.map_array(worker, range(n))
  except Exception as e:  # What sbatch answered.
    said = ' '.join(str(e).split())
    raise FewshotError(f'the workers were not submitted: {said[:300]}') from None
  return [job.job_id for job in jobs]
