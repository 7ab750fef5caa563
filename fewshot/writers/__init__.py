"""Where an experiment's numbers go: a JSONL always, wandb and TensorBoard where the config asks."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fewshot import config as configs
from fewshot import records
from fewshot.errors import FewshotError, nearest
from fewshot.writers.base import MetricWriter
from fewshot.writers.behind import Behind
from fewshot.writers.jsonl import Jsonl

MODES = ('disabled', 'offline', 'online')


class Log:
  """A `MetricWriter` that hands every call to all of its writers."""

  def __init__(self, writers: Sequence[MetricWriter]) -> None:
    self._writers = tuple(writers)

  def event(self, kind: str, **fields: Any) -> None:
    """Something that happened, such as the timings of a run."""
    for w in self._writers:
      w.event(kind, **fields)

  def scalars(self, run: str, step: int, values: Mapping[str, float]) -> None:
    """Numbers of a run that is going on, at a step."""
    for w in self._writers:
      w.scalars(run, step, values)

  def record(self, record: Mapping[str, Any]) -> None:
    """The scores and the training curve of a finished run."""
    for w in self._writers:
      w.record(record)

  def table(self, rows: Sequence[Mapping[str, Any]], markdown: str) -> None:
    """The final table: its rows as dicts, and as it is read."""
    for w in self._writers:
      w.table(rows, markdown)

  def flush(self) -> None:
    """All so far is to be seen."""
    for w in self._writers:
      w.flush()

  def close(self) -> None:
    """Nothing more will come; dashboards are waited for as long as they go on, see `Behind`."""
    for w in self._writers:
      w.close()


def open_log(out: Path, todo: Sequence[ConfigDict]) -> Log:
  """The log of an experiment in its folder, with the dashboards that its first row names.

  Raises:
    FewshotError: an unknown mode, a package that is not there, a config that holds a secret or a
      path of this machine, or `log.jsonl` cannot be opened. A dashboard that does not start is a
      line on stderr instead.
  """
  first, config = todo[0], shared([configs.as_dict(c) for c in todo])
  if first.wandb.mode not in MODES:
    raise FewshotError(
      f'config.wandb.mode is {first.wandb.mode!r}; {nearest(first.wandb.mode, MODES)}'
    )
  asked = {'wandb': first.wandb.mode != 'disabled', 'tensorboard': first.tensorboard}
  for extra, package in (('wandb', 'wandb'), ('tensorboard', 'tensorboardX')):
    if asked[extra] and importlib.util.find_spec(package) is None:
      raise FewshotError(
        f"config.{extra} needs {package}; install it: pip install -e '.[{extra}]' in the project's "
        'folder'
      )
  records.check({'config': config})
  writers: list[MetricWriter] = [Jsonl(out)]
  if asked['wandb']:
    writers.append(Behind('wandb', lambda: _wandb(out, first, config)))
  if asked['tensorboard']:
    writers.append(Behind('TensorBoard', lambda: _tensorboard(out, config)))
  return Log(writers)


def shared(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The config of a sweep: what all rows share, and the values of what they do not.

  >>> shared([{'k': 4, 'method': 'a()'}, {'k': 4, 'method': 'b()'}])
  {'k': 4, 'method': ['a()', 'b()']}
  """
  found: dict[str, Any] = {}
  for key in rows[0]:
    values = [r[key] for r in rows]
    distinct = [v for i, v in enumerate(values) if v not in values[:i]]
    found[key] = distinct[0] if len(distinct) == 1 else distinct
  return found


def _wandb(out: Path, first: ConfigDict, config: Mapping[str, Any]) -> MetricWriter:
  """In the thread that will use it: the import alone takes seconds."""
  from fewshot.writers.wandb_run import WandbRun

  return WandbRun(out, first.name, first.wandb, config)


def _tensorboard(out: Path, config: Mapping[str, Any]) -> MetricWriter:
  from fewshot.writers.tensorboard import TensorBoard

  return TensorBoard(out, config)
