"""One spelling: the Python call, the config string, the record's key and the table's row label.

`@spelled` lets a constructor remember the call that made its result, so that `spell` can print it
and `remake` can repeat it with other arguments; `parse` reads the same text back without `eval`.
"""

import ast
import functools
import inspect
import math
import types
import typing
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from fewshot.errors import FewshotError, nearest

T = TypeVar('T')
MAX_LENGTH = 100_000  # That of tokens in a spelling: texts that calibrate a prompt.


class Made(NamedTuple):
  """The call that made an object: a constructor and its arguments."""

  fn: Callable[..., Any]
  args: tuple[Any, ...]
  named: tuple[tuple[str, Any], ...] = ()  # Pairs, so that what carries them can be hashed.

  def text(self) -> str:
    """The call as it was made, in one form: required arguments by position, others by name."""
    signature = inspect.signature(self.fn)
    shown = []
    for name, value in signature.bind(*self.args, **dict(self.named)).arguments.items():
      parameter = signature.parameters[name]
      if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        shown += [spell(v) for v in value]
      elif parameter.default is inspect.Parameter.empty:
        shown.append(spell(value))
      else:
        shown.append(f'{name}={spell(value)}')
    return f'{self.fn.__name__}({", ".join(shown)})'


def spelled(fn: Callable[..., T]) -> Callable[..., T]:
  """Marks a constructor whose results carry their spelling in a field `made`."""

  @functools.wraps(fn)
  def make(*args: Any, **kwargs: Any) -> T:
    args = tuple(map(_plain, args))
    kwargs = {k: _plain(v) for k, v in kwargs.items()}
    _check(fn, args, kwargs)
    result: Any = fn(*args, **kwargs)
    if 'made' not in getattr(result, '_fields', ()):
      raise FewshotError(
        f'{fn.__name__} returns a {type(result).__name__}, which remembers no call; return what it '
        'is decorated as: a Method, a Fit, a Score(fn)'
      )
    return result._replace(made=Made(make, args, tuple(kwargs.items())))

  return make


def _plain(value: Any) -> Any:
  """A numpy scalar as Python's own number, as it will be spelled."""
  return value.item() if isinstance(value, np.generic) else value


def spell(value: Any) -> str:
  """The text that `parse` turns back into `value`.

  >>> from fewshot import methods
  >>> spell(methods.lora('.*/query', rank=8))
  "lora(where='.*/query', rank=8)"
  """
  made = getattr(value, 'made', None)
  if made is not None:
    return made.text() if isinstance(made, Made) else str(made)
  if isinstance(value, np.generic):
    value = value.item()  # numpy's own repr, np.float64(0.1), is no literal.
  if type(value) in (bool, int, float, str, type(None), tuple, list):
    return repr(value)
  raise FewshotError(f'a {type(value).__name__} has no spelling; make it by a named constructor')


def remake(value: T, **kwargs: Any) -> T:
  """The same call with other arguments, which may be traced: how a sweep varies one.

  >>> from fewshot import fits
  >>> spell(remake(fits.sgd(steps=5), lr=0.1))
  'sgd(steps=5, lr=0.1)'
  """
  if not kwargs:
    return value
  made: Made = typing.cast(Any, value).made
  known = inspect.signature(made.fn).parameters
  for name in kwargs:
    if name not in known:
      raise FewshotError(f'{made.fn.__name__} has no argument {name!r}; {nearest(name, known)}')
  bound = inspect.signature(made.fn).bind(*made.args, **dict(made.named))
  if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in known.values()):
    raise FewshotError(f'{made.fn.__name__} takes no named arguments to vary')
  return made.fn(**{**bound.arguments, **kwargs})


def parse(text: str, known: Mapping[str, Callable[..., Any]], noun: str = 'method') -> Any:
  """Builds what `text` spells: calls of known names, literals and `| & ~`; never `eval`.

  Raises `FewshotError` for anything else, and no other exception whatever the text.

  >>> from fewshot import methods
  >>> spell(parse("lora(rank=4)", methods.VOCABULARY))
  'lora(rank=4)'
  """
  if not isinstance(text, str) or len(text) > MAX_LENGTH:
    raise FewshotError(f'a {noun} is spelled by a string of at most {MAX_LENGTH} characters')
  try:
    with warnings.catch_warnings(action='ignore', category=SyntaxWarning):
      tree = ast.parse(text.strip(), mode='eval').body
    return _build(tree, known, noun)
  except FewshotError as e:
    raise FewshotError(f'{_short(text)}: {e}') from None
  except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError, OverflowError) as e:
    reason = getattr(e, 'msg', None) or str(e) or type(e).__name__
    raise FewshotError(f'{_short(text)} is not a {noun} spelling: {_short(reason)}') from None


def _build(node: ast.AST, known: Mapping[str, Callable[..., Any]], noun: str) -> Any:
  if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
    name = node.func.id
    if name not in known:
      raise FewshotError(f'unknown {noun} {name!r}; {nearest(name, known)}')
    args = [_build(a, known, noun) for a in node.args]
    names = [k.arg for k in node.keywords]
    if None in names:
      raise FewshotError('** is not part of a spelling')
    if twice := {str(n) for n in names if names.count(n) > 1}:
      raise FewshotError(f'{name} is given {", ".join(sorted(twice))} twice')
    return known[name](*args, **{str(k.arg): _build(k.value, known, noun) for k in node.keywords})
  if isinstance(node, ast.Name):
    hint = f'write {node.id}()' if node.id in known else nearest(node.id, known)
    raise FewshotError(f'{node.id!r} is a bare name; {hint}')
  if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.BitOr, ast.BitAnd)):
    left, right = _build(node.left, known, noun), _build(node.right, known, noun)
    return left | right if isinstance(node.op, ast.BitOr) else left & right
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
    return ~_build(node.operand, known, noun)
  try:
    return ast.literal_eval(node)
  except ValueError:
    text = _short(ast.unparse(node))
    raise FewshotError(
      f'{text} is not a {noun} spelling: neither a literal nor a call of a known name'
    ) from None


def _check(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
  """Arguments must exist and be of the annotated types, so that a typo is one clear line."""
  signature = inspect.signature(fn)
  for name in kwargs:
    if name not in signature.parameters:
      known = signature.parameters
      takes = nearest(name, known) if known else 'it takes none'
      raise FewshotError(f'{fn.__name__} has no argument {name!r}; {takes}')
  try:
    bound = signature.bind(*args, **kwargs).arguments
  except TypeError as e:
    raise FewshotError(f'{fn.__name__}{signature}: {e}') from None
  hints = typing.get_type_hints(fn)
  for name, value in bound.items():
    many = signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
    for v in value if many else [value]:
      if name in hints and not _fits(v, hints[name]):
        wants = getattr(hints[name], '__name__', str(hints[name]))
        raise FewshotError(f'{fn.__name__}({name}=...) takes {wants}, not {_short(repr(v))}')
      if isinstance(v, float) and not math.isfinite(v):
        raise FewshotError(f'{fn.__name__}({name}={v}) is not finite, so it has no spelling')
      if isinstance(v, int) and abs(v) >= 2**31:
        raise FewshotError(f'{fn.__name__}({name}=...) is beyond 2,147,483,647')


def _fits(value: Any, hint: Any) -> bool:
  options = typing.get_args(hint) if _is_union(hint) else (hint,)
  for option in options:
    option = typing.get_origin(option) or option
    if option is Any or not isinstance(option, type):
      return True
    if isinstance(value, bool):
      if option is bool:
        return True
    elif isinstance(value, option) or (
      option is float and isinstance(value, (int, jax.Array, np.number))
    ):
      return True
  return False


def _is_union(hint: Any) -> bool:
  return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _short(text: str) -> str:
  text = ' '.join(str(text).split())
  return text if len(text) <= 120 else text[:117] + '...'
