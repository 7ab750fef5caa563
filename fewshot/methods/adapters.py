"""Small networks beside or behind the modules of a frozen one."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fewshot.errors import FewshotError
from fewshot.methods.activations import Site, in_activations, output, wide
from fewshot.methods.base import Method, method
from fewshot.methods.paths import Where

__all__ = ['adapter']
Array = jax.Array


@method
def adapter(where: Where = r'.*/(attn|mlp)', width: int = 48) -> Method:
  """Bottleneck adapter (Houlsby et al. 2019, arXiv:1902.00751) after each sublayer.

      y = f(x) + gelu(f(x) W_down + b_down) W_up + b_up,   W_up = 0 at the start

  >>> adapter(width=16).mergeable
  False
  """
  if width < 1:
    raise FewshotError(f'adapter(width={width}) has no units; width is at least 1')

  def init(key: Array, site: Site) -> dict[str, Array]:
    d, dtype = output(site).shape[-1], wide(site)
    return {
      'down': jax.random.normal(key, (d, width), dtype) / jnp.sqrt(d).astype(dtype),
      'down_bias': jnp.zeros(width, dtype),
      'up': jnp.zeros((width, d), dtype),
      'up_bias': jnp.zeros(d, dtype),
    }

  def call(t: dict[str, Array], f: Any, *args: Any, **kwargs: Any) -> Array:
    y = f(*args, **kwargs)
    return y + nn.gelu(y @ t['down'] + t['down_bias']) @ t['up'] + t['up_bias']

  return in_activations(where, init, call)
