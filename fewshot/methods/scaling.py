"""Methods that scale and shift activations; all of them merge exactly."""

from typing import Any

import jax
import jax.numpy as jnp

from fewshot.methods import paths
from fewshot.methods.activations import Site, in_activations, output, wide
from fewshot.methods.base import Method, method
from fewshot.methods.paths import Where

__all__ = ['ia3']
Array = jax.Array


@method
def ia3(outputs: Where = r'.*/(key|value)', inputs: Where = r'.*/mlp/down') -> Method:
  """(IA)^3 (Liu et al. 2022, arXiv:2205.05638): learned vectors rescale keys, values, FFN hidden.

      k' = l_k * k,   v' = l_v * v,   FFN(x) = (l_ff * act(x W_up)) W_down

  The outputs of the sites in `outputs` and the inputs of those in `inputs` are scaled.

  >>> ia3().mergeable
  True
  """
  scaled, fed = paths.selection(outputs), paths.selection(inputs)

  def init(key: Array, site: Site) -> dict[str, Array]:
    del key
    if fed.holds(site.path):
      return {'l_in': jnp.ones(site.x.shape[-1:], wide(site))}
    return {'l_out': jnp.ones(output(site).shape[site.x.ndim - 1 :], wide(site))}

  def call(t: dict[str, Array], f: Any, x: Array, *rest: Any) -> Array:
    return f(x * t['l_in'], *rest) if 'l_in' in t else f(x, *rest) * t['l_out']

  def weight(t: dict[str, Array], w: dict[str, Array]) -> dict[str, Array]:
    if 'l_in' in t:
      return {'kernel': w['kernel'] * t['l_in'].reshape(-1, *[1] * (w['kernel'].ndim - 1))}
    return {k: v * t['l_out'] for k, v in w.items()}

  return in_activations(scaled | fed, init, call, weight)
