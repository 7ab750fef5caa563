"""Result tables, for the terminal and in Markdown, with a caption that says how they were made."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshot import layout, records
from fewshot.errors import FewshotError
from fewshot.sound import usable
from fewshot.summaries import Record, Row, sections, summarise

if TYPE_CHECKING:
  from rich.console import Console

__all__ = [
  'Row', 'as_json', 'caption', 'is_old', 'percent', 'render_markdown', 'render_terminal', 'runs',
  'sections', 'summarise', 'title', 'write', 'write_text',
]  # fmt: skip
NONE = '–'
PICTURE = 'accuracy.png'
DRAWN = 60  # Rows that a picture can show.
TEXTS = ('method', 'fit')


def render_terminal(rows: Iterable[Row], console: 'Console') -> None:
  """Prints a table per section on a rich console, numbers right-aligned, the best mean bold.

  >>> from rich.console import Console
  >>> row = Row('vit', 'digits', 16, 'linear()', '', 0.5, 0.125, n=5, runs=5, trained=5, total=10)
  >>> render_terminal([row], Console(width=90))  # doctest: +ELLIPSIS
  digits, K = 16, vit
  ...
  linear()...50.0 ± 12.5 %...5 (50.00 %)...
  """
  from rich.text import Text

  for section in sections(rows):
    head, lines = _cells(section)
    texts = sum(name in TEXTS for name in head)  # Spellings are one column.
    styles = [['bold' if best else ''] * (len(head) - texts + 1) for best in _best(section)]
    cells = layout.Cells(
      [', '.join(head[:texts]), *head[texts:]],
      [['\n'.join(line[:texts]), *line[texts:]] for line in lines],
      styles=styles,
    )
    cells, shared = layout.brief(cells, console.width)
    console.print(Text(title(section), style='bold'), '', sep='\n', soft_wrap=False)
    layout.show(cells, console)
    console.print('', Text(caption(section) + shared), '', sep='\n', soft_wrap=False)


def render_markdown(rows: Iterable[Row]) -> str:
  """The same tables and captions in Markdown; the same rows give the same bytes.

  >>> row = Row('vit', 'digits', 16, 'linear()', '', 0.5, 0.125, n=5, runs=5, trained=5, total=10)
  >>> print(render_markdown([row]))  # doctest: +ELLIPSIS
  ### digits, K = 16, vit
  <BLANKLINE>
  | method | accuracy (mean ± std over 5 splits) | trained | seconds | memory |
  | --- | ---: | ---: | ---: | ---: |
  | `linear()` | **50.0 ± 12.5 %** | 5 (50.00 %) | – | – |
  ...
  """
  parts = []
  for section in sections(rows):
    head, cells = _cells(section)
    lines = [f'### {title(section)}', '', markdown_row(head)]
    lines.append(markdown_row(['---' if name in TEXTS else '---:' for name in head]))
    for line, best in zip(cells, _best(section), strict=True):
      shown = [
        f'`{cell}`' if name in TEXTS else cell for name, cell in zip(head, line, strict=True)
      ]
      if best:
        accuracy = sum(name in TEXTS for name in head)  # The column after the spellings.
        shown[accuracy] = f'**{shown[accuracy]}**'
      lines.append(markdown_row(shown))
    parts.append('\n'.join([*lines, '', caption(section), '']))
  return '\n'.join(parts)


def markdown_row(cells: Iterable[str]) -> str:
  """A row of a Markdown table; a bar within a cell is escaped.

  >>> markdown_row(['a', 'b'])
  '| a | b |'
  """
  plain = (' '.join(cell.split('\n')).replace('|', '\\|') for cell in cells)
  return '| ' + ' | '.join(plain) + ' |'


def title(section: Sequence[Row]) -> str:
  """The task, K, model and prompt that all rows of a section share.

  >>> title([Row('vit', 'digits', 16, 'linear()')])
  'digits, K = 16, vit'
  """
  model, task, k, prompt, *_ = section[0].key
  return f'{task}, K = {k}, {model}' + (f', {prompt}' if prompt else '')


def caption(section: Sequence[Row]) -> str:
  """How the numbers of a section came about, in full sentences.

  >>> caption([Row('vit', 'digits', 16, 'linear()', n=5, test_items=(500,))])[:62]
  'Accuracy of vit on digits with K = 16, test items n = 500: mea'
  """
  row = section[0]
  items = _span(n for row in section for n in row.test_items)
  spread = f'mean ± std over the {over(section)} (sample standard deviation, ddof = 1)'
  if _over(section)[1] < 2:
    spread = 'at most one run per method, hence no standard deviation'
  parts = [
    f'Accuracy of {row.model} on {row.task} with K = {row.k}, test items n = {items}: {spread}; '
    'the best mean is bold.'
  ]
  shared, _ = fit_texts(section)
  if shared:
    parts.append(f'Fit: {"; ".join(shared)}.')
  parts.append(f'Hyper-parameters: {_tuning(section)}.')
  if any(row.lost or row.failed or row.collapsed for row in section):
    parts.append(
      'Runs without an accuracy are counted but cannot enter the mean; collapsed runs that have '
      'one do.'
    )
  of = f' of {_units("run", row.memory_runs)}' if row.memory_runs and _alike(section) else ''
  parts.append(
    f'Seconds are those of a vmapped chunk{of} divided by its runs and exclude compilation. Memory '
    "is that of the chunk's compiled program."
  )
  return ' '.join(parts)


def _tuning(section: Sequence[Row]) -> str:
  dev = [row for row in section if row.tuning == 'dev']
  chosen = f'chosen on a dev set of {_span(n for row in dev for n in row.dev_items)} items'
  if not dev:
    return 'fixed beforehand'
  if len(dev) == len(section):
    return chosen
  return f'{chosen} for {", ".join(row.method for row in dev)}, fixed beforehand for the others'


def _span(values: Iterable[int]) -> str:
  known = set(values)
  ends = sorted({min(known), max(known)}) if known else []
  return '–'.join(f'{value:,}' for value in ends) or 'unknown'


def over(section: Sequence[Row]) -> str:
  """What the accuracies of a section are over; a cell for which that differs says so.

  >>> over([Row('vit', 'digits', 16, 'linear()', n=5)])
  '5 splits'
  """
  return _units(*_over(section))


def _over(section: Sequence[Row]) -> tuple[str, int]:
  """What the section's accuracies are over, for its header; cells that differ say so."""
  split = [row.n for row in section if row.kind == 'split-std']
  kind = 'split-std' if split else 'seed-std'
  count = max(split or [row.n for row in section])
  return ('split-std', count) if count < 2 else (kind, count)


def _units(kind: str, count: int) -> str:
  unit = kind.removesuffix('-std')
  return f'{count} {unit}' if count == 1 else f'{count} {unit}s'


def fit_texts(section: Sequence[Row]) -> tuple[list[str], list[str]]:
  """What the rows' fits share, for the caption, and what sets each row's fit apart.

  >>> fits = ('sgd(steps=5, lr=1)', 'sgd(steps=5, lr=2)')
  >>> rows = [Row('vit', 'digits', 16, 'a()', fit) for fit in fits]
  >>> fit_texts(rows)
  (['sgd(steps=5, ...)'], ['lr=1', 'lr=2'])
  """
  calls = [_call(row.fit) for row in section]
  by_name: dict[str, list[list[str]]] = {}
  for name, args in calls:
    by_name.setdefault(name, []).append(args)
  shared = {n: [a for a in all_[0] if all(a in o for o in all_)] for n, all_ in by_name.items()}
  own = [[a for a in args if a not in shared[name]] for name, args in calls]
  alone = [f'{name}()' if name else '–' for name, _ in calls]
  apart = [', '.join(a) or name for a, name in zip(own, alone, strict=True)]
  texts = []
  for name, args in shared.items():
    more = ['...'] if any(len(o) > len(args) for o in by_name[name]) else []
    texts += (
      [f'{name}({", ".join([*args, *more])})'] if name and (args or len(by_name) == 1) else []
    )
  return texts, apart


def _call(fit: str) -> tuple[str, list[str]]:
  """'sgd(steps=5, lr=1) decay=2' as its name, its arguments and what is said beside them."""
  parts = re.fullmatch(r'(\w*)\((.*)\) ?(.*)', fit)
  if parts is None:
    return fit, []
  name, inside, beside = parts.groups()
  return name, [a for a in [*re.split(r', (?=\w+=)', inside), beside] if a]


def _cells(section: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
  fits = len({row.fit for row in section}) > 1
  _, apart = fit_texts(section)
  # Equal counts without a trouble are the N of the accuracy's header; anything else is shown.
  plain = len({runs(row) for row in section}) == 1 and runs(section[0]).isdigit()
  head = ['method', *['fit'][:fits], f'accuracy (mean ± std over {over(section)})']
  head += [*['runs'][plain:], 'trained', 'seconds', 'memory']
  cells = []
  for row, own in zip(section, apart, strict=True):
    names = [row.method, *[own][:fits]]
    share, memory = _trained_cell(row), _memory_cell(row, section)
    counts = [runs(row)][plain:]
    cells.append([*names, _accuracy_cell(row, section), *counts, share, _seconds_cell(row), memory])
  return head, cells


def _best(section: Sequence[Row]) -> list[bool]:
  best = max((row.mean for row in section if row.mean is not None), default=None)
  return [row.mean is not None and row.mean == best for row in section]


def _accuracy_cell(row: Row, section: Sequence[Row]) -> str:
  kind, count = _over(section)
  if row.mean is None:
    return NONE
  if row.std is None:
    return f'{100 * row.mean:.1f} %' + (' (1 run)' if count > 1 else '')
  # Lost runs explain a smaller count already, in their own column.
  same = row.kind == kind and (row.n == count or row.lost > 0)
  note = '' if same else f' ({_units(row.kind, row.n)})'
  return f'{100 * row.mean:.1f} ± {100 * row.std:.1f} %{note}'


def runs(row: Row) -> str:
  """How many runs have an accuracy, of how many, and what became of the others.

  >>> runs(Row('vit', 'digits', 16, 'linear()', runs=5, lost=1, failed=1))
  '4 of 5 (1 failed)'
  """
  troubles = [('failed', row.failed), ('collapsed', row.collapsed), ('re-run', row.retried)]
  notes = ', '.join(f'{count} {name}' for name, count in troubles if count)
  count = f'{row.runs - row.lost} of {row.runs}' if row.lost else f'{row.runs}'
  return f'{count} ({notes})' if notes else count


def percent(row: Row) -> str:
  """The trained share of a row as text.

  >>> percent(Row('vit', 'digits', 16, 'linear()', trained=1, total=300))
  '0.33 %'
  >>> percent(Row('vit', 'digits', 16, 'linear()', trained=1, total=10**6))
  '<0.01 %'
  """
  return '<0.01 %' if 0 < row.percent < 0.01 else f'{row.percent:.2f} %'


def _trained_cell(row: Row) -> str:
  least = 'up to ' if row.trained_min not in (None, row.trained) else ''
  return f'{least}{row.trained:,} ({percent(row)})'


def _seconds_cell(row: Row) -> str:
  if row.seconds is None:
    return NONE
  return f'{row.seconds:.2f}' if row.seconds < 10 else f'{row.seconds:,.1f}'


def _memory_cell(row: Row, section: Sequence[Row]) -> str:
  if row.memory is None:
    return NONE
  of = f' / {_units("run", row.memory_runs)}' if row.memory_runs and not _alike(section) else ''
  return f'{row.memory / 2**20:,.1f} MiB{of}'


def _alike(section: Sequence[Row]) -> bool:
  """Whether all rows' chunks have as many runs, so that the caption says how many."""
  return len({row.memory_runs for row in section}) == 1


def as_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
  """The rows as plain dicts.

  >>> as_json([Row('vit', 'digits', 16, 'linear()', trained=1, total=4)])[0]['percent']
  25.0
  """
  return [asdict(row) | {'percent': row.percent} for row in rows]


def write(path: str | Path) -> list[Row]:
  """Writes `table.md` and, of up to 60 rows, `accuracy.png` into a run's folder.

  Unreadable lines are skipped with a warning, so that what is finished can be looked at.

  Raises:
    FewshotError: there is no record, records cannot be compared (see `summarise`), or a file
      cannot be written.

  >>> write('no-such-run')  # doctest: +ELLIPSIS
  Traceback (most recent call last):
  fewshot.errors.FewshotError: no records at no-such-run/records.jsonl: ...
  """
  from fewshot.figures import dots

  known = usable(path)
  rows, picture = write_text(path, known), _folder(path) / PICTURE
  if len(rows) <= DRAWN:
    dots.accuracy(rows, known, picture)
  else:
    picture.unlink(missing_ok=True)  # It would be one of fewer rows.
  return rows


def write_text(path: str | Path, known: Sequence[Record]) -> list[Row]:
  """Writes `table.md` of the records of a folder, and gives its rows."""
  if not known:
    raise FewshotError(f'no finished run in {path}; run an experiment into this folder first')
  rows = summarise(known)
  records.replace(_folder(path) / 'table.md', render_markdown(rows).encode('utf-8', 'replace'))
  return rows


def is_old(path: str | Path) -> bool:
  """Whether records came after the picture that is there."""
  picture, file = _folder(path) / PICTURE, _folder(path) / records.NAME
  return picture.exists() and file.exists() and picture.stat().st_mtime < file.stat().st_mtime


def _folder(path: str | Path) -> Path:
  return Path(path) if Path(path).is_dir() else Path(path).parent
