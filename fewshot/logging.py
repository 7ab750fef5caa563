"""Where a run's numbers go: the console and a JSONL always, wandb when the config asks for it."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewshot.errors import FewshotError

NAME = 'log.jsonl'
MODES = ('disabled', 'offline', 'online')


class Log:
  """A run's log; `event` writes one line, `curve` a training curve, `close` ends it."""

  def __init__(self, out: Path, wandb_run: Any = None) -> None:
    self._file = (out / NAME).open('a', encoding='utf-8')
    self._wandb = wandb_run

  def event(self, kind: str, **fields: Any) -> None:
    """One line of the JSONL; a full disk costs the log, never the run."""
    self._write({'event': kind, **fields})

  def record(self, record: Mapping[str, Any]) -> None:
    """The scores and the training curve of a finished run."""
    label = f'{record["method"]} split {record["split"]["seed"]} seed {record["seed"]}'
    scores = {k: v['value'] for k, v in record['scores'].items()}
    self._write({'event': 'run', 'run': label, **scores, 'curve': record['curve']})
    if self._wandb is not None:
      self._to_wandb(label, scores, record)

  def close(self) -> None:
    """Ends the log and the wandb run."""
    self._file.close()
    if self._wandb is not None:
      self._wandb.finish(quiet=True)

  def _write(self, fields: Mapping[str, Any]) -> None:
    try:
      self._file.write(json.dumps(fields) + '\n')
      self._file.flush()
    except (OSError, ValueError) as e:
      print(f'fewshot: the log could not be written ({e}); the run goes on', file=sys.stderr)

  def _to_wandb(self, label: str, scores: Mapping[str, float], record: Mapping[str, Any]) -> None:
    for step, loss in enumerate(record['curve'] or []):
      self._wandb.log({f'loss/{label}': loss, 'step': step})
    self._wandb.log({f'{k}/{label}': v for k, v in scores.items()})


def open_log(out: Path, name: str, wandb: Mapping[str, Any], config: Mapping[str, Any]) -> Log:
  """The log of an experiment in its folder, and a wandb run unless its mode is disabled."""
  mode = wandb['mode']
  if mode not in MODES:
    raise FewshotError(f'config.wandb.mode is {mode!r}; there are {", ".join(MODES)}')
  if mode == 'disabled':
    return Log(out)
  try:
    import wandb as library
  except ImportError:
    raise FewshotError('config.wandb needs wandb; install it: pip install fewshot[wandb]') from None
  settings = library.Settings(silent=True, console='off', disable_git=True, save_code=False)
  try:
    run = library.init(
      project=wandb['project'], name=name, mode=mode, dir=str(out), config=dict(config),
      settings=settings,
    )  # fmt: skip
  except Exception as e:
    reason = str(e).splitlines()[0] if str(e) else type(e).__name__
    raise FewshotError(
      f'wandb does not start ({reason}); run with --config.wandb.mode=offline'
    ) from None
  return Log(out, run)
