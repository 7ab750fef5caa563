"""Entries of weights that train for a while: masks drawn anew by gradients, sizes or at random.

theta is dense, since what was active once stays changed, but that of `sara`, whose mask shrinks;
the moments of `lift_refresh` and `rigl` are those of their active entries alone.  Adam's count is
one for all entries, so that one which becomes active late starts with moments that are not
corrected for their start, and its first steps are up to three times as large: as in the code of
ID^3, LIFT and RigL.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.methods.base import Calib, Forward, Method, Params, State, Theta, at_least_one, method
from fewshot.methods.choices import check_budget
from fewshot.methods.masks import places_of
from fewshot.methods.moving_rules import (
  INDEXED,
  NESTED,
  Mask,
  Rule,
  Seen,
  always,
  best,
  check_share,
  every,
  moves,
  moving,
  none_of,
  steepest,
  swapped,
)
from fewshot.methods.paths import Where
from fewshot.methods.scoring.base import Score
from fewshot.methods.scoring.gradients import fisher
from fewshot.methods.scoring.plain import lift, magnitude
from fewshot.methods.selecting import top
from fewshot.methods.spelling import spell
from fewshot.methods.weights import check_kernel, in_weights, trained, tune

__all__ = [
  'child_tuning_d',
  'child_tuning_f',
  'gmt',
  'id3',
  'lift_refresh',
  'rigl',
  'salient',
  'sara',
]
Array = jax.Array


@method
def gmt(fraction: float, where: Where = '.*') -> Method:
  """Gradient-mask tuning (Li et al. 2024, arXiv:2406.15330): the steepest entries of each step.

      W[i] moves where |g[i]| is among the `fraction` largest of its tensor at this step

  g is the mean gradient of the step's examples; sgd(accumulate=N) averages it over N parts, the
  paper's interval.  The moments see the masked gradient and carry on, as in the authors' code.

  >>> gmt(0.2).mergeable
  True
  """
  check_share('gmt', fraction=fraction)

  return moves(tune(where), steepest(fraction))


@method
def id3(
  budget: int | float, steps: int, where: Where = '.*', exp: float = 0.0, eps: float = 1e-3,
  method: Method | None = None,
) -> Method:  # fmt: skip
  """ID^3 (Agarwal et al. 2024, arXiv:2408.14470): the mask grows step by step to its budget.

      H(W) = |g| / (|W| + eps)^exp,   each step the best of all tensors' masked entries join

  `budget` is a count, or a fraction, of all selected entries; a step unmasks budget // steps of
  them, the first ones one more where that does not come out even.  What is unmasked stays so.
  With `method`, W are the numbers which that trains, as of LoRA or adapters, in place of `where`.

  >>> id3(1000, steps=100).mergeable
  True
  """
  at_least_one('id3', steps=steps)
  check_budget('id3', budget)
  if eps <= 0:
    raise FewshotError(f'id3(eps={eps}) is added to weights that may be zero; eps is above 0')
  if method is not None and where != '.*':
    raise FewshotError('id3(method=...) masks what that trains; give where= to the method itself')
  base = tune(where) if method is None else method

  def draw(s: Seen) -> Mask:
    theta, grads = paths.flatten(s.theta), paths.flatten(s.grads)
    size = sum(x.size for x in theta.values())
    total = min(size, budget if isinstance(budget, int) else math.ceil(budget * size))
    each, more = divmod(total, steps)
    n = jnp.where(s.step < steps, each + (s.step < more), 0)
    merit = {p: jnp.abs(g) / (jnp.abs(theta[p]) + eps) ** exp for p, g in grads.items()}
    masked = {p: jnp.where(s.mask[p], -1, h) for p, h in merit.items()}
    return jax.tree.map(jnp.logical_or, s.mask, best(masked, each + (more > 0), n))

  rule = Rule(none_of, draw, always, NESTED)
  return base._replace(optimizer=lambda tx: base.optimizer(moving(tx, rule)))


@method
def lift_refresh(
  where: Where = r'.*/(attn|mlp)/\w+/kernel', rank: int = 128, filter_rank: int = 128,
  period: int = 400,
) -> Method:  # fmt: skip
  """LIFT (Liu et al. 2025, arXiv:2506.00772): principal weights, chosen anew as the weights change.

      W[i] trains where |W_r[i]| is among the r' (d + k) largest,  W_r = sum_j<r u_j s_j v_j^T

  r is `filter_rank`, r' `rank`; chosen at the start and every `period` steps from the weights as
  they then are.  The moments are those of the n chosen entries of each kernel: at a refresh they
  follow the entries that stay, and start at zero for new ones.

  >>> lift_refresh(rank=4, filter_rank=8).mergeable
  True
  """
  at_least_one('lift_refresh', rank=rank, filter_rank=filter_rank, period=period)

  def count(w: Array) -> int:
    return min(rank * (w.size // w.shape[-1] + w.shape[-1]), w.size)

  def init(key: Array, w: Array) -> Array:
    del key
    check_kernel('lift_refresh', w)
    return w

  def draw(s: Seen) -> Mask:
    scores: Any = lift(rank=filter_rank).fn
    found = scores(s.key, None, s.theta, None)
    top = {p: jax.lax.top_k(x.reshape(-1), count(x))[1] for p, x in found.items()}
    return {p: jnp.sort(i).astype(jnp.int32) for p, i in top.items()}

  def blank(theta: Theta) -> Mask:
    return {p: jnp.arange(count(w), dtype=jnp.int32) for p, w in theta.items()}

  return moves(in_weights(where, init, lambda t, w: t), Rule(blank, draw, every(period), INDEXED))


@method
def rigl(
  fraction: float, steps: int, where: Where = r'.*/(query|value)/kernel', drop: float = 0.3,
  period: int = 100,
) -> Method:  # fmt: skip
  """RigL (Evci et al. 2019, arXiv:1911.11134) of the change of weights: drop small, grow steep.

      W' = W + D,   D has n = `fraction` |W| active entries, at random at first
      every `period` steps t <= `steps`:  drop/2 (1 + cos(pi t / steps)) n of the least |D| are
      dropped and become zero, as many of the largest |g| elsewhere grow from zero

  Sparse fine-tuning by this rule is arXiv:2401.16405.  D is dense, its moments are [n] a tensor.

  >>> rigl(0.01, steps=1000).mergeable
  True
  """
  check_share('rigl', fraction=fraction, drop=drop)
  at_least_one('rigl', steps=steps, period=period)

  def draw(s: Seen) -> Mask:
    share = drop / 2 * (1 + jnp.cos(jnp.pi * s.step / steps))
    new = {}  # Of 4.99999, which is 5 but for rounding, 5 are dropped.
    for p, d in s.theta.items():
      n, key = s.mask[p].size, jax.random.fold_in(s.key, paths.stable_hash('rigl', p))
      first = jax.random.permutation(key, d.size)[:n].astype(jnp.int32)
      later = swapped(d, s.grads[p], s.mask[p], jnp.floor(share * n + 1e-4).astype(jnp.int32))
      new[p] = jnp.where(s.step == 0, first, later)
    return new

  def blank(theta: Theta) -> Mask:
    return {p: jnp.arange(math.ceil(fraction * d.size), dtype=jnp.int32) for p, d in theta.items()}

  start = in_weights(where, lambda key, w: jnp.zeros_like(w), lambda t, w: w + t)
  due = lambda step: (step % period == 0) & (step <= steps)  # noqa: E731
  return moves(start, Rule(blank, draw, due, INDEXED, reverts=True))


@method
def salient(
  score: Score, budget: int | float, period: int = 100, where: Where = r'.*/(attn|mlp)/\w+/kernel'
) -> Method:
  """Dynamic salience masks (Liu et al. 2024, arXiv:2412.13488): the best entries, found time again.

      every `period` steps   M = the `budget` largest of s(W, g) over all selected entries
      W[i] moves where M[i]

  Where it never moves again this is tune(top(score, budget)).  g is the gradient of the step's
  examples, the paper's that of 1,024; sgd(accumulate=N) averages it over N parts.

  >>> from fewshot.methods.scoring import snip
  >>> salient(snip(), 0.01, period=20).mergeable
  True
  """
  at_least_one('salient', period=period)
  check_budget('salient', budget)
  if score.slope is None:
    raise FewshotError(
      f'salient() takes scores of weights and gradients alone, and {score.made and spell(score)} '
      'looks further; take magnitude(), random(), lift(), gradient(), snip(), d3() or taylor()'
    )
  s_of = score.slope

  def draw(s: Seen) -> Mask:
    at = {p: jax.random.fold_in(s.key, paths.stable_hash('salient', p)) for p in s.theta}
    found = {p: s_of(at[p], w, s.grads[p]) for p, w in s.theta.items()}
    size = sum(x.size for x in found.values())
    return best(found, budget if isinstance(budget, int) else math.ceil(budget * size))

  return moves(tune(where), Rule(none_of, draw, every(period)))


@method
def sara(
  where: Where = r'.*/kernel', threshold: float = 2e-3, progressive_iter: int = 0,
  lambda_rank: float = 0.0, counts: tuple | None = None,
) -> Method:  # fmt: skip
  """SaRA (Hu et al. 2024, arXiv:2409.06633): weights too small to matter are put to use.

      W[i] trains where |W[i]| < threshold at the start;  loss + lambda_rank |W M|_* / kernels

  theta, its gradient and moments are those n weights of each kernel; the plan counts them, without
  it n is all.  From step `progressive_iter` on (the paper takes half of the steps; 0 for never)
  those train on that are still below, and M is what trains.  The gradient of the nuclear norm is
  added to that of the loss: each step that of one kernel, drawn at random.

  >>> sara(threshold=0.01, progressive_iter=50).mergeable
  True
  """
  if threshold <= 0 or progressive_iter < 0 or lambda_rank < 0:
    raise FewshotError(
      f'sara(threshold={threshold}, progressive_iter={progressive_iter}, lambda_rank='
      f'{lambda_rank}): the threshold is above 0, the others at least 0'
    )
  scope = 'global' if counts else 'tensor'  # Of one leaf: all of it.
  base = tune(top(magnitude(), 1.0, scope=scope, where=where, keep='smallest', counts=counts))

  def plan(forward: Forward, params: Params, calib: Calib) -> Method:
    del forward, calib
    n = tuple(int((jnp.abs(w) < threshold).sum()) for w in trained(params, where).values())
    if not any(n):
      raise FewshotError(f'sara(threshold={threshold}): no weight is below it; raise it')
    return sara(where, threshold, progressive_iter, lambda_rank, n)

  def draw(s: Seen) -> Mask:
    small = {p: jnp.abs(w) < threshold for p, w in paths.flatten(s.theta).items()}
    return {p: m & (s.mask[p] | (s.step == 0)) for p, m in small.items()}

  due = lambda step: (step == 0) | ((step == progressive_iter) & (progressive_iter > 0))  # noqa: E731
  rule = Rule(none_of, draw, due, NESTED)
  low = lambda tx: _low_rank(tx, lambda_rank) if lambda_rank else tx  # noqa: E731
  return base._replace(
    optimizer=lambda tx: moving(low(tx), rule), plan=plan if counts is None else None
  )


def _low_rank(tx: optax.GradientTransformation, weight: float) -> optax.GradientTransformation:
  """`tx`, with the gradient of weight |W M|_* of one kernel added; values are zero outside M."""
  inner = optax.with_extra_args_support(tx)

  def update(
    grads: Mask, opt: Any, values: Mask, *, key: Array, method_state: State, frozen: Params,
    **extra: Any,
  ) -> Any:  # fmt: skip
    flat = paths.flatten(frozen)

    def pulled(name: str) -> Mask:
      p = name.removesuffix('/value')
      index = method_state[p]['index']
      w = jnp.zeros(flat[p].size, values[name].dtype).at[index].set(values[name])
      u, _, v = jnp.linalg.svd(w.reshape(-1, flat[p].shape[-1]), full_matrices=False)
      return grads | {name: grads[name] + weight * (u @ v).reshape(-1)[index]}

    kernels = [n for n in values if flat[n.removesuffix('/value')].ndim > 1]
    one = jax.random.randint(
      jax.random.fold_in(key, paths.stable_hash('sara')), (), 0, len(kernels)
    )
    drawn = jax.lax.switch(one, [functools.partial(pulled, n) for n in kernels])
    extra |= {'key': key, 'method_state': method_state, 'frozen': frozen}
    return inner.update(drawn, opt, values, **extra)

  return optax.GradientTransformationExtraArgs(inner.init, update)


@method
def child_tuning_f(p: float = 0.3, where: Where = '.*') -> Method:
  """Child-Tuning_F (Xu et al. 2021, arXiv:2109.05687): a new random child network each step.

      W <- W - lr g M / p,   M ~ Bernoulli(p) for each entry and step

  The moments see the masked gradient and carry on, as in the authors' code.

  >>> child_tuning_f(p=0.2).mergeable
  True
  """
  check_share('child_tuning_f', p=p)

  def draw(s: Seen) -> Mask:
    at = {q: jax.random.fold_in(s.key, paths.stable_hash('child', q)) for q in s.theta}
    return {q: jax.random.bernoulli(at[q], p, x.shape) for q, x in s.theta.items()}

  def optimizer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    scaled = optax.chain(optax.scale(1 / p), tx)
    return moving(scaled, Rule(none_of, draw, always, forgets=False))

  return tune(where)._replace(optimizer=optimizer)


@method
def child_tuning_d(p: float = 0.3, where: Where = '.*') -> Method:
  """Child-Tuning_D (Xu et al. 2021, arXiv:2109.05687): the child network that the task chooses.

      M = the `p` largest of F = mean_n (d log p(y_n | x_n) / dW)^2 over the blocks' entries

  Chosen once, at the start, on the training examples; the mask is state.  What is outside the
  blocks trains whole.

  >>> child_tuning_d(p=0.2).mergeable
  True
  """
  check_share('child_tuning_d', p=p)
  base = tune(where)

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    theta, _ = base.init(key, forward, params, calib)
    scores, inside = fisher().fn(key, forward, params, calib), places_of(theta)
    found = {q: scores[q] for q in theta if q in inside}
    size = sum(f.size for f in found.values())
    return theta, {'child': best(found, math.ceil(p * size))}

  def blank(theta: Theta) -> Mask:
    inside = places_of(theta)
    return {q: jnp.zeros(x.shape if q in inside else (), bool) for q, x in theta.items()}

  def draw(s: Seen) -> Mask:
    return {q: s.state['child'].get(q, jnp.array(True)) for q in s.theta}

  return moves(base._replace(init=init), Rule(blank, draw, lambda step: step == 0))
