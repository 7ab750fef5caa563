"""Scores from curvature: the Hessian of the task's loss, the reach of small noise."""

import jax
import jax.numpy as jnp

from fewshot.errors import FewshotError
from fewshot.methods.base import Batch, Calib, Forward, Params
from fewshot.methods.heads import logits_of
from fewshot.methods.scoring.base import (
  Leaves,
  Score,
  at_least_one,
  count,
  draw,
  problem,
  score,
  total,
)

__all__ = ['dropout_kl', 'hutchinson']
Array = jax.Array


@score
def hutchinson(samples: int = 8) -> Score:
  """The Hessian's diagonal by Hutchinson's method (Yao et al. 2020, arXiv:2006.00719), signed.

      E[v * (H v)] = diag H,   v of independent signs, the mean over `samples` of them

  Summed over a layer it estimates the trace, by which HAWQ-V2 (Dong et al. 2019, arXiv:1911.03852)
  ranks layers.  Each sample is one product with H.

  >>> hutchinson(samples=2).of
  'entry'
  """
  at_least_one('hutchinson', samples=samples)

  def fn(key: Array, forward: Forward, params: Params, calib: Calib) -> Leaves:
    task = problem(forward, params, calib)
    w = task.leaves

    def add(sums: Leaves, key: Array) -> tuple[Leaves, None]:
      signs = draw(lambda k, shape: jax.random.rademacher(k, shape, jnp.float32), key, w)
      v = {p: s.astype(w[p].dtype) for p, s in signs.items()}
      h = task.curve(w, v)
      return {p: s + v[p] * h[p] / samples for p, s in sums.items()}, None

    zeros = jax.tree.map(jnp.zeros_like, w)
    return jax.lax.scan(add, zeros, jax.random.split(key, samples))[0]

  return Score(fn)


@score
def dropout_kl(rate: float = 0.1) -> Score:
  """Importance to what a model knows, of CoFiTune (Zhang et al. 2024, arXiv:2404.10306), signed.

      s = w dL/dw,   L = mean KL(p(x; w n) | p(x; w m)),   m, n of Bernoulli(1 - rate) / (1 - rate)

  Labels have no part, but in the class means of a model without a head.  Summed over the inputs of
  an output it is the gradient by a gate on that output, which the authors take.  Their dropout is
  of activations; ours is of weights, since many models have none.

  >>> dropout_kl().of
  'entry'
  """
  if not 0 < rate < 1:
    raise FewshotError(f'dropout_kl(rate={rate}) drops all or nothing; rate is in (0, 1)')

  def fn(key: Array, forward: Forward, params: Params, calib: Calib) -> Leaves:
    task = problem(forward, params, calib)
    gate = lambda k, shape: jax.random.bernoulli(k, 1 - rate, shape) / (1 - rate)  # noqa: E731
    gates = [draw(gate, k, task.leaves) for k in jax.random.split(key)]

    def part(rows: Batch, real: Array) -> Leaves:
      def divergence(at: Leaves) -> Array:
        noisy = ({p: w * m[p].astype(w.dtype) for p, w in at.items()} for m in gates)
        a, b = (jax.nn.log_softmax(logits_of(task.outputs(leaves, rows))) for leaves in noisy)
        return ((jnp.exp(b) * (b - a)).sum(-1) * real).sum()

      return jax.grad(divergence)(task.leaves)

    mean = {p: g / count(task.batch) for p, g in total(part, task.batch).items()}
    return {p: task.leaves[p] * g for p, g in mean.items()}

  return Score(fn)
