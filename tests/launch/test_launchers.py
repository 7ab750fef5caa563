"""Workers as processes of this machine, started by us or by submitit, and who gets which device."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fewshot import cli, records, stopping
from fewshot.errors import FewshotError
from fewshot.launch import launchers
from tests.robustness import held

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass
class Script(launchers.Worker):
  """A worker that runs a few lines of Python in the folder, and takes no JAX."""

  source: str = ''

  @property
  def command(self) -> list[str]:
    return [sys.executable, '-c', f'import os\nos.chdir({self.folder!r})\n{self.source}']


def run(folder: Path, source: str, n: int = 1) -> tuple[int, list[str]]:
  """The status of n such workers, and what they printed."""
  worker = Script('', (), str(folder), source)
  status = launchers.processes(worker, n, lambda: None)
  return status, [(folder / launchers.LOGS / f'{i}.log').read_text() for i in range(n)]


COUNT = """
import pathlib, signal, sys
file = pathlib.Path('starts')
starts = int(file.read_text()) + 1 if file.exists() else 1
file.write_text(str(starts))
"""


def test_a_killed_worker_is_started_again(tmp_path):
  status, _ = run(tmp_path, COUNT + 'if starts < 3: os.kill(os.getpid(), signal.SIGKILL)')
  assert status == 0 and (tmp_path / 'starts').read_text() == '3'


def test_a_worker_that_dies_three_times_in_a_row_is_given_up(tmp_path):
  status, _ = run(tmp_path, COUNT + 'os.kill(os.getpid(), signal.SIGKILL)')
  assert status == 128 + signal.SIGKILL and (tmp_path / 'starts').read_text() == '3'


def test_a_mistake_is_not_tried_again(tmp_path):
  status, logs = run(tmp_path, COUNT + "print('what it says', flush=True)\nsys.exit(2)")
  assert status == 2 and (tmp_path / 'starts').read_text() == '1'
  assert logs == ['what it says\n']


def test_each_worker_has_a_part_of_the_cores(tmp_path, monkeypatch):
  cores = sorted(os.sched_getaffinity(0))
  if len(cores) < 2:
    pytest.skip('there is one core')
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  _, logs = run(tmp_path, 'print(sorted(os.sched_getaffinity(0)))', 2)
  parts = [json.loads(log) for log in logs]
  assert sorted(parts[0] + parts[1]) == cores and abs(len(parts[0]) - len(parts[1])) <= 1
  more = launchers._places(len(cores) + 1)
  assert all(place['cores'] for place in more)  # More workers than cores.


def test_each_worker_has_a_gpu_of_its_own_where_there_are_enough(monkeypatch):
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0,1')
  own = [{'env': {'CUDA_VISIBLE_DEVICES': '0'}}, {'env': {'CUDA_VISIBLE_DEVICES': '1'}}]
  assert launchers.gpu_names() == ['0', '1'] and launchers._places(2) == own
  three = [place['env'] for place in launchers._places(3)]
  assert [env['CUDA_VISIBLE_DEVICES'] for env in three] == ['0', '1', '0']
  assert {env['XLA_PYTHON_CLIENT_MEM_FRACTION'] for env in three} == {'0.38'}  # 0.75 / 2.
  for none in ('', '-1'):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', none)
    assert launchers.gpu_names() == []


def test_gpus_are_counted_by_the_driver_s_tool(tmp_path, monkeypatch):
  tool = tmp_path / 'nvidia-smi'
  tool.write_text("#!/bin/sh\necho 'GPU 0: A'\necho '  MIG 1g.10gb'\necho 'GPU 1: B'\n")
  tool.chmod(0o755)
  monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  assert launchers.gpu_names() == ['0', '1']


WAITS = """
import signal, sys, time
def save(number, frame):
  time.sleep(1.2)
  open(f'saved{os.getpid()}', 'w').close()
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  time.sleep(1.2)
  sys.exit(75)
signal.signal(signal.SIGTERM, save)
open(f'began{os.getpid()}', 'w').close()
time.sleep(60)
"""


def test_a_parent_that_is_asked_to_end_gives_its_workers_the_time_to_save_themselves(tmp_path):
  def ask() -> None:
    held.until(lambda: len(list(tmp_path.glob('began*'))) == 2, 'both have begun', 20)
    os.kill(os.getpid(), signal.SIGTERM)

  asking = threading.Thread(target=ask)
  asking.start()
  with stopping.on_signal():
    status, _ = run(tmp_path, WAITS, 2)
  asking.join()
  assert status == 75 and len(list(tmp_path.glob('saved*'))) == 2
  pids = [int(f.name.removeprefix('began')) for f in tmp_path.glob('began*')]
  assert all(held.gone(pid) for pid in pids)


def test_one_who_saw_all_recorded_decides_the_status():
  of = launchers._status
  assert (of([-9, 0, 75]), of([0, 1]), of([2, 75]), of([-9, 2]), of([-9]), of([70])) == (
    *(0, 1, 75, 2, 137, 70),
  )


@pytest.fixture
def place(tmp_path, monkeypatch):
  return held.enter(tmp_path, monkeypatch)


def same_as_a_single_run(place: Path, capsys: Any, ended: list[int]) -> None:
  """All is recorded once, as by an undisturbed run; who came later went on from what was saved."""
  assert cli.main(['status', 'runs/tiny', '--json']) == 0
  about = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert (about['runs'], about['done'], about['running'], about['failed']) == (4, 4, 0, 0)
  later = [taken for pid, taken in held.steps(place).items() if pid not in ended]
  assert later and all(taken[0] > held.STEP for taken in later)
  assert cli.main(['run', 'config.py', '--out', 'runs/whole']) == 0
  found = [records.read(place / 'runs' / name) for name in ('tiny', 'whole')]
  tiny, whole = (sorted(map(records.without_timings, r), key=lambda r: r['id']) for r in found)
  assert tiny == whole


def test_processes_saved_by_sigterm_go_on_by_resume(place, capsys):
  command = [sys.executable, '-m', 'fewshot', 'sweep', 'config.py', '--launcher', 'processes']
  parent = subprocess.Popen([*command, '--workers', '2'], stderr=subprocess.PIPE, text=True)
  try:
    both = held.until(lambda: len(p := held.waiting(place)) == 2 and p, 'both workers train')
    parent.send_signal(signal.SIGTERM)
    _, err = parent.communicate(timeout=60)
  finally:
    parent.kill()
  assert parent.returncode == 75 and all(held.gone(pid) for pid in both)
  assert (
    err.strip().splitlines()[-1].endswith('fewshot sweep --resume runs/tiny goes on from there')
  )
  held.release(place)
  assert cli.main(['sweep', '--resume', 'runs/tiny']) == 0
  same_as_a_single_run(place, capsys, both)


def test_a_local_worker_of_submitit_is_queued_again(place, capsys):
  command = ['sweep', 'config.py', '--launcher', 'local', '--workers', '2', '--json']
  assert cli.main(command) == 0
  said = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert len(said['jobs']) == 2
  both = held.until(lambda: len(p := held.waiting(place)) == 2 and p, 'both workers train')
  for pid in both:
    os.kill(pid, signal.SIGUSR2)
  held.until(lambda: all(map(held.gone, both)), 'both have saved themselves')
  held.release(place)
  done = lambda: cli.main(['status', 'runs/tiny', '--json']) == 0 and _done(capsys)  # noqa: E731
  held.until(done, 'all is recorded')
  held.until(lambda: all(held.gone(pid) for pid in held.steps(place)), 'the workers have ended')
  same_as_a_single_run(place, capsys, both)


def _done(capsys: Any) -> bool:
  time.sleep(0.5)
  return json.loads(capsys.readouterr().out.splitlines()[-1])['done'] == 4


def test_submitit_that_is_missing_is_one_line(monkeypatch):
  monkeypatch.setitem(sys.modules, 'submitit', None)
  with pytest.raises(
    FewshotError, match=r'--launcher local needs submitit; install it: pip .*slurm'
  ):
    launchers.check('local', {})


def test_a_machine_without_sbatch_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(FewshotError, match='there is no sbatch; run on a machine of the cluster'):
    launchers.check('slurm', {})


@pytest.mark.parametrize('launcher', ['here', 'processes', 'local'])
def test_an_option_that_would_do_nothing_is_refused(launcher):
  with pytest.raises(FewshotError, match=f'--gres is of --launcher slurm; .* {launcher}$'):
    launchers.check(launcher, {'gres': 'gpu:1'})


@pytest.mark.parametrize(('state', 'preempted'), [('RUNNING', True), ('COMPLETING', False)])
def test_a_job_that_is_cancelled_is_not_queued_again(tmp_path, monkeypatch, state, preempted):
  tool = tmp_path / 'squeue'
  tool.write_text(f'#!/bin/sh\ncase "$*" in *--jobs=7_1) echo {state};; esac\n')
  tool.chmod(0o755)
  monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
  job = {'SUBMITIT_EXECUTOR': 'slurm', 'SLURM_JOB_ID': '8'}  # The raw id names no task of an array.
  for k, v in (job | {'SLURM_ARRAY_JOB_ID': '7', 'SLURM_ARRAY_TASK_ID': '1'}).items():
    monkeypatch.setenv(k, v)
  assert launchers._is_preempted() == preempted
  monkeypatch.setenv('SUBMITIT_EXECUTOR', 'local')
  assert not launchers._is_preempted()
