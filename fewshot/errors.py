"""The one exception a user's mistake raises, and the help that goes into its message."""

import difflib
import re
from collections.abc import Iterable, Sequence


class FewshotError(ValueError):
  """A mistake in the input: one line that says what happened, what exists and what to do.

  The command line prints the message and exits with status 2; no traceback is shown.
  """


def nearest(name: str, known: Iterable[str]) -> str:
  """The known name closest to `name`, as a hint for an error message.

  >>> nearest('lorra', ['lora', 'ia3'])
  "did you mean 'lora'?"
  >>> nearest('zzz', ['lora', 'ia3'])
  'known: ia3, lora'
  """
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1)
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
