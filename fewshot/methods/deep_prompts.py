"""Prompts in every layer of image encoders.

Those of text encoders, P-tuning v2, are keys and values in every layer: `prefixes.prefix`.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from fewshot.errors import FewshotError, brief
from fewshot.methods import paths
from fewshot.methods.activations import Site, in_activations, wide
from fewshot.methods.base import Calib, Forward, Method, Params, State, Theta, at_least_one, method

__all__ = ['vpt']
Array = jax.Array
CLASS = 'inputs/cls'  # The class token of an image encoder.


@method
def vpt(length: int = 5, deep: bool = False) -> Method:
  """Visual prompt tuning (Jia et al. 2022, arXiv:2203.12119): trained tokens among the patches.

      x' = [cls; P; patches],   P [length, d] ~ U(-u, u),   u = sqrt(6 / (patch inputs + d))

  They stand behind the class token, without positions, and are dropped from the outputs.  With
  `deep` every further block gets prompts of its own in the place of those before it.

  >>> vpt(length=4, deep=True).mergeable
  False
  """
  at_least_one('vpt', length=length)

  def call(t: dict[str, Array], f: Any, x: Array, mask: Array) -> Array:
    ((name, prompt),) = t.items()
    prompt = jnp.broadcast_to(prompt, (len(x), *prompt.shape))
    if name == 'next':  # A further block, whose input has prompts.
      return f(jnp.concatenate([x[:, :1], prompt, x[:, 1 + length :]], 1), mask)
    mask = jnp.pad(mask, ((0, 0), (length, 0)), constant_values=True)
    y = f(jnp.concatenate([x[:, :1], prompt, x[:, 1:]], 1), mask)
    return jnp.concatenate([y[:, :1], y[:, 1 + length :]], 1)

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    tower, fan_in = _tower(params)

    def start(key: Array, site: Site) -> dict[str, Array]:
      limit = math.sqrt(6 / (fan_in + site.x.shape[-1]))
      name, shape = 'next' if 'block' in site.path else 'prompt', (length, site.x.shape[-1])
      return {name: jax.random.uniform(key, shape, wide(site), -limit, limit)}

    where = re.escape(tower) + ('encoder(/block_(?!0$)[0-9]+)?' if deep else 'encoder')
    return in_activations(where, start, call).init(key, forward, params, calib)

  return in_activations('', lambda key, site: {}, call)._replace(init=init)


def _tower(params: Params) -> tuple[str, int]:
  """The path before `inputs` of the image encoder, and how many numbers a patch has."""
  leaves = paths.flatten(params)
  towers = [p.removesuffix(CLASS) for p in leaves if p == CLASS or p.endswith(f'/{CLASS}')]
  if not towers:
    raise FewshotError(
      f'vpt puts prompts behind a class token of images, {CLASS}; there are {brief(list(leaves))}'
    )
  return towers[0], math.prod(leaves[f'{towers[0]}embed/kernel'].shape[:-1])
