"""Interventions on representations: hidden states are edited where modules return them."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.methods.activations import (
  Site,
  beside,
  in_activations,
  output,
  outputs,
  per_batch,
  wide,
)
from fewshot.methods.base import (
  Batch,
  Calib,
  Forward,
  Method,
  Params,
  State,
  Theta,
  adapt,
  chain,
  method,
)
from fewshot.methods.heads import linear
from fewshot.methods.paths import Where, at

__all__ = ['bias_steering', 'lofit', 'loreft', 'red']
Array = jax.Array
BLOCKS = r'(.*/)?(en|de)coder/block_\d+'


@method
def loreft(where: Where = BLOCKS, rank: int = 4, first: int = 0, last: int = 0) -> Method:
  """LoReFT (Wu et al. 2024, arXiv:2404.03592): hidden states are edited in a low-rank subspace.

      h' = h + (h W + b - h R) R^T,   R^T R = 1,   W = R and b = 0 at the start

  R, W [D, rank]; R is the orthonormal factor (QR) of the trained `rotation`, its signs kept, so
  that an orthonormal `rotation` is R itself.  Edited are the `first` and `last` real tokens of each
  row, with one intervention for both (chain two of them for two), or all tokens where both are 0.
  What is decoded after a prompt counts as neither first nor last.

  >>> loreft(rank=4, first=7, last=7).mergeable
  False
  """
  if rank < 1 or first < 0 or last < 0:
    raise FewshotError(
      f'loreft(rank={rank}, first={first}, last={last}): rank is at least 1, positions at least 0'
    )

  def init(key: Array, site: Site) -> dict[str, Array]:
    d, dtype = output(site).shape[-1], wide(site)
    if rank > d:
      raise FewshotError(f'loreft(rank={rank}) is more than the {d} channels of {site.path!r}')
    if (first or last) and site.path.split('/')[0] in ('decoder', 'image'):
      raise FewshotError(
        f"loreft counts first and last by batch['mask'], which is not of {site.path!r}; choose "
        'other blocks by where='
      )
    rotation = _orthonormal(jax.random.normal(key, (d, rank), dtype))
    return {'rotation': rotation, 'source': rotation, 'bias': jnp.zeros(rank, dtype)}

  def call(batch: Batch) -> Callable[..., Array]:
    def edited(t: dict[str, Array], f: Any, *args: Any) -> Array:
      h, r = f(*args), _orthonormal(t['rotation'])
      edit = (h @ t['source'] + t['bias'] - h @ r) @ r.T
      return h + (edit * _ends(batch, h, first, last) if first or last else edit)

    return edited

  return per_batch(where, init, call)


@method
def red(where: Where = r'.*/mlp/down') -> Method:
  """RED (Wu et al. 2024, arXiv:2402.15179): what a layer returns is scaled and shifted.

      h' = l * h + b,   l = 1 and b = 0 at the start

  By default what the MLPs add.  At linear maps with a bias it merges.

  >>> red().mergeable
  True
  """

  def init(key: Array, site: Site) -> dict[str, Array]:
    del key
    shape, dtype = output(site).shape[-1:], wide(site)
    return {'scale': jnp.ones(shape, dtype), 'shift': jnp.zeros(shape, dtype)}

  def call(t: dict[str, Array], f: Any, *args: Any, **kwargs: Any) -> Array:
    return f(*args, **kwargs) * t['scale'] + t['shift']

  def weight(t: dict[str, Array], w: dict[str, Array]) -> dict[str, Array]:
    if 'bias' not in w:
      raise FewshotError('red merges its shift into a bias, and a module has none; keep theta')
    return {'kernel': w['kernel'] * t['scale'], 'bias': w['bias'] * t['scale'] + t['shift']}

  return in_activations(where, init, call, weight)


@method
def lofit(
  where: Where = r'.*/attn/core',
  top: float = 0.1,
  steps: int = 20,
  lr: float = 5e-3,
  heads: tuple[tuple[str, tuple[int, ...]], ...] = (),
) -> Method:
  """LoFiT (Yin et al. 2024, arXiv:2406.01563): offsets at the attention heads that matter.

      1. z_h' = (1 + A_h) * z_h,  A trained for `steps` steps of Adam (with a head, if there is
         none) on the calibration batch; the share `top` of all heads with the largest |A_h| stays
      2. z_h' = z_h + v_h,        v = 0 at the start, the heads chosen

  Step 1 is the plan, which spells the chosen heads out as ((site, (head, ...)), ...); a method that
  was not planned has offsets at all heads.  Merges into the bias of `out`, the module beside.

  >>> lofit(heads=(('encoder/block_0/attn/core', (0, 3)),)).mergeable
  True
  """
  if not 0 < top <= 1 or steps < 1:
    raise FewshotError(f'lofit(top={top}, steps={steps}): top is in (0, 1], steps at least 1')
  chosen = dict(heads)
  if len(chosen) < len(heads) or not all(isinstance(h, (tuple, list)) for h in chosen.values()):
    raise FewshotError(
      f'lofit(heads={heads}) is not of the form ((site, (head, ...)), ...), once each'
    )

  def init(key: Array, site: Site) -> dict[str, Array]:
    del key
    count, d = output(site).shape[-2:]
    own = chosen.get(site.path, range(count))
    if not all(0 <= h < count for h in own):
      raise FewshotError(f'lofit: {site.path!r} has the heads 0 to {count - 1}, not all of {own}')
    return {'offset': jnp.zeros((len(own), d), wide(site)), 'heads': jnp.array(own, jnp.int32)}

  def call(t: dict[str, Array], f: Any, *args: Any) -> Array:
    return f(*args).at[..., t['heads'], :].add(t['offset'])

  def plan(forward: Forward, params: Params, calib: Calib) -> Method:
    return lofit(where, heads=_top_heads(_scores(where, steps, lr, forward, params, calib), top))

  at_heads = at('|'.join(map(re.escape, chosen))) if chosen else where
  built = in_activations(at_heads, init, call, frozen=('heads',))
  return built._replace(merge=_into_out, merges_last=True, plan=None if chosen else plan)


@method
def bias_steering(
  where: Where = BLOCKS, alpha: float = 0.0, positive: int = 1, negative: int = 0
) -> Method:
  """Steering vectors (Turner et al. 2023, arXiv:2308.10248), trained from where they start.

      h' = h + v,   v = alpha (mean of h at label `positive` - mean of h at label `negative`)

  The means are over the real tokens of the calibration batch; with alpha=0 it is the base function
  at the start, and learns a bias of the residual stream.

  >>> bias_steering().mergeable
  False
  """
  if positive == negative:
    raise FewshotError(f'bias_steering contrasts two labels; both are {positive}')

  def check(classes: int) -> None:
    if not all(0 <= label < classes for label in (positive, negative)):
      raise FewshotError(
        f'bias_steering(positive={positive}, negative={negative}): labels are 0 to {classes - 1}'
      )

  def init(key: Array, site: Site, contrast: Array | float = 0.0) -> dict[str, Array]:
    del key
    return {'vector': jnp.zeros(output(site).shape[-1:], wide(site)) + alpha * contrast}

  def observe(forward: Forward, params: Params, calib: Calib, where: Where) -> dict[str, Array]:
    labels = calib.batch.get('labels')
    if labels is None:
      raise FewshotError('bias_steering(alpha=...) starts from labels, and the batch has none')
    check(calib.classes)
    sides = jnp.stack([jnp.asarray(labels) == c for c in (positive, negative)])

    def contrast(h: Array) -> Array:
      h = h.astype(jnp.promote_types(h.dtype, jnp.float32))
      own, rows = real(calib.batch, h).astype(h.dtype), sides.astype(h.dtype)
      means = jnp.einsum('btd,bt->bd', h, own) / jnp.maximum(own.sum(1), 1)[:, None]
      above, below = rows @ means / jnp.maximum(rows.sum(1), 1)[:, None]
      return above - below

    return {p: contrast(h) for p, h in outputs(forward, params, calib.batch, where).items()}

  def call(t: dict[str, Array], f: Any, *args: Any, **kwargs: Any) -> Array:
    return f(*args, **kwargs) + t['vector']

  return in_activations(where, init, call, observe=observe if alpha else None)


def real(batch: Batch, x: Array) -> Array:
  """Which of the tokens x [B, T, ...] are real [B, T].

  Those that a method put in front are not.  All are where the batch has no mask of theirs, which of
  a model of two stacks (image and text, encoder and decoder) only the lengths tell.
  """
  mask, two = batch.get('mask'), 'image' in batch or 'decoder_tokens' in batch
  more = -1 if mask is None or len(mask) != len(x) else x.shape[1] - mask.shape[1]
  if more < 0 or (more and two):
    return jnp.ones(x.shape[:2], bool)
  return jnp.pad(jnp.asarray(mask, bool), ((0, 0), (more, 0)))


def _orthonormal(w: Array) -> Array:
  """The orthonormal factor of w [D, r] with the signs that leave an orthonormal w as it is."""
  q, r = jnp.linalg.qr(w.astype(jnp.promote_types(w.dtype, jnp.float32)))
  return (q * jnp.where(jnp.diagonal(r) < 0, -1, 1)).astype(w.dtype)


def _ends(batch: Batch, h: Array, first: int, last: int) -> Array:
  """One at the first and last real tokens of h [B, T, D], zero elsewhere [B, T, 1]."""
  if 'cache' in batch:
    return jnp.zeros((), h.dtype)
  mask = real(batch, h)
  place = jnp.cumsum(mask, 1)  # From 1.
  ends = mask & ((place <= first) | (place > place[:, -1:] - last))
  return ends[..., None].astype(h.dtype)


def _scores(
  where: Where, steps: int, lr: float, forward: Forward, params: Params, calib: Calib
) -> dict[str, np.ndarray]:
  """|A_h| of every head, by site."""
  if calib.loss is None:
    raise FewshotError('lofit scores heads by the loss; pass Calib(batch, classes, loss)')
  loss = calib.loss
  scales = in_activations(
    where,
    lambda key, site: {'scale': jnp.zeros(output(site).shape[-2:], wide(site))},
    lambda t, f, *args: f(*args) * (1 + t['scale']),
  )
  z = jax.eval_shape(lambda p, b: forward(p, b), params, calib.batch).get('logits')
  headed = z is not None and z.shape[-1] >= calib.classes
  probe, tx = (scales if headed else chain(scales, linear())), optax.adam(lr)

  @jax.jit
  def train(params: Params) -> Theta:
    theta, state = probe.init(jax.random.key(0), forward, params, calib)

    def value(theta: Theta) -> Array:
      return loss(adapt(probe, forward, theta, state)(params, calib.batch), calib.batch).mean()

    def step(carry: Any, _: Any) -> Any:
      theta, opt = carry
      updates, opt = tx.update(jax.grad(value)(theta), opt, theta)
      return (optax.apply_updates(theta, updates), opt), None

    (theta, _), _ = jax.lax.scan(step, (theta, tx.init(theta)), None, steps)
    return theta if headed else theta[0]

  return {p: np.linalg.norm(np.asarray(t['scale']), axis=-1) for p, t in train(params).items()}


def _top_heads(
  scores: dict[str, np.ndarray], top: float
) -> tuple[tuple[str, tuple[int, ...]], ...]:
  """The best share of all heads, at least one, by site."""
  ranked = sorted(((s, p, h) for p, of in scores.items() for h, s in enumerate(of)), reverse=True)
  best = ranked[: max(1, round(top * len(ranked)))]
  kept = {p: tuple(sorted(h for _, q, h in best if q == p)) for p in scores}
  return tuple((p, h) for p, h in kept.items() if h)


def _into_out(theta: Theta, state: State, params: Params) -> Params:
  """Offsets of heads, as the bias that `out` makes of them."""
  flat, new = paths.flatten(params), {}
  for p, t in theta.items():
    near = beside(p, 'out')
    if f'{near}/bias' not in flat:
      raise FewshotError(f'lofit merges into the bias of {near!r}, which has none; keep theta')
    kernel, bias = flat[f'{near}/kernel'], flat[f'{near}/bias']
    rows = kernel.reshape(-1, t['offset'].shape[-1], kernel.shape[-1])[state[p]['heads']]
    new[f'{near}/bias'] = (bias + jnp.einsum('hd,hdo->o', t['offset'], rows)).astype(bias.dtype)
  return paths.replace(params, new)
