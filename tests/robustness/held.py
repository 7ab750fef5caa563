"""A config whose runs train up to a step and are held there until a signal arrives."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Here, for its import closes all logging handlers, that of absl with what pytest captures by.
import submitit  # noqa: F401

from fewshot import assets
from fewshot.launch import keeping
from tests.robustness import workplace

ROOT = Path(__file__).parents[2]
ROWS = (('linear()', 'sgd(steps=12, lr=0.05)'), ('bitfit()', 'sgd(steps=12, lr=0.01)'))
STEP = 4
# A worker writes the steps that it takes to steps/<pid>; while the file `hold` is there, it waits
# after step 4 until it is asked to end.
HOLD = f"""
import os, time
from pathlib import Path
from fewshot import stopping
from fewshot.launch import keeping


def held(self, step, carry, keep=keeping.Keeper.__call__):
  with Path('steps', str(os.getpid())).open('a') as file:
    file.write(f'{{step}}\\n')
  while step >= {STEP} and Path('hold').exists() and not stopping.asked():
    time.sleep(0.02)
  keep(self, step, carry)


if keeping.Keeper.__call__.__name__ != 'held':
  keeping.Keeper.__call__ = held
"""


def enter(folder: Path, monkeypatch: Any) -> Path:
  """As `workplace.enter`, held; what workers need is in the environment."""
  monkeypatch.setattr(keeping.Keeper, '__call__', keeping.Keeper.__call__)  # It is put back.
  workplace.enter(folder, monkeypatch)
  workplace.config(folder, ROWS)
  with (folder / 'config.py').open('a') as file:
    file.write(HOLD)
  (folder / 'steps').mkdir()
  (folder / 'hold').touch()
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(assets.cache_dir() / 'xla'))
  monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  return folder


def steps(folder: Path) -> dict[int, list[int]]:
  """The steps that each process took, by its id."""
  files = (folder / 'steps').iterdir()
  return {int(f.name): [int(s) for s in f.read_text().split()] for f in files}


def waiting(folder: Path) -> list[int]:
  """The processes that are held."""
  return sorted(pid for pid, taken in steps(folder).items() if taken and taken[-1] >= STEP)


def gone(pid: int) -> bool:
  """Whether a process is no more, or only its parent has not asked for it yet."""
  try:
    return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] == 'Z'
  except OSError:
    return True


def until(true: Callable[[], Any], what: str, seconds: float = 120) -> Any:
  """Waits for something that comes to be so, and gives it."""
  end = time.monotonic() + seconds
  while not (found := true()):
    assert time.monotonic() < end, f'not within {seconds} s: {what}'
    time.sleep(0.05)
  return found


def release(folder: Path) -> None:
  """Nothing is held from now on."""
  os.remove(folder / 'hold')
