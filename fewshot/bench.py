"""`fewshot bench NAME`: a file of benchmarks/, ours and the peer's turn about, medians, ratio."""

import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from fewshot.errors import FewshotError, brief, nearest


class Case(NamedTuple):
  """Two commands that do the same work; each prints a JSON object as its last line."""

  name: str
  ours: list[str]  # Arguments for this Python.
  peer: list[str]  # A script, by its whole path or of the folder FEWSHOT_PEERS; its arguments.
  key: str  # The figure in the JSON of both.
  unit: str
  limit: float | None = None  # What the hardware allows, in the same unit.


def run(name: str, repeats: int) -> dict[str, Any]:
  """Measures every case of benchmarks/<name>.py, interleaved A B A B.

  The peer's side needs FEWSHOT_PEERS_PYTHON (a Python that has its packages), and FEWSHOT_PEERS (a
  folder of scripts) where the script is not one of benchmarks/peers; else its column is null.
  """
  if repeats < 1:
    raise FewshotError(f'--repeats is at least 1, not {repeats}')
  rows, printed = [], {}
  for case in _module(name).cases():
    commands = (*case.ours, *case.peer)
    if commands not in printed:  # Cases may read several figures off the same commands.
      printed[commands] = _measure(case, repeats)
    rows.append(_row(case, *printed[commands]))
  machine = f'{platform.machine()}, {os.cpu_count()} cores, {platform.system()}'
  return {'machine': machine, 'rows': rows}


def show(result: dict[str, Any]) -> None:
  """Prints the result for people; a ratio below 1 means that ours takes less."""
  from fewshot.console import note, stdout

  stdout.print(result['machine'])
  for r in result['rows']:
    peer = f'{r["peer"]:.4g}' if r['peer'] is not None else 'not measured'
    ratio = f'{r["ratio"]:.2f}' if r['ratio'] is not None else '-'
    limit = f'{r["limit"]:.4g}' if r['limit'] is not None else '-'
    stdout.print(
      f'{r["name"]}: ours {r["ours"]:.4g} {r["unit"]}, peer {peer}, ratio {ratio}, limit {limit}, '
      f'medians of {r["n"]}'
    )
  if any(r['peer'] is None for r in result['rows']):
    note('the peer is not measured: set FEWSHOT_PEERS and FEWSHOT_PEERS_PYTHON')


def _measure(case: Case, repeats: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
  """What ours and the peer print, turn about."""
  script, *args = case.peer
  python = os.environ.get('FEWSHOT_PEERS_PYTHON')
  peers = '/' if Path(script).is_absolute() else os.environ.get('FEWSHOT_PEERS')
  ours, theirs = [], []
  for _ in range(repeats):
    ours.append(_json_of([sys.executable, *case.ours]))
    if peers and python:
      theirs.append(_json_of([python, str(Path(peers) / script), *args]))
  return ours, theirs


def median_ms(work: Callable[[], Any], warmup: int, repeats: int) -> float:
  """The median time of single calls in milliseconds; the work waits for its own results."""
  times = []
  for _ in range(warmup + repeats):
    start = time.perf_counter()
    work()
    times.append(1e3 * (time.perf_counter() - start))
  return statistics.median(times[warmup:])


def matmul_flops_per_s(n: int = 1024) -> float:
  """The best rate of a float32 [n, n] product on this device, of 50."""
  import jax

  a = jax.random.normal(jax.random.key(1), (n, n))
  product = jax.jit(lambda x: x @ x)
  best = min(median_ms(lambda: product(a).block_until_ready(), 1, 1) for _ in range(50))
  return 2e3 * n**3 / best


def _row(case: Case, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
  a = statistics.median(_figure(case, case.ours[0], f) for f in ours)
  b = statistics.median(_figure(case, case.peer[0], f) for f in theirs) if theirs else None
  return {
    'name': case.name,
    'ours': a,
    'peer': b,
    'ratio': a / b if b else None,
    'limit': ours[-1].get('limit', case.limit),
    'unit': case.unit,
    'n': len(ours),
  }


def _figure(case: Case, script: str, figures: dict[str, Any]) -> float:
  value = figures.get(case.key)
  if not isinstance(value, (int, float)) or isinstance(value, bool):
    printed = brief(sorted(figures)) or 'nothing'
    raise FewshotError(f'{Path(script).name} printed no number {case.key!r}; it printed {printed}')
  return float(value)


def _json_of(command: list[str]) -> dict[str, Any]:
  try:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
  except OSError as e:
    raise FewshotError(f'cannot run {Path(command[0]).name}: {e.strerror}') from None
  lines = done.stdout.strip().splitlines()
  try:
    figures = json.loads(lines[-1]) if done.returncode == 0 else None
  except (IndexError, ValueError):
    figures = None
  if not isinstance(figures, dict):
    last = (done.stderr.strip().splitlines() or ['no output'])[-1]
    raise FewshotError(f'{Path(command[1]).name} printed no JSON line last: {last[:200]}')
  return figures


def _module(name: str) -> ModuleType:
  folder = Path(__file__).resolve().parent.parent / 'benchmarks'
  known = sorted(p.stem for p in folder.glob('*.py'))
  if name not in known:
    raise FewshotError(f'there is no benchmark {name!r}; {nearest(name, known)}')
  spec = importlib.util.spec_from_file_location(f'fewshot_bench_{name}', folder / f'{name}.py')
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
