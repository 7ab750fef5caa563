"""Early pruning: what model and adapters do not need is found in a few steps and left out."""

import re
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fewshot import sweep as sweeps
from fewshot.errors import FewshotError
from fewshot.fits.base import Fit, Loss
from fewshot.fits.sgd import sgd
from fewshot.methods import paths
from fewshot.methods.activations import Site, in_activations, inputs
from fewshot.methods.base import Method, Params, chain, merge
from fewshot.methods.lowrank import lora
from fewshot.methods.paths import at
from fewshot.methods.spelling import spelled
from fewshot.objectives import classification
from fewshot.programs.steps import Written, headed, new, trained
from fewshot.stages import Carried, Program, Setting, Stage, program

__all__ = ['light_peft', 'prune_early', 'train_ranks']
Array = jax.Array
SGD, EARLY = sgd(), sgd(steps=20)
CORES, DOWN = r'(.*/)?core', r'(.*/)?mlp/down'
WHERE = r'.*/(query|value)'


@spelled
def light_peft(
  fit: Fit = SGD, early: Fit = EARLY, heads: float = 0.67, width: float = 0.67,
  modules: float = 0.5, ranks: float = 0.5, rank: int = 8, l1: float = 1e-4,
) -> Program:  # fmt: skip
  """Light-PEFT (Gu et al. 2024, arXiv:2406.03792): model and LoRA are pruned early, then trained.

      1. z_h' = m_h z_h and u_c' = m_c u_c of heads and MLP channels, m = 1 at the start, train for
         the steps of `early` beside LoRA, by the task's loss + l1 sum |m|
      2. of each layer the shares `heads` and `width` of the largest |m| stay, the rest is zero; of
         LoRA's modules the share `modules` that change most, of their ranks the share `ranks`
      3. LoRA of what is left trains anew by `fit`

  See `prune_early` and `train_ranks`.  What is pruned of the model is zero and has no gradient, but
  keeps its place: shapes and the time of a step are as they were.

  >>> [s.name for s in light_peft().stages]
  ['prune_early', 'train_ranks']
  """
  return program(prune_early(early, heads, width, modules, ranks, rank, l1), train_ranks(fit))


@spelled
def prune_early(
  fit: Fit = EARLY, heads: float = 0.67, width: float = 0.67, modules: float = 0.5,
  ranks: float = 0.5, rank: int = 8, l1: float = 1e-4, data: str = 'task', into: str = 'ranks',
) -> Stage:  # fmt: skip
  """Prunes `params` by masks that train beside LoRA, and counts the ranks that each module keeps.

      a module's score  |x (W' - W)| / |x W|,   a rank's  sum |t dL/dt| of its numbers t in A and B

  over the tokens of the train examples, LoRA as it is after the steps of `fit`.
  """
  shares = {'heads': heads, 'width': width, 'modules': modules, 'ranks': ranks}
  for name, share in shares.items():
    if not 0 < share <= 1:
      raise FewshotError(f'prune_early({name}={share}) is the share that stays, in (0, 1]')
  if l1 < 0:
    raise FewshotError(f'prune_early(l1={l1}) is the weight of a penalty, at least 0')

  def run(s: Setting, carried: Carried, seed: int) -> Written:
    params, calib = carried['params'], s.calib(data)
    model = s.model._replace(params=params)
    method = headed(model, chain(lora(WHERE, rank), *masks(l1)), calib)
    (result,) = sweeps.sweep(
      model, s.of(data), method, fit, classes=s.classes, seeds=(seed,), options=s.options
    )
    loss = Loss(model.forward, result.method, params, classification())
    slopes = jax.jit(jax.grad(lambda t: loss(t, result.state, calib.batch)[0]))(result.theta)
    changed = merge(lora(WHERE, rank), result.theta[0], result.state[0], params)
    ratios = importance(params, changed, inputs(model.forward, params, calib.batch, WHERE))
    kept = _ranks(ratios, taylor(result.theta[0], slopes[0]), modules, ranks)
    params, notes = _pruned(params, result.theta[1], result.theta[2], heads, width)
    return {'params': params, into: kept}, notes | {'ranks': {p: int(n) for p, n in kept.items()}}

  return Stage(run, ('params',), ('params', new(into)), (data,))


@spelled
def train_ranks(fit: Fit, data: str = 'task', ranks: str = 'ranks', scale: float = 2.0) -> Stage:
  """Trains LoRA of the modules and ranks that were kept, y = f(x) + scale x A B."""

  def run(s: Setting, carried: Carried, seed: int) -> Written:
    alike = defaultdict(list)
    for p, n in sorted(carried[ranks].items()):
      alike[int(n)].append(p)
    parts = [
      lora(at('|'.join(map(re.escape, names))), n, scale * n) for n, names in sorted(alike.items())
    ]
    return trained(s, carried['params'], chain(*parts), fit, data, seed)

  return Stage(run, ('params', ranks), ('params',), (data,))


def masks(l1: float) -> tuple[Method, Method]:
  """Gains of heads and of what `down` reads, 1 at the start, with an L1 penalty on them."""

  def penalty(forward: Any, theta: Any, *rest: Any) -> Array:
    del forward, rest
    return l1 * jnp.stack([jnp.abs(t['mask']).sum() for t in theta.values()]).sum()

  def heads(key: Array, site: Site) -> dict[str, Array]:
    return {'mask': jnp.ones(site.out.shape[-2])}

  def channels(key: Array, site: Site) -> dict[str, Array]:
    return {'mask': jnp.ones(site.x.shape[-1])}

  core = in_activations(CORES, heads, lambda t, f, *args: f(*args) * t['mask'][:, None])
  down = in_activations(DOWN, channels, lambda t, f, x: f(x * t['mask']))
  return core._replace(penalty=penalty), down._replace(penalty=penalty)


def importance(params: Params, changed: Params, seen: dict[str, Array]) -> dict[str, float]:
  """|x (W' - W)| / |x W| of each module, x the rows that it reads."""
  before, after, found = paths.flatten(params), paths.flatten(changed), {}
  for p, x in seen.items():
    w = jnp.asarray(before[f'{p}/kernel'])
    moved = jnp.linalg.norm(x @ (after[f'{p}/kernel'] - w))
    found[p] = float(moved / jnp.maximum(jnp.linalg.norm(x @ w), 1e-12))
  return found


def taylor(theta: Any, slopes: Any) -> dict[str, np.ndarray]:
  """The first-order effect of each rank of LoRA, [r] a module."""
  effect = jax.tree.map(lambda t, g: np.abs(np.asarray(t * g)), theta, slopes)
  return {p: t['a'].sum(0) + t['b'].sum(1) for p, t in effect.items()}


def _ranks(
  ratios: dict[str, float], effects: dict[str, np.ndarray], modules: float, ranks: float
) -> dict[str, np.ndarray]:
  """How many ranks each module keeps: those of the best modules, of all their ranks the best."""
  best = sorted(ratios, key=lambda p: -ratios[p])[: _share(modules, len(ratios))]
  flat = np.sort(np.concatenate([effects[p] for p in best]))[::-1]
  least = flat[_share(ranks, len(flat)) - 1]
  counts = {p: int((effects[p] >= least).sum()) for p in best}
  return {p: np.array(n, np.int32) for p, n in counts.items() if n}


def _pruned(
  params: Params, heads: Any, channels: Any, heads_kept: float, width_kept: float
) -> tuple[Params, dict[str, Any]]:
  """Params with zero where a head or a channel is read that does not stay, and how many do."""
  flat, new_leaves = paths.flatten(params), {}
  rows = {f'{p.removesuffix("core")}out/kernel': (t, heads_kept) for p, t in heads.items()}
  rows |= {f'{p}/kernel': (t, width_kept) for p, t in channels.items()}
  for p, (t, share) in rows.items():
    m = np.abs(np.asarray(t['mask']))
    on = np.zeros(len(m), bool)
    on[np.argsort(-m, kind='stable')[: _share(share, len(m))]] = True
    w = jnp.asarray(flat[p])
    new_leaves[p] = w * jnp.asarray(np.repeat(on, len(w) // len(m))[:, None], w.dtype)
  zeros = sum(int((np.asarray(w) == 0).all(1).sum()) * w.shape[1] for w in new_leaves.values())
  return paths.replace(params, new_leaves), {'pruned': zeros}


def _share(share: float, n: int) -> int:
  """How many of n are kept, at least one."""
  return max(1, round(share * n))
