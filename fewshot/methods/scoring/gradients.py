"""Scores from gradients of the task's loss by the entries of the weights.

g is the gradient of the mean loss of the calibration batch at the pretrained weights w, H its
Hessian.  A model without a head of the classes is scored with the batch's class means as a head.
"""

from collections.abc import Callable

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
  each,
  problem,
  score,
  total,
  trainable,
)

__all__ = [
  'd3',
  'delta',
  'fisher',
  'gps',
  'gradient',
  'grasp',
  'movement',
  'path_integrated',
  'sensitivity',
  'snip',
  'taylor',
]
Array = jax.Array


@score
def gradient() -> Score:
  """|g|, of SAFT (Nguyen et al. 2024, arXiv:2407.03036) and the best of arXiv:2412.13488.

  >>> gradient().of
  'entry'
  """
  return _of_slopes(lambda w, g: jnp.abs(g))


@score
def snip() -> Score:
  """SNIP (Lee et al. 2019, arXiv:1810.02340): |w g|.

  >>> snip().of
  'entry'
  """
  return _of_slopes(lambda w, g: jnp.abs(w * g))


@score
def d3(exponent: float = 1.0, eps: float = 1e-3) -> Score:
  """D3 of ID^3 (Agarwal et al. 2024, arXiv:2408.14470): entries that are steep and small.

      s = |g| / (|w| + eps)^exponent

  >>> d3(exponent=0.5).of
  'entry'
  """
  if eps <= 0:
    raise FewshotError(f'd3(eps={eps}) divides by |w| + eps; eps is above 0')
  return _of_slopes(lambda w, g: jnp.abs(g) / (jnp.abs(w) + eps) ** exponent)


@score
def taylor(order: int = 1, signed: bool = False) -> Score:
  """Taylor importance (Molchanov et al. 2019, arXiv:1906.10771): the loss that removal costs.

      d = -w g  (order 1),   d = -w g + w (H w) / 2  (order 2);   d^2, or d where `signed`

  (H w)_i is the row of i, so that order 2 needs one product with H.  -w g is what arXiv:2412.13488
  calls FORCE; SNIP's |w g| ranks as (w g)^2 does.

  >>> taylor(order=2).of
  'entry'
  """
  if order not in (1, 2):
    raise FewshotError(f'taylor(order={order}) is not known; order is 1 or 2')

  of = (lambda d: d) if signed else jnp.square
  if order == 1:
    return _of_slopes(lambda w, g: of(-w * g))

  def fn(key: Array, forward: Forward, params: Params, calib: Calib) -> Leaves:
    del key
    task = problem(forward, params, calib)
    w = task.leaves
    g, h = task.slopes(w), task.curve(w, w)
    return {p: of(-w[p] * g[p] + w[p] * h[p] / 2) for p in g}

  return Score(fn)


@score
def grasp(temperature: float = 200.0) -> Score:
  """GraSP (Wang et al. 2020, arXiv:2002.07376): what keeps the gradient's norm, w (H g).

  The logits are divided by `temperature`, as the authors do.  Removing w_i changes |g|^2 / 2 by
  -w_i (H g)_i to first order: entries whose removal would lower it most are the largest.

  >>> grasp().of
  'entry'
  """
  if temperature <= 0:
    raise FewshotError(f'grasp(temperature={temperature}) divides logits; it is above 0')

  def fn(key: Array, forward: Forward, params: Params, calib: Calib) -> Leaves:
    del key
    task = problem(forward, params, calib, temperature)
    w = task.leaves
    return {p: w[p] * h for p, h in task.curve(w, task.slopes(w)).items()}

  return Score(fn)


@score
def fisher(sampled: bool = False) -> Score:
  """Diagonal Fisher information, of FISH masks (Sung et al. 2021, arXiv:2111.09839).

      mean over examples n of (d log p(y_n | x_n) / dw)^2

  y_n are the labels (the empirical Fisher), or where `sampled` drawn from the model's p(y | x_n).
  Summed over the entries of a layer it is the FIM-score of arXiv:2310.17041.  The gradients of
  examples are held one at a time.

  >>> fisher().of
  'entry'
  """

  def fn(key: Array, forward: Forward, params: Params, calib: Calib) -> Leaves:
    task = problem(forward, params, calib)
    batch = task.batch
    if sampled:
      z = each(lambda rows: logits_of(task.outputs(task.leaves, rows)), batch)
      batch = batch | {'labels': jax.random.categorical(key, z)}

    def part(rows: Batch, real: Array) -> Leaves:
      del real  # A chunk of one has no padding.
      return _squares(jax.grad(lambda at: task.loss(at, rows).sum())(task.leaves))

    return {p: s / count(batch) for p, s in total(part, batch, 1).items()}

  return Score(fn)


@score
def sensitivity(batch: int = 16) -> Score:
  """Sensitivity of SPT (He et al. 2023, arXiv:2303.08566): squared gradients, summed.

      s = sum over minibatches b of g_b^2

  It is how much a gradient step of an entry lowers the loss, to first order.  The calibration batch
  is cut into minibatches of `batch` examples.

  >>> sensitivity(batch=8).of
  'entry'
  """
  at_least_one('sensitivity', batch=batch)

  def fn(key: Array, forward: Forward, params: Params, calib: Calib) -> Leaves:
    del key
    task = problem(forward, params, calib)

    def part(rows: Batch, real: Array) -> Leaves:
      mean = lambda at: (task.loss(at, rows) * real).sum() / real.sum()  # noqa: E731
      return _squares(jax.grad(mean)(task.leaves))

    return total(part, task.batch, batch)

  return Score(fn)


@score
def movement(steps: int = 10, lr: float = 0.01) -> Score:
  """Movement (Sanh et al. 2020, arXiv:2005.07683): do weights move away from zero in training?

      S = -sum over steps t of g_t w_t,   w_(t+1) = w_t - lr g_t

  Gradient descent on the whole calibration batch.

  >>> movement(steps=3).of
  'entry'
  """
  at_least_one('movement', steps=steps)
  return Score(lambda key, *given: descend(steps, lr, *given)[1])


@score
def delta(steps: int = 10, lr: float = 0.01) -> Score:
  """The change of training, of LT-SFT (Ansell et al. 2022, arXiv:2110.07560): |w_T - w_0|.

  Gradient descent on the whole calibration batch; of one step it is lr |g|.

  >>> delta(steps=3).of
  'entry'
  """
  at_least_one('delta', steps=steps)

  def fn(key: Array, forward: Forward, params: Params, calib: Calib) -> Leaves:
    del key
    start, end = trainable(params)[0], descend(steps, lr, forward, params, calib)[0]
    return {p: jnp.abs(w - start[p]) for p, w in end.items()}

  return Score(fn)


@score
def path_integrated(steps: int = 10) -> Score:
  """Integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365) of weights, from zero.

      |w * integral over a in [0, 1] of g(a w)|

  Before the absolute value the scores of all entries sum to L(w) - L(0).  By the midpoints of
  `steps` intervals.

  >>> path_integrated(steps=4).of
  'entry'
  """
  at_least_one('path_integrated', steps=steps)

  def fn(key: Array, forward: Forward, params: Params, calib: Calib) -> Leaves:
    del key
    task = problem(forward, params, calib)
    w = task.leaves

    def add(sums: Leaves, a: Array) -> tuple[Leaves, None]:
      g = task.slopes({p: a.astype(x.dtype) * x for p, x in w.items()})
      return {p: s + g[p] / steps for p, s in sums.items()}, None

    middles = (jnp.arange(steps) + 0.5) / steps
    mean = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, w), middles)[0]
    return {p: jnp.abs(w[p] * g) for p, g in mean.items()}

  return Score(fn)


@score
def gps(temperature: float = 0.07) -> Score:
  """GPS (Zhang et al. 2024, arXiv:2312.10136): |g| of a contrastive loss, which needs no head.

      L = -mean over i and the j != i of its class of log softmax_(k != i)(cos(f_i, f_k) / t)_j

  The supervised contrastive loss (arXiv:2004.11362) of the features of the whole batch in one pass;
  an example that is alone in its class has no part.  GPS itself takes the best entries of each
  unit: granularity='unit'.

  >>> gps().of
  'entry'
  """
  if temperature <= 0:
    raise FewshotError(f'gps(temperature={temperature}) divides cosines; it is above 0')

  def fn(key: Array, forward: Forward, params: Params, calib: Calib) -> Leaves:
    del key
    if 'labels' not in calib.batch:
      raise FewshotError('gps() contrasts examples by their labels, and the batch has none')
    labels = jnp.asarray(calib.batch['labels'])
    other = ~jnp.eye(len(labels), dtype=bool)
    same = (labels[:, None] == labels) & other

    def contrast(leaves: Leaves) -> Array:
      f = forward(put(leaves), calib.batch)['features'].astype(jnp.float32)
      f = f / (jnp.linalg.norm(f, axis=-1, keepdims=True) + 1e-6)
      z = jax.nn.log_softmax(jnp.where(other, f @ f.T / temperature, -jnp.inf), axis=-1)
      own = jnp.where(same, z, 0).sum(1) / jnp.maximum(same.sum(1), 1)
      return -own.sum() / jnp.maximum(same.any(1).sum(), 1)

    leaves, put = trainable(params)
    return {p: jnp.abs(g) for p, g in jax.grad(contrast)(leaves).items()}

  return Score(fn)


def _of_slopes(of: Callable[[Array, Array], Array]) -> Score:
  """The score of w and g, entry by entry."""

  def fn(key: Array, forward: Forward, params: Params, calib: Calib) -> Leaves:
    del key
    task = problem(forward, params, calib)
    return {p: of(task.leaves[p], g) for p, g in task.slopes(task.leaves).items()}

  return Score(fn, slope=lambda key, w, g: of(w, g))


def _squares(tree: Leaves) -> Leaves:
  return {p: x * x for p, x in tree.items()}


def descend(
  steps: int, lr: float, forward: Forward, params: Params, calib: Calib
) -> tuple[Leaves, Leaves]:
  """The leaves after gradient descent, and -sum of g w over its steps."""
  task = problem(forward, params, calib)

  def step(carry: tuple[Leaves, Leaves], _: None) -> tuple[tuple[Leaves, Leaves], None]:
    w, s = carry
    g = task.slopes(w)
    moved = {p: s[p] - g[p] * w[p] for p in w}
    return ({p: w[p] - lr * g[p] for p in w}, moved), None

  zeros = jax.tree.map(jnp.zeros_like, task.leaves)
  return jax.lax.scan(step, (task.leaves, zeros), None, steps)[0]
