"""Published numbers beside ours: what was claimed, what our records say, and a verdict.

`published/claims.json` names the numbers that our configs and records answer to; the published
value of each is looked up in `published/numbers.jsonl`, so that it stands in one place.
"""

import json
import statistics as moments
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fewshot import episode_tables, published, records, statistics, summaries
from fewshot.errors import FewshotError, nearest

FILE = published.FOLDER / 'claims.json'
ROOT = published.FOLDER.parents[1]  # Of a checkout: an installed package has no experiments.
EPISODES = 'episode-ci95'  # The kind of their spread.
VERDICTS = ('reproduced', 'different', 'not comparable', 'not run')
KEYS = (
  *('paper', 'table', 'method', 'task', 'setting', 'published', 'ours', 'spread', 'n', 'margin'),
  *('verdict', 'why', 'schedule', 'train_s', 'name', 'backbone', 'metric', 'published_spread'),
  *('published_spread_kind', 'published_n', 'spread_kind', 'difference', 'by', 'on', 'command'),
  *('source', 'grade', 'note'),
)


def claims() -> dict[str, dict[str, Any]]:
  """What we compare ourselves with, by the name that `fewshot reproduce` takes."""
  return json.loads(FILE.read_text(encoding='utf-8'))


def claim(name: str) -> dict[str, Any]:
  """The claim of that name.

  >>> claim('protonet-omniglt')
  Traceback (most recent call last):
  fewshot.errors.FewshotError: there is no 'protonet-omniglt'; did you mean 'protonet-omniglot'?
  """
  known = claims()
  if name not in known:
    raise FewshotError(f'there is no {name!r}; {nearest(name, known)}')
  return known[name]


def rows(
  name: str | None = None, folder: str | Path | None = None, prefix: str = ''
) -> list[dict[str, Any]]:
  """A row for each number that a claim answers to: published, ours, the margin and the verdict.

  'reproduced' or 'different' is the verdict of `statistics.equivalence` with the stated margin; the
  standard error is that of our episodes or splits and, where it is known, of theirs.  'not
  comparable' is what was not measured as they did; 'not run' has no record.  Accuracies in %.

  Args:
    name: of one claim; by default all.
    folder: of the records; by default the committed ones.
    prefix: of the names of claims.
  """
  if folder and not Path(folder).is_dir():
    raise FewshotError(f'there is no folder {folder}; give that of a run, or leave --out away')
  named = claims() if name is None else {name: claim(name)}
  chosen = {k: c for k, c in named.items() if k.startswith(prefix)}
  if not chosen:
    raise FewshotError(f'no claim begins with {prefix!r}; {nearest(prefix, named)}')
  read: dict[Path, list[dict[str, Any]]] = {}  # Many claims are on the records of one folder.
  found = []
  for label, c in chosen.items():
    where = Path(folder or ROOT / c['records'])
    if where not in read:
      read[where] = episode_tables.usable(records.read_if_any(where), where)
    found += [_row(label, {**c, **row}, read[where]) for row in c['rows']]
  return found


def _row(name: str, c: Mapping[str, Any], found: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
  """One comparison; `c` is the claim with what one of its rows adds."""
  theirs = published.find(**{f: c[f] for f in published.NAMED if f in c})
  base = dict.fromkeys(KEYS) | _published(theirs)
  base |= {'name': name, 'margin': c['margin'], 'by': c['by'], 'on': c['on']}
  base['command'] = f'fewshot reproduce {name}'
  ours = measure([r for r in found if _answers(r, c)])
  if ours is None:
    why = f'needs {c["lacks"]}' if 'lacks' in c else f'no record: {base["command"]}'
    return base | {'verdict': 'not run', 'why': why}
  if ours.value is None:
    return base | {'verdict': 'different', 'why': ours.status}
  error = 0.0 if c.get('fixed') else (ours.error**2 + theirs.error**2) ** 0.5
  test = statistics.equivalence(ours.value, error, theirs.value, c['margin'])
  verdict = 'not comparable' if 'differs' in c else test.verdict
  return base | {
    'ours': round(ours.value, 2),
    'spread': round(ours.spread, 2),
    'spread_kind': ours.kind,
    'n': ours.n,
    'difference': round(test.difference, 2),
    'verdict': verdict,
    'why': _why(test, c),
    'schedule': _schedule(c, ours.last),
    'train_s': ours.seconds,
  }


def _published(n: published.Number) -> dict[str, Any]:
  """The fields of a row that the published number alone decides."""
  same = ('paper', 'table', 'method', 'task', 'setting', 'backbone', 'metric', 'source', 'grade')
  return {f: getattr(n, f) for f in (*same, 'note')} | {
    'published': n.value,
    'published_spread': n.spread,
    'published_spread_kind': n.spread_kind,
    'published_n': n.n,
  }


def _answers(record: Mapping[str, Any], c: Mapping[str, Any]) -> bool:
  """Whether a record is of the experiment, method, task and setting of a claim's row."""
  split = record['split']
  at = episode_tables.setting(record) if 'episodes' in record else f'K={split["k"]}'
  want = (c['experiment'], c['by'], c['on'], c.get('at', c['setting']))
  said = ((record['config'] or {}).get('name'), record['method'], record['task'], at)
  return said == want and c.get('model', record['model']) == record['model']


class Measured(NamedTuple):
  """What our records of one cell come to, in %."""

  value: float | None
  spread: float
  kind: str  # 'episode-ci95': half of a 95 % interval; 'split-std', 'seed-std': ddof = 1.
  n: int
  error: float  # The standard error of the value.
  status: str
  seconds: float | None
  last: Mapping[str, Any]


def measure(found: Sequence[Mapping[str, Any]]) -> Measured | None:
  """The mean of records of one cell: of the last run of episodes, or over all splits.

  >>> cell = {'split': {'k': 1}, 'seed': 0, 'status': 'ok', 'timings': {}}
  >>> runs = [{**cell, 'id': s, 'split': {'seed': s}, 'scores': {'accuracy': {'value': v}}}
  ...         for s, v in [(0, 0.5), (1, 0.75)]]
  >>> measure(runs)[:5]
  (62.5, 17.67766952966369, 'split-std', 2, 12.5)
  """
  if not found:
    return None
  last = found[-1]
  if 'episodes' in last:
    score, seconds = last['scores']['accuracy'], last['timings'].get('train_s')
    if score.get('value') is None:
      return Measured(None, 0.0, EPISODES, 0, 0.0, last['status'], seconds, last)
    spread = 100 * (score.get('spread') or 0.0)
    value, n = 100 * score['value'], score['n']
    return Measured(value, spread, EPISODES, n, spread / 1.96, 'ok', seconds, last)
  runs = list({r.get('id', i): r for i, r in enumerate(found)}.values())
  seconds = sum(r['timings'].get('seconds') or 0.0 for r in runs)
  values, kind = summaries.accuracies(runs)
  if not values:
    return Measured(None, 0.0, kind, 0, 0.0, last['status'], seconds, last)
  spread = 100 * moments.stdev(values) if len(values) > 1 else 0.0
  value, n = 100 * moments.fmean(values), len(values)
  return Measured(value, spread, kind, n, spread / n**0.5, 'ok', seconds, last)


def _why(test: statistics.Equivalence, c: Mapping[str, Any]) -> str:
  """The difference, and how likely it is that of means further apart than the margin."""
  if 'differs' in c:
    return c['differs']
  if c.get('fixed'):
    return f'difference {test.difference:+.2f} on the same fixed trials'
  p = f'TOST p = {test.p:.2g}'
  if not 0.001 <= test.p <= 0.999:
    p = 'TOST p < 0.001' if test.p < 0.5 else 'TOST p > 0.999'
  return f'difference {test.difference:+.2f}, {p}'


def _schedule(c: Mapping[str, Any], record: Mapping[str, Any]) -> str:
  """How long ours was trained and, where theirs took longer, that it is shorter."""
  if (
    'episodes' not in record or not record['training']['steps'] or not record['training']['learner']
  ):
    return ''
  steps, train = record['training']['steps'], record['config']['train']
  many = f'{train["images"]} images' if train['images'] else f'{train.get("meta_batch")} tasks'
  ours = f'{steps:,} steps of {"1 task" if many == "1 tasks" else many}'
  if 'schedule' not in c:
    return f'{ours}; theirs is not stated'
  short = steps < c.get('steps', 0)
  return f'{ours}; theirs: {c["schedule"]}' + (' (ours is shorter)' if short else '')


def everything(folder: str | Path | None = None, paper: str | None = None) -> list[dict[str, Any]]:
  """A row for each published number there is: those of the claims, then those that none answers to.

  Raises:
    FewshotError: there is no such folder or no such paper.
  """
  known = published.of_paper(paper) if paper else published.numbers()
  claimed = [r for r in rows(folder=folder) if paper in (None, r['paper'])]
  done = {tuple(r[f] for f in published.NAMED) for r in claimed}
  rest = [n for n in known if tuple(getattr(n, f) for f in published.NAMED) not in done]
  return claimed + [
    dict.fromkeys(KEYS) | _published(n) | {'verdict': 'not run', 'why': unclaimed(n)} for n in rest
  ]


def unclaimed(number: published.Number) -> str:
  """Why nothing was run for a number that no claim answers to."""
  needed = published.needs(number)
  return f'needs {" and ".join(needed)}' if needed else 'all is at hand, but no config'


def papers(found: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """A row for each paper: how many numbers, their verdicts, and what the rest needs.

  Args:
    found: as `everything` gives them; a number that two claims answer to counts once.
  """
  numbers = {tuple(getattr(n, f) for f in published.NAMED): n for n in published.numbers()}
  of: dict[str, dict[tuple[Any, ...], Mapping[str, Any]]] = {}
  for r in found:
    key = tuple(r[f] for f in published.NAMED)
    kept = of.setdefault(r['paper'], {})
    if key not in kept or VERDICTS.index(r['verdict']) < VERDICTS.index(kept[key]['verdict']):
      kept[key] = r
  said = []
  for paper, kept in of.items():
    count = Counter(r['verdict'] for r in kept.values())
    needed = [
      published.needs(numbers[key]) or ['to be run' if r['name'] else 'a config']
      for key, r in kept.items()
      if r['verdict'] == 'not run'
    ]
    said.append({
      'paper': paper,
      'numbers': len(kept),
      **{verdict: count[verdict] for verdict in VERDICTS},
      'needs': published.summed(needed),
      'abstract': all(r['grade'] == 'abstract' for r in kept.values()),
    })  # fmt: skip
  return said


def measured(row: Mapping[str, Any]) -> str:
  """Our number in a row of `rows`, with its interval; a dash where there is none."""
  if row['ours'] is None:
    return '–'
  return f'{row["ours"]:.2f} ± {row["spread"]:.2f} (n = {row["n"]:,})'


def hausdorff_record() -> dict[str, Any]:
  """The record of the modified Hausdorff distance on the published runs, 105 x 105 pixels."""
  import time

  from fewshot import data
  from fewshot.data import hausdorff
  from fewshot.episodes import ledger, ledger_hash
  from fewshot.experiment import versions
  from fewshot.meta import scored

  start, trials = time.monotonic(), data.lake_runs()
  right = (hausdorff.nearest_drawing(trials) == trials.answers).mean(1)
  config = {'name': 'lake-hausdorff', 'method': 'modified_hausdorff()', 'pool': 'lake_runs()'}
  hashes = {'test': trials.hash, 'episodes': ledger_hash(ledger('lake', len(right)))}
  return {
    'id': records.run_id({'config': config, 'hashes': hashes}),
    'config': config,
    'model': 'pixels',
    'method': config['method'],
    'task': trials.pool().name,
    'split': {'k': 1, 'seed': 0, 'way': 20, 'query': 1, 'episodes': len(right), 'ledger': 'lake'},
    'seed': 0,
    'training': {'name': '', 'learner': '', 'pool': '', 'steps': 0},
    **scored(right),
    'trained': 0,
    'total': 0,
    'hashes': hashes,
    'timings': {'test_s': round(time.monotonic() - start, 2)},
    'versions': versions(),
    'status': 'ok',
    'tuning': 'fixed',
  }  # fmt: skip
