"""The kinds of adapters as data: PEFT's config fields and tensors, and what they are here.

PEFT keeps linear maps as [out, in], we as [in, out], so that most entries are transposed.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fewshot.errors import FewshotError
from fewshot.exchange.random import permutation

Array = np.ndarray
Config = Mapping[str, Any]
Arguments = dict[str, Any]
Entries = dict[str, Array]
Shape = tuple[int, ...]  # Of the module's own kernel, [d, k]; () where it has none.


def _same(x: Array, shape: Shape) -> Array:
  del shape
  return x


class Entry(NamedTuple):
  """A tensor of a module: `read` turns PEFT's into ours, `write` ours into PEFT's."""

  name: str  # What PEFT calls it, after the module's path.
  read: Callable[[Array, Shape], Array] = _same
  write: Callable[[Array, Shape], Array] = _same
  out: int | None = None  # PEFT's axis over outputs, along which a fused projection splits.
  shared: bool = False  # Whether all modules have one and the same.


class Field(NamedTuple):
  """An argument of ours, from PEFT's config and as a part of it."""

  names: tuple[str, ...]  # PEFT's.
  read: Callable[[Config], Any]
  write: Callable[[Any], dict[str, Any]]


class Site(NamedTuple):
  """What a method has at one module: its arguments there, and its entries in our layout."""

  arguments: Arguments
  entries: Entries
  kernel: Shape


def as_read(config: Config, t: Entries, paths: list[str]) -> tuple[Config, Entries]:
  """A module's config and tensors as they are; `paths` are its names."""
  del paths
  return config, t


def as_made(arguments: Arguments, t: Entries, shape: Shape) -> tuple[Arguments, Entries]:
  """A module's arguments and entries as they are."""
  del shape
  return arguments, t


def nothing(config: Config, n: int, shape: Shape) -> Entries:
  """No entries but the stored ones."""
  del config, n, shape
  return {}


class Kind(NamedTuple):
  """One way to adapt that both sides have."""

  peft: str  # Its peft_type.
  methods: tuple[str, ...]  # Ours; the first is what an adapter is read as.
  entries: Mapping[str, Entry]  # By our entry of a site.
  fields: Mapping[str, Field] = {}  # By our argument.
  fixed: Mapping[str, Any] = {}  # Fields that have this value alone.
  free: tuple[str, ...] = ()  # Fields that matter to training or to the start alone.
  patterns: Mapping[str, str] = {}  # PEFT's fields of modules' own values -> the field they set.
  leaf: str = ''  # What follows our module's path in theta: '/kernel' where weights are adapted.
  conv1d: bool = False  # Whether it is exchanged for GPT-2's maps, [in, out] and fused.
  copies: bool = False  # Whether each module stores what all share, too.
  prepare: Callable[[Config, Entries, list[str]], tuple[Config, Entries]] = as_read
  derive: Callable[[Config, int, Shape], Entries] = nothing  # Entries of n that are not stored.
  finish: Callable[[Arguments, Entries, Shape], tuple[Arguments, Entries]] = as_made


def flipped(name: str, out: int | None = None) -> Entry:
  """A matrix that PEFT keeps transposed."""
  return Entry(name, lambda x, _: x.T, lambda x, _: x.T, out)


def field(name: str, default: Any) -> Field:
  """A field that means what the argument does; `default` is PEFT's."""
  return Field((name,), lambda c: c.get(name, default), lambda v: {name: v})


def rooted(config: Config) -> bool:
  """Whether LoRA is rank-stabilised."""
  return bool(config.get('use_rslora', False))


def started(a: Arguments, t: Entries, shape: Shape) -> tuple[Arguments, Entries]:
  """LoRA at its site's own rank; a start that is taken off is as many ranks more."""
  del shape
  a = {'scaling': 'alpha/r', 'dropout': 0.0, **a, 'rank': t['a'].shape[1]}
  if 'a0' not in t:
    return a, t
  root = a['scaling'] != 'alpha/r'
  s = a['alpha'] / (math.sqrt(a['rank']) if root else a['rank'])
  both = {'a': np.concatenate([t['a'], t['a0']], 1), 'b': np.concatenate([t['b'], -t['b0'] / s])}
  return a | {'rank': 2 * a['rank'], 'alpha': a['alpha'] * (math.sqrt(2) if root else 2)}, both


def drawn(config: Config, n: int, shape: Shape) -> Entries:
  """FourierFT's n places, which PEFT draws from a seed: the same in all weights of a shape."""
  d, k = shape
  flat = permutation(int(config.get('random_loc_seed', 777)), d * k, n)
  return {'rows': flat % d, 'cols': flat // d}


def redrawn(a: Arguments, t: Entries, shape: Shape) -> tuple[Arguments, Entries]:
  """FourierFT without its places, which must be those that PEFT will draw."""
  want = drawn({'random_loc_seed': a.get('seed', 777)}, len(t['spectrum']), shape)
  if any(not np.array_equal(t[k], v) for k, v in want.items()):
    raise FewshotError(
      'this fourierft has places of its own, and PEFT stores none: it draws them from the seed '
      'random_loc_seed; only one that was read from PEFT can be written'
    )
  return a, {'spectrum': t['spectrum']}


def counted(config: Config, t: Entries, paths: list[str]) -> tuple[Config, Entries]:
  """PEFT makes BOFT's factors one where it has no CUDA, whatever the config says."""
  del paths
  return {**config, 'boft_n_butterfly_factor': len(t['boft_R'])}, t


def padded(config: Config, t: Entries, paths: list[str]) -> tuple[Config, Entries]:
  """AdaLoRA's triples with the dropped ones as zeros; `rank_pattern` says which were kept."""
  kept = {k.removesuffix('.lora_E'): v for k, v in (config.get('rank_pattern') or {}).items()}
  mask = np.ravel(next((kept[p] for p in paths if p in kept), True)).astype(bool)
  wide = lambda x: np.insert(x, np.cumsum(mask)[~mask], 0, 0)  # noqa: E731
  t = {k: wide(x.T).T if k == 'lora_B' else wide(x) for k, x in t.items()}
  return config, t


def flat_places(x: Array, shape: Shape) -> Array:
  """SHiRA's rows of outputs and inputs [2, n] as places in our flattened kernel."""
  return (x[1].astype(np.int64) * shape[1] + x[0].astype(np.int64)).astype(np.int32)


def places(x: Array, shape: Shape) -> Array:
  """The inverse of `flat_places`."""
  return np.stack([x % shape[1], x // shape[1]]).astype(np.int32)


def cayley_terms(config: Config) -> int:
  """OFT's terms of the Neumann series; 0 is the exact transform."""
  on = config.get('use_cayley_neumann', False)
  return int(config.get('num_cayley_neumann_terms', 5)) if on else 0


def pair(name: str) -> dict[str, Entry]:
  """The factors of a low-rank update."""
  return {'a': flipped('lora_A' + name), 'b': flipped('lora_B' + name, 0)}


def vector(name: str, axis: int) -> Entry:
  """A vector that PEFT keeps as a matrix of one column, or one row."""
  shape = (-1, 1) if axis == 0 else (1, -1)
  return Entry(
    name, lambda x, _: x.reshape(-1), lambda x, _: x.reshape(shape), 0 if not axis else None
  )
