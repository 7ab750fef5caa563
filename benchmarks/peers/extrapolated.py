"""45 runs of HF PEFT, of which three are run: LoRA, BitFit and all weights, a process each.

python extrapolated.py DATA        with the peer's Python, FEWSHOT_PEERS set
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

TIMES = 15  # Five splits x three rates of each method.


def main() -> None:
  """Runs them, and prints one JSON line: 15 times their seconds, with start-up and without."""
  script = str(Path(os.environ['FEWSHOT_PEERS']) / 'peft_fewshot.py')
  start, total, accuracy = time.perf_counter(), 0.0, {}
  for method in ('lora', 'bitfit', 'full'):
    command = [sys.executable, script, '--data', sys.argv[1], '--task', 'SST-2']
    command += ['--method', method, '--seeds', '13', *sys.argv[2:]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    total += figures['total_s']
    accuracy[method] = figures['accuracy']
  wall = time.perf_counter() - start
  found = {'wall_s': TIMES * wall, 'total_s': TIMES * total, 'runs': 3, 'accuracy': accuracy}
  print(json.dumps(found))


if __name__ == '__main__':
  main()
