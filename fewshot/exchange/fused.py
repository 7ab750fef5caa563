"""GPT-2's fused projection of query, key and value: one module of theirs, three of ours.

Reading splits what runs over outputs and repeats the rest (`Entry.out`).  Here are three put
together again.  Factors of several A become one of all their ranks,

    [A_q A_v] [[B_q, 0, 0], [0, 0, B_v]]
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fewshot.errors import FewshotError
from fewshot.exchange.kinds import Kind, Site


def join(kind: Kind, path: str, ours: Mapping[str, Site | None], leaves: Mapping[str, Any]) -> Site:
  """What stands at PEFT's module `path`, from our modules of it, None where nothing is."""
  present = [site for site in ours.values() if site]
  if len(ours) == 1:
    return present[0]
  first = present[0].arguments
  if not kind.conv1d or any(site.arguments != first for site in present):
    raise FewshotError(
      f'{path} is {len(ours)} modules here, and {kind.peft} of it is written for LoRA, DoRA and '
      'IA3 of the same arguments alone'
    )
  kernels = {p: np.asarray(leaves[f'{p}/kernel']) for p in ours}
  shape = (present[0].kernel[0], sum(w.shape[1] for w in kernels.values()))
  if 'l_out' in present[0].entries:
    gains = [s.entries['l_out'] if s else np.ones(kernels[p].shape[1]) for p, s in ours.items()]
    return Site(first, {'l_out': np.concatenate(gains).astype(np.float32)}, shape)
  entries = _one_a(list(ours.values())) or _blocks(ours, kernels)
  if 'm' in present[0].entries:
    lengths = {p: np.linalg.norm(w, axis=0) for p, w in kernels.items()}
    m = [s.entries['m'] if s else lengths[p] for p, s in ours.items()]
    entries['m'] = np.concatenate(m).astype(np.float32)
  times = entries['a'].shape[1] // first['rank']
  root = first.get('scaling', 'alpha/r') != 'alpha/r'
  alpha = first['alpha'] * (math.sqrt(times) if root else times)
  return Site({**first, 'rank': times * first['rank'], 'alpha': alpha}, entries, shape)


def _one_a(sites: list[Site | None]) -> dict[str, np.ndarray] | None:
  """The factors of modules that all have the same A."""
  present = [site for site in sites if site]
  a = present[0].entries['a']
  if len(present) < len(sites) or any(not np.array_equal(s.entries['a'], a) for s in present):
    return None
  return {'a': a, 'b': np.concatenate([s.entries['b'] for s in present], 1)}


def _blocks(
  ours: Mapping[str, Site | None], kernels: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """The factors of modules with an A each, or none."""
  a = np.concatenate([s.entries['a'] for s in ours.values() if s], 1)
  b = np.zeros((a.shape[1], sum(w.shape[1] for w in kernels.values())), a.dtype)
  row = column = 0
  for path, site in ours.items():
    width = kernels[path].shape[1]
    if site:
      rank = site.entries['b'].shape[0]
      b[row : row + rank, column : column + width] = site.entries['b']
      row += rank
    column += width
  return {'a': a, 'b': b}
