"""Named tasks, and one line that makes a task of a CSV or of arrays."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from fewshot import assets
from fewshot.errors import FewshotError, brief, nearest
from fewshot.tasks.base import Task, make

# Name -> the stem of the asset's files `<stem>-train.tab` and `<stem>-test.tab`.
TABLES = {'newsgroups': '20newsgroups', 'reuters-r8': 'reuters-r8'}
CLASSES = {'newsgroups': 20, 'reuters-r8': 8, 'trec': 6}


def load(name: str) -> Task:
  """A task by name (`fewshot tasks`) or from a CSV or TSV file with columns text and label."""
  if name in TABLES:
    return _tables(name, assets.get(name), TABLES[name])
  if name == 'trec':
    return _trec(assets.get(name))
  if Path(name).suffix in ('.csv', '.tsv'):
    return from_csv(name)
  hint = nearest(name, CLASSES)
  raise FewshotError(f'there is no task {name!r}; {hint} (the path of a .csv is a task too)')


def from_csv(path: str | Path, text: str = 'text', label: str = 'label') -> Task:
  """A text task from a CSV or TSV with a header; half of each class is held out for test.

  A column `split` with the values train and test is followed where there is one.
  """
  path = Path(path)
  try:
    with path.open(newline='', encoding='utf-8-sig') as f:
      reader = csv.DictReader(f, delimiter='\t' if path.suffix == '.tsv' else ',')
      columns = reader.fieldnames or []
      table, lines = [], []  # A cell may run over several lines of the file.
      for row in reader:
        table.append(row)
        lines.append(reader.line_num)
  except FileNotFoundError:
    raise FewshotError(f'there is no file {path.name}') from None
  except (UnicodeDecodeError, csv.Error) as e:
    raise FewshotError(f'{path.name} is no CSV in UTF-8: {e}') from None
  except OSError as e:
    raise FewshotError(f'{path.name} cannot be read: {e.strerror or e}') from None
  if not table:
    raise FewshotError(f'{path.name} has no rows under its header')
  for column in (text, label):
    if column not in columns:
      raise FewshotError(f'{path.name} has no column {column!r}; {nearest(column, columns)}')
  _check_cells(path, table, lines, (text, label))
  rows = None
  if 'split' in columns:
    rows = _rows_by_split(path, [r['split'] for r in table])
  return make(path.stem, [r[text] for r in table], [r[label] for r in table], rows)


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
  path: Path, table: list[dict[str, Any]], lines: list[int], needed: tuple[str, str]
) -> None:
  text, label = needed
  for row, line in zip(table, lines, strict=True):
    if not row[label] or row[text] is None:
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
