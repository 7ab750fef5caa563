"""`fewshot bench NAME`: a file of benchmarks/, ours and the peer's turn about, medians, ratio."""

import contextlib
import datetime
import importlib.util
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from fewshot.errors import FewshotError, brief, nearest

FOLDER = Path(__file__).resolve().parent.parent / 'benchmarks'
PACKAGES = ('fewshot', 'jax', 'jaxlib', 'flax', 'optax', 'numpy')
PEERS_PACKAGES = ('torch', 'transformers', 'peft', 'easyfsl', 'learn2learn')
VERSIONS = """
import importlib.metadata, json, sys
found = {d.name: d.version for d in importlib.metadata.distributions()}
print(json.dumps({n: found[n] for n in sys.argv[1:] if n in found}))
"""


class Case(NamedTuple):
  """Two commands that do the same work; each prints a JSON object as its last line."""

  name: str
  ours: list[str]  # Arguments for this Python.
  peer: list[str]  # Of FOLDER: ourselves otherwise. Else of another Python, see `run`; [] for none.
  key: str  # The figure in the JSON of both.
  unit: str
  limit: float | None = None  # What the hardware allows, in the same unit.
  bars: tuple[float | None, float | None] = (None, None)  # Ratios to reach on a CPU, on a GPU.
  once: bool = False  # The figure is counted, not timed: to repeat it says nothing.


class Printed(NamedTuple):
  """What the two commands of a case printed, and what stopped them, if anything did."""

  ours: list[dict[str, Any]]
  peer: list[dict[str, Any]]
  error: str | None


def run(name: str, repeats: int, pattern: str = '') -> dict[str, Any]:
  """Measures the cases of benchmarks/<name>.py whose names match, interleaved A B A B.

  The peer's side needs FEWSHOT_PEERS_PYTHON (a Python that has its packages), and FEWSHOT_PEERS (a
  folder of scripts) where the script is not one of benchmarks/peers; else its column is null.  A
  command that fails ends its case: the row says why and keeps what was measured until then.

  Raises:
    FewshotError: there is no such benchmark or no such case, or `repeats` is below 1.
  """
  if repeats < 1:
    raise FewshotError(f'--repeats is at least 1, not {repeats}')
  cases = _matching(_module(name).cases(), pattern)
  rows, printed, gpu = [], {}, _gpu()
  for case in cases:
    commands = (*case.ours, *case.peer)
    if commands not in printed:  # Cases may read several figures off the same commands.
      printed[commands] = _measure(case, 1 if case.once else repeats)
    rows.append(_row(case, printed[commands], gpu is not None))
  if any(case.peer and not _peer(case) for case in cases):
    from fewshot.console import note

    note('the peer is not measured: set FEWSHOT_PEERS and FEWSHOT_PEERS_PYTHON')
  date = datetime.date.today().isoformat()
  return {'date': date, 'machine': machine(gpu), 'versions': _versions(), 'rows': rows}


def show(result: dict[str, Any]) -> None:
  """Prints the result for people; a ratio below 1 means that ours takes less."""
  from fewshot.console import stdout

  stdout.print(f'{result["machine"]}, {result["date"]}')
  for r in result['rows']:
    peer = f'{r["peer"]:.4g}' if r['peer'] is not None else 'not measured'
    ratio = f'{r["ratio"]:.2f}' if r['ratio'] is not None else '-'
    ratio += f' (bar {r["bar"]:g})' if r['bar'] is not None else ''
    limit = f'{r["limit"]:.4g}' if r['limit'] is not None else '-'
    ours = f'{r["ours"]:.4g} {r["unit"]}' if r['ours'] is not None else 'not measured'
    stdout.print(
      f'{r["name"]}: ours {ours}, peer {peer}, ratio {ratio}, limit {limit}, medians of {r["n"]}'
    )
    if r['error']:
      stdout.print(f'  failed: {r["error"]}')


def machine(gpu: str | None = None) -> str:
  """The architecture, the number of cores and their model, the system, and maybe a GPU."""
  model = platform.processor()
  with contextlib.suppress(OSError):
    info = Path('/proc/cpuinfo').read_text()
    model = (re.findall(r'model name\s*:\s*(.+)', info) or [model])[0]
  cores = f'{os.cpu_count()} cores' + (f' ({model})' if model else '')
  return ', '.join([platform.machine(), cores, platform.system(), *([gpu] if gpu else [])])


def median_ms(work: Callable[[], Any], warmup: int, repeats: int) -> float:
  """The median time of single calls in milliseconds; the work waits for its own results."""
  return statistics.median(_times_ms(work, warmup, repeats))


def matmul_flops_per_s(n: int = 0, dtype: Any = 'float32') -> float:
  """The best rate of an [n, n] product on this device, of 50; n is 1024 on a CPU, else 8192."""
  import jax

  n = n or (1024 if jax.default_backend() == 'cpu' else 8192)
  a = jax.random.normal(jax.random.key(1), (n, n), dtype)
  product = jax.jit(lambda x: x @ x)
  return 2e3 * n**3 / min(_times_ms(lambda: product(a).block_until_ready(), 1, 50))


def copy_bytes_per_s(megabytes: int = 256) -> float:
  """The best rate of reading and writing one large array on this device, of 20; both count."""
  import jax

  a = jax.numpy.zeros(megabytes << 18)
  # In place: a fresh result would be mapped page by page, which is not what is measured.
  add = jax.jit(lambda x: x + 1, donate_argnums=0)

  def work() -> None:
    nonlocal a
    a = add(a).block_until_ready()

  return 2e3 * (megabytes << 20) / min(_times_ms(work, 1, 20))


def _times_ms(work: Callable[[], Any], warmup: int, repeats: int) -> list[float]:
  times = []
  for _ in range(warmup + repeats):
    start = time.perf_counter()
    work()
    times.append(1e3 * (time.perf_counter() - start))
  return times[warmup:]


def _measure(case: Case, repeats: int) -> Printed:
  """What ours and the peer print, turn about, until one fails."""
  from fewshot.console import note

  peer = _peer(case)
  sides = {'ours': [sys.executable, *case.ours]} | ({'peer': peer} if peer else {})
  found: dict[str, list[dict[str, Any]]] = {'ours': [], 'peer': []}
  for i in range(repeats):
    for side, command in sides.items():
      start = time.perf_counter()
      try:
        found[side].append(_json_of(command))
      except FewshotError as e:
        note(f'{case.name}: {side} failed: {e}')
        return Printed(**found, error=f'{side}: {e}')
      note(f'{case.name}: {side} {i + 1} of {repeats}, {time.perf_counter() - start:.1f} s')
  return Printed(**found, error=None)


def _peer(case: Case) -> list[str]:
  """The peer's command; none where there is no peer, or where it is not known."""
  if not case.peer:
    return []
  script, *args = case.peer
  if Path(script).parent == FOLDER:
    return [sys.executable, *case.peer]
  python, folder = os.environ.get('FEWSHOT_PEERS_PYTHON'), os.environ.get('FEWSHOT_PEERS')
  if not python or not (folder or Path(script).is_absolute()):
    return []
  return [python, str(Path(folder or '') / script), *args]


def _row(case: Case, printed: Printed, gpu: bool) -> dict[str, Any]:
  a = b = None
  error = printed.error
  try:
    a = _median(case, case.ours, printed.ours)
    b = _median(case, case.peer, printed.peer)
  except FewshotError as e:
    error = error or str(e)
  last = printed.ours[-1] if printed.ours else {}
  return {
    'name': case.name,
    'ours': a,
    'peer': b,
    'ratio': a / b if a is not None and b else None,
    'bar': case.bars[gpu],
    'limit': last.get('limit', case.limit),
    'unit': case.unit,
    'n': len(printed.ours),
    'error': error,
    'printed': last,
    'peer_printed': printed.peer[-1] if printed.peer else {},
  }


def _median(case: Case, command: list[str], printed: list[dict[str, Any]]) -> float | None:
  values = [figures.get(case.key) for figures in printed]
  for value, figures in zip(values, printed, strict=True):
    if not isinstance(value, (int, float)) or isinstance(value, bool):
      others = brief(sorted(figures)) or 'nothing'
      script = Path(command[0]).name
      raise FewshotError(f'{script} printed no number {case.key!r}; it printed {others}')
  return float(statistics.median(values)) if values else None  # type: ignore[arg-type, type-var]


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


def _versions() -> dict[str, str]:
  """Of Python and the packages that figures depend on; the peer's where its Python is known."""
  found = {
    'python': platform.python_version(),
    **_json_of([sys.executable, '-c', VERSIONS, *PACKAGES]),
  }
  if python := os.environ.get('FEWSHOT_PEERS_PYTHON'):
    with contextlib.suppress(FewshotError):  # The rows say that it does not run.
      found = _json_of([python, '-c', VERSIONS, *PEERS_PACKAGES]) | found
  return found


def _gpu() -> str | None:
  """The GPUs that the cases will run on, by the driver's tool: JAX would reserve their memory."""
  if os.environ.get('JAX_PLATFORMS') == 'cpu' or not shutil.which('nvidia-smi'):
    return None
  query = ['nvidia-smi', '--query-gpu=name', '--format=csv,noheader']
  done = subprocess.run(query, capture_output=True, text=True, check=False)
  names = done.stdout.split('\n')[:-1] if done.returncode == 0 else []
  return f'{len(names)} x {names[0]}' if names else None


def _matching(cases: list[Case], pattern: str) -> list[Case]:
  try:
    found = [c for c in cases if re.search(pattern, c.name)]
  except re.error as e:
    raise FewshotError(f'--case {pattern!r} is no regular expression: {e}') from None
  if not found:
    raise FewshotError(f'no case matches {pattern!r}; there are {brief([c.name for c in cases])}')
  return found


def _module(name: str) -> ModuleType:
  """A file of benchmarks/ that has cases."""
  known = sorted(p.stem for p in FOLDER.glob('*.py') if 'def cases(' in p.read_text())
  if name not in known:
    raise FewshotError(f'there is no benchmark {name!r}; {nearest(name, known)}')
  spec = importlib.util.spec_from_file_location(f'fewshot_bench_{name}', FOLDER / f'{name}.py')
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
