"""Groups: records reduced to what a figure or a report has one mark for, of splits or episodes."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fewshot import episode_tables, summaries, tables
from fewshot.summaries import Record, Row

EPISODES = 'episode-ci95'  # Of which a row's spread is half of the interval.


class Group(NamedTuple):
  """The runs of one method in one setting."""

  row: Row
  label: str  # What tells it apart in its section.
  setting: str  # '5-way 1-shot', or 'K = 16'.
  records: Sequence[Record]

  @property
  def half(self) -> float | None:
    """Half of the 95 % interval of the mean: Student's over splits or seeds.

    t_{0.975, n - 1} s / sqrt(n)
    """
    row = self.row
    if row.std is None or row.kind == EPISODES:
      return row.std
    from scipy.special import stdtrit

    return float(stdtrit(row.n - 1, 0.975) * row.std / row.n**0.5)

  @property
  def bounds(self) -> tuple[float, float]:
    """The ends of that interval, cut to [0, 1]: no accuracy lies beyond."""
    mean, half = self.row.mean or 0.0, self.half or 0.0
    return max(0.0, mean - half), min(1.0, mean + half)

  @property
  def spread(self) -> str:
    """What its ± is, in words, with n."""
    row = self.row
    if row.kind == EPISODES:
      return f'half of 95 % interval, n = {row.n:,} episodes'
    if row.std is None:
      return f'no spread, n = {row.n}'
    return f'std, n = {row.n} {row.kind.removesuffix("-std")}s'


def groups(records: Iterable[Record]) -> list[Group]:
  """One group a row of the table of splits, one a record of episodes.

  Raises `FewshotError` where the two are mixed, or splits that do not compare.

  >>> groups([])
  []
  """
  found = list(records)
  if not found:
    return []
  return _of_episodes(found) if episode_tables.of_episodes(found) else _of_splits(found)


def _of_splits(records: list[Record]) -> list[Group]:
  members = summaries.group(records)
  found = []
  for section in summaries.sections(summaries.summarise(records)):
    names = [row.method for row in section]
    for row, apart in zip(section, tables.fit_texts(section)[1], strict=True):
      label = row.method if names.count(row.method) == 1 else f'{row.method}, {apart}'
      found.append(Group(row, _printable(label), f'K = {row.k}', members[row.key]))
  return found


def _of_episodes(records: list[Record]) -> list[Group]:
  latest = list({r.get('id', i): r for i, r in enumerate(records)}.values())
  rows = [_episode_row(r) for r in latest]
  # A label says as much as is needed to tell the records of a setting apart.
  texts = [(_taught(r), f'{r["training"]["steps"]:,} steps', f'seed {r["seed"]}') for r in latest]
  settings = [episode_tables.setting(r) for r in latest]
  places = [(row.model, row.task, s) for row, s in zip(rows, settings, strict=True)]
  labels = [row.method for row in rows]
  for part in range(3):
    seen: dict[tuple[object, str], list[int]] = {}
    for i, key in enumerate(zip(places, labels, strict=True)):
      seen.setdefault(key, []).append(i)
    for same in seen.values():
      if len({texts[i][part] for i in same}) > 1:
        for i in same:
          labels[i] = ', '.join(filter(None, (labels[i], texts[i][part])))
  return [
    Group(row, _printable(label), s, [r])
    for row, label, s, r in zip(rows, labels, settings, latest, strict=True)
  ]


def _taught(record: Record) -> str:
  return episode_tables.taught_as(record) or 'untrained'


def _episode_row(record: Record) -> Row:
  score = record['scores'].get('accuracy') or {}
  status, value = record['status'], score.get('value')
  return Row(
    model=record['model'], task=record['task'], k=record['split']['k'], method=record['method'],
    mean=value, std=score.get('spread'), kind=EPISODES, n=score.get('n', 0),
    runs=1, lost=int(value is None), failed=int(status == 'failed'),
    collapsed=int(status == 'collapsed'), trained=record['trained'] or 0,
    total=record['total'] or 0, seconds=record['timings'].get('test_s'),
    tuning=record.get('tuning', 'fixed'),
  )  # fmt: skip


def sections(found: Iterable[Group], by_shots: bool = True) -> list[list[Group]]:
  """Groups that may stand in one figure: of one model, task, prompt, and (`by_shots`) setting."""
  parts: dict[tuple[object, ...], list[Group]] = {}
  for g in found:
    way = g.setting.partition(' ')[0] if g.row.kind == EPISODES else ''
    shown = g.setting if by_shots else way
    parts.setdefault((g.row.model, g.row.task, g.row.prompt, shown), []).append(g)
  return list(parts.values())


def title(section: Sequence[Group], by_shots: bool = True) -> str:
  """What a section is of.

  >>> title([Group(Row('vit', 'digits', 16, 'linear()'), 'linear()', 'K = 16', [])])
  'digits, K = 16, vit'
  """
  row, setting = section[0].row, section[0].setting
  way = setting.partition(' ')[0] if row.kind == EPISODES else ''
  parts = (row.task, setting if by_shots else way, row.model, row.prompt)
  return _printable(', '.join(p for p in parts if p))


def best(section: Sequence[Group], most: int) -> list[Group]:
  """The `most` groups of the highest mean, best first; those without a mean are left out."""
  scored = [g for g in section if g.row.mean is not None]
  return sorted(scored, key=lambda g: -(g.row.mean or 0.0))[:most]


def _printable(text: str) -> str:
  """Half a surrogate pair cannot be written to a file."""
  return text.encode('utf-8', 'replace').decode()
