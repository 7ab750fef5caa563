"""15 runs of HF PEFT (five splits x the given rates), a process each, one after another.

python fifteen.py DATA RATE,RATE,...        with the peer's Python, FEWSHOT_PEERS set
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

SEEDS = (13, 21, 42, 87, 100)


def main() -> None:
  """Runs them, and prints one JSON line: seconds with and without start-up and loading."""
  data, rates = sys.argv[1], sys.argv[2].split(',')
  script = str(Path(os.environ['FEWSHOT_PEERS']) / 'peft_fewshot.py')
  more = sys.argv[3:]
  start, total, accuracy = time.perf_counter(), 0.0, []
  for rate in rates:
    for seed in SEEDS:
      command = [sys.executable, script, '--data', data, '--task', 'SST-2', '--method', 'lora']
      command += ['--lr', rate, '--seeds', str(seed), *more]
      done = subprocess.run(command, capture_output=True, text=True, check=True)
      figures = json.loads(done.stdout.strip().splitlines()[-1])
      total += figures['total_s']
      accuracy.append(figures['accuracy'][0])
  wall = time.perf_counter() - start
  print(json.dumps({'wall_s': wall, 'total_s': total, 'accuracy': accuracy}))


if __name__ == '__main__':
  main()
