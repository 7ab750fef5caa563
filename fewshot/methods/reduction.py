"""Fewer tokens: what the class token does not look at is fused before the next block."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fewshot.errors import FewshotError, brief
from fewshot.methods import paths
from fewshot.methods.activations import attended, in_activations, sites
from fewshot.methods.base import (
  Batch,
  Calib,
  Forward,
  Method,
  Outputs,
  Params,
  State,
  Theta,
  method,
)
from fewshot.methods.choices import BLOCK
from fewshot.methods.moving_rules import check_share

__all__ = ['fuse_tokens']
Array = jax.Array


@method
def fuse_tokens(keep: float = 0.7, blocks: tuple = (3, 6, 9)) -> Method:
  """Token selection of TR-PTS (Luo et al. 2025, arXiv:2507.22872): patches by the class token.

      a_n = mean over heads of softmax(q_cls . k_n / sqrt(d)),   n = 1..N patches
      x <- [x_cls, x_n of the ceil(keep N) largest a_n in their order, sum a_n x_n / sum a_n]

  after each block that `blocks` names; the sums are over the patches that are not kept.  As in EViT
  (Liang et al. 2022, arXiv:2202.07800) all that is fused becomes one token, which may be kept or
  fused again.  Trains nothing, and starts as a function of fewer tokens, not as the pretrained one.
  For images with a class token at first place.

  >>> fuse_tokens(keep=0.5, blocks=(4,)).mergeable
  False
  """
  check_share('fuse_tokens', keep=keep)
  if not blocks or not all(type(b) is int and b >= 0 for b in blocks):
    raise FewshotError(f'fuse_tokens(blocks={blocks}) numbers blocks, such as (3, 6, 9)')

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    del key
    found = _blocks(forward, params, calib.batch)
    missing = [b for b in blocks if b not in map(_number, found)]
    if missing:
      raise FewshotError(
        f'fuse_tokens(blocks={blocks}): there is no block {missing[0]}, the model has {len(found)}'
      )
    return {}, {}

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    def adapted(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
      found = _blocks(forward, params, batch)
      at: Theta = {p: {} for p in found if _number(p) in blocks}
      fused = in_activations('.*', dict, lambda t, f, *args: _fused(keep, f, *args))
      every = in_activations('.*', dict, lambda t, f, x, mask: f(x, mask[:, : x.shape[1]]))
      shorter = every.wrap(fused.wrap(forward, at, {}), {p: {} for p in found}, {})
      return shorter(params, batch, key)

    return adapted

  return Method(init, wrap=wrap)


def _fused(keep: float, f: Any, x: Array, mask: Array) -> Array:
  """What a block returns of x [B, 1 + N, D], with the patches that matter less as one."""
  y, (q, k) = attended(f, x, mask)
  d = q.shape[-1]
  scores = jnp.einsum('bhd,bkhd->bhk', q[:, 0], k) * d**-0.5
  a = jax.nn.softmax(scores, -1).mean(1)[:, 1:]
  n = a.shape[1]
  order = jnp.argsort(-a, axis=1)
  kept, rest = jnp.split(order, [math.ceil(keep * n)], axis=1)
  if not rest.shape[1]:
    return y
  of = lambda z, index: jnp.take_along_axis(z, index[..., None], 1)  # noqa: E731
  w = jnp.take_along_axis(a, rest, 1)
  one = jnp.einsum('bn,bnd->bd', w / w.sum(1, keepdims=True), of(y[:, 1:], rest))
  return jnp.concatenate([y[:, :1], of(y[:, 1:], jnp.sort(kept, 1)), one[:, None]], 1)


def _blocks(forward: Forward, params: Params, batch: Batch) -> list[str]:
  """The paths of the blocks of an image model; any other is refused."""
  found = sites(forward, params, batch, paths.at(BLOCK.pattern)) if 'image' in batch else {}
  found = {p: s for p, s in found.items() if s.inputs == 2 and len(s.x.shape) == 3}
  if not found:
    raise FewshotError(
      'fuse_tokens() takes images through blocks (x, mask) of attention, as a ViT; this model has '
      f'none with {brief(list(batch))}'
    )
  return list(found)


def _number(path: str) -> int:
  return int(path.rsplit('_', 1)[-1])
