"""Low-rank updates of linear maps."""

from typing import Any

import jax
import jax.numpy as jnp

from fewshot.errors import FewshotError
from fewshot.methods.activations import Site, in_activations, output, wide
from fewshot.methods.base import Method, method
from fewshot.methods.paths import Where

__all__ = ['lora']
Array = jax.Array


@method
def lora(where: Where = r'.*/(query|value)', rank: int = 8, alpha: float = 16.0) -> Method:
  """LoRA (Hu et al. 2021, arXiv:2106.09685), never forming the merged weight while it trains.

      y = x W + (alpha / r) x A B,   A ~ N(0, 1/d) [d, r],   B = 0 [r, k]

  >>> lora(rank=4).mergeable
  True
  """
  if rank < 1:
    raise FewshotError(f'lora(rank={rank}) has no rank; rank is at least 1')
  scale = alpha / rank

  def init(key: Array, site: Site) -> dict[str, Array]:
    d, dtype = site.x.shape[-1], wide(site)
    a = jax.random.normal(key, (d, rank), dtype) / jnp.sqrt(d).astype(dtype)
    return {'a': a, 'b': jnp.zeros((rank, *_fan_out(site)), dtype)}

  def call(t: dict[str, Array], f: Any, x: Array) -> Array:
    return f(x) + scale * jnp.tensordot(x @ t['a'], t['b'], 1)

  def weight(t: dict[str, Array], w: dict[str, Array]) -> dict[str, Array]:
    return {'kernel': w['kernel'] + scale * jnp.tensordot(t['a'], t['b'], 1)}

  return in_activations(where, init, call, weight)


def _fan_out(site: Site) -> tuple[int, ...]:
  """The output shape of a map over the last axis; any other site is refused."""
  lead, y = site.x.ndim - 1, output(site).shape
  tokens = not jnp.issubdtype(site.x.dtype, jnp.inexact)
  if tokens or site.inputs > 1 or y[:lead] != site.x.shape[:-1]:
    x = f'{site.x.dtype}{list(site.x.shape)}'
    raise FewshotError(
      f'lora updates linear maps; {site.path!r} maps {site.inputs}x {x} to {list(y)}'
    )
  return tuple(y[lead:])
