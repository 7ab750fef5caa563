"""The one exception a user's mistake raises, and the help that goes into its message."""

import difflib
import re
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

LONGEST = 600  # Characters of a message.


class FewshotError(ValueError):
  """A mistake in the input: one line that says what happened, what exists and what to do.

  The command line prints the message and exits with status 2; no traceback is shown.  Names out of
  files may hold anything: what is not printable is escaped, and of a long message the middle is
  left out.

  >>> str(FewshotError('there is no model a\\nb'))
  'there is no model a\\\\nb'
  """

  def __init__(self, message: str = '') -> None:
    line = ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
    cut = f'{line[: LONGEST - 200]} ... {line[-195:]}'
    super().__init__(line if len(line) <= LONGEST else cut)


def nearest(name: str, known: Iterable[str]) -> str:
  """The known name closest to `name`, as a hint for an error message.

  >>> nearest('lorra', ['lora', 'ia3'])
  "did you mean 'lora'?"
  >>> nearest('zzz', ['lora', 'ia3'])
  'known: ia3, lora'
  """
  known = sorted(known)
  close = difflib.get_close_matches(name[:100], known, n=1)
  return f'did you mean {close[0]!r}?' if close else 'known: ' + brief(known)


def brief(names: Sequence[str], limit: int = 12) -> str:
  """Lists names with numbered ones folded together, so that a model's paths fit on a line.

  >>> brief(['block_0/kernel', 'block_1/kernel', 'head/bias'])
  'block_*/kernel (2), head/bias'
  """
  folded: dict[str, list[str]] = {}
  for name in names:
    folded.setdefault(re.sub(r'\d+', '*', name), []).append(name)
  shown = [v[0] if len(v) == 1 else f'{k} ({len(v)})' for k, v in folded.items()]
  more = f', and {len(shown) - limit} more' if len(shown) > limit else ''
  return ', '.join(shown[:limit]) + more


def cause(error: BaseException) -> str:
  """What an unexpected error is called and the first line of what it says.

  >>> cause(ValueError('no\\nmore'))
  'ValueError: no'
  """
  return f'{type(error).__name__}: {next(iter(str(error).splitlines()), "")}'[:300]


def counts(**values: Any) -> None:
  """Refuses what is no whole number of at least 1.

  >>> counts(batch=2.5)
  Traceback (most recent call last):
  fewshot.errors.FewshotError: batch=2.5 is no whole number of at least 1
  """
  for name, value in values.items():
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
      raise FewshotError(f'{name}={value!r} is no whole number of at least 1')
