"""Tables on a terminal: names fold where a reader would, numbers stay whole, all fits its width."""

import ast
import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
  from rich.console import Console

GAP = 3  # Spaces between columns.
LEAST, MOST = 12, 30  # The narrowest that a column of names gets to be, whatever its words need.


class Cells(NamedTuple):
  """A table to print: `names` leading columns of text, then numbers; a style a cell."""

  heads: Sequence[str]
  lines: Sequence[Sequence[str]]
  names: int = 1
  styles: Sequence[Sequence[str]] = ()  # Of rich: 'bold', 'underline', or ''.


def show(cells: Cells, console: 'Console') -> None:
  """Prints a table within the console's width, by as many blocks of columns as that takes.

  >>> from rich.console import Console
  >>> show(Cells(['method', 'mean'], [['lora(rank=8)', '71.2']]), Console(width=40))
  method         mean
  ───────────────────
  lora(rank=8)   71.2
  """
  from rich.text import Text

  for i, block in enumerate(_blocks(_narrowed(cells, console.width), console.width)):
    shown = Text('\n' * (i > 0))
    for text, style in _printed(block, console.width):
      shown.append(text, style)
    console.print(shown, end='', soft_wrap=True)


def brief(cells: Cells, width: int) -> tuple[Cells, str]:
  """The table as it is where it fits, else names without what all share, and a sentence on that.

  >>> cells, said = brief(Cells(['method'], [['a(x=1, y=2)'], ['a(x=3, y=2)']]), width=10)
  >>> cells.lines, said
  ([['a(x=1, ...)'], ['a(x=3, ...)']], ' Dots stand for a(y=2).')
  """
  if sum(_widths(cells)) + GAP * (len(cells.heads) - 1) <= width:
    return cells, ''
  said: list[str] = []
  columns = [[*column] for column in zip(*cells.lines, strict=True)]
  for i, column in enumerate(columns[: cells.names]):
    parts = [text.split('\n') for text in column]
    first, shared = shortened([part[0] for part in parts])
    columns[i] = ['\n'.join([f, *part[1:]]) for f, part in zip(first, parts, strict=True)]
    said += shared
  lines = [[*line] for line in zip(*columns, strict=True)]
  return cells._replace(lines=lines), f' Dots stand for {", ".join(said)}.' if said else ''


def _narrowed(cells: Cells, width: int) -> Cells:
  """On a narrow terminal a number's remarks stand on a line of their own."""
  numbers = zip(*(line[cells.names :] for line in cells.lines), strict=True)
  if width - 30 >= sum(max(map(_wide, of)) + GAP for of in numbers):
    return cells
  folded = [
    [*line[: cells.names], *(re.sub(r' (?=[(/])', '\n', c) for c in line[cells.names :])]
    for line in cells.lines
  ]
  return cells._replace(lines=folded)


def _blocks(cells: Cells, width: int) -> Iterator[Cells]:
  """The table in parts that fit beside the names, each with all of these."""
  leads, widths = cells.names, _widths(cells)
  room = width - sum(_least(cells, i) + GAP for i in range(leads))
  start = leads
  while start < len(widths) or start == leads:
    end, used = start + 1, sum(widths[start : start + 1])
    while end < len(widths) and used + GAP + widths[end] <= room:
      used, end = used + GAP + widths[end], end + 1
    part = [*range(leads), *range(start, min(end, len(widths)))]
    pick = lambda row, part=part: [row[i] for i in part]  # noqa: E731
    yield Cells(
      pick(cells.heads), [pick(x) for x in cells.lines], leads, [pick(x) for x in cells.styles]
    )
    start = end


def _widths(cells: Cells) -> list[int]:
  """What each column needs: its longest line, and of its head the longest word."""
  longest = [max(map(_wide, column)) for column in zip(*cells.lines, strict=True)]
  return [
    max([n, *map(_cell_len, head.split())])
    for n, head in zip(longest or [0] * len(cells.heads), cells.heads, strict=True)
  ]


def _least(cells: Cells, column: int) -> int:
  """What a column of names cannot go below without breaking a word, within bounds."""
  texts = {cells.heads[column], *(line[column] for line in cells.lines)}
  return min(max(LEAST, *map(_longest, texts)), MOST, max(map(_wide, texts)))


@functools.cache  # Tables of a sweep repeat their names.
def _longest(text: str) -> int:
  """The longest piece of a name that is not broken."""
  return max((_cell_len(piece.strip()) for piece in _pieces(text, 0)), default=0)


def _printed(cells: Cells, width: int) -> Iterator[tuple[str, str]]:
  """Pieces of text with their styles, line after line."""
  widths = _widths(cells)
  room = width - sum(widths[cells.names :]) - GAP * (len(widths) - 1)
  least = [_least(cells, i) for i in range(cells.names)]
  while sum(widths[: cells.names]) > max(room, sum(least)):
    spare = [widths[i] - least[i] for i in range(cells.names)]
    widths[spare.index(max(spare))] -= 1  # The one that can best spare it.
  plain = [''] * len(widths)
  yield from _row([*cells.heads], plain, widths, cells.names, bottom=True)
  yield '─' * (sum(widths) + GAP * (len(widths) - 1)) + '\n', ''
  for i, line in enumerate(cells.lines):
    yield from _row(line, cells.styles[i] if cells.styles else plain, widths, cells.names)


def _row(
  line: Sequence[str],
  styles: Sequence[str],
  widths: Sequence[int],
  names: int,
  bottom: bool = False,
) -> Iterator[tuple[str, str]]:
  """A row of as many lines as its longest cell; heads stand at the bottom of theirs."""
  columns = [fold(cell, width) for cell, width in zip(line, widths, strict=True)]
  height = max(map(len, columns))
  empty = [[''] * (height - len(column)) for column in columns]
  columns = [e + c if bottom else c + e for e, c in zip(empty, columns, strict=True)]
  for parts in zip(*columns, strict=True):
    before = ''  # Padding has no style: an underline would show.
    for i, (part, style, width) in enumerate(zip(parts, styles, widths, strict=True)):
      pad = ' ' * (width - _cell_len(part))
      before += ' ' * GAP * (i > 0) + pad * (i >= names)
      if style:
        yield before, ''
        yield part, style
      before = ('' if style else before + part) + pad * (i < names)
    yield before.rstrip() + '\n', ''


@functools.cache
def fold(text: str, width: int) -> list[str]:
  """Text as lines of a width: broken at spaces, then behind punctuation, a word only if it must.

  >>> fold('chain(lora(rank=8), linear())', 16)
  ['chain(lora(', 'rank=8),', 'linear())']
  """
  lines = []
  for part in text.split('\n'):
    if _cell_len(part) <= width:
      lines.append(part)
      continue
    line = ''
    for piece in _pieces(part, width):
      if line and _cell_len(line + piece.rstrip()) > width:
        lines.append(line.rstrip())
        line = ''
      line += piece
    lines.append(line.rstrip())
  return lines


def _pieces(text: str, width: int) -> Iterator[str]:
  """Words, and of those that are too long what stands between punctuation."""
  for word in re.findall(r'\S+\s*', text):
    if width and _cell_len(word.rstrip()) <= width:
      yield word
      continue
    for piece in re.findall(r'(?:\w+=)?[\w.\\]+[^\w.\\]*|[^\w.\\]+', word):
      step = width or len(piece)
      yield from (piece[i : i + step] for i in range(0, len(piece), step))


def _wide(text: str) -> int:
  return max(map(_cell_len, text.split('\n')))


def _cell_len(text: str) -> int:
  if text.isascii():
    return len(text)
  from rich.cells import cell_len

  return cell_len(text)


def shortened(spellings: Sequence[str]) -> tuple[list[str], list[str]]:
  """Spellings without the arguments that all of them share, and these, each with its function.

  An argument is left out where every call of its function, in two of the spellings and a quarter of
  them at least, has it with the same value.

  >>> shortened(['a(x=1, y=2)', 'b(a(x=3, y=2))'])
  (['a(x=1, ...)', 'b(a(x=3, ...))'], ['a(y=2)'])
  """
  found = [_calls(text) for text in spellings]
  shared: dict[str, dict[str, str]] = {}
  for name in dict.fromkeys(name for calls in found for name, _ in calls):
    of = [[a for called, a in calls if called == name] for calls in found]
    given = [{k: value for k, (value, *_) in a.items()} for a in itertools.chain(*of)]
    same = {k: v for k, v in given[0].items() if all(g.get(k) == v for g in given)}
    callers = sum(map(bool, of))
    if same and callers > 1 and 4 * callers >= len(found):
      shared[name] = same
  said = [f'{name}({", ".join(f"{k}={v}" for k, v in of.items())})' for name, of in shared.items()]
  return [_without(t, c, shared) for t, c in zip(spellings, found, strict=True)], said


Call = tuple[str, dict[str, tuple[str, int, int]]]  # A name; of each keyword value, start and end.


@functools.cache
def _calls(text: str) -> list[Call]:
  """The calls in a spelling; none of what is no spelling."""
  try:
    nodes = [*ast.walk(ast.parse(text, mode='eval'))]
    raw = text.encode()
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return []
  return [
    (node.func.id, {
      k.arg: (raw[k.value.col_offset : k.value.end_col_offset].decode(), k.col_offset,
              k.end_col_offset or 0)
      for k in node.keywords if k.arg
    })
    for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
  ]  # fmt: skip


def _without(text: str, calls: Sequence[Call], shared: Mapping[str, Mapping[str, str]]) -> str:
  """The spelling with dots where shared arguments stood."""
  if not calls:
    return text
  cuts = [at for name, of in calls for key, (_, *at) in of.items() if key in shared.get(name, ())]
  raw = text.encode()
  for start, end in sorted(cuts, reverse=True):
    raw = raw[:start] + b'...' + raw[end:]
  return re.sub(r'\.\.\.(, \.\.\.)+', '...', raw.decode())
