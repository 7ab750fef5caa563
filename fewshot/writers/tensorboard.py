"""TensorBoard's event files, by tensorboardX: `tensorboard --logdir OUT/tensorboard` shows them."""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from fewshot.writers import base

FOLDER = 'tensorboard'


class TensorBoard:
  """Curves and scores in a folder a run, with its hyper-parameters; config and table as texts.

  tensorboardX's own writer names its files after the host, and has a queue and a thread beside
  ours; so events go straight to its record files.
  """

  def __init__(self, out: Path, config: Mapping[str, Any]) -> None:
    self._folder, self._seen = out / FOLDER, dict[str, int]()
    self._going: dict[str, RecordWriter] = {}
    self._add('', 0, summary.text('config', f'```json\n{base.as_json(config)}\n```'))

  def event(self, kind: str, **fields: Any) -> None:
    """The numbers of an event, at how many of its kind came before."""
    step = self._seen[kind] = self._seen.get(kind, -1) + 1
    self._add('', step, *_scalars({f'{kind}/{k}': v for k, v in base.numbers(fields).items()}))

  def scalars(self, run: str, step: int, values: Mapping[str, float]) -> None:
    """A point of each curve of a run."""
    self._add(run, step, *_scalars(values))

  def record(self, record: Mapping[str, Any]) -> None:
    """The run's folder, closed when this returns: there may be thousands."""
    run, scores = base.label(record), base.scores(record)
    keys = ('model', 'method', 'fit', 'task', 'seed', 'trained', 'status')
    told = {k: record[k] for k in keys if k in record} | {'split': record['split']['seed']}
    self._add(run, 0, *summary.hparams(told | dict(record.get('hyper') or {}), scores))
    curve = base.thinned(record.get('curve'))
    for step, loss in curve:
      self._add(run, step, summary.scalar('loss', loss))
    self._add(run, curve[-1][0] if curve else 0, *_scalars(scores))
    self._going.pop(run).close()

  def table(self, rows: Sequence[Mapping[str, Any]], markdown: str) -> None:
    """The table as a text."""
    self._add('', 0, summary.text('table', markdown))

  def flush(self) -> None:
    """The open files to disk."""
    for file in self._going.values():
      file.flush()

  def close(self) -> None:
    """Ends the files."""
    for file in self._going.values():
      file.close()

  def _add(self, run: str, step: int, *summaries: Any) -> None:
    file = self._going.get(run) or self._open(run)
    for s in summaries:
      file.write(Event(wall_time=time.time(), step=step, summary=s).SerializeToString())

  def _open(self, run: str) -> RecordWriter:
    """A new event file of the run; those of an earlier session stay."""
    folder = self._folder / _safe(run)
    folder.mkdir(parents=True, exist_ok=True)
    file = self._going[run] = RecordWriter(str(folder / f'events.out.tfevents.{time.time_ns()}'))
    file.write(Event(wall_time=time.time(), file_version='brain.Event:2').SerializeToString())
    return file


def _scalars(values: Mapping[str, float]) -> list[Any]:
  return [summary.scalar(k, v) for k, v in values.items()]


def _safe(run: str) -> str:
  """A folder's name: letters, digits and what every file system takes; the end has the id.

  >>> _safe("lora('.*/(query|value)') split 0")
  'lora(-.-(query-value)-) split 0'
  """
  name = re.sub(r'[^\w.,=() -]+', '-', run)
  return name if len(name) <= 120 else f'{name[:80]}...{name[-37:]}'
