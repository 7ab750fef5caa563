"""The page of a report: template, style and program of this folder, with the data of records."""

import html
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fewshot import episode_tables, figures, records
from fewshot.errors import FewshotError
from fewshot.figures import Group
from fewshot.report import data, pictures
from fewshot.summaries import Record

HERE = Path(__file__).parent


class Report(NamedTuple):
  """A page and what went into it."""

  page: bytes
  rows: int
  runs: int
  left: list[str]  # What there was no room for, in sentences.


def build(folder: str | Path, only: str = '', limits: data.Limits | None = None) -> Report:
  """The report of a folder of records, or of those whose method, task or model says `only`.

  One file: no other is loaded, nothing is fetched.  The same records give the same bytes.

  Raises:
    FewshotError: there is no record, or they are of kinds that do not compare.

  >>> build('no-such-run')  # doctest: +ELLIPSIS
  Traceback (most recent call last):
  fewshot.errors.FewshotError: no records at no-such-run/records.jsonl: ...
  """
  place, known, found = gathered(folder, only)
  content = data.collect(place, found, len(known), limits)
  content |= {
    'file': data.digest(place / records.NAME),
    'folder': place.resolve().name,
    'only': only,
    'command': 'fewshot report DIR' + (f' --only {json.dumps(only)}' if only else ''),
  }
  parts = {
    'title': html.escape(content['folder'] or 'records'),
    'style': _own('page.css'),
    'figures': _figures(place, found),
    'data': embedded(content),
    'program': _own('page.js'),
  }
  page = re.sub(r'\{\{(\w+)\}\}', lambda m: parts[m[1]], _own('page.html'))
  return Report(page.encode(), len(found), len(content['runs']), content['left'])


def gathered(folder: str | Path, only: str = '') -> tuple[Path, list[Any], list[Group]]:
  """The folder, its records that say `only`, and their groups.

  Raises `FewshotError` where there is none.
  """
  place = Path(folder) if Path(folder).is_dir() else Path(folder).parent
  known = episode_tables.usable(records.read(folder, strict=False), folder)
  chosen = [r for r in known if _says(r, only)]
  if not chosen:
    has = f'none of its {len(known)} records says {only!r}; try part of a method, task or model'
    raise FewshotError(f'{folder}: {has if known else "no finished run; run an experiment first"}')
  return place, chosen, figures.groups(chosen)


def _says(record: Record, words: str) -> bool:
  """Whether a record is meant by these words: all of them are in what names it."""
  names = ' '.join(str(record.get(k, '')) for k in ('id', 'method', 'fit', 'task', 'model'))
  return all(w in names.lower() for w in words.lower().split())


def embedded(content: Any) -> str:
  """JSON that may stand in a script tag: none of its texts can close the tag or open a comment.

  >>> embedded('</script><!--')
  '"\\\\u003c/script>\\\\u003c!--"'
  """
  return json.dumps(content, separators=(',', ':')).replace('<', '\\u003c')


def _figures(folder: Path, found: Sequence[Group]) -> str:
  """All figures, under the title of what each is of."""
  by: dict[str, list[str]] = {}
  for number, picture in enumerate(pictures.drawn(folder, found)):
    by.setdefault(picture.section, []).append(pictures.inline(picture, number))
  if matrix := pictures.overlap(folder):
    by.setdefault('Choices of what to train', []).append(matrix)
  return '\n'.join(f'<h3>{html.escape(name)}</h3>{_grid(of)}' for name, of in by.items()) + _more(
    found
  )


def _grid(of: Iterable[str]) -> str:
  return f'<div class="grid">{"".join(of)}</div>'


def _more(found: Sequence[Group]) -> str:
  """Which sections have no figure, and how to have one."""
  out = len(figures.sections(found)) - pictures.SECTIONS
  if out < 1:
    return ''
  return (
    f'<p class="note">Figures are of the {pictures.SECTIONS} largest settings; {out} more are in '
    'the table. <code>fewshot plot DIR --only WORDS</code> draws theirs.</p>'
  )


def _own(name: str) -> str:
  return (HERE / name).read_text(encoding='utf-8')
