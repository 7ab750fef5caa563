"""Weights & Biases: an experiment is one of its runs, online or in a folder to be synced later."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb

from fewshot.writers import base

TOGETHER = 50  # Curves.
PLAIN = (str, int, float, bool, type(None))
RUN = ('id', 'model', 'method', 'fit', 'task', 'seed', 'status', 'cause', 'trained')

NAMES = ('task', 'setting', 'model', 'method', 'learner', 'training', 'fit')  # Of a table's row.


class WandbRun:
  """Curves, scores, a table of the runs, and the final table, which is an artifact too.

  `options` is `config.wandb`. wandb's notes of itself name the host and folders of this machine:
  they are turned off, or deleted where they cannot be.

  Raises:
    Exception: of wandb, where no key is there, or a bad one, or nothing answers.
  """

  def __init__(
    self, out: Path, name: str, options: Mapping[str, Any], config: Mapping[str, Any]
  ) -> None:
    online = options['mode'] == 'online'
    wandb.setup(wandb.Settings(silent=True))
    if online and not wandb.login(prompt=False):  # `init` would ask for a key.
      raise ConnectionError('there is no key; run wandb login, or take mode=offline')
    self._runs, self._curves = list[dict[str, Any]](), dict[str, dict[int, float]]()
    self._run = wandb.init(
      project=options['project'], name=name, mode=options['mode'], dir=str(out.resolve()),
      group=options['group'] or None, tags=[t.strip() for t in options['tags'].split(',') if t],
      config=dict(config), settings=_settings(),
    )  # fmt: skip
    self._notes = Path(self._run.settings.log_dir)
    shutil.rmtree(self._notes, ignore_errors=True)
    self._run.define_metric('step', hidden=True)
    self._run.define_metric('loss/*', step_metric='step')

  def event(self, kind: str, **fields: Any) -> None:
    """The numbers of an event."""
    self._run.log({f'{kind}/{k}': v for k, v in base.numbers(fields).items()})

  def scalars(self, run: str, step: int, values: Mapping[str, float]) -> None:
    """A point of each curve of a run."""
    self._run.log({f'{k}/{run}': v for k, v in values.items()} | {'step': step})

  def record(self, record: Mapping[str, Any]) -> None:
    """The scores; the curve follows with those of the records that come at once."""
    run, scores = base.label(record), base.scores(record)
    self._curves[run] = dict(base.thinned(record.get('curve')))
    if len(self._curves) == TOGETHER:
      self.flush()
    self._run.log({f'{k}/{run}': v for k, v in scores.items()})
    told = {k: record.get(k) for k in RUN} | {'split': record['split']['seed']}
    self._runs.append(told | dict(record.get('hyper') or {}) | scores)

  def flush(self) -> None:
    """The curves that wait: a row of wandb's for a step of all, for every row costs as much."""
    curves, self._curves = self._curves, {}
    for step in sorted({step for c in curves.values() for step in c}):
      self._run.log(
        {f'loss/{run}': c[step] for run, c in curves.items() if step in c} | {'step': step}
      )

  def table(self, rows: Sequence[Mapping[str, Any]], markdown: str) -> None:
    """The table to look at, its means as the summary, and the artifact.

    wandb writes down where an artifact's file lies: it is named from the working folder, where
    `wandb sync` finds it, and left out of an experiment outside of that. The artifact's description
    and metadata have the table as well.
    """
    self._show('table', rows)
    means = {f'mean/{_name(r)}': r.get('mean', r.get('value')) for r in rows}
    self._run.summary.update({k: v for k, v in means.items() if v is not None})
    plain = [{k: v for k, v in r.items() if isinstance(v, PLAIN)} for r in rows]
    artifact = wandb.Artifact(f'{self._run.id}-table', 'table', markdown, {'rows': plain})
    file = Path(self._run.dir).resolve() / 'table.md'
    file.write_text(markdown, encoding='utf-8')
    if file.is_relative_to(Path.cwd()):
      here = str(file.relative_to(Path.cwd()))
      artifact.add_file(here, 'table.md', skip_cache=True, policy='immutable')
    self._run.log_artifact(artifact)

  def close(self) -> None:
    """The table of the runs, and the end."""
    self.flush()
    if self._runs:
      self._show('runs', self._runs)
    self._run.finish()
    shutil.rmtree(self._notes, ignore_errors=True)

  def _show(self, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of every column that is plain.

    It is bound to the run here: `log` would make an artifact of it, of a file in the home folder.
    """
    keys = dict.fromkeys(k for r in rows for k in r)
    columns: list[str | int] = [k for k in keys if all(isinstance(r.get(k), PLAIN) for r in rows)]
    data = [[r.get(str(k)) for k in columns] for r in rows]
    table = wandb.Table(columns, data, allow_mixed_types=True)
    table.bind_to_run(self._run, key, self._run.step)
    self._run.log({key: table})


def _settings() -> Any:
  return wandb.Settings(
    silent=True, console='off', disable_git=True, save_code=False, symlink=False, host='',
    program='', x_save_requirements=False, x_disable_stats=True, x_disable_machine_info=True,
    x_disable_meta=True,  # The command line, the host and paths of this machine.
    init_timeout=20, finish_timeout=20,
  )  # fmt: skip


def _name(row: Mapping[str, Any]) -> str:
  return ' '.join(str(row[k]) for k in NAMES if row.get(k))
