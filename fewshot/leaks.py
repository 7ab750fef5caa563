"""Leaks: what would give away paths or secrets of this machine is refused before it is written."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fewshot.errors import FewshotError

_SECRET = re.compile('KEY|TOKEN|SECRET|PASSWORD', re.IGNORECASE)


def check(record: Mapping[str, Any]) -> None:
  """Refuses a record that would give away this machine's paths or secrets.

  A path is a string in which the home folder or the working folder appears, or that is an
  absolute path to an existing file. A secret is the value (8 characters or more) of an environment
  variable whose name contains KEY, TOKEN, SECRET or PASSWORD.

  Raises:
    FewshotError: names the field, and for a secret the variable; never shows the secret.

  >>> check({'model': 'vit', 'config': {'data': 'data/train.csv'}})
  >>> check({'config': {'data': os.path.abspath('train.csv')}})  # doctest: +ELLIPSIS
  Traceback (most recent call last):
  fewshot.errors.FewshotError: the record's field config.data holds an absolute path; ...
  """
  folders = {os.path.expanduser('~'), os.getcwd()}
  folders |= {os.path.realpath(folder) for folder in folders}
  known = '|'.join(re.escape(folder) for folder in sorted(folders - {os.sep, '~'}))
  inside = re.compile(rf'(?<![\w.-])(?:{known})(?![\w-])') if known else None
  secrets = {
    value: name for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= 8
  }
  for field, text in _strings(record, ''):
    if (inside and inside.search(text)) or _is_existing_path(text):
      raise FewshotError(
        f"the record's field {field} holds an absolute path; "
        'give it relative to the working folder, or by a name'
      )
    for value, name in secrets.items():
      if value in text:
        raise FewshotError(
          f"the record's field {field} holds the value of the environment variable {name}; "
          'keep secrets out of the configuration'
        )


def _is_existing_path(text: str) -> bool:
  # Two separators at least: '/' alone, or a label such as '/s', is more likely a text than a path.
  return os.path.isabs(text) and len(Path(text).parts) > 2 and os.path.exists(text)


def _strings(value: Any, field: str) -> Iterator[tuple[str, str]]:
  if isinstance(value, str):
    yield field, value
  elif isinstance(value, Mapping):
    for name, inner in value.items():
      yield f'{field} (a name in it)' if field else 'names', str(name)
      yield from _strings(inner, f'{field}.{name}' if field else str(name))
  elif isinstance(value, list | tuple):
    for index, inner in enumerate(value):
      if not isinstance(inner, int | float):  # Curves are long, and hold no text.
        yield from _strings(inner, f'{field}[{index}]')
