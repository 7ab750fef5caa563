"""Scores of attention heads, by the path of their core: what `.../core` returns is [B, T, H, D]."""

import jax
import jax.numpy as jnp
import optax

from fewshot.errors import FewshotError
from fewshot.methods.activations import in_activations, outputs
from fewshot.methods.base import Batch, Calib, Forward, Params
from fewshot.methods.paths import Where
from fewshot.methods.scoring.base import (
  Leaves,
  Score,
  at_least_one,
  classifier,
  count,
  losses,
  rowwise,
  score,
  total,
)
from fewshot.methods.scoring.observed import slopes, token_means, weighted

__all__ = ['head_importance', 'head_norms', 'head_scales', 'mlp_patching', 'patching']
Array = jax.Array
CORES = r'(.*/)?core'
COUNTER = 'counter_'  # Before the name of an entry: that of the counterfactual example.


@score
def head_norms(where: Where = CORES) -> Score:
  """The mean over tokens of |z_h|, what head h returns.

  >>> head_norms().of
  'head'
  """

  def fn(key: Array, forward: Forward, params: Params, calib: Calib) -> Leaves:
    del key
    norms = lambda z, path: jnp.linalg.norm(z, axis=-1)  # noqa: E731
    return token_means(norms, where, forward, params, calib.batch)

  return Score(fn, 'head')


@score
def head_importance(where: Where = CORES) -> Score:
  """Importance of heads (Michel et al. 2019, arXiv:1905.10650): the mean of |z_h . dL/dz_h|.

  What the loss of an example loses with head h, to first order; the product is over tokens and the
  width of the head, the mean over examples.  Layers are not normalised.

  >>> head_importance().of
  'head'
  """

  def fn(key: Array, forward: Forward, params: Params, calib: Calib) -> Leaves:
    del key
    head, loss = classifier(forward, params, calib), losses(calib)

    def part(rows: Batch, real: Array) -> Leaves:
      found = slopes(where, forward, params, rows, weighted(loss, head, rows, real))
      return {p: jnp.abs((z * g).sum((1, 3))).sum(0) for p, (z, g) in found.items()}

    return {p: s / count(calib.batch) for p, s in total(part, calib.batch).items()}

  return Score(fn, 'head')


@score
def head_scales(where: Where = CORES, steps: int = 20, lr: float = 5e-3, l1: float = 0.0) -> Score:
  """The first step of LoFiT (Yin et al. 2024, arXiv:2406.01563): heads by the norm of a gain.

      z_h' = (1 + A_h) * z_h,   A = 0 [H, D] trained by `steps` steps of Adam;   |A_h|
      the loss is that of the task + l1 sum |A|,   of all heads

  On the calibration batch; a model without a head is trained with its class means as one.

  >>> head_scales(steps=2).of
  'head'
  """
  at_least_one('head_scales', steps=steps)
  if l1 < 0:
    raise FewshotError(f'head_scales(l1={l1}) is the weight of a penalty, at least 0')

  def fn(key: Array, forward: Forward, params: Params, calib: Calib) -> Leaves:
    del key
    head, loss, tx = classifier(forward, params, calib), losses(calib), optax.adam(lr)
    gains = in_activations(where, lambda key, site: {}, lambda t, f, *x: f(*x) * (1 + t['gain']))
    shapes = jax.eval_shape(lambda p, b: outputs(forward, p, b, where), params, calib.batch)
    start = {p: {'gain': jnp.zeros(z.shape[-2:])} for p, z in shapes.items()}

    def slope(theta: dict[str, Leaves]) -> dict[str, Leaves]:
      def part(rows: Batch, real: Array) -> dict[str, Leaves]:
        value = weighted(loss, head, rows, real)
        return jax.grad(lambda t: value(gains.wrap(forward, t, {})(params, rows)))(theta)

      mean = jax.tree.map(lambda g: g / count(calib.batch), total(part, calib.batch))
      return jax.tree.map(lambda g, a: g + l1 * jnp.sign(a), mean, theta)

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
      theta, moments = carry
      updates, moments = tx.update(slope(theta), moments, theta)
      return (optax.apply_updates(theta, updates), moments), None

    theta = jax.lax.scan(step, (start, tx.init(start)), None, steps)[0][0]
    return {p: jnp.linalg.norm(t['gain'], axis=-1) for p, t in theta.items()}

  return Score(fn, 'head')


@score
def patching(where: Where = CORES) -> Score:
  """Path patching, of precise tuning (Zhang et al. 2024, arXiv:2409.01659): a head's own effect.

      s_h = L(z_h of another example, all other heads as they were) - L

  The other example is the counterfactual that the batch has beside each (`counter_tokens` beside
  `tokens`, and so on); without any, the next one of another class.  All other heads return what
  they did, so that the effect is that of the paths from this head on that pass no other one (Wang
  et al. 2022, arXiv:2211.00593); it is of the mean loss.  A forward pass a head, of the batch.

  >>> patching().of
  'head'
  """

  def fn(key: Array, forward: Forward, params: Params, calib: Calib) -> Leaves:
    del key
    batch, head, loss = calib.batch, classifier(forward, params, calib), losses(calib)
    clean = outputs(forward, params, batch, where)
    corrupt = outputs(forward, params, _others(batch), where)
    swap = in_activations(where, lambda key, site: {}, _swapped)
    sizes = {p: z.shape[-2] for p, z in clean.items()}

    def patched(pick: Array) -> Array:
      picks = dict(zip(sizes, jnp.split(pick, ends), strict=True))
      ts = {p: {'z': z, 'other': corrupt[p], 'pick': picks[p]} for p, z in clean.items()}
      return loss(head(swap.wrap(forward, ts, {})(params, batch)), batch).mean()

    ends = [sum(list(sizes.values())[: i + 1]) for i in range(len(sizes) - 1)]
    effects = jax.lax.map(patched, jnp.eye(sum(sizes.values())))
    effects = effects - loss(head(forward(params, batch)), batch).mean()
    return dict(zip(sizes, jnp.split(effects, ends), strict=True))

  return Score(fn, 'head')


@score
def mlp_patching(where: Where = r'(.*/)?mlp', heads: Where = CORES) -> Score:
  """Path patching of MLPs, of precise tuning (Zhang et al. 2024, arXiv:2409.01659).

      s_m = L(y_m of another example, all heads as they were) - L

  The effect of what an MLP returns on the paths that pass no head; other MLPs follow.  The other
  example is as of `patching`.  A forward pass an MLP, of the whole batch.

  >>> mlp_patching().of
  'site'
  """

  def fn(key: Array, forward: Forward, params: Params, calib: Calib) -> Leaves:
    del key
    batch, head, loss = calib.batch, classifier(forward, params, calib), losses(calib)
    held = {p: {'z': z} for p, z in outputs(forward, params, batch, heads).items()}
    still = in_activations(heads, dict, lambda t, f, *args: t['z']).wrap(forward, held, {})
    swap = in_activations(where, dict, lambda t, f, x: jnp.where(t['pick'] > 0, t['other'], f(x)))
    other = outputs(forward, params, _others(batch), where)

    def patched(pick: Array) -> Array:
      ts = {p: {'other': y, 'pick': pick[i]} for i, (p, y) in enumerate(other.items())}
      return loss(head(swap.wrap(still, ts, {})(params, batch)), batch).mean()

    effects = jax.lax.map(patched, jnp.eye(len(other)))
    return dict(zip(other, effects - loss(head(forward(params, batch)), batch).mean(), strict=True))

  return Score(fn, 'site')


def _swapped(t: dict[str, Array], f: object, *args: Array) -> Array:
  del f, args
  return jnp.where(t['pick'][:, None] > 0, t['other'], t['z'])


def _others(batch: Batch) -> Batch:
  """For each example its counterfactual; or the next one of another label, or just the next one."""
  counter = {k.removeprefix(COUNTER): v for k, v in batch.items() if k.startswith(COUNTER)}
  if counter:
    return batch | counter
  n, names = count(batch), rowwise(batch)
  order = (jnp.arange(n)[:, None] + jnp.arange(1, n + 1)) % n
  first = jnp.zeros(n, int)
  if 'labels' in names:
    labels = jnp.asarray(batch['labels'])
    first = jnp.argmax(labels[order] != labels[:, None], 1)
  index = jnp.take_along_axis(order, first[:, None], 1)[:, 0]
  return batch | {k: jnp.asarray(batch[k])[index] for k in names if k != 'labels'}
