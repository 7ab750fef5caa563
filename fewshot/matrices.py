"""Methods by tasks: what several tables say of the same methods, side by side."""

from collections.abc import Iterable, Sequence

from fewshot.summaries import Row
from fewshot.tables import markdown_row, percent

NONE = '–'


def render_markdown(rows: Iterable[Row]) -> str:
  """A matrix for each model and K that was run on several tasks; empty where there is none.

  >>> rows = [Row('vit', t, 16, 'linear()', mean=0.5, std=0.125, n=5) for t in ('digits', 'cats')]
  >>> print(render_markdown(rows))  # doctest: +ELLIPSIS
  ### vit, K = 16
  <BLANKLINE>
  | method | digits | cats | trained | seconds |
  | --- | ---: | ---: | ---: | ---: |
  | `linear()` | **50.0 ± 12.5** | **50.0 ± 12.5** | 0 (0.00 %) | – |
  ...
  """
  found: dict[tuple[str, int], list[Row]] = {}
  for row in rows:
    found.setdefault((row.model, row.k), []).append(row)
  several = [of for of in found.values() if len({r.task for r in of}) > 1]
  return '\n'.join(_matrix(of) for of in several)


def _matrix(rows: Sequence[Row]) -> str:
  tasks = list(dict.fromkeys(r.task for r in rows))
  lines = _lines(rows)
  best = {t: max((r.mean for r in rows if r.task == t and r.mean is not None), default=None)
          for t in tasks}  # fmt: skip
  head = ['method', *tasks, 'trained', 'seconds']
  out = [f'### {rows[0].model}, K = {rows[0].k}', '', markdown_row(head)]
  out.append(markdown_row(['---', *['---:'] * (len(head) - 1)]))
  for label, of in lines.items():
    cells = [_cell(of.get(t), best[t]) for t in tasks]
    out.append(markdown_row([f'`{label}`', *cells, *_costs(list(of.values()))]))
  return '\n'.join([*out, '', _caption(rows, lines), ''])


def _lines(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
  """The rows of each line by task; a method that stands twice for a task says how it differs.

  A prompt that is the same for all tasks is named in its line, others in the caption.
  """
  of_method: dict[str, list[Row]] = {}
  for row in rows:
    of_method.setdefault(row.method, []).append(row)
  lines: dict[str, dict[str, Row]] = {}
  for method, of in of_method.items():
    once = len({r.task for r in of}) == len(of)
    fits = [r.fit if not once else '' for r in of]
    for r, fit in zip(of, fits, strict=True):
      shown = r.prompt if _is_shared(of) or not once else ''
      lines.setdefault(', '.join(filter(None, (method, fit, shown))), {})[r.task] = r
  return lines


def _is_shared(rows: Sequence[Row]) -> bool:
  return len({r.prompt for r in rows}) == 1


def _cell(row: Row | None, best: float | None) -> str:
  """The mean in percent, its spread, and what became of runs that are not ok."""
  if row is None or row.mean is None:
    return NONE
  value = f'{100 * row.mean:.1f}' + ('' if row.std is None else f' ± {100 * row.std:.1f}')
  value = f'**{value}**' if row.mean == best else value
  lost = [f'{n} {name}' for n, name in ((row.failed, 'failed'), (row.collapsed, 'collapsed')) if n]
  return f'{value} ({", ".join(lost)} of {row.runs})' if lost else value


def _costs(rows: Sequence[Row]) -> list[str]:
  """How many parameters train, the most of the tasks, and the mean seconds of a run."""
  most = max(rows, key=lambda r: r.trained)
  seconds = [r.seconds for r in rows if r.seconds is not None]
  mean = f'{sum(seconds) / len(seconds):.1f}' if seconds else NONE
  return [f'{most.trained:,} ({percent(most)})', mean]


def _caption(rows: Sequence[Row], lines: dict[str, dict[str, Row]]) -> str:
  several = [r for r in rows if r.n > 1] or rows
  kinds = sorted({r.kind.removesuffix('-std') for r in several})
  counts, items = sorted({r.n for r in several}), sorted({n for r in rows for n in r.test_items})
  over = '–'.join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
  shown = '–'.join(f'{n:,}' for n in dict.fromkeys((items[0], items[-1]))) if items else 'unknown'
  of_lines = [list(of.values()) for of in lines.values()]
  prompts = {r.task: r.prompt for of in of_lines if not _is_shared(of) for r in of}
  said = ''.join(f' {task}: `{prompt}`.' for task, prompt in prompts.items())
  alone = ', of one run where there is no ±' if any(r.n == 1 for r in rows) else ''
  return (
    f'Accuracy in percent: mean ± sample standard deviation over n = {over} {" or ".join(kinds)}s'
    f'{alone}, test items n = {shown}; the best mean of a column is bold. Fits, and '
    f'hyper-parameters, are those of the tables below.{said}'
  )
