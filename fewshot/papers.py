"""Which published systems the library hosts: the rows of papers.json, checked against the code.

One line of the file is one system: `title`, `kind`, maybe `arxiv`; where it is hosted `hosted_by`
and `test`, and `missing` where that is only a part of it.
"""

import ast
import collections
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewshot.errors import FewshotError, nearest

FILE = Path(__file__).with_name('papers.json')
ROOT = FILE.parents[1]  # Of a checkout: an installed package has neither tests nor configs.
KEYS = ('title', 'kind', 'arxiv', 'hosted_by', 'test', 'missing')
STATUSES = ('hosted', 'partial', 'not yet')


def rows() -> list[dict[str, Any]]:
  """A row for each system, checked: id, status, hosted_by, test, missing, kind, title, ...

  A system is hosted where its defining update runs and `test` asserts what defines it; partial
  where `missing` says what does not run.  Raises `FewshotError` for a row that `check` refuses.

  >>> next(row['hosted_by'] for row in rows() if row['id'] == 'attention-only-vit-fine-tuning')
  'attention_only()'
  """
  table = read(FILE.read_text(encoding='utf-8'))
  check(table)
  return [
    {
      'id': name,
      'status': status(row),
      'hosted_by': row.get('hosted_by'),
      'test': row.get('test'),
      'missing': row.get('missing'),
      'kind': row['kind'],
      'title': row['title'],
      'arxiv': row.get('arxiv'),
      'year': 2000 + int(row['arxiv'][:2]) if 'arxiv' in row else None,
    }
    for name, row in table.items()
  ]


def matching(table: Sequence[Mapping[str, Any]], words: str) -> list[dict[str, Any]]:
  """The rows in whose id, title, status, kind or spelling these words stand.

  >>> [row['id'] for row in matching(rows(), 'lt_sft')]
  ['lt-sft']
  """
  fields = ('id', 'title', 'status', 'kind', 'hosted_by')
  said = lambda row: ' '.join(str(row[f]) for f in fields if row[f]).casefold()  # noqa: E731
  found = [dict(row) for row in table if words.casefold() in said(row)]
  if not found:
    raise FewshotError(f'no published system says {words!r}; `fewshot papers` counts them by kind')
  return found


def counts(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """How many systems of each kind have each status; the last row sums them.

  >>> counts([{'kind': 'prompt', 'status': 'hosted'}])[-1]
  {'kind': 'all', 'hosted': 1, 'partial': 0, 'not yet': 0, 'all': 1}
  """
  number = collections.Counter((row['kind'], row['status']) for row in table)
  kinds = sorted({row['kind'] for row in table})
  each = [{'kind': k} | {s: number[k, s] for s in STATUSES} for k in kinds]
  each.append({'kind': 'all'} | {s: sum(row[s] for row in each) for s in STATUSES})
  return [row | {'all': sum(row[s] for s in STATUSES)} for row in each]


def status(row: Mapping[str, str]) -> str:
  """'hosted', 'partial' or 'not yet'."""
  if 'hosted_by' not in row:
    return 'not yet'
  return 'partial' if 'missing' in row else 'hosted'


def read(text: str) -> dict[str, dict[str, str]]:
  """The table of a papers.json; an id that comes twice is refused."""

  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
      twice = [k for k, n in collections.Counter(k for k, _ in pairs).items() if n > 1]
      raise FewshotError(f'papers.json has {twice[0]!r} twice')
    return found

  try:
    return json.loads(text, object_pairs_hook=unique)
  except json.JSONDecodeError as e:
    raise FewshotError(f'papers.json is no JSON: line {e.lineno}: {e.msg}') from None


def check(table: Mapping[str, Mapping[str, str]]) -> None:
  """Refuses rows whose spelling does not parse, or whose config or test is not there.

  Files are looked for in a checkout alone, and tests by their syntax tree: nothing is run.
  """
  wrong = [f'{name}: {why}' for name, row in table.items() if (why := _wrong(row))]
  if wrong:
    more = f' (and {len(wrong) - 1} rows more)' if len(wrong) > 1 else ''
    raise FewshotError(f'papers.json is wrong at {wrong[0]}{more}')


def _wrong(row: Mapping[str, str]) -> str | None:
  """What is wrong with a row, if anything is."""
  for key in row:
    if key not in KEYS:
      return f'unknown key {key!r}; {nearest(key, KEYS)}'
  for key in ('title', 'kind', *(('hosted_by', 'test') if 'hosted_by' in row else ())):
    if not row.get(key):
      return f'it has no {key!r}'
  if 'hosted_by' not in row:
    extra = [k for k in ('test', 'missing') if k in row]
    return f"it has {extra[0]!r} but no 'hosted_by'" if extra else None
  if '::' not in row['test']:
    return f'{row["test"]!r} is no test; write tests/test_x.py::test_y'
  return _unknown(row['hosted_by']) or _absent(row['test'])


def _unknown(hosted_by: str) -> str | None:
  """Why a system is not hosted by what its row says: a config, a function or a spelling."""
  if '::' in hosted_by or hosted_by.endswith('.py'):
    return _absent(hosted_by)
  from fewshot import fits, learners, methods, programs

  own = {
    fits.parse: fits.VOCABULARY,
    learners.parse: [f.__name__ for f in learners.LEARNERS],
    programs.parse: programs.WORDS,
  }
  name = hosted_by.partition('(')[0]
  try:
    next((parse for parse, words in own.items() if name in words), methods.parse)(hosted_by)
  except FewshotError as e:
    return str(e)
  return None


def _absent(node: str) -> str | None:
  """Why there is no file, or no function in it, by this node id; brackets of a case are ignored."""
  file, *names = node.partition('[')[0].split('::')
  if not (ROOT / 'tests').is_dir():
    return None
  if not (ROOT / file).is_file():
    return f'there is no file {file}'
  body: list[ast.stmt] = ast.parse((ROOT / file).read_text(encoding='utf-8')).body
  for name in names:
    defined = {d.name: d for d in body if isinstance(d, ast.FunctionDef | ast.ClassDef)}
    if name not in defined:
      return f'{file} has no {name}; {nearest(name, defined)}'
    body = defined[name].body
  return None
