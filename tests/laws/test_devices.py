"""Every method under pmap: eight devices give what one does.  Part of `make test-all`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).parent / 'cases'
SCRIPT = """
import sys, importlib
import jax, numpy as np
from fewshot import methods
from tests.laws import laws

file, rows = sys.argv[1], []
jax.config.update('jax_disable_most_optimizations', True)
for case in importlib.import_module(f'tests.laws.cases.{file}').CASES:
  on = laws.fixture(f'{case.on[0]}-tiny')
  method = methods.parse(case.spelling)

  def run(key):
    theta, state = method.init(key, on.model.forward, on.model.params, on.calib)
    theta = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape, x.dtype), theta)
    adapted = methods.adapt(method, on.model.forward, theta, state)
    return adapted(on.model.params, on.batch)['logits']

  keys = jax.random.split(jax.random.key(1), 8)
  out = jax.pmap(run)(keys)
  assert len(out.sharding.device_set) == jax.device_count() == 8
  one = jax.jit(run)
  want = np.stack([one(k) for k in keys])
  gap = np.abs(np.asarray(out) - want).max() / max(1, np.abs(want).max())
  assert gap < 1e-4, (case.spelling, gap)
  rows.append(case.spelling)
print(len(rows))
"""


@pytest.mark.product
@pytest.mark.parametrize('file', sorted(p.stem for p in CASES.glob('*.py')))
def test_seeds_go_over_eight_devices(file):
  flags = '--xla_force_host_platform_device_count=8'
  env = os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.getcwd()}
  command = [sys.executable, '-c', SCRIPT, file]
  done = subprocess.run(command, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  assert int(done.stdout.split()[-1]) > 0
