"""Methods in input space: trained vectors that the model reads as if they were tokens."""

from typing import Any

import jax
import jax.numpy as jnp

from fewshot.errors import FewshotError, brief
from fewshot.methods import paths
from fewshot.methods.activations import in_activations
from fewshot.methods.base import Calib, Forward, Method, Params, State, Theta, method
from fewshot.methods.weights import widen

__all__ = ['soft_prompt']
Array = jax.Array


@method
def soft_prompt(length: int = 10) -> Method:
  """Prompt tuning (Lester et al. 2021, arXiv:2104.08691): trained vectors before the tokens.

      x' = [P; embed(x)],   P [length, d] starts at random rows of the embedding table

  Positions are added after the prompt.  The stack's outputs at the prompt are dropped, but where a
  decoder reads them they are kept.

  >>> soft_prompt(length=4).mergeable
  False
  """
  if length < 1:
    raise FewshotError(f'soft_prompt(length={length}) is empty; length is at least 1')

  def call(t: dict[str, Array], f: Any, x: Array, mask: Array, *per_token: Array) -> Any:
    if mask.shape[1] > x.shape[1]:  # Decoding goes on: the prompt is in the cache.
      return f(x, mask, *per_token)
    if 'prompt' not in t:  # The encoder's site: its input is already longer.
      return f(x, mask, *per_token)[:, length:]
    prompt = jnp.broadcast_to(t['prompt'], (x.shape[0], *t['prompt'].shape))
    mask = jnp.pad(mask, ((0, 0), (length, 0)), constant_values=True)
    positions, *rest = per_token
    positions = jnp.pad(positions + length, ((0, 0), (length, 0)))
    positions = positions.at[:, :length].set(jnp.arange(length))
    rest = [jnp.pad(r, ((0, 0), (length, 0))) for r in rest]
    return f(jnp.concatenate([prompt, x], 1), mask, positions, *rest)

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    leaves = paths.flatten(params)
    if 'embed/embedding' not in leaves:
      raise FewshotError(
        f'soft_prompt reads a table of tokens, embed/embedding; there are {brief(list(leaves))}'
      )
    decoded = any(p.startswith('decoder/') for p in leaves)
    theta, state = (kept if decoded else dropped).init(key, forward, params, calib)
    table = leaves['embed/embedding']
    rows = table[jax.random.randint(key, (length,), 0, table.shape[0])]
    return theta | {'inputs': {'prompt': widen(rows)}}, state

  kept = in_activations('inputs', lambda key, site: {}, call)
  dropped = in_activations('inputs|encoder', lambda key, site: {}, call)
  return dropped._replace(init=init)
