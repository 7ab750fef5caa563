"""Limits: which values of a config can be run, before anything is loaded."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from fewshot import config as configs
from fewshot import engine
from fewshot.errors import FewshotError
from fewshot.fits.base import Fit

DTYPES = ('float32', 'bfloat16', 'float16', 'int8')


def options(config: ConfigDict) -> engine.Options:
  """How the engine runs it, from the config."""
  return engine.Options(memory=int(config.memory_gb * 2**30), **config.engine.to_dict())


def check(config: ConfigDict, fit: Fit) -> None:
  """Raises `FewshotError` for values that do not go together or that no run can have."""
  if config.unlabelled < 0 or (config.unlabelled and not config.program):
    raise FewshotError(
      f'config.unlabelled={config.unlabelled} is of programs that use unlabelled examples; set '
      'config.program too, or leave it at 0'
    )
  if not 0 <= config.memory_gb <= 1e6:
    raise FewshotError(f'config.memory_gb is {config.memory_gb}; give 0 (what is free) to 1e6')
  engine.check(options(config))
  if config.dtype not in DTYPES:
    raise FewshotError(f'config.dtype is {config.dtype!r}; there are {", ".join(DTYPES)}')
  if not config.splits or not config.seeds:
    raise FewshotError('config.splits and config.seeds hold at least one seed each')
  grid = configs.grid(config)
  varied = {'splits': config.splits, 'seeds': config.seeds}
  varied |= {f'grid.{name}': values for name, values in grid.items()}
  for name, values in varied.items():
    if len(set(values)) < len(values):
      raise FewshotError(f'config.{name} holds a value twice: {list(values)}; each makes one run')
  if grid and not config.dev_k:
    raise FewshotError(
      f'config.grid varies {", ".join(grid)}, but dev_k is 0: hyper-parameters are chosen on a dev '
      'set, never on test; set --config.dev_k, at most k'
    )
  if not 1 <= config.max_length <= 2**20 or config.max_test < 0:
    raise FewshotError('config: max_length is 1 to 1,048,576 tokens, max_test at least 0')
  _check_work(config, grid)
  missing = [name for name in grid if name not in fit.varies]
  if missing:
    raise FewshotError(f'{config.fit} has no {missing[0]} that a grid could vary')


def _check_work(config: ConfigDict, grid: Mapping[str, Any]) -> None:
  """Refuses odd values of how runs are saved, repeated and stopped."""
  if not config.save_every >= 0:
    raise FewshotError(f'config.save_every is {config.save_every}; give seconds, at least 0')
  if config.retries < 0 or (config.retries and (grid or config.program)):
    raise FewshotError(
      f'config.retries={config.retries} is at least 0, and 0 beside a grid, whose other points are '
      'there, or a program'
    )
  if config.halving and (config.halving < 2 or not grid):
    raise FewshotError(
      f'config.halving={config.halving} keeps one in so many points of a grid; give a grid, and 2 '
      'or more, or 0'
    )
