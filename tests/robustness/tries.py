"""How often a fault is tried: a few times by `make test`, in full by `make test-faults`."""

import os


def tries(small: int, full: int) -> int:
  """`small`, unless $FEWSHOT_TRIES says 'full' or a number of its own.

  >>> tries(3, 100) in (3, 100) or 'FEWSHOT_TRIES' in os.environ
  True
  """
  said = os.environ.get('FEWSHOT_TRIES', '')
  if said in ('', 'full'):
    return full if said else small
  if not said.isdecimal() or int(said) < 1:
    raise ValueError(f"FEWSHOT_TRIES={said!r}; it is 'full', or how often each fault is tried")
  return int(said)
