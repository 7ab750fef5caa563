"""What the listing commands print: rows with stable keys, for people and for programs."""

import ast
import inspect
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from fewshot import assets
from fewshot.errors import FewshotError, nearest

# Of the methods that cannot be called without arguments.
EXAMPLES = {
  'gmt': 'gmt(0.2)',
  'hft': 'hft(period=100)',
  'id3': 'id3(0.01, steps=100)',
  'rigl': 'rigl(0.01, steps=100)',
  'salient': 'salient(snip(), 0.01)',
  'soft_mask': 'soft_mask(snip())',
  'unfreeze': 'unfreeze(period=100)',
  'anchored': 'anchored(full())',
  'as_weights': 'as_weights(lora())',
  'calibrated': 'calibrated(((0,),))',
  'class_texts': 'class_texts(((0,), (1,)))',
  'explained': 'explained((0, 1))',
  'label_conditioning': 'label_conditioning(((0,), (1,)), 2)',
  'likelihood': 'likelihood(((0,), (1,)))',
  'soft_verbalizer': 'soft_verbalizer(((0,), (1,)))',
  'tokens': 'tokens((0,))',
  'verbalizer': 'verbalizer(((0,), (1,)))',
}


def rows(what: str) -> list[dict[str, Any]]:
  """The rows of `fewshot methods`, `fits`, `learners`, `models`, `tasks` or `assets`.

  >>> rows('tasks')[0]['name']
  'newsgroups'
  """
  if what == 'methods':
    return _methods()
  if what == 'fits':
    return _fits()
  if what == 'learners':
    return _learners()
  if what == 'assets':
    return assets.rows()
  if what == 'models':
    from fewshot import models

    return models.rows()
  from fewshot.data import sources as pools
  from fewshot.tasks import sources

  return [*sources.rows(), *pools.rows()]


def manual(name: str) -> str:
  """The call and the docstring of a method, fit, learner, score or program.

  >>> print(manual('full').partition(':')[0])
  full()
  <BLANKLINE>
    Full fine-tuning (Howard and Ruder 2018, arXiv
  """
  from fewshot import learners, programs  # Whose vocabularies have those of methods and fits.

  known = programs.VOCABULARY | learners.VOCABULARY
  if name not in known:
    raise FewshotError(
      f'there is no method, fit, learner or program {name!r}; {nearest(name, known)}'
    )
  f = known[name]
  return f'{name}{_arguments(f)}\n\n' + textwrap.indent(inspect.getdoc(f) or '', '  ')


def _arguments(f: Any) -> str:
  """The arguments of a constructor; defaults that are made by others as spelled."""
  from fewshot.methods import spell

  signature = inspect.signature(f)
  spelled = {
    name: p.replace(default=_Text(spell(p.default)))
    for name, p in signature.parameters.items()
    if getattr(p.default, 'made', None)
  }
  shown = [spelled.get(n, p) for n, p in signature.parameters.items()]
  return str(signature.replace(parameters=shown)).partition(' ->')[0]


class _Text(str):
  """What a signature shows as it stands, without quotes."""

  def __repr__(self) -> str:
    return str(self)


def verified(names: Sequence[str]) -> list[dict[str, Any]]:
  """Every file of the named assets (all of them by default) with its status, re-hashed."""
  table = [(n, row) for n in (names or assets.ASSETS) for row in assets.verify(n)]
  return [{'name': n, 'file': r.file, 'status': r.status, 'bytes': r.bytes} for n, r in table]


def show(table: list[dict[str, Any]]) -> None:
  """Prints rows as a table; long lists are left to --json."""
  from rich.table import Table

  from fewshot.console import stdout

  shown = Table(box=None, pad_edge=False)
  keys = [k for k in table[0] if not isinstance(table[0][k], list) and k != 'sha256']
  for k in keys:
    shown.add_column(k, overflow='fold', justify='right' if _is_number(table[0][k]) else 'left')
  for row in table:
    shown.add_row(*(_cell(row[k]) for k in keys))
  stdout.print(shown, soft_wrap=False)


def _methods() -> list[dict[str, Any]]:
  """name, paper, place, mergeable, peft and source lines of each method."""
  from fewshot import methods

  examples = {f: _example(f) for f in methods.METHODS}
  return [
    {
      'name': f.__name__,
      'paper': _paper(inspect.getdoc(f) or ''),
      'place': 'weight' if examples[f].in_weights else methods.PLACE[f.__name__],
      'mergeable': examples[f].mergeable,
      'peft': methods.PEFT.get(f.__name__),
      'lines': _lines(f),
    }
    for f in methods.METHODS
  ]


def _lines(constructor: Any) -> int:
  """Lines of source from `def` on, the docstring and blank lines not counted."""
  source = inspect.getsource(inspect.unwrap(constructor))
  function = ast.parse(source).body[0]
  assert isinstance(function, ast.FunctionDef)
  doc, first = function.body[0], function.lineno - 1
  kept = source.splitlines()[first : doc.lineno - 1] + source.splitlines()[doc.end_lineno :]
  return sum(bool(line.strip()) for line in kept)


def _fits() -> list[dict[str, Any]]:
  """name, arguments with their defaults, and what it does."""
  from fewshot import fits

  return [
    {
      'name': name,
      'arguments': str(inspect.signature(f)).partition(' ->')[0].strip('()'),
      'about': (inspect.getdoc(f) or '').partition('\n')[0],
    }
    for name, f in fits.VOCABULARY.items()
  ]


def _learners() -> list[dict[str, Any]]:
  """name, arguments, paper and what it does."""
  from fewshot import learners

  docs = {f: inspect.getdoc(f) or '' for f in learners.LEARNERS}
  return [
    {
      'name': f.__name__,
      'arguments': str(inspect.signature(f)).partition(' ->')[0].strip('()'),
      'paper': _paper(doc),
      'about': doc.partition('\n')[0],
    }
    for f, doc in docs.items()
  ]


def _example(constructor: Any) -> Any:
  from fewshot import methods

  name = constructor.__name__
  return methods.parse(EXAMPLES.get(name, f'{name}()'))


def _paper(doc: str) -> str | None:
  """The citation in a docstring: what stands in brackets and has a year."""
  found = re.search(r'\(([^()]*\b(?:19|20)\d\d\b[^()]*)\)', doc)
  return ' '.join(found.group(1).split()) if found else None


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cell(value: Any) -> str:
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if value is None:
    return '-'
  return f'{value:,}' if isinstance(value, int) else str(value)
