"""Workers as an array of a real SLURM, which the tests start on this machine and stop again."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fewshot import cli, records
from tests.robustness import held

PATH = os.pathsep.join([os.environ.get('PATH', ''), '/usr/sbin', '/sbin'])
DAEMONS = ('munged', 'slurmctld', 'slurmd')
# Jobs of the partition `high` take the place of those of `low`, which have 30 s to end.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
MailProg=/bin/true
SchedulerParameters=sched_interval=2,sched_min_interval=0,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES State=UP PriorityTier=1 GraceTime=30
PartitionName=high Nodes={host} State=UP PriorityTier=2 PreemptMode=OFF
"""


@pytest.fixture(scope='module')
def slurm() -> Iterator[Path]:
  """SLURM on the loopback device; all that it has is in one folder, which goes with it."""
  if missing := [d for d in DAEMONS if not shutil.which(d, path=PATH)]:
    pytest.skip(f'there is no {missing[0]} (Debian has it in slurm-wlm and munge)')
  if os.geteuid():
    pytest.skip('slurmd needs root')
  folder = Path(tempfile.mkdtemp(prefix='slurm-'))
  with pytest.MonkeyPatch.context() as env, contextlib.ExitStack() as stack:
    stack.callback(shutil.rmtree, folder)
    env.setenv('SLURM_CONF', str(folder / 'slurm.conf'))
    _configure(folder)
    munge = ['--foreground', *(f'--{k}={folder}/munge.{v}' for k, v in MUNGE.items())]
    stack.enter_context(_daemon(folder, 'munged', munge))
    held.until((folder / 'munge.socket').exists, 'munged listens', 20)
    for name in DAEMONS[1:]:
      stack.enter_context(_daemon(folder, name, ['-D']))
    try:
      held.until(lambda: 'idle' in _run('sinfo', '-h', '-o', '%T'), 'the node is idle', 30)
    except AssertionError:
      said = (folder / 'slurmctld.log').read_text().strip().splitlines() or ['nothing']
      pytest.skip(f'slurmctld does not run here: {said[-1]}')
    stack.callback(_end_jobs)
    yield folder


MUNGE = {'socket': 'socket', 'key-file': 'key', 'pid-file': 'pid', 'log-file': 'log'}
MUNGE |= {'seed-file': 'seed'}


def _configure(folder: Path) -> None:
  folder.chmod(0o755)  # munged wants to be reached.
  (folder / 'munge.key').write_bytes(os.urandom(128))
  (folder / 'munge.key').chmod(0o600)
  for name in ('state', 'spool'):
    (folder / name).mkdir()
  with socket.socket() as one, socket.socket() as two:
    one.bind(('127.0.0.1', 0))
    two.bind(('127.0.0.1', 0))
    ports = one.getsockname()[1], two.getsockname()[1]
  host = socket.gethostname().split('.')[0]
  (folder / 'slurm.conf').write_text(CONFIG.format(host=host, folder=folder, ports=ports))


@contextlib.contextmanager
def _daemon(folder: Path, name: str, args: list[str]) -> Iterator[None]:
  with (folder / f'{name}.out').open('wb') as out:
    command = [str(shutil.which(name, path=PATH)), *args]
    process = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder)
  try:
    yield
  finally:
    process.terminate()
    process.wait(30)


def _end_jobs() -> None:
  """No job outlives SLURM."""
  _run('scancel', '--quiet', '--partition=low')
  _run('scancel', '--quiet', '--partition=high')
  held.until(lambda: not _run('squeue', '-h'), 'no job is left', 60)


def _run(*command: str) -> str:
  done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
  return done.stdout.strip()


def _queue() -> dict[str, str]:
  """The states of the jobs that are not over, by their ids."""
  rows = _run('squeue', '-h', '-r', '-o', '%i %T %r').splitlines()
  return {row.split()[0]: row.partition(' ')[2] for row in rows}


@pytest.fixture
def place(tmp_path, monkeypatch):
  return held.enter(tmp_path, monkeypatch)


def _submitted(capsys, *more: str) -> list[str]:
  command = ['sweep', 'config.py', '--launcher', 'slurm', '--workers', '2', '--time', '5', *more]
  assert cli.main([*command, '--json']) == 0
  return json.loads(capsys.readouterr().out.splitlines()[-1])['jobs']


def test_preempted_workers_go_on_and_the_records_are_those_of_one_run(slurm, place, capsys):
  began = time.monotonic()
  first, second = _submitted(capsys)
  assert cli.main(['status', 'runs/tiny', '--json']) == 0  # Before any worker has begun.
  assert json.loads(capsys.readouterr().out.splitlines()[-1])['done'] == 0
  both = held.until(lambda: len(p := held.waiting(place)) == 2 and p, 'both workers train')
  seen = [f'{time.monotonic() - began:.0f} s {_queue()}']
  _run('scancel', '--signal=USR2', first)  # As SLURM does before the time is over.
  held.until(lambda: sum(map(held.gone, both)) == 1, 'the first has saved itself')
  seen.append(f'{time.monotonic() - began:.0f} s {_queue()}')
  _run('sbatch', '--partition=high', '--cpus-per-task=2', '--output=/dev/null', '--wrap=sleep 1')
  held.until(lambda: all(map(held.gone, both)), 'the second was preempted and has saved itself')
  seen.append(f'{time.monotonic() - began:.0f} s {_queue()}')
  held.release(place)
  held.until(lambda: not _queue(), 'all jobs are over')
  for id in (first, second):
    about = _run('scontrol', 'show', 'job', id)
    assert 'JobState=COMPLETED' in about and 'Restarts=1' in about, about
  _complete(place, capsys, both)
  for line in seen:
    print(line)


def _complete(place: Path, capsys, killed: list[int]) -> None:
  """All records are there once, and are those of a run that nothing disturbed."""
  assert cli.main(['status', 'runs/tiny', '--json']) == 0
  about = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert (about['runs'], about['done'], about['running'], about['failed']) == (4, 4, 0, 0)
  assert {job['state'] for job in about['jobs']} == {'done'}
  later = [taken for pid, taken in held.steps(place).items() if pid not in killed]
  assert later and all(taken[0] > held.STEP for taken in later)  # From the saved step on.
  assert cli.main(['run', 'config.py', '--out', 'runs/whole']) == 0
  found = [records.read(place / 'runs' / name) for name in ('tiny', 'whole')]
  tiny, whole = (sorted(map(records.without_timings, r), key=lambda r: r['id']) for r in found)
  assert tiny == whole


def test_sbatch_s_refusal_is_one_line(slurm, place, capsys):
  command = ['sweep', 'config.py', '--launcher', 'slurm', '--partition', 'nowhere']
  assert cli.main(command) == 2
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert 'the workers were not submitted' in line and 'invalid partition' in line.lower()
