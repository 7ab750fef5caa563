"""Top: a request for what is best by a score, within a budget, and how it becomes a choice."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fewshot.errors import FewshotError
from fewshot.methods import paths, views
from fewshot.methods.base import Calib, Forward, Method, Params, State, Theta
from fewshot.methods.chosen import Chosen, Part
from fewshot.methods.leaves import floats, trained, widen
from fewshot.methods.paths import Selection, Where, spell
from fewshot.methods.spelling import Made, remake
from fewshot.methods.views import COARSE, View

Array = jax.Array
BYTES = {'B': 1, 'kB': 1000, 'MB': 10**6, 'GB': 10**9, 'KiB': 2**10, 'MiB': 2**20, 'GiB': 2**30}
BLOCK = re.compile(r'(.*?/)??(stage_\d+/)?block_\d+(?=/|$)')
WIDTH = 4  # Bytes of what trains, float32.


def check_budget(name: str, budget: int | float) -> None:
  """Refuses what is neither a count nor a fraction.

  >>> check_budget('sparse', 0.1)
  """
  if budget <= 0 or (isinstance(budget, float) and budget > 1):
    raise FewshotError(f'{name}(budget={budget}): a count from 1, or a fraction up to 1.0')


class Group(NamedTuple):
  """Units of one kind and what they score, [units]; a unit may have a part in several leaves."""

  leaves: dict[str, View]
  score: Array
  size: int  # The entries of one unit.

  @property
  def units(self) -> int:
    """How many units there are."""
    return self.score.shape[0]


class Top(NamedTuple):
  """The request that `top` makes; methods take it as `where`."""

  score: Any
  budget: int | float | str
  granularity: str = 'entry'
  scope: str = 'global'
  where: Where | None = None
  keep: str = 'largest'
  tile: tuple[int, int] = (16, 16)
  seed: int = 0
  counts: tuple[int, ...] | None = None  # As planned: the units of each group.
  made: Made | None = None

  def __repr__(self) -> str:
    known = self.made is not None and self.score.made is not None
    return spell(self) if known else f'top(..., {self.budget!r}, {self.granularity!r})'

  @property
  def coarse(self) -> bool:
    """Whether it chooses whole tensors, modules or layers, so that it is a selection of paths."""
    return self.granularity in COARSE

  @property
  def plan(self) -> Callable[[Forward, Params, Calib], 'Top'] | None:
    """Fixes how many units each leaf gets where the budget is of all leaves together."""
    each = self.granularity == 'unit' and isinstance(self.budget, int)
    shared = self.scope == 'global' and not each and self.counts is None
    return self._counted if shared and not self.coarse else None

  def _counted(self, forward: Forward, params: Params, calib: Calib) -> 'Top':
    groups = self._groups(jax.random.key(self.seed), forward, params, calib, now=True)
    counts = self._found(groups, params)
    return remake(self, counts=counts)._replace(where=self.where)

  def _found(self, groups: Mapping[str, Group], params: Params) -> tuple[int, ...]:
    """How many of the best of all units are in each group; of 'unit' in whole inputs."""
    counts = tuple(len(i) for i in self._best(groups).values())
    if self.granularity != 'unit':
      return counts
    outputs = (floats(params)[p].shape[-1] for p in groups)
    return tuple(-(-n // k) for n, k in zip(counts, outputs, strict=True))

  def among(self, where: Where) -> 'Top | Selection':
    """As methods take it: where it chooses tensors, modules or layers, a selection with a plan."""
    asked = self if self.where is not None else self._replace(where=where)
    if not self.coarse:
      return asked
    candidates = paths.selection(where if self.where is None else self.where)

    def plan(forward: Forward, params: Params, calib: Calib) -> Any:
      key = jax.random.key(self.seed)
      return asked.resolve(key, forward, params, calib).among('.*')

    return Selection(candidates.holds, self.made, plan)

  def __and__(self, other: Any) -> Selection:
    return self._selection() & other

  def __or__(self, other: Any) -> Selection:
    return self._selection() | other

  def __invert__(self) -> Selection:
    return ~self._selection()

  def _selection(self) -> Selection:
    found = self.among('.*')
    if not isinstance(found, Selection):
      raise FewshotError(f'{self!r} chooses parts of leaves, which do not combine; use its where=')
    return found

  def resolve(self, key: Array, forward: Forward, params: Params, calib: Calib) -> Chosen:
    """Scores the model and chooses; outside jit."""
    groups = self._groups(key, forward, params, calib, now=True)
    if self.granularity == 'unit':
      counts = self._found(groups, params) if self.plan else self.counts
      asked = self._replace(counts=counts)
      found = zip(groups.items(), asked._inputs(groups, params), strict=True)
      best = {n: np.asarray(self._best_inputs(n, g, k, params)) for (n, g), k in found}
    else:
      best = self._best(groups)
    parts = {}
    for name, index in best.items():
      g, index = groups[name], index.astype(np.int32)
      if self.coarse and len(index):
        parts[name] = Part(views.whole((g.size,)), index)
      elif len(index):
        parts |= {p: Part(v, index) for p, v in g.leaves.items()}
    return Chosen(self.granularity, parts, self.where if self.coarse else None)

  def pick(
    self, key: Array, forward: Forward, params: Params, calib: Calib
  ) -> dict[str, tuple[View, Array]]:
    """The view and the chosen index of each leaf, by this key's own scores; jittable.

    A budget of all leaves together that was not planned is shared out by their sizes.
    """
    groups = self._groups(key, forward, params, calib)
    if self.granularity == 'unit':
      each = zip(groups.items(), self._inputs(groups, params), strict=True)
      best = {n: (g.leaves[n], self._best_inputs(n, g, k, params)) for (n, g), k in each if k}
      return best
    found: dict[str, tuple[View, Array]] = {}
    for (name, g), n in zip(groups.items(), self._counts(groups), strict=True):
      index = jnp.sort(jax.lax.top_k(g.score, n)[1]).astype(jnp.int32)
      found |= {p: (view, index) for p, view in groups[name].leaves.items() if n}
    return found

  def view(self, path: str, shape: tuple[int, ...], size: int) -> View:
    """The view of a leaf whose units have `size` entries."""
    if self.granularity == 'head':
      width = size // shape[1] if '/out/' in f'/{path}' else size // math.prod(shape[:-1])
      view = views.of_head(path, shape, width)
    else:
      view = views.of_leaf(self.granularity, shape, self.tile)
    assert view is not None
    return view

  def _groups(
    self, key: Array, forward: Forward, params: Params, calib: Calib, now: bool = False
  ) -> dict[str, Group]:
    """The units with their scores, the better the larger, never NaN; `now`: compiled and run."""
    from fewshot.methods.grouping import grouped

    def scores(key: Array, params: Params, batch: Any) -> dict[str, Array]:
      seen = calib if calib is None else calib._replace(batch=batch)
      return self.score.fn(key, forward, params, seen)

    run = jax.jit(scores) if now and self.score.of != 'site' else scores
    found = run(key, params, calib.batch if calib else None)
    groups = grouped(self, found, forward, params, calib)
    sign = 1 if self.keep == 'largest' else -1
    ranked = lambda x: jnp.where(jnp.isnan(x), -jnp.inf, sign * x)  # noqa: E731
    return {n: g._replace(score=ranked(g.score)) for n, g in groups.items()}

  def _inputs(self, groups: Mapping[str, Group], params: Params) -> list[int]:
    """How many inputs of every output each kernel gets."""
    if self.counts is not None:
      return self._counts(groups)
    rows = [g.units // floats(params)[p].shape[-1] for p, g in groups.items()]
    return [self._of_one(n, 1) for n in rows]

  def _best_inputs(self, path: str, group: Group, k: int, params: Params) -> Array:
    """The best k entries of each output unit (column) of a kernel, as ascending flat indices."""
    columns = floats(params)[path].shape[-1]
    scores = group.score.reshape(-1, columns).T
    best = jax.lax.top_k(scores, k)[1]
    return jnp.sort((best * columns + jnp.arange(columns)[:, None]).reshape(-1)).astype(jnp.int32)

  def _of_one(self, units: int, size: int) -> int:
    """How many units of one group the budget buys, if it is the group's own."""
    if isinstance(self.budget, int):
      return min(self.budget, units)
    return min(units, max(1, self._capacity(units * size) // size))

  def _capacity(self, total: int) -> int:
    """The entries that a fraction of `total`, or a text of bytes, is."""
    if isinstance(self.budget, str):
      number, unit = re.fullmatch(r'([\d.]+) *(\w+)', self.budget).groups()  # type: ignore[union-attr]
      return int(float(number) * BYTES[unit]) // WIDTH
    return math.ceil(round(self.budget * total, 6))

  def _counts(self, groups: Mapping[str, Group]) -> list[int]:
    """How many units each group gets, without a look at their scores."""
    if self.scope == 'tensor':
      return [self._of_one(g.units, g.size) for g in groups.values()]
    if self.counts is not None:
      if len(self.counts) != len(groups):
        raise FewshotError(
          f'top(counts=...) was planned for {len(self.counts)} leaves, and there are {len(groups)}'
        )
      return [min(n, g.units) for n, g in zip(self.counts, groups.values(), strict=True)]
    total = sum(g.units * g.size for g in groups.values())
    if isinstance(self.budget, int):
      units = sum(g.units for g in groups.values())
      shares = [self._within(units) * g.units / units for g in groups.values()]
    else:
      shares = [self._capacity(total) * g.units / total for g in groups.values()]
    counts = [math.floor(s) for s in shares]
    by_rest = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])
    for i in by_rest[: round(sum(shares)) - sum(counts)]:
      counts[i] += 1
    return [min(n, g.units) for n, g in zip(counts, groups.values(), strict=True)]

  def _within(self, units: int) -> int:
    if int(self.budget) > units:
      raise FewshotError(f'{self!r} asks for {self.budget:,} of {units:,}; lower the budget')
    return int(self.budget)

  def _best(self, groups: Mapping[str, Group]) -> dict[str, np.ndarray]:
    """The chosen units of each group; of equals the first by path and place in memory."""
    score = {n: np.asarray(g.score, np.float32) for n, g in groups.items()}
    if self.scope == 'tensor' or self.counts is not None:
      counts = dict(zip(groups, self._counts(groups), strict=True))
      return {n: np.flatnonzero(_largest(s, counts[n])) for n, s in score.items()}
    flat = np.concatenate(list(score.values()))
    sizes = np.repeat([g.size for g in groups.values()], [g.units for g in groups.values()])
    taken = np.split(self._taken(flat, sizes), np.cumsum([len(s) for s in score.values()])[:-1])
    return {n: np.flatnonzero(t) for n, t in zip(score, taken, strict=True)}

  def _taken(self, flat: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which of all units the budget buys: the best that fit, up to the first that does not."""
    if isinstance(self.budget, int):
      return _largest(flat, self._within(len(flat)))
    room = self._capacity(int(sizes.sum()))
    if sizes.min() == sizes.max():
      n = min(len(flat), room // max(1, int(sizes[0])))
    else:
      order = np.argsort(-flat, kind='stable')
      n = int((np.cumsum(sizes[order]) <= room).sum())
    if not n and isinstance(self.budget, str):
      raise FewshotError(f'{self!r}: the best {self.granularity} alone is larger than the budget')
    return _largest(flat, max(1, n))


def _largest(x: np.ndarray, n: int) -> np.ndarray:
  """Which of x are the n largest, of equals the first."""
  if n >= len(x):
    return np.ones(len(x), bool)
  if not n:
    return np.zeros(len(x), bool)
  last = np.partition(x, len(x) - n)[len(x) - n]
  taken = x > last
  taken[np.flatnonzero(x == last)[: n - taken.sum()]] = True
  return taken


def partial(choice: Top | Chosen, start: bool) -> Method:
  """Trains what was chosen of each leaf: theta {path: {value}}, state {path: {index}}.

      W'[i] = v_i, v = W[i] at the start,   or   W'[i] = W[i] + v_i, v = 0   if not `start`

  value is [n] of n entries, [n, size] of n larger units: what trains and what an optimizer keeps is
  as large as the choice, and an index is kept for each unit.
  """

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    leaves, theta, state = floats(params), {}, {}
    for p, (view, index) in choice.pick(key, forward, params, calib).items():
      now = widen(view.take(jnp.asarray(leaves[p]), index))
      theta[p] = {'value': now if start else jnp.zeros_like(now)}
      state[p] = {'index': jnp.asarray(index)}
    return theta, state

  def weights(theta: Theta, state: State, params: Params) -> Params:
    flat, new = paths.flatten(params), {}
    for p, t in theta.items():
      w, v = jnp.asarray(flat[p]), t['value']
      view, index = choice.view(p, w.shape, math.prod(v.shape[1:])), state[p]['index']
      new[p] = view.put(w, index, v if start else view.take(w, index) + v)
    return paths.replace(params, new)

  return Method(init, weights)


def select_leaves(scored: Mapping[str, Any], params: Params, where: Where) -> dict[str, Array]:
  """The leaves that `where` selects and that have a score."""
  return {p: w for p, w in trained(params, where).items() if p in scored}
