"""What a family's `Config` may hold, for it is read from a file that anybody may have written."""

import contextlib
import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from flax.errors import FlaxError

from fewshot.errors import FewshotError

DEEPEST = 1000
MOST = {'depth': DEEPEST, 'decoder_depth': DEEPEST, 'depths': DEEPEST, 'image_size': 1 << 12}
ZERO = {'types', 'classes', 'registers', 'eos', 'pad', 'start', 'momentum', 'dropout'}
MISTAKES = (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RecursionError)


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
  """Says in a line what a file lacks, or that it makes no model, whatever computing it leads to.

  >>> with reading('tiny: config.json'):
  ...   {}['vocab_size']
  Traceback (most recent call last):
  fewshot.errors.FewshotError: tiny: config.json lacks 'vocab_size'
  """
  try:
    yield
  except FewshotError:
    raise
  except KeyError as e:
    raise FewshotError(f'{where} lacks {e.args[0]!r}') from None
  except (*MISTAKES, FlaxError) as e:
    what = f'{type(e).__name__}: {e}'[:200]
    raise FewshotError(f'{where} holds a value that makes no model: {what}') from e


def check_depth(raw: Mapping[str, Any], where: str) -> None:
  """Refuses absurd depths in the words of a file, since families count to it as they read it."""
  for name, value in raw.items():
    depth = name.endswith(('num_hidden_layers', 'block_count'))
    if depth and isinstance(value, int) and value > DEEPEST:
      raise FewshotError(f'{where} has {name} {value:.3g}; at most {DEEPEST} layers are computed')


def check(config: Any, where: str) -> None:
  """Refuses a `Config`, or a part of one, with a field that is not of its annotated type or range.

  Numbers are finite and above 0 (those of `ZERO` may be 0, the means of colours anything), and none
  is absurdly large, so that to build the shapes of a model always ends.

  Raises:
    FewshotError: names the first such field.
  """
  for name, kind in typing.get_type_hints(type(config)).items():
    _check(name, getattr(config, name), kind, where)


def _check(name: str, value: Any, kind: Any, where: str) -> None:
  inner = [k for k in typing.get_args(kind) if k is not types.NoneType]
  if isinstance(kind, types.UnionType):
    if value is not None:
      _check(name, value, inner[0], where)
  elif typing.get_origin(kind) is tuple and isinstance(value, tuple):
    for each in value:
      _check(name, each, inner[0], where)
  elif isinstance(value, kind) and (dataclasses.is_dataclass(kind) or hasattr(kind, '_fields')):
    check(value, where)
  elif not _fits(name, value, kind):
    whole = f'a whole number, above 0 and at most {MOST.get(name, 2**31 - 1)}'
    needed = {int: whole, float: 'a number above 0', bool: 'true or false'}.get(kind, 'text')
    raise FewshotError(f'{where} makes the {name} {value!r:.60}; it is to be {needed}')


def _fits(name: str, value: Any, kind: Any) -> bool:
  if kind is bool:
    return value is None or (isinstance(value, int) and value in (0, 1))  # null is false.
  if kind not in (int, float):
    return isinstance(value, kind)
  if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
    return False
  if kind is int:
    return (name not in ZERO) <= value <= MOST.get(name, 2**31 - 1)
  return math.isfinite(value) and (value > 0 or name == 'mean' or (name in ZERO and value == 0))
