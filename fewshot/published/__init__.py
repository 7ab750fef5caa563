"""Results that others published, as data: every number with its table, spread, source and grade.

`numbers.jsonl` has a line for what shares a table, a method, a backbone and a source, and in its
`rows` the numbers: task, setting, value and, where they are known, spread and n.  `at_hand.json`
says which of the published backbones and tasks the library has, by which of its own names.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fewshot.errors import FewshotError, nearest

FOLDER = Path(__file__).parent
# A: the authors' or the library's own repository; B: a copy; C: read off a figure; D: recalled,
# never to be compared with; abstract: a headline of the abstract.
GRADES = ('A', 'B', 'C', 'D', 'abstract')
# split-std and seed-std: standard deviations; episode-ci95: half of a 95 % interval; unknown: the
# source does not say, or it is of another kind and the note says which.
KINDS = ('split-std', 'seed-std', 'episode-ci95', 'unknown', None)
NAMED = ('paper', 'table', 'method', 'backbone', 'task', 'setting', 'metric')  # Of one number.


class Number(NamedTuple):
  """A published number.  Re-implementations stand under the library that ran them."""

  paper: str
  table: str
  method: str
  backbone: str | None  # None and 'unstated': the source does not say.
  task: str
  setting: str
  metric: str
  value: float
  unit: str
  spread: float | None
  spread_kind: str | None
  n: int | None  # Seeds, splits or episodes.
  source: str
  grade: str
  note: str | None

  @property
  def error(self) -> float:
    """The standard error of the value; 0 where the source does not give it.

    Published standard deviations are mostly the population's, hence n - 1.
    """
    if self.spread is None:
      return 0.0
    if self.spread_kind == 'episode-ci95':
      return self.spread / 1.96
    n = self.n or 1
    deviation = self.spread_kind in ('split-std', 'seed-std')
    return self.spread / (n - 1) ** 0.5 if deviation and n > 1 else 0.0


@functools.cache
def numbers() -> tuple[Number, ...]:
  """All published numbers, in the order of the file.

  >>> numbers()[0][:2], numbers()[0].value
  (('protonet', 'README Published'), 98.8)
  """
  lines = (FOLDER / 'numbers.jsonl').read_text(encoding='utf-8').splitlines()
  return tuple(number for line in lines for number in _numbers(json.loads(line)))


def _numbers(shared: dict[str, Any]) -> list[Number]:
  rows = shared.pop('rows')
  missing: dict[str, Any] = dict.fromkeys(('backbone', 'spread_kind', 'note'))
  found = []
  for task, setting, value, *more in rows:
    spread, n = (*more, None, None)[:2]
    kind = shared.get('spread_kind') if spread is not None else None
    own: dict[str, Any] = {
      'task': task,
      'setting': setting,
      'value': value,
      'spread': spread,
      'n': n,
    }
    found.append(Number(**missing | shared | own | {'spread_kind': kind}))
  return found


@functools.cache
def _named() -> dict[tuple[Any, ...], Number]:
  return {tuple(getattr(n, f) for f in NAMED): n for n in numbers()}


def find(**fields: Any) -> Number:
  """The one number of these fields: paper, table, method, backbone, task, setting (and metric).

  >>> find(paper='maml', table='README Published', method='MAML', backbone='Conv4',
  ...      task='Omniglot', setting='5-way 5-shot').value
  99.9

  Raises:
    FewshotError: no number has all of them.
  """
  fields = {'metric': 'accuracy'} | fields
  found = _named().get(tuple(fields[f] for f in NAMED))
  if found is None:
    said = ', '.join(str(fields[f]) for f in NAMED)
    raise FewshotError(f'nothing is published as {said}; see fewshot/published/numbers.jsonl')
  return found


def of_paper(paper: str) -> list[Number]:
  """The numbers that stand under a paper or a library.

  >>> len(of_paper('tim'))
  28
  """
  found = [n for n in numbers() if n.paper == paper]
  if not found:
    known = sorted({n.paper for n in numbers()})
    raise FewshotError(f'there is no number of the paper {paper!r}; {nearest(paper, known)}')
  return found


@functools.cache
def at_hand() -> dict[str, dict[str, str]]:
  """Published names of 'backbones' and 'tasks' that the library has, and what it calls them."""
  return json.loads((FOLDER / 'at_hand.json').read_text(encoding='utf-8'))


def needs(number: Number) -> list[str]:
  """What is not at hand to run it: 'weights of ...', 'data of ...', 'a GPU'; empty: nothing.

  >>> needs(find(paper='tim', table='Table 1', method='TIM-GD', backbone='ResNet18',
  ...            task='mini-ImageNet', setting='5-way 1-shot'))
  ['weights of ResNet18', 'data of mini-ImageNet']
  """
  found, known = [], at_hand()
  backbone = number.backbone or 'unstated'
  if backbone == 'unstated':
    found.append('to know the backbone')
  elif backbone not in known['backbones']:
    found.append('people' if backbone == 'human' else f'weights of {backbone}')
  if number.task not in known['tasks']:
    found.append(f'data of {number.task}')
  if known['backbones'].get(backbone) == 'resnet12':  # Trained from scratch by their protocols.
    found.append('a GPU')
  return found


def summed(needed: Sequence[Sequence[str]], most: int = 2) -> str:
  """What several numbers need, the most frequent first, in words.

  >>> summed([['weights of A', 'data of X'], ['weights of B', 'data of X'], ['a GPU']], most=1)
  'data of X; weights of A and 1 more; a GPU'
  """
  counts: dict[str, dict[str, int]] = {}
  for need in (need for of in needed for need in of):
    kind, of, name = need.partition(' of ')
    names = counts.setdefault(kind + of, {})
    names[name] = names.get(name, 0) + 1
  said = []
  for kind, names in sorted(counts.items(), key=lambda item: -max(item[1].values())):
    order = sorted(names, key=lambda name: -names[name])
    more = f' and {len(order) - most} more' if len(order) > most else ''
    said.append(kind + ', '.join(order[:most]) + more)
  return '; '.join(said)
