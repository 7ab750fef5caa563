"""Devices and hosts: every way to lay runs out gives the results of one device.

Each test is one child process with eight devices of the CPU, or two that talk over loopback.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewshot import parallel
from fewshot.errors import FewshotError

CHILD = Path(__file__).parent / 'parallel_child.py'


def child(*args: str, devices: int = 8, **more: str) -> subprocess.Popen[str]:
  flags = f'--xla_force_host_platform_device_count={devices}'
  env = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu', **more}
  pipe = subprocess.PIPE
  command = [sys.executable, str(CHILD), *args]
  return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True)


def printed(process: subprocess.Popen[str]) -> dict[str, Any]:
  out, err = process.communicate(timeout=900)
  assert process.returncode == 0, err[-3000:]
  return json.loads(out.strip().splitlines()[-1])


@pytest.fixture(scope='module')
def eight() -> dict[str, Any]:
  """What every mode says on eight devices."""
  return printed(child('one', 'seeds', 'batch', 'sharded'))


@pytest.mark.parametrize('mode', ['seeds', 'batch', 'sharded'])
def test_a_mode_is_one_device(eight, mode):
  one, many = eight['one'], eight[mode]
  assert many['devices'] == mode and one['devices'] == 'one'
  np.testing.assert_allclose(many['logits'], one['logits'], atol=1e-4)
  np.testing.assert_allclose(many['curves'], one['curves'], atol=1e-5)


def test_memory_of_a_device_falls(eight):
  """Of weights an eighth is on each of eight devices; of nine runs, two."""
  params = eight['one']['params_bytes']
  one, seeds, sharded = (eight[m]['argument_bytes'] for m in ('one', 'seeds', 'sharded'))
  assert sharded - (one - params) < 0.2 * params
  assert seeds - params < 0.35 * (one - params)


def test_two_hosts_are_one(tmp_path):
  """The cluster is SLURM's environment, as JAX finds it."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{s.getsockname()[1]}'
  cluster = {'JAX_COORDINATOR_ADDRESS': address, 'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '2'}
  cluster |= {
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_LOCALID': '0',
    'SLURM_NODELIST': 'localhost',
  }
  hosts = [child('hosts', devices=2, **cluster, SLURM_PROCID=str(i)) for i in range(2)]
  first, second = (printed(h) for h in hosts)
  alone = printed(child('one', devices=1))['one']
  assert first['hosts']['writes'] and not second['hosts']['writes']
  for host in (first, second):
    np.testing.assert_allclose(host['hosts']['logits'], alone['logits'], atol=1e-4)
    np.testing.assert_allclose(host['hosts']['curves'], alone['curves'], atol=1e-5)


def test_one_device_is_not_split():
  with pytest.raises(FewshotError, match=r"engine.devices is 'seeds', and there is one device"):
    parallel.place('seeds', 4)


def test_a_chunk_is_padded_to_the_devices():
  placement = parallel.Placement('seeds', (None,) * 4)
  assert placement.pad(['a', 'b', 'c', 'd', 'e']) == ['a', 'b', 'c', 'd', 'e', 'a', 'a', 'a']
