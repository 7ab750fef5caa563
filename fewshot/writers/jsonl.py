"""`log.jsonl`: every event, score and curve of an experiment, a JSON object a line."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewshot.errors import FewshotError
from fewshot.writers import base

NAME = 'log.jsonl'


class Jsonl:
  """Adds to the file at once, in the process's own thread; a full disk costs lines, never the run.

  Raises:
    FewshotError: the file cannot be opened.
  """

  def __init__(self, out: Path) -> None:
    try:
      self._file = (out / NAME).open('a', encoding='utf-8')
    except OSError as e:
      raise FewshotError(
        f'cannot write the log {out / NAME}: {e.strerror}; remove it or choose another folder'
      ) from None

  def event(self, kind: str, **fields: Any) -> None:
    """One line."""
    self._write({'event': kind, **fields})

  def scalars(self, run: str, step: int, values: Mapping[str, float]) -> None:
    """One line."""
    self._write({'event': 'scalars', 'run': run, 'step': step, **values})

  def record(self, record: Mapping[str, Any]) -> None:
    """The scores and every point of the curve."""
    found = {'event': 'run', 'run': base.label(record), **base.scores(record)}
    self._write({**found, 'curve': record.get('curve')})

  def table(self, rows: Sequence[Mapping[str, Any]], markdown: str) -> None:
    """The rows; as it is read, the table is in table.md."""
    self._write({'event': 'table', 'rows': list(rows)})

  def flush(self) -> None:
    """Nothing to do: every line is flushed."""

  def close(self) -> None:
    """Ends the file."""
    with contextlib.suppress(OSError):  # What a full disk kept in the buffer has been reported.
      self._file.close()

  def _write(self, fields: Mapping[str, Any]) -> None:
    try:
      self._file.write(base.as_json(fields) + '\n')
      self._file.flush()
    except (OSError, ValueError) as e:
      print(f'fewshot: the log could not be written ({e}); the run goes on', file=sys.stderr)
