"""Paths: how a method names the parameters and sites it touches, and selections of them.

A path is the '/'-joined way to a leaf ('encoder/block_0/attn/query/kernel') or to a module
('encoder/block_0/attn/query').  Patterns are matched by `re.fullmatch` on the whole path.
"""

import ast
import operator
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax

from fewshot.errors import FewshotError, brief
from fewshot.methods.spelling import Made, spell, spelled

T = TypeVar('T')
REPEATS = 6  # In a row, in a pattern.


class Selection(NamedTuple):
  """A predicate over paths, combined by `|`, `&` and `~`.

  One that depends on data has a plan, (forward, params, calib) -> Selection; until it is planned
  it holds for all that it chooses among.

  >>> s = at('.*/bias') & ~at('head/.*')
  >>> s.of(['head/bias', 'mlp/bias', 'mlp/kernel'])
  ['mlp/bias']
  >>> spell(s)
  "at('.*/bias') & ~at('head/.*')"
  """

  holds: Callable[[str], bool]
  made: Made | str | None = None
  plan: Callable[..., 'Selection'] | None = None

  def of(self, paths: Iterable[str]) -> list[str]:
    """The selected among `paths`, in their order."""
    return [p for p in paths if self.holds(p)]

  def __or__(self, other: 'Selection') -> 'Selection':
    other = _selection(other)
    plan = _planned(operator.or_, self, other)
    return Selection(lambda p: self.holds(p) or other.holds(p), _binary(self, '|', other), plan)

  def __and__(self, other: 'Selection') -> 'Selection':
    other = _selection(other)
    plan = _planned(operator.and_, self, other)
    return Selection(lambda p: self.holds(p) and other.holds(p), _binary(self, '&', other), plan)

  def __invert__(self) -> 'Selection':
    plan = _planned(operator.invert, self)
    holds = self.holds if plan else lambda p: not self.holds(p)
    return Selection(holds, '~' + _operand(self), plan)


Where = str | Selection


@spelled
def at(pattern: str) -> Selection:
  """Paths that match a regular expression as a whole.

  >>> at('.*/(query|value)').of(['attn/query', 'attn/key'])
  ['attn/query']
  """
  found = compiled(pattern)
  return Selection(lambda path: found.fullmatch(path) is not None)


def selection(where: Where) -> Selection:
  """`where` as a selection, if it is a pattern."""
  return at(where) if isinstance(where, str) else where


def among(value: Any, where: Where = '.*') -> Any:
  """A choice of whole tensors, modules or layers as a selection; any other value as it is.

  `where` is what is chosen among, if the choice does not say.
  """
  return value.among(where) if hasattr(value, 'among') else value


def flatten(tree: Any) -> dict[str, Any]:
  """The leaves of any pytree by path.

  >>> flatten({'mlp': {'bias': 1, 'kernel': 2}})
  {'mlp/bias': 1, 'mlp/kernel': 2}
  """
  return {keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def replace(tree: T, leaves: Mapping[str, Any]) -> T:
  """The same tree with the leaves at the given paths replaced.

  >>> replace({'a': 1, 'b': {'c': 2}}, {'b/c': 5})
  {'a': 1, 'b': {'c': 5}}
  """
  return jax.tree_util.tree_map_with_path(lambda p, x: leaves.get(keystr(p), x), tree)


def select(leaves: Mapping[str, T], where: Where, what: str = 'parameter') -> dict[str, T]:
  """The entries of `leaves` that `where` selects; nothing selected is an error.

  >>> select({'a/bias': 1, 'a/kernel': 2}, '.*/bias')
  {'a/bias': 1}
  """
  found = {p: leaves[p] for p in selection(where).of(leaves)}
  if not found:
    rule = repr(where) if isinstance(where, str) else spell(where)
    raise FewshotError(
      f'{rule} matches none of the {len(leaves)} {what}s; there are {brief(list(leaves))}; '
      'patterns match the whole path'
    )
  return found


def stable_hash(*parts: Any) -> int:
  """A 32-bit number that depends on the parts alone, for `jax.random.fold_in`.

  >>> stable_hash('lora', 'encoder/block_0/attn/query')
  810818727
  """
  return zlib.crc32('\0'.join(map(str, parts)).encode())


def keystr(keys: Any) -> str:
  """The path of a leaf, from the keys that `jax.tree_util` gives."""
  return jax.tree_util.keystr(keys, simple=True, separator='/')


def compiled(pattern: str) -> re.Pattern[str]:
  """A regular expression that is matched in little time, whoever wrote it.

  What repeats a group that repeats or chooses, as (a+)+ or (a|a)+, may take time exponential in the
  length of a path, and each further repetition multiplies the time by that length.

  Raises:
    FewshotError: it is none, or may take so long.

  >>> compiled('(a+)+!')
  Traceback (most recent call last):
  fewshot.errors.FewshotError: '(a+)+!' repeats what repeats or chooses; write it without that
  """
  often = _repetitions(pattern)
  if often > REPEATS:
    raise FewshotError(f'{pattern[:80]!r} has {often} repetitions in a row; at most {REPEATS}')
  try:
    return re.compile(pattern)
  except (re.error, RecursionError, OverflowError) as e:
    raise FewshotError(f'{pattern[:80]!r} is not a regular expression: {e}') from None


def _repetitions(pattern: str) -> int:
  """How many repetitions stand in a row, at most; a repeated group that has some is refused."""
  plain = re.sub(r'\\.|\[\^?\]?(?:\\.|[^\]\\])*\]', 'x', pattern, flags=re.DOTALL)
  groups = [[0, 0, 0]]  # Of each open one: in a row so far, at most before a bar, bars.
  closed = 0  # Whether the last token closed a group that repeats or chooses.
  for token in re.findall(r'\{\d*,?\d*\}|.', plain, re.DOTALL):
    if token in '*+' or (len(token) > 1 and token != '{}'):
      if closed:
        raise FewshotError(
          f'{pattern[:80]!r} repeats what repeats or chooses; write it without that'
        )
      groups[-1][0] += 1
    elif token == '(':
      groups.append([0, 0, 0])
    elif token == '|':
      row, most, bars = groups[-1]
      groups[-1] = [0, max(row, most), bars + 1]
    closed = 0
    if token == ')' and len(groups) > 1:
      row, most, bars = groups.pop()
      closed = max(row, most) + bars
      groups[-1][0] += max(row, most)
      groups[-1][2] += bars
  row, most, _ = groups[0]
  return max(row, most)


def _binary(left: Selection, op: str, right: Selection) -> str:
  return f'{_operand(left)} {op} {_operand(right)}'


def _operand(s: Selection) -> str:
  text = spell(s)
  return f'({text})' if isinstance(ast.parse(text, mode='eval').body, ast.BinOp) else text


def _planned(combine: Callable[..., Selection], *parts: Selection) -> Any:
  """The plan of a combination: that of each part that has one."""

  def plan(*data: Any) -> Selection:
    return combine(*(s.plan(*data) if s.plan else s for s in parts))

  return plan if any(s.plan for s in parts) else None


def _selection(other: Any) -> Selection:
  other = among(other)
  if not isinstance(other, Selection):
    raise FewshotError(f"| and & combine selections, not {other!r}; write at('.*/bias') around it")
  return other
