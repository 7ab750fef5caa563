"""Groups: rows of a config whose runs one compiled program computes side by side.

Rows that differ by seeds, or by what their fit may take traced (learning rates), are one group; the
runs of a group are one vmapped axis.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from fewshot import config as configs
from fewshot import experiment, records
from fewshot.methods.paths import stable_hash
from fewshot.methods.spelling import remake, spell
from fewshot.prepared import Prepared
from fewshot.runs import Run

APART = ('fit', 'seeds', 'name', 'wandb', 'out')  # Keys that need no program of their own.


class Planned(NamedTuple):
  """A run of a row, and the same as the group's vmapped axis has it."""

  row: Prepared
  own: Run
  run: Run


class Group(NamedTuple):
  """Rows that share a program, and all their runs by id, in the order of the vmapped axis."""

  rows: tuple[Prepared, ...]
  runs: dict[str, Planned]

  @property
  def id(self) -> str:
    """The name of the group: a hash of what decides its results."""
    return records.run_id({'runs': list(self.runs)})

  @property
  def label(self) -> str:
    """What a person calls it."""
    p = self.rows[0]
    rows = f' ({len(self.rows)} rows)' if len(self.rows) > 1 else ''
    return f'{p.label} on {p.task.name}{rows}'


def groups(prepared: Sequence[Prepared]) -> list[Group]:
  """The groups of all rows, in the order in which their first rows stand."""
  found: dict[Any, list[Prepared]] = {}
  for i, p in enumerate(prepared):
    found.setdefault(_shared(p) or i, []).append(p)
  return [Group(tuple(rows), dict(_planned(rows))) for rows in found.values()]


def group(p: Prepared) -> Group:
  """The group of one row."""
  return Group((p,), dict(_planned([p])))


def retried(planned: Planned, attempt: int) -> Planned:
  """The same run from another initialisation."""
  seed = stable_hash('retry', planned.own.seed, attempt) % 2**31
  return planned._replace(run=planned.run._replace(seed=seed))


def _shared(p: Prepared) -> Any:
  """What rows of one program agree on; None for a row that shares none."""
  if p.program or configs.grid(p.config) or not p.fit.varies or p.fit.made is None:
    return None
  rest = {k: v for k, v in configs.as_dict(p.config).items() if k not in APART}
  same_fit = spell(remake(p.fit, **dict.fromkeys(p.fit.varies, 1.0)))
  return id(p.data), same_fit, records.run_id(rest)


def _planned(rows: Sequence[Prepared]) -> Iterator[tuple[str, Planned]]:
  settings = [_settings(p) for p in rows]
  differ = [k for k in settings[0] if len({s[k] for s in settings}) > 1]
  for p, setting in zip(rows, settings, strict=True):
    more = {k: float(setting[k]) for k in differ}
    for id, own in experiment.plan(p).items():
      yield id, Planned(p, own, own._replace(hyper={**own.hyper, **more}))


def _settings(p: Prepared) -> dict[str, Any]:
  """What the row's fit was given of what it may take traced."""
  if p.fit.made is None or not p.fit.varies:
    return {}
  bound = inspect.signature(p.fit.made.fn).bind(*p.fit.made.args, **dict(p.fit.made.named))
  bound.apply_defaults()
  return {k: bound.arguments[k] for k in p.fit.varies}
