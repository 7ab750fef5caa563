"""Where a run's numbers go: the console and a JSONL always, wandb when the config asks for it."""

import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fewshot import records
from fewshot.errors import FewshotError, nearest

NAME = 'log.jsonl'
MODES = ('disabled', 'offline', 'online')


class Log:
  """A run's log; `event` writes one line, `curve` a training curve, `close` ends it."""

  def __init__(self, out: Path, wandb_run: Any = None) -> None:
    try:
      self._file = (out / NAME).open('a', encoding='utf-8')
    except OSError as e:
      raise FewshotError(
        f'cannot write the log {out / NAME}: {e.strerror}; remove it or choose another folder'
      ) from None
    self._wandb = wandb_run

  def event(self, kind: str, **fields: Any) -> None:
    """One line of the JSONL; a full disk costs the log, never the run."""
    self._write({'event': kind, **fields})

  def record(self, record: Mapping[str, Any]) -> None:
    """The scores and the training curve of a finished run."""
    label = f'{record["method"]} split {record["split"]["seed"]} seed {record["seed"]}'
    scores = {k: v['value'] for k, v in record['scores'].items()}
    self._write({'event': 'run', 'run': label, **scores, 'curve': record['curve']})
    self._call_wandb(lambda run: _send(run, label, scores, record))

  def close(self) -> None:
    """Ends the log and the wandb run."""
    with contextlib.suppress(OSError):  # What a full disk kept in the buffer has been reported.
      self._file.close()
    self._call_wandb(lambda run: run.finish())

  def _write(self, fields: Mapping[str, Any]) -> None:
    try:
      plain = json.loads(json.dumps(fields), parse_constant=lambda _: None)  # JSON has no NaN.
      self._file.write(json.dumps(plain) + '\n')
      self._file.flush()
    except (OSError, ValueError) as e:
      print(f'fewshot: the log could not be written ({e}); the run goes on', file=sys.stderr)

  def _call_wandb(self, action: Callable[[Any], None]) -> None:
    """A failing dashboard costs its own figures, never the run."""
    if self._wandb is None:
      return
    try:
      action(self._wandb)
    except Exception as e:
      self._wandb = None
      print(f'fewshot: wandb is left out from here on ({_line(e)})', file=sys.stderr)


def _send(run: Any, label: str, scores: Mapping[str, float], record: Mapping[str, Any]) -> None:
  for step, loss in enumerate(record['curve'] or []):
    run.log({f'loss/{label}': loss, 'step': step})
  run.log({f'{k}/{label}': v for k, v in scores.items()})


def open_log(out: Path, name: str, wandb: Mapping[str, Any], config: Mapping[str, Any]) -> Log:
  """The log of an experiment in its folder, and a wandb run unless its mode is disabled."""
  mode = wandb['mode']
  if mode not in MODES:
    raise FewshotError(f'config.wandb.mode is {mode!r}; {nearest(mode, MODES)}')
  records.check({'config': config})
  if mode == 'disabled':
    return Log(out)
  try:
    import wandb as library
  except ImportError:
    raise FewshotError(
      "config.wandb needs wandb; install it: pip install -e '.[wandb]' in the project's folder"
    ) from None
  settings = library.Settings(
    silent=True, console='off', disable_git=True, save_code=False,
    x_disable_meta=True,  # The command line, the host and paths of this machine.
  )  # fmt: skip
  try:
    run = library.init(
      project=wandb['project'], name=name, mode=mode, dir=str(out), config=dict(config),
      settings=settings,
    )  # fmt: skip
  except Exception as e:
    raise FewshotError(
      f'wandb does not start ({_line(e)}); run with --config.wandb.mode=offline'
    ) from None
  return Log(out, run)


def _line(error: Exception) -> str:
  return next(iter(str(error).splitlines()), type(error).__name__)
