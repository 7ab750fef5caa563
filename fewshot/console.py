"""What a person sees: progress bars on a terminal, plain lines elsewhere."""

import sys
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

stdout = Console(highlight=False, soft_wrap=True, markup=False)
stderr = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


class Bars:
  """A bar for the whole experiment and one for the phase at hand (compile, train, score)."""

  def __init__(self, total: int) -> None:
    self._live = sys.stderr.isatty()
    columns = (
      TextColumn('{task.description}'),
      BarColumn(),
      TextColumn('{task.percentage:>3.0f} %'),
    )
    self._progress = Progress(*columns, TimeElapsedColumn(), console=stderr, disable=not self._live)
    self._all = self._progress.add_task('runs', total=total)
    self._phase = self._progress.add_task('', total=1.0)
    self._label, self._at = '', ''

  def __enter__(self) -> 'Bars':
    self._progress.start()
    return self

  def __exit__(
    self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
  ) -> None:
    self._progress.stop()

  def method(self, label: str) -> None:
    """Which method the phases that follow belong to."""
    self._label = label
    if not self._live:
      stderr.print(f'{label} ...')

  def phase(self, name: str, done: float) -> None:
    """Moves the phase's bar to a fraction."""
    if name != self._at:
      if not self._live and name.startswith('stage'):  # Each may take minutes.
        stderr.print(f'    {name}')
      self._progress.reset(self._phase, total=1.0, description=f'{self._label}: {name}')
      self._at = name
    self._progress.update(self._phase, completed=done)

  def advance(self, runs: int = 1) -> None:
    """So many more runs are recorded."""
    self._progress.advance(self._all, runs)


def note(text: str, **kwargs: Any) -> None:
  """A line on stderr, where progress goes, so that stdout holds the result alone."""
  stderr.print(text, **kwargs)
