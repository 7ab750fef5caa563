"""Chosen: what was chosen to train, as data: printed, saved, hashed and compared."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from fewshot.errors import FewshotError, brief
from fewshot.methods import paths, spelling
from fewshot.methods.leaves import trained
from fewshot.methods.paths import Selection, Where, at, spell
from fewshot.methods.spelling import Made, spelled
from fewshot.methods.views import COARSE, FINE, View

LARGEST = 1 << 27  # Units of a choice that is read.


class Part(NamedTuple):
  """The units chosen of one leaf, tensor, module or layer."""

  view: View
  units: np.ndarray  # int32, ascending.

  @property
  def entries(self) -> int:
    """How many entries of the weights that is."""
    return len(self.units) * self.view.size


class Chosen(NamedTuple):
  """Units by path: of entries, rows, ..., the leaf's; a tensor, module or layer is one unit.

  Methods take it where they take `where`.

  >>> a = Chosen('entry', {'w': Part(View(1, 2, 1, 3, 1), np.array([0, 4], np.int32))})
  >>> print(a)
  w  2 of 6 entries
  2 entries chosen
  """

  granularity: str
  parts: Mapping[str, Part]
  where: Where | None = None  # Of layers and modules: what of them.
  made: Made | None = None

  @property
  def entries(self) -> int:
    """How many entries of the weights it holds."""
    return sum(part.entries for part in self.parts.values())

  @property
  def hash(self) -> str:
    """16 digits that depend on what is chosen."""
    h = hashlib.sha256(json.dumps(self._about(), sort_keys=True).encode())
    for p, part in sorted(self.parts.items()):
      h.update(p.encode() + b'\0' + part.units.astype('<i4').tobytes())
    return h.hexdigest()[:16]

  def __hash__(self) -> int:
    return int(self.hash, 16)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Chosen) and self.hash == other.hash

  def __ne__(self, other: object) -> bool:
    return not self == other

  def __str__(self) -> str:
    rows = [(p, len(x.units), x.view.units, x.entries) for p, x in self.parts.items()]
    if self.granularity in COARSE:
      shown = [(p, f'{entries:,} entries') for p, _, _, entries in rows]
      last = f'{len(rows)} chosen'
    else:
      many = f'{self.granularity}s' if self.granularity != 'entry' else 'entries'
      many = 'entries' if self.granularity == 'unit' else many
      shown = [(p, f'{n:,} of {units:,} {many}') for p, n, units, _ in rows]
      last = f'{self.entries:,} entries chosen'
    wide = max(len(p) for p, _ in shown)
    return '\n'.join([*(f'{p:{wide}}  {text}' for p, text in shown), last])

  def among(self, where: Where) -> 'Chosen | Selection':
    """As methods take it: tensors, modules and layers are a selection by their paths."""
    if self.granularity in FINE:
      return self
    names = '|'.join(map(re.escape, self.parts))
    chosen = at(names if self.granularity == 'tensor' else f'({names})(/.*)?')
    within = self.where if self.where is not None else where
    return chosen if within == '.*' else chosen & paths.selection(within)

  def pick(self, key: Any, forward: Any, params: Any, calib: Any) -> dict[str, tuple[View, Any]]:
    """The view and the index of each leaf; refused on params of other shapes."""
    del key, forward, calib
    leaves = trained(params, '.*')
    odd = [p for p, x in self.parts.items() if p not in leaves or not _fits(x.view, leaves[p])]
    if odd:
      raise FewshotError(f'what was chosen is of another model: it has no such {brief(odd)}')
    return {p: (x.view, np.asarray(x.units, np.int32)) for p, x in self.parts.items()}

  def view(self, path: str, shape: tuple[int, ...], size: int) -> View:
    """The view of a leaf."""
    del shape, size
    return self.parts[path].view

  def save(self, file: str | Path) -> Path:
    """Writes it as safetensors: an index a leaf; `Chosen.load` reads it back."""
    file = Path(file)
    about = {k: json.dumps(v) for k, v in self._about().items()}
    index = {p: np.asarray(x.units, np.int32) for p, x in self.parts.items()}
    tmp = file.with_name(f'.{file.name}-{os.getpid()}')
    try:
      safetensors.numpy.save_file(index, tmp, about)
      os.replace(tmp, file)
    except (OSError, safetensors.SafetensorError) as e:
      tmp.unlink(missing_ok=True)
      raise FewshotError(f'cannot save to {file}: {e}; give a writable place') from None
    return file

  @staticmethod
  def load(file: str | Path) -> 'Chosen':
    """Reads what `save` wrote, spelled as `saved` with the hash of what the file holds."""
    return saved(str(file), _read(Path(file)).hash)

  def _about(self) -> dict[str, Any]:
    views = {p: list(x.view) for p, x in self.parts.items()}
    where = None if self.where is None else spell(self.where)
    return {'granularity': self.granularity, 'views': views, 'where': where}


@spelled
def saved(file: str, hash: str = '') -> Chosen:
  """What `Chosen.save` wrote to a file; the hash, if it is given, is checked."""
  found = _read(Path(file))
  if hash and found.hash != hash:
    raise FewshotError(f'{file} holds the choice {found.hash}, not {hash}; save that one again')
  return found


def _read(file: Path) -> Chosen:
  try:
    if not file.is_file():  # To open a pipe may never end.
      raise OSError('there is no such file')
    with safetensors.safe_open(file, 'numpy') as f:
      about = {k: json.loads(v) for k, v in (f.metadata() or {}).items()}
      shapes = [f.get_slice(p).get_shape() for p in f.keys()]  # noqa: SIM118
      small = all(len(x) == 1 for x in shapes) and sum(x[0] for x in shapes) <= LARGEST
      index = {p: f.get_tensor(p) for p in f.keys()} if small else {}  # noqa: SIM118
  except (OSError, safetensors.SafetensorError, ValueError, RecursionError, MemoryError) as e:
    raise FewshotError(f'{file} is missing or damaged ({e}); save the choice again') from None
  views, granularity, where = (about.get(k) for k in ('views', 'granularity', 'where'))
  views = views if isinstance(views, dict) and set(views) == set(index) else {}
  known = granularity in (*FINE, *COARSE)
  if not known or not views or not all(_sound(views[p], x) for p, x in index.items()):
    raise FewshotError(f'{file} is no saved choice; write one by Chosen.save')
  parts = {p: Part(View(*views[p]), index[p]) for p in views}
  if where is None:
    return Chosen(str(granularity), parts)
  within = spelling.parse(where, {'at': at}, 'selection')
  if not isinstance(within, str | Selection):
    raise FewshotError(f'{file} is no saved choice; write one by Chosen.save')
  return Chosen(str(granularity), parts, within)


def _sound(view: Any, index: np.ndarray) -> bool:
  """Whether an index of a file is one: ascending units of the view."""
  if not isinstance(view, list) or len(view) != 5 or not all(type(n) is int for n in view):
    return False
  flat = index.ndim == 1 and index.dtype == np.int32 and len(index) and min(view) >= 0
  units = View(*view).units
  return bool(flat and index[0] >= 0 and index[-1] < units and (np.diff(index) > 0).all())


def _fits(view: View, w: Any) -> bool:
  return int(np.prod(w.shape)) == view.units * view.size and w.shape[-1:] in (
    (),
    (view.columns * view.width,),
  )


def shared(a: Chosen, b: Chosen) -> int:
  """How many units two choices of one granularity have in common."""
  if a.granularity != b.granularity:
    raise FewshotError(f'units are compared, and one is of {a.granularity}, one of {b.granularity}')
  both = [p for p in a.parts if p in b.parts]
  other = [p for p in both if a.parts[p].view != b.parts[p].view]
  if other:
    raise FewshotError(f'the choices are of different models, at {brief(other)}')
  return sum(len(np.intersect1d(a.parts[p].units, b.parts[p].units)) for p in both)


def _units(c: Chosen) -> int:
  return sum(len(x.units) for x in c.parts.values())


def overlap(a: Chosen, b: Chosen) -> float:
  """The overlap coefficient of two choices: units in common, of the smaller one's.

  >>> part = lambda *i: Chosen('row', {'w': Part(View(1, 9, 1, 1, 2), np.array(i, np.int32))})
  >>> overlap(part(0, 1, 2, 3), part(3, 5)), jaccard(part(0, 1, 2, 3), part(3, 5))
  (0.5, 0.2)
  """
  return shared(a, b) / min(_units(a), _units(b))


def jaccard(a: Chosen, b: Chosen) -> float:
  """The Jaccard index of two choices: units in common, of the units of either."""
  common = shared(a, b)
  return common / (_units(a) + _units(b) - common)
