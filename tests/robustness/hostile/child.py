"""Reads hostile files in one process: python -m tests.robustness.hostile.child FOLDER [CASE ...].

So its own clock and its own peak of memory can be measured; one JSON line a case.
"""

import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from tests.robustness.hostile import data, folders, kept, weights
from tests.robustness.hostile.case import GIB, Cases

KINDS = {
  'torch': weights.torch, 'safetensors': weights.headers, 'gguf': weights.gguf,
  'json': folders.json, 'tokenizer': folders.tokenizers,
  'images': data.images, 'lists': data.lists, 'npy': data.npy, 'texts': data.texts,
  'checkpoint': kept.checkpoints, 'adapter': kept.adapters, 'records': kept.records,
  'choice': kept.choices,
}  # fmt: skip
CASES: Cases = {f'{k}: {name}': case for k, made in KINDS.items() for name, case in made().items()}


def tried(name: str, folder: Path) -> dict[str, Any]:
  """What came of a case: the seconds, the growth of memory at its peak, the error and its text."""
  folder.mkdir()
  CASES[name].make(folder)
  before, start, cpu = _memory(anew=True), time.perf_counter(), time.process_time()
  error = text = ''
  try:
    CASES[name].read(folder)
  except Exception as e:
    error, text = type(e).__name__, str(e)
  took = {'seconds': time.perf_counter() - start, 'cpu': time.process_time() - cpu}
  return {'name': name, **took, 'bytes': _memory() - before, 'error': error, 'text': text}


def _memory(anew: bool = False) -> int:
  """The peak of resident memory, forgotten first where asked and the system can."""
  if anew and os.path.exists('/proc/self/clear_refs'):
    Path('/proc/self/clear_refs').write_text('5')
  status = Path('/proc/self/status')
  if status.exists():
    line = next(x for x in status.read_text().splitlines() if x.startswith('VmHWM'))
    return int(line.split()[1]) * 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(folder: Path, names: list[str]) -> None:
  """Tries them; what a bomb may take beyond what the process has is bounded."""
  import gguf.quants  # noqa: F401 (what is imported here is not timed)

  from fewshot import data, exchange, tasks  # noqa: F401
  from fewshot.data.reading import pillow

  pillow()
  kept.base()
  if os.path.exists('/proc/self/statm'):
    pages = int(Path('/proc/self/statm').read_text().split()[5])
    limit = pages * resource.getpagesize() + 4 * GIB
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
  for i, name in enumerate(names or CASES):
    print(json.dumps(tried(name, folder / str(i))), flush=True)
    shutil.rmtree(folder / str(i))


if __name__ == '__main__':
  main(Path(sys.argv[1]), sys.argv[2:])
