"""Named tasks, and one line that makes a task of a CSV or of arrays."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from fewshot import assets
from fewshot.errors import FewshotError, brief, nearest
from fewshot.tasks.base import Task, make
from fewshot.tasks.suites import REFUSED, SUITES

COLUMNS, LINE = 1000, 1 << 20  # Of a CSV, and characters of one of its lines.
# Name -> the stem of the asset's files `<stem>-train.tab` and `<stem>-test.tab`.
TABLES = {'newsgroups': '20newsgroups', 'reuters-r8': 'reuters-r8'}
CLASSES = {'newsgroups': 20, 'reuters-r8': 8, 'trec': 6} | {n: s.classes for n, s in SUITES.items()}


def load(name: str) -> Task:
  """A task by name (`fewshot tasks`) or from a CSV or TSV file with columns text and label."""
  if name in TABLES:
    return _tables(name, assets.get(name), TABLES[name])
  if name == 'trec':
    return _trec(assets.get(name))
  if name in SUITES:
    return SUITES[name].read()
  if name in REFUSED:
    raise FewshotError(f'{name} {REFUSED[name]}; `fewshot tasks` lists what can be had')
  if Path(name).suffix in ('.csv', '.tsv'):
    return from_csv(name)
  hint = nearest(name, CLASSES)
  raise FewshotError(f'there is no task {name!r}; {hint} (the path of a .csv is a task too)')


def from_csv(path: str | Path, text: str = 'text', label: str = 'label') -> Task:
  """A text task from a CSV or TSV with a header; half of each class is held out for test.

  `text` may name several columns, as 'premise,hypothesis': the fields of each text.  A column
  `split` with the values train and test is followed where there is one.
  """
  path = Path(path)
  columns, table, lines = _read(path)
  texts = (text,) if text in columns else tuple(c.strip() for c in text.split(','))
  for column in (*texts, label):
    if column not in columns:
      raise FewshotError(f'{path.name} has no column {column!r}; {nearest(column, columns)}')
  _check_cells(path, table, lines, (*texts, label))
  rows = None
  if 'split' in columns:
    rows = _rows_by_split(path, [r['split'] for r in table])
  labels = [r[label] for r in table]
  if len(texts) == 1:
    return make(path.stem, [r[texts[0]] for r in table], labels, rows)
  return make(path.stem, [tuple(r[c] for c in texts) for r in table], labels, rows, fields=texts)


def _read(path: Path) -> tuple[Sequence[str], list[dict[str, Any]], list[int]]:
  """The columns of a CSV, its rows, and the line of the file that each ends at."""
  try:
    with path.open(newline='', encoding='utf-8-sig') as f:
      reader = csv.DictReader(_short(f), delimiter='\t' if path.suffix == '.tsv' else ',')
      columns = reader.fieldnames or []
      if len(columns) > COLUMNS:
        raise FewshotError(f'{path.name} has {len(columns)} columns; at most {COLUMNS} are read')
      table, lines = [], []  # A cell may run over several lines of the file.
      for row in reader:
        table.append(row)
        lines.append(reader.line_num)
        if None in row:  # Refused below; there may be millions of such cells.
          break
  except FileNotFoundError:
    raise FewshotError(f'there is no file {path.name}') from None
  except (UnicodeDecodeError, csv.Error) as e:
    raise FewshotError(f'{path.name} is no CSV in UTF-8: {e}') from None
  except OSError as e:
    raise FewshotError(f'{path.name} cannot be read: {e.strerror or e}') from None
  if not table:
    raise FewshotError(f'{path.name} has no rows under its header')
  return columns, table, lines


def _short(file: IO[str]) -> Iterator[str]:
  """The lines of a CSV; one that does not end would fill the memory."""
  while line := file.readline(LINE):
    if len(line) == LINE and line[-1] not in '\r\n':
      raise csv.Error(f'a line is longer than {LINE} characters')
    yield line


def from_arrays(x: Any, y: Any, name: str = 'arrays', test: Any = None) -> Task:
  """A task from an array of inputs [N, ...] (or a dict of them) and labels [N].

  An array alone is named `x` in a batch; the image models read {'image': [N, H, W, C]}.

  >>> task = from_arrays(np.zeros((6, 4)), [0, 1, 0, 1, 0, 1])
  >>> task.inputs['x'].shape, task.classes
  ((6, 4), ('0', '1'))
  """
  return make(name, x if isinstance(x, dict) else {'x': np.asarray(x)}, y, test)


def rows() -> list[dict[str, Any]]:
  """What `fewshot tasks` prints: name, kind, classes, sources."""
  sources = {r['name']: r['sources'] for r in assets.rows()}
  sources |= {n: [f'$FEWSHOT_DATA/{f}' for f in s.folders] for n, s in SUITES.items()}
  return [
    {'name': n, 'kind': 'text-classification', 'classes': c, 'sources': sources[n]}
    for n, c in CLASSES.items()
  ]


def _tables(name: str, folder: Path, stem: str) -> Task:
  """Tab-separated Category and Text under three header lines; the given train/test parts."""
  texts, labels, sizes = [], [], []
  for part in ('train', 'test'):
    lines = (folder / f'{stem}-{part}.tab').read_text(encoding='utf-8').splitlines()[3:]
    cells = [line.split('\t') for line in lines if line.strip()]
    labels += [c[0] for c in cells]
    texts += [c[1] for c in cells]
    sizes.append(len(cells))
  return make(name, texts, labels, np.arange(sizes[0], sum(sizes)))


def _trec(folder: Path) -> Task:
  """Lines 'DESC:manner How did ... ?', repeats dropped; a fifth of each class is the test pool.

  The official 500 test questions are not among them: numbers are not comparable with theirs.
  """
  text = (folder / 'question_labels.txt').read_text(encoding='latin-1')
  questions = dict(line.split(' ', 1)[::-1] for line in text.splitlines() if ' ' in line)
  labels = [fine.split(':')[0] for fine in questions.values()]
  return make('trec', list(questions), labels, held_out=0.2)


def _check_cells(
  path: Path, table: list[dict[str, Any]], lines: list[int], needed: tuple[str, ...]
) -> None:
  *texts, label = needed
  for row, line in zip(table, lines, strict=True):
    if not row[label] or any(row[text] is None for text in texts):
      raise FewshotError(f'{path.name}: line {line} lacks a text or a label')
    if None in row:  # What DictReader files the cells beyond the header under.
      raise FewshotError(
        f'{path.name}: line {line} has more cells than the header; quote the cell with a separator'
      )


def _rows_by_split(path: Path, split: list[str]) -> np.ndarray:
  odd = sorted({str(s) for s in split} - {'train', 'test'})
  if odd:
    raise FewshotError(f'{path.name}: column split holds {brief(odd)}; it takes train and test')
  return np.flatnonzero(np.array(split) == 'test')
