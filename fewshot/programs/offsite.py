"""Tuning without the whole model: an emulator of it is tuned at its ends, which go back into it."""

import jax
import numpy as np

from fewshot.errors import FewshotError
from fewshot.fits.base import Fit
from fewshot.fits.sgd import sgd
from fewshot.methods import paths
from fewshot.methods.leaves import floats
from fewshot.methods.scoring.influence import cka
from fewshot.methods.spelling import spelled
from fewshot.methods.weights import tune
from fewshot.programs.search import blocks, layers
from fewshot.programs.steps import Written, about, train
from fewshot.stages import Carried, Program, Setting, Stage, program

__all__ = ['crash', 'emulate', 'plug']
SGD = sgd()


@spelled
def crash(clusters: int = 4, ends: int = 2, fit: Fit = SGD) -> Program:
  """CRaSh (Zhang et al. 2023, arXiv:2310.15477): tuned on an emulator made without training.

      1. clusters of similar layers in the middle; one of each stays and stands for all of it
      2. the first and last `ends` blocks train around that
      3. W = the whole model's, with the trained blocks in their places

  `emulate` says how.  As in offsite-tuning (Xiao et al. 2023, arXiv:2302.04870) the trained blocks
  never saw the middle layers that they are put back around.

  >>> [s.name for s in crash(clusters=2).stages]
  ['emulate', 'train', 'plug']
  """
  return program(emulate(clusters, ends), train(tune(), fit, where='selection'), plug())


@spelled
def emulate(clusters: int, ends: int = 2, data: str = 'task', into: str = 'selection') -> Stage:
  """Clusters, removes and shares the middle blocks; chooses the others, `ends` on each side.

  Neighbours are as similar as the linear CKA of what they return (see `cka`); the most similar are
  joined until `clusters` are left.  Of each cluster the block in its middle stays, the weights of
  which take the places of those removed: the depth is the same, the distinct blocks are fewer.
  """
  if clusters < 1 or ends < 1:
    raise FewshotError(f'emulate(clusters={clusters}, ends={ends}): both are at least 1')

  def run(s: Setting, carried: Carried, seed: int) -> Written:
    params = carried['params']
    names = blocks(params)
    middle = names[ends:-ends]
    if len(middle) < clusters:
      raise FewshotError(
        f'emulate(clusters={clusters}, ends={ends}) needs {clusters + 2 * ends} blocks, and the '
        f'model has {len(names)}'
      )
    scores = cka()(jax.random.key(seed), s.model.forward, params, s.calib(data))
    groups = _joined(middle, [float(scores[n]) for n in middle[1:]], clusters)
    kept = {n: group[len(group) // 2] for group in groups for n in group}
    found = layers(params, [*names[:ends], *names[-ends:]])
    return {'params': _shared(params, kept), into: found}, about(found) | {'clusters': groups}

  return Stage(run, ('params',), ('params', into), (data,))


@spelled
def plug(where: str = 'selection', to: str = 'base') -> Stage:
  """The weights `to` with what was chosen, and the classifier, as they are in `params`."""

  def run(s: Setting, carried: Carried, seed: int) -> Written:
    del s, seed
    params, base, own = carried['params'], floats(carried[to]), carried[where].parts
    new = ('head/', *(f'{p}/' for p in own))
    kept = {p: w for p, w in base.items() if not p.startswith(new)}
    return {'params': paths.replace(params, kept)}, {'kept': len(kept)}

  return Stage(run, tuple(dict.fromkeys(('params', where, to))))


def _joined(names: list[str], distances: list[float], clusters: int) -> list[list[str]]:
  """The names in runs, cut where neighbours are farthest apart."""
  cuts = np.sort(np.argsort(-np.asarray(distances), kind='stable')[: clusters - 1]) + 1
  return [list(map(str, run)) for run in np.split(np.asarray(names), cuts)]


def _shared(params: object, kept: dict[str, str]) -> object:
  """Params in which each block named in `kept` has the weights of the one that it names."""
  flat, new = paths.flatten(params), {}
  for name, source in kept.items():
    for p, w in flat.items():
      if p.startswith(f'{name}/'):
        other = flat.get(source + p.removeprefix(name))
        if other is None or other.shape != w.shape:
          raise FewshotError(f'{name} and {source} are not alike, so they cannot share weights')
        new[p] = other
  return paths.replace(params, new)
