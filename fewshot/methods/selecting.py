"""Choosing what trains: `top` of a score within a budget, which methods take as `where`."""

import re

from fewshot.errors import FewshotError, nearest
from fewshot.methods.choices import BYTES, Top
from fewshot.methods.paths import Where, selection
from fewshot.methods.scoring.base import Score
from fewshot.methods.spelling import spelled
from fewshot.methods.views import COARSE, FINE


@spelled
def top(
  score: Score,
  budget: int | float | str,
  granularity: str = 'entry',
  scope: str = 'global',
  where: Where | None = None,
  keep: str = 'largest',
  tile: int | tuple = 16,
  seed: int = 0,
  counts: tuple | None = None,
) -> Top:
  """What scores best within a budget; methods take it as `where`.

  Tensors, modules and layers are chosen by the plan of any method with a `where`, which is then
  spelled by their paths, and combine with other selections by `|`, `&` and `~`.  Parts of leaves
  are what `tune` and `sparse` train; every run of a sweep chooses them by its own data and key.
  Outside of methods, `top(...).resolve(key, forward, params, calib)` gives a `Chosen`.

  A unit of several entries scores their mean; NaN is never chosen, of equals the first is, by path
  and place in memory.

  Args:
    budget: a count of units; a fraction of the entries that `where` selects, or their bytes in
      float32 ('64KiB'): the best units that fit, up to the first that does not.
    granularity: 'entry'; 'row' (an input) or 'column' (an output) of a kernel; 'tile'; 'head', of
      the maps of attention; 'channel', a column with its entry of the bias; 'unit', so many inputs
      of every output (of a share of all entries a leaf gets as many as the best of all are in it,
      rounded up); or whole: 'tensor', 'module', 'layer' (a block, scored by all that is in it).
    scope: 'global', the budget is of all leaves together, the plan says what each gets; 'tensor',
      it is of each leaf (of heads and channels, each module).
    where: what is chosen among, as of the method that it is given to; by default that method's own.
    keep: 'largest' or 'smallest' scores.
    tile: the height and width of a tile, or both.
    seed: of a score that draws, where a plan takes it.
    counts: of the plan, how many units each leaf gets.

  >>> from fewshot.methods import lora, spell, tune
  >>> from fewshot.methods.scoring import magnitude
  >>> spell(tune(top(magnitude(), '64KiB', 'row', where='.*/mlp/up/kernel')))
  "tune(where=top(magnitude(), '64KiB', granularity='row', where='.*/mlp/up/kernel'))"
  >>> spell(lora(top(magnitude(), 2, 'layer'), rank=4))
  "lora(where=top(magnitude(), 2, granularity='layer'), rank=4)"
  """
  if granularity not in (*FINE, *COARSE):
    known = nearest(granularity, (*FINE, *COARSE))
    raise FewshotError(f'top(granularity={granularity!r}) is not known; {known}')
  if scope not in ('global', 'tensor') or keep not in ('largest', 'smallest'):
    raise FewshotError(
      f"top(scope={scope!r}, keep={keep!r}): scope is 'global' or 'tensor', keep 'largest' or "
      "'smallest'"
    )
  if scope == 'tensor' and granularity in COARSE:
    raise FewshotError(f"top(scope='tensor') is of what is smaller than a {granularity}; leave it")
  _check_budget(budget)
  sides = (tile, tile) if isinstance(tile, int) else tuple(tile)
  if len(sides) != 2 or not all(type(n) is int and n > 0 for n in sides):
    raise FewshotError(f'top(tile={tile}) is a side, or a height and a width')
  if where is not None:
    selection(where)  # A broken pattern is refused here.
  return Top(score, budget, granularity, scope, where, keep, sides, seed, counts)


def _check_budget(budget: int | float | str) -> None:
  if isinstance(budget, str):
    found = re.fullmatch(r'(\d+(?:\.\d+)?) *(\w+)', budget)
    if found is None or found.group(2) not in BYTES or float(found.group(1)) <= 0:
      raise FewshotError(f"top(budget={budget!r}) is a size in {', '.join(BYTES)}, such as '64KiB'")
  elif budget <= 0 or (isinstance(budget, float) and budget > 1):
    raise FewshotError(f"top(budget={budget}): a count from 1, a fraction up to 1.0, or '64KiB'")
