"""Files of local data sets as rows: lines, tab-separated cells, CSV and JSON, gzipped or not."""

import csv
import gzip
import io
import json
import zlib
from typing import Any

from fewshot.errors import FewshotError
from fewshot.folders import home

LARGEST = 256 << 20  # Bytes of a file, and of what a gzip unpacks to.
RATIO = 40  # What a gzip may unpack to, times its size: texts have 3 to 10.


def text(folder: str, file: str) -> str:
  """The text of `$FEWSHOT_DATA/<folder>/<file>`, or of `<file>.gz` beside it, in UTF-8.

  Raises `FewshotError` where there is neither, or one that is damaged.
  """
  path = home(None, folder, 'its files')
  try:
    if (path / file).is_file():
      if (size := (path / file).stat().st_size) > LARGEST:
        raise OSError(f'it has {size} bytes, more than {LARGEST}')
      return (path / file).read_bytes().decode('utf-8-sig')
    packed = path / f'{file}.gz'
    most = min(LARGEST, max(1 << 20, RATIO * packed.stat().st_size))
    with gzip.open(packed) as unpacked:
      data = unpacked.read(most + 1)
    if len(data) > most:
      raise OSError(f'it unpacks to more than {most} bytes')
    return data.decode('utf-8-sig')
  except FileNotFoundError:
    raise FewshotError(f'there is no {file} in the folder {folder}; put it there') from None
  except (OSError, EOFError, zlib.error, UnicodeDecodeError) as e:
    raise FewshotError(f'{folder}/{file} cannot be read: {e}; fetch it again') from None


def lines(folder: str, file: str) -> list[str]:
  """The lines that are not blank.  Only a line feed ends one: texts hold other separators."""
  return [s.removesuffix('\r') for s in text(folder, file).split('\n') if s.strip()]


def tabbed(folder: str, file: str) -> list[list[str]]:
  """Cells by tabs, in which quotes mean nothing."""
  return [line.split('\t') for line in lines(folder, file)]


def commas(folder: str, file: str) -> list[list[str]]:
  """The rows of a CSV, its header included."""
  content = io.StringIO(text(folder, file), newline='')
  try:
    return [row for row in csv.reader(content, strict=True) if row]
  except csv.Error as e:
    raise FewshotError(f'{folder}/{file} is no CSV: {e}; fetch it again') from None


def parsed(folder: str, file: str) -> Any:
  """A JSON value."""
  return _json(folder, file, text(folder, file))


def records(folder: str, file: str) -> list[dict[str, Any]]:
  """A JSON object of each line."""
  return [_json(folder, file, line) for line in lines(folder, file)]


def pick(folder: str, file: str, row: Any, columns: tuple[Any, ...]) -> Any:
  """The cells of a row that `columns` name or number: one text, or a tuple of several."""
  try:
    found = tuple(row[c] for c in columns)
  except (IndexError, KeyError, TypeError):
    raise FewshotError(
      f'{folder}/{file} has a line without the cells {columns}; fetch it again'
    ) from None
  return found if len(found) > 1 else found[0]


def _json(folder: str, file: str, content: str) -> Any:
  try:
    return json.loads(content)
  except (ValueError, RecursionError) as e:
    raise FewshotError(f'{folder}/{file} is no JSON: {e}; fetch it again') from None
