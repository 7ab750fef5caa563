"""`fewshot doctor`: what this machine has, and what is missing."""

import importlib.util
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fewshot import __version__, assets

PACKAGES = {
  'jax': 'needed', 'jaxlib': 'needed', 'flax': 'needed', 'optax': 'needed', 'numpy': 'needed',
  'orbax-checkpoint': 'needed', 'ml_collections': 'needed', 'safetensors': 'needed',
  'tokenizers': 'needed', 'huggingface_hub': 'needed', 'rich': 'needed', 'gguf': 'needed',
  'matplotlib': 'plots',
  'qwix': "int8 weights: pip install -e '.[int8]'",
  'wandb': "dashboards: pip install -e '.[wandb]'",
  'tensorboardX': "dashboards: pip install -e '.[tensorboard]'",
  'tensorflow-datasets': "data sets: pip install -e '.[data]'",
}  # fmt: skip


def report() -> dict[str, Any]:
  """Devices, versions, caches, assets and disk; `missing` names what a run would lack."""
  packages = {name: _version(name) for name in PACKAGES}
  devices, problem = _devices()
  cache = assets.cache_dir()
  place = next(p for p in (cache, *cache.parents) if p.exists())
  missing = [n for n, v in packages.items() if v is None and PACKAGES[n] == 'needed']
  if problem:
    missing.append(f'a device: {problem}')
  if not place.is_dir() or not os.access(place, os.W_OK):
    missing.append('a writable cache: set FEWSHOT_CACHE')
  if importlib.util.find_spec('pip') is None:
    missing.append('pip, which fetches assets from PyPI')
  return {
    'fewshot': __version__,
    'python': platform.python_version(),
    'system': f'{platform.system()} {platform.machine()}, {os.cpu_count()} cores',
    'devices': devices,
    'packages': packages,
    'optional': {n: PACKAGES[n] for n, v in packages.items() if v is None and n not in missing},
    'cache': str(cache).replace(os.path.expanduser('~'), '~'),
    'compiled_programs': len(list((cache / 'xla').glob('*'))) if (cache / 'xla').is_dir() else 0,
    'disk_free_gb': round(shutil.disk_usage(place).free / 1e9, 1),
    'assets': {r['name']: r['present'] for r in assets.rows()},
    'missing': missing,
  }


def show(found: dict[str, Any]) -> None:
  """Prints a report for people."""
  from fewshot.console import stdout

  stdout.print(f'fewshot {found["fewshot"]}, Python {found["python"]}, {found["system"]}')
  stdout.print('devices: ' + (', '.join(found['devices']) or 'none'))
  have = {n: v for n, v in found['packages'].items() if v}
  stdout.print('packages: ' + ', '.join(f'{n} {v}' for n, v in have.items()))
  for name, why in found['optional'].items():
    stdout.print(f'not installed: {name} ({why})')
  programs, free = found['compiled_programs'], found['disk_free_gb']
  stdout.print(f'cache: {found["cache"]} ({programs} compiled programs, {free} GB free)')
  for name, present in found['assets'].items():
    stdout.print(f'asset {name}: ' + ('there' if present else f'fewshot assets get {name}'))
  for what in found['missing']:
    stdout.print(f'MISSING {what}')
  if not found['missing']:
    stdout.print('nothing that is required is missing')


def _version(package: str) -> str | None:
  try:
    return version(package)
  except PackageNotFoundError:
    return None


def _devices() -> tuple[list[str], str | None]:
  try:
    import jax

    return [f'{d.platform}:{d.id} {d.device_kind}' for d in jax.devices()], None
  except Exception as e:
    return [], (str(e).splitlines() or [type(e).__name__])[0]
