"""Tables of learners tested on the same episodes: mean, its 95 % interval, and who is separable."""

import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewshot import layout, records, statistics
from fewshot.errors import FewshotError
from fewshot.sound import malformed, sound
from fewshot.tables import markdown_row

LEVEL = 0.05
Record = Mapping[str, Any]
TEXTS = (
  'id', 'model', 'method', 'task', 'status', 'hashes.test', 'hashes.episodes', 'training.learner',
  'training.pool',
)  # fmt: skip
COUNTS = ('split.way', 'split.query', 'split.k', 'training.steps', 'scores.accuracy.n')
TRAINED = ('config.train.images', 'config.train.way')  # Of those that were trained.


@dataclass(frozen=True)
class Cell:
  """A learner on the episodes of one setting."""

  model: str
  training: str  # What the backbone was trained as, and on what.
  steps: int  # For how long.
  task: str
  setting: str
  learner: str
  value: float | None
  spread: float | None  # Half of the 95 % interval over episodes.
  n: int
  status: str
  behind: float = 0.0  # How far the mean is behind the best of the setting.
  p: float = 1.0  # That it is as good as the best: paired, corrected by Holm within the setting.
  run: str = ''  # The name of the training.

  @property
  def best(self) -> bool:
    """Whether it cannot be told apart from the best mean of its setting."""
    return self.value is not None and self.p >= LEVEL


def cells(found: Iterable[Record]) -> list[Cell]:
  """A cell a record, compared with the best of those on the same episodes.

  Of a repeated id the last counts.  Records of another ledger or pool are another setting.
  """
  found = list(found)
  check(found)
  latest = {r['id']: r for r in found}
  groups: dict[tuple[Any, ...], list[Record]] = {}
  for r in latest.values():
    same = (r['task'], setting(r), len(r['episodes']), *decided_by(r).items())
    groups.setdefault(same, []).append(r)
  return [cell for group in groups.values() for cell in _compared(group)]


def check(found: Iterable[Record]) -> None:
  """Refuses a record that no run of episodes could have written.

  >>> check([])
  """
  for i, r in enumerate(found, 1):
    if field := odd(r):
      raise FewshotError(f'record {i} has no sound {field}; mend or remove that line')


def odd(record: Record) -> str:
  """Which field of a record of episodes no run writes; empty when there is none.

  >>> odd({'split': {'k': 1, 'seed': 0, 'way': 0}})
  'split.way'
  """
  if field := malformed(record):
    return field
  learner = _at(record, 'training.learner')
  counts = (*COUNTS, *(TRAINED if learner else ()))
  wrong = [name for name in counts if not _is_count(_at(record, name), name in COUNTS[:2])]
  wrong += [name for name in TEXTS if not isinstance(_at(record, name), str)]
  for name in ('training.name', 'scores.accuracy.kind', 'tuning'):
    if not isinstance(_at(record, name) or '', str):
      wrong.append(name)
  return wrong[0] if wrong else _odd_episodes(record)


def _odd_episodes(record: Record) -> str:
  """As `odd`, of the accuracies: each episode has one, or the record says that it has none."""
  values, score = record.get('episodes'), record['scores']['accuracy']
  if not isinstance(values, list) or not all(map(_holds_number, set(map(type, values)))):
    return 'episodes'
  whole = [x for x in values if x is not None]
  if whole and not (min(whole) >= 0 and max(whole) <= 1):
    return 'episodes'
  scored = score.get('value') is not None
  return 'episodes' if scored and not len(whole) == len(values) == score['n'] > 0 else ''


def _holds_number(kind: type) -> bool:
  return issubclass(kind, float | int | type(None)) and kind is not bool


def _at(record: Any, path: str) -> Any:
  for name in path.split('.'):
    record = record.get(name) if isinstance(record, Mapping) else None
  return record


def _is_count(value: Any, positive: bool) -> bool:
  return type(value) is int and int(positive) <= value < 2**53


def usable(known: Sequence[dict[str, Any]], path: str | Path) -> list[dict[str, Any]]:
  """The records, of splits or of episodes, that a run could have written.

  Others are left out with a warning line; see `fewshot.sound`.
  """
  if not of_episodes(known):
    return sound(known, path)
  found = []
  for i, record in enumerate(known, 1):
    if field := odd(record):
      said = f'record {i} of {path} is left out: its field {field} is not what a run writes'
      print(f'fewshot: {said}', file=sys.stderr)
    else:
      found.append(record)
  return found


def setting(record: Record) -> str:
  """'5-way 1-shot'."""
  return f'{record["split"]["way"]}-way {record["split"]["k"]}-shot'


def decided_by(record: Record) -> dict[str, str]:
  """What decides the episodes that a record was tested on."""
  split = record['split']
  return {
    'pool': record['hashes']['test'],
    'episodes': record['hashes']['episodes'],
    'query': str(split['query']),
  }


def write(folder: str | Path) -> list[Cell]:
  """Writes table.md of a folder of such records, and gives its cells."""
  known = usable(records.read(folder, strict=False), folder)
  if not known:
    raise FewshotError(f'no finished run in {folder}; run an experiment into this folder first')
  found = cells(known)
  records.replace(Path(folder) / 'table.md', render_markdown(found).encode('utf-8', 'replace'))
  return found


def render_markdown(found: Sequence[Cell]) -> str:
  """A table for each task: learners down, settings across."""
  parts = []
  for task in dict.fromkeys(c.task for c in found):
    here = [c for c in found if c.task == task]
    settings = list(dict.fromkeys(c.setting for c in here))
    head = ['learner', 'backbone', *settings]
    lines = [
      f'### {task}',
      '',
      markdown_row(head),
      markdown_row(['---', '---', *['---:'] * len(settings)]),
    ]
    lines += [markdown_row(row) for row in _rows(here, settings)]
    parts.append('\n'.join([*lines, '', caption(here), '']))
  return '\n'.join(parts)


def render_terminal(found: Sequence[Cell], console: Any) -> None:
  """The same on a rich console."""
  for task in dict.fromkeys(c.task for c in found):
    here = [c for c in found if c.task == task]
    settings = list(dict.fromkeys(c.setting for c in here))
    lines = [[cell.replace('`', '') for cell in row] for row in _rows(here, settings)]
    for model in {c.model for c in here}:  # What was trained, and below it as what.
      lines = [[cell.replace(f'{model}, ', f'{model}\n') for cell in row] for row in lines]
    cells, shared = layout.brief(
      layout.Cells(['learner', 'backbone', *settings], lines, 2), console.width
    )
    console.print(task, '', sep='\n', soft_wrap=False)
    layout.show(cells, console)
    console.print('', caption(here) + shared, '', sep='\n', soft_wrap=False)


def caption(here: Sequence[Cell]) -> str:
  """How the numbers came about, in full sentences."""
  ns = sorted({c.n for c in here})
  steps = sorted({c.steps for c in here if c.steps})
  trained = f' Backbones were trained for {_span(steps)} steps.' if steps else ''
  return (
    f'Accuracy in %, mean ± half of its 95 % interval over {" or ".join(f"{n:,}" for n in ns)} '
    'episodes, the same ones for every learner. * marks the best mean of a setting and those that '
    f'cannot be told apart from it (paired permutation test, Holm, p >= {LEVEL}).' + trained
  )


def as_json(found: Sequence[Cell]) -> list[dict[str, Any]]:
  """The cells as plain dicts."""
  return [asdict(c) | {'best': c.best} for c in found]


def _rows(here: Sequence[Cell], settings: Sequence[str]) -> list[list[str]]:
  by: dict[tuple[str, str], dict[str, list[Cell]]] = {}
  for c in here:
    backbone = f'{c.model}, {c.training}' if c.training else c.model
    by.setdefault((c.learner, backbone), {}).setdefault(c.setting, []).append(c)
  for key in [k for k, of in by.items() if max(map(len, of.values())) > 1]:
    by |= _apart(key, by.pop(key))
  return [
    [f'`{learner}`', backbone, *(' / '.join(map(_shown, of.get(s, []))) or '–' for s in settings)]
    for (learner, backbone), of in by.items()
  ]


def _apart(key: tuple[str, str], of: dict[str, list[Cell]]) -> dict[tuple[str, str], Any]:
  """A row for each training, where a setting has several."""
  out: dict[tuple[str, str], dict[str, list[Cell]]] = {}
  for c in (c for cells in of.values() for c in cells):
    text = f'{key[1]}, {c.steps:,} steps ({c.run[:6]})'
    out.setdefault((key[0], text), {}).setdefault(c.setting, []).append(c)
  return out


def _span(numbers: Sequence[int]) -> str:
  low, high = f'{numbers[0]:,}', f'{numbers[-1]:,}'
  return low if low == high else f'{low} to {high}'


def _shown(cell: Cell) -> str:
  if cell.value is None:
    return cell.status
  mark = ' *' if cell.best else ''
  spread = f' ± {100 * cell.spread:.2f}' if cell.spread is not None else ''
  bad = '' if cell.status == 'ok' else f' ({cell.status})'
  return f'{100 * cell.value:.2f}{spread}{mark}{bad}'


def _compared(group: Sequence[Record]) -> list[Cell]:
  """The records of one setting, each against the best of them.

  Holm's correction is over all pairs: which one is the best was seen in the same episodes.
  """
  whole = [r for r in group if r['scores']['accuracy'].get('value') is not None]
  whole.sort(key=lambda r: r['scores']['accuracy']['value'], reverse=True)
  pairs = list(itertools.combinations(whole, 2))
  differences = [np.asarray(a['episodes']) - np.asarray(b['episodes']) for a, b in pairs]
  held = statistics.holm(statistics.p_values(differences, 'permutation'))
  known = zip(pairs, differences, held, strict=True)
  of_best = {b['id']: (float(d.mean()), p) for (a, b), d, p in known if a is whole[0]}
  return [_cell(r, *of_best.get(r['id'], (0.0, 1.0))) for r in group]


def _cell(r: Record, behind: float, p: float) -> Cell:
  score = r['scores']['accuracy']
  return Cell(
    r['model'], taught_as(r), r['training']['steps'], r['task'], setting(r), r['method'],
    score.get('value'), score.get('spread'), score['n'], r['status'], behind, p,
    r['training'].get('name', ''),
  )  # fmt: skip


def taught_as(record: Record) -> str:
  """'protonet() on omniglot-vinyals-trainval, 60-way'; empty where nothing was trained."""
  t = record['training']
  if not t['learner']:
    return ''
  train = record['config']['train']
  per = f'{train["images"]} images a step' if train['images'] else f'{train["way"]}-way'
  return f'{t["learner"]} on {t["pool"]}, {per}'


def of_episodes(found: Sequence[Record]) -> bool:
  """Whether these are records of episodes; such and others in one folder are refused."""
  kinds = {'episodes' in r for r in found}
  if len(kinds) > 1:
    raise FewshotError('the folder has records of episodes and of splits; keep them in two')
  return kinds == {True}
