"""Low-rank updates whose budget shrinks while they train."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fewshot.errors import FewshotError
from fewshot.methods.activations import Site, wide
from fewshot.methods.base import Forward, Method, Theta, at_least_one, method
from fewshot.methods.lora_variants import SITES
from fewshot.methods.lowrank import low_rank, plain, scale, sizes
from fewshot.methods.paths import Where

__all__ = ['adalora', 'roselora']
Array = jax.Array


@method
def adalora(
  where: Where = SITES, init_r: int = 12, target_r: int = 8, alpha: float = 16.0, tinit: int = 0,
  tfinal: int = 0, deltaT: int = 1, total_step: int = 40, beta1: float = 0.85, beta2: float = 0.85,
  orth_reg_weight: float = 0.5,
) -> Method:  # fmt: skip
  """AdaLoRA (Zhang et al. 2023, arXiv:2303.10512): ranks go where singular values matter.

      y = x W + (alpha / init_r) x P diag(e) Q,   e = 0 at the start
      loss + orth_reg_weight * mean of |P^T P - I|_F, |Q Q^T - I|_F

  From step `tinit` on, every `deltaT` steps, all but the b most important triples of all sites
  have their e set to zero; b falls as a cubic from `init_r` a site to `target_r` a site at step
  `total_step - tfinal`, after which the choice stays.  `total_step` is the number of steps of
  the fit.  A triple's importance is that of e and the means of P's and Q's, each smoothed
  |theta * gradient| times its smoothed deviation (beta1, beta2).  P is `a` [d, r], Q `b` [r, k].

  >>> adalora(init_r=4, target_r=2).mergeable
  True
  """
  at_least_one('adalora', init_r=init_r, target_r=target_r, deltaT=deltaT)
  last = total_step - tfinal
  if target_r > init_r or not 0 <= tinit < last:
    raise FewshotError(
      f'adalora shrinks from init_r={init_r} to target_r={target_r} between steps tinit={tinit} '
      f'and total_step - tfinal = {last}; both are to be in order'
    )

  def init(key: Array, site: Site) -> dict[str, Array]:
    (d, k), dtype, (i, j) = sizes(site, 'adalora'), wide(site), jax.random.split(key)
    a, b = (0.02 * jax.random.normal(n, s, dtype) for n, s in ((i, (d, init_r)), (j, (init_r, k))))
    return {'a': a, 'e': jnp.zeros(init_r, dtype), 'b': b}

  def factors(t: dict[str, Array]) -> tuple[Array, Array]:
    return t['a'] * t['e'], scale(alpha, init_r) * t['b']

  def settle(memory: Any, grads: Theta, theta: Theta, step: Any) -> tuple[Any, Theta]:
    memory = _important(memory, grads, theta, step < last, beta1, beta2)
    each = target_r + (init_r - target_r) * cubic(step, tinit, last)
    due = jnp.asarray((step > tinit) & ((step % deltaT == 0) | (step >= last)))
    return memory, _without_triples(memory, theta, jnp.floor(each * len(theta)), due)

  def penalty(forward: Forward, theta: Theta, *rest: Any) -> Array:
    del forward, rest
    return orth_reg_weight * _crooked(theta)

  def optimizer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    return constrained(tx, lambda t: (_zeros(t), _zeros(t)), settle)

  return low_rank(where, init, factors)._replace(penalty=penalty, optimizer=optimizer)


@method
def roselora(
  where: Where = SITES,
  rank: int = 8,
  alpha: float = 16.0,
  density: float = 0.1,
  total_step: int = 40,
  beta: float = 0.8,
) -> Method:
  """RoseLoRA (Wang et al. 2024, arXiv:2406.10777): A B is sparse, its factors pruned in training.

      y = x W + (alpha / r) x A B,   A ~ N(0, 1/d) [d, r],   B = 0 [r, k] at the start

  After each step, every column of A and row of B keeps its entries of the largest smoothed
  |theta * gradient|; the others are set to zero.  The kept share falls as a cubic from 1, at a
  tenth of `total_step` (the steps of the fit), to `density` at four fifths.

  >>> roselora(rank=4).mergeable
  True
  """
  at_least_one('roselora', rank=rank, total_step=total_step)
  if not 0 < density <= 1:
    raise FewshotError(f'roselora(density={density}) is the kept share, above 0 and at most 1')

  def init(key: Array, site: Site) -> dict[str, Array]:
    return plain('roselora', key, site, rank)

  def factors(t: dict[str, Array]) -> tuple[Array, Array]:
    return t['a'], scale(alpha, rank) * t['b']

  def settle(memory: Theta, grads: Theta, theta: Theta, step: Any) -> tuple[Theta, Theta]:
    memory = smoothed(memory, sensitivity(grads, theta), beta)
    left = cubic(step, 0.1 * total_step, 0.8 * total_step)
    share = density + (1 - density) * left
    return memory, {p: _pruned(memory[p], t, share) for p, t in theta.items()}

  def optimizer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    return constrained(tx, _zeros, settle)

  return low_rank(where, init, factors)._replace(optimizer=optimizer)


def cubic(step: Any, first: float, last: float) -> Array:
  """(1 - progress)^3: 1 until step `first`, 0 from step `last` on."""
  done = (jnp.asarray(step, jnp.float32) - first) / (last - first)
  return (1 - jnp.clip(done, 0, 1)) ** 3


def largest(scores: Array, count: Any) -> Array:
  """Which entries are the `count` largest along the last axis; `count` may be traced.

  >>> largest(jnp.array([0.2, 0.9, 0.5]), 2).tolist()
  [False, True, True]
  """
  place = jnp.argsort(jnp.argsort(scores, -1), -1)
  return place >= scores.shape[-1] - count


def constrained(
  tx: optax.GradientTransformation,
  memory: Callable[[Theta], Any],
  settle: Callable[[Any, Theta, Theta, Any], tuple[Any, Theta]],
) -> optax.GradientTransformationExtraArgs:
  """`tx`, whose every step is followed by `settle(memory, grads, theta, step)`.

  It returns the memory and theta as they then are: some entries zeroed, for instance.
  """
  tx = optax.with_extra_args_support(tx)

  def init(theta: Theta) -> Any:
    return tx.init(theta), memory(theta)

  def update(grads: Theta, opt: Any, theta: Theta, *, step: Any, **extra: Any) -> Any:
    updates, inner = tx.update(grads, opt[0], theta, step=step, **extra)
    kept, new = settle(opt[1], grads, optax.apply_updates(theta, updates), step)
    return jax.tree.map(jnp.subtract, new, theta), (inner, kept)

  return optax.GradientTransformationExtraArgs(init, update)


def sensitivity(grads: Theta, theta: Theta) -> Theta:
  """|theta * gradient|: what the loss would change by, to first order, if an entry were zero."""
  return jax.tree.map(lambda g, t: jnp.abs(g * t), grads, theta)


def smoothed(old: Theta, new: Theta, beta: float) -> Theta:
  """The running mean beta * old + (1 - beta) * new."""
  return jax.tree.map(lambda o, n: beta * o + (1 - beta) * n, old, new)


def _important(
  memory: Any, grads: Theta, theta: Theta, learning: Any, beta1: float, beta2: float
) -> Any:
  """AdaLoRA's smoothed sensitivities and their smoothed deviations, while the budget moves."""
  now = sensitivity(grads, theta)
  mean = smoothed(memory[0], now, beta1)
  apart = jax.tree.map(lambda n, m: jnp.abs(n - m), now, mean)
  new = mean, smoothed(memory[1], apart, beta2)
  return jax.tree.map(lambda n, o: jnp.where(learning, n, o), new, memory)


def _without_triples(memory: Any, theta: Theta, budget: Any, due: Any) -> Theta:
  """theta with e zero but for the `budget` most important triples of all sites."""
  scores = jax.tree.map(jnp.multiply, *memory)
  each = {p: s['e'] + s['a'].mean(0) + s['b'].mean(1) for p, s in scores.items()}
  kept = largest(jnp.concatenate(list(each.values())), budget) | ~due
  masks = dict(zip(each, kept.reshape(len(each), -1), strict=True))
  return {p: t | {'e': jnp.where(masks[p], t['e'], 0)} for p, t in theta.items()}


def _crooked(theta: Theta) -> Array:
  """The mean distance of AdaLoRA's singular vectors from being orthonormal."""
  grams = [g for t in theta.values() for g in (t['a'].T @ t['a'], t['b'] @ t['b'].T)]
  return jnp.mean(jnp.stack([jnp.linalg.norm(g - jnp.eye(len(g), dtype=g.dtype)) for g in grams]))


def _pruned(scores: dict[str, Array], t: dict[str, Array], share: Any) -> dict[str, Array]:
  """RoseLoRA's A and B with `share` of each column of A and of each row of B."""
  count = lambda n: jnp.ceil(share * n - 1e-4)  # noqa: E731  # 0.1 * 10 is a little above 1.
  a = largest(scores['a'].T, count(len(t['a']))).T
  b = largest(scores['b'], count(t['b'].shape[1]))
  return {'a': jnp.where(a, t['a'], 0), 'b': jnp.where(b, t['b'], 0)}


def _zeros(theta: Theta) -> Theta:
  return jax.tree.map(jnp.zeros_like, theta)
