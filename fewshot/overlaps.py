"""Overlap of choices: how much of what one task's data chooses another's chooses too."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fewshot import stages
from fewshot.errors import FewshotError
from fewshot.methods import Chosen, Top, spell
from fewshot.methods.chosen import jaccard
from fewshot.methods.leaves import trained
from fewshot.prepared import Prepared
from fewshot.records import replace
from fewshot.tables import markdown_row


class Overlap(NamedTuple):
  """Choices of one kind by data, and what each pair has in common."""

  choice: str  # As spelled.
  names: tuple[str, ...]  # Of the data, such as 'trec 0'.
  entries: tuple[int, ...]
  jaccard: np.ndarray  # [n, n], float32 from 0 to 1.
  chance: float  # What two random choices of this size have in common.

  def as_json(self) -> dict[str, Any]:
    """Its fields as JSON has them."""
    return self._asdict() | {'jaccard': [[round(float(x), 6) for x in row] for row in self.jaccard]}


def choices(prepared: Sequence[Prepared], choice: Top) -> dict[str, Chosen]:
  """What `choice` chooses on the train examples of every split of every task, before training.

  Raises `FewshotError` where the rows have more than one model: choices of two do not compare.
  """
  models = {p.model.name for p in prepared}
  if len(models) > 1:
    raise FewshotError(f'choices of one model compare; the config has {", ".join(sorted(models))}')
  found: dict[str, Chosen] = {}
  for p in prepared:
    for i, split in enumerate(p.data.splits):
      data = {'task': stages.only(p.data, i)}
      calib = stages.Setting(p.model, data, len(p.task.classes)).calib('task')
      key = jax.random.key(split.seed)
      chosen = choice.resolve(key, p.model.forward, p.model.params, calib)
      found[f'{p.task.name} {split.seed}'] = chosen
  return found


def compare(choice: str, found: Mapping[str, Chosen], total: int) -> Overlap:
  """The Jaccard index of every pair of choices among `total` entries.

      J(A, B) = |A and B| / |A or B|;   of random choices of the share q: q / (2 - q)

  >>> from fewshot.methods.chosen import Part
  >>> from fewshot.methods.views import View
  >>> part = lambda *i: Chosen('entry', {'w': Part(View(1, 9, 1, 1, 1), np.array(i, np.int32))})
  >>> print(compare('', {'a': part(0, 1, 2), 'b': part(2, 3, 4)}, 9).jaccard[0, 1])
  0.2
  """
  sets = list(found.values())
  matrix = np.array([[jaccard(a, b) for b in sets] for a in sets])
  sizes = tuple(c.entries for c in sets)
  share = sum(sizes) / len(sizes) / total
  return Overlap(choice, tuple(found), sizes, matrix, share / (2 - share))


def run(prepared: Sequence[Prepared], wanted: Sequence[Top]) -> Overlap:
  """The overlap of what each of `wanted` chooses, with each other and by splits and tasks.

  Raises `FewshotError` for choices among different places, which have no chance in common.
  """
  places = ['.*' if c.where is None else c.where for c in wanted]
  if any(place != places[0] for place in places):
    raise FewshotError(f'choices compare among the same places; their where= are {places}')
  total = sum(w.size for w in trained(prepared[0].model.params, places[0]).values())
  found: dict[str, Chosen] = {}
  for c in wanted:
    of = f'{spell(c.score)} ' if len(wanted) > 1 else ''
    found |= {f'{of}{name}': chosen for name, chosen in choices(prepared, c).items()}
  return compare(', '.join(map(spell, wanted)), found, total)


def table(o: Overlap) -> str:
  """The matrix in Markdown."""
  head = [['', *o.names], ['---'] * (len(o.names) + 1)]
  body = [[n, *(f'{x:.3f}' for x in row)] for n, row in zip(o.names, o.jaccard, strict=True)]
  note = (
    f'Jaccard index of `{o.choice}`: {min(o.entries):,} to {max(o.entries):,} entries each. Random '
    f'choices of this size have {o.chance:.4f} in common.'
  )
  return '\n'.join([note, '', *map(markdown_row, [*head, *body]), ''])


def draw(o: Overlap, path: str | Path) -> None:
  """Draws the matrix as PNG: the darker a cell, the more two choices have in common."""
  import matplotlib.style
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  n = len(o.names)
  side = max(4.0, 0.62 * n + 1.8)
  with matplotlib.style.context(['default', {'font.size': 9, 'text.parse_math': False}]):
    figure = Figure(figsize=(side + 0.6, side), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(o.jaccard, cmap='cividis_r', vmin=0, vmax=1)
    axes.set_xticks(range(n), o.names, rotation=45, ha='right')
    axes.set_yticks(range(n), o.names)
    for (i, j), x in np.ndenumerate(o.jaccard):
      axes.text(
        j, i, f'{x:.2f}', ha='center', va='center', color='white' if x > 0.5 else 'black', size=8
      )
    axes.set_title(f'entries in common (Jaccard; by chance {o.chance:.3f})', size=10)
    figure.colorbar(image, ax=axes, shrink=0.8)
    drawn = io.BytesIO()
    figure.savefig(drawn, format='png', dpi=160, metadata={'Software': None})
  replace(path, drawn.getvalue())
