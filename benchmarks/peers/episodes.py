"""easyfsl's ProtoNet or learn2learn's MAML, by their scripts in FEWSHOT_PEERS, as one flat JSON.

python episodes.py protonet|maml DATA        with the peer's Python
"""

import json
import os
import subprocess
import sys
from pathlib import Path


def main() -> None:
  """Runs one script, and prints one JSON line."""
  learner, data = sys.argv[1:3]
  folder = Path(os.environ['FEWSHOT_PEERS'])
  if learner == 'protonet':
    figures = run(folder / 'protonet_easyfsl.py', data, '--repeats', '9', '--eval-bench', '50')
    rate = figures['eval_5way_1shot_15query']['episodes_per_s']
    train = figures['train_60way_1shot_5query']['ms_median']
    print(json.dumps({'train_ms': train, 'test_s': 1000 / rate}))
  else:
    few = ('--meta-batch', '16', '--inner-steps', '1', '--repeats', '5')
    figures = run(folder / 'maml_l2l.py', data, *few)
    print(json.dumps({'train_ms': figures['metabatch16_steps1']['ms_median']}))


def run(script: Path, data: str, *more: str) -> dict:
  """What a script prints last."""
  command = [sys.executable, str(script), '--data', data, *more]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == '__main__':
  main()
