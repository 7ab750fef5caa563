"""Methods in input space: trained vectors that the model reads as if they were tokens."""

from typing import Any

import jax
import jax.numpy as jnp

from fewshot.errors import FewshotError, brief
from fewshot.methods import paths
from fewshot.methods.activations import in_activations
from fewshot.methods.base import Calib, Forward, Method, Params, State, Theta, method
from fewshot.methods.weights import widen

Array = jax.Array


@method
def soft_prompt(length: int = 10) -> Method:
  """Prompt tuning (Lester et al. 2021, arXiv:2104.08691): trained vectors before the tokens.

      x' = [P; embed(x)],   P [length, d] starts at random rows of the embedding table

  Positions are added after the prompt; the encoder's outputs at the prompt are dropped.

  >>> soft_prompt(length=4).mergeable
  False
  """
  if length < 1:
    raise FewshotError(f'soft_prompt(length={length}) is empty; length is at least 1')

  def call(t: dict[str, Array], f: Any, x: Array, mask: Array, *per_token: Array) -> Any:
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
    theta, state = sited.init(key, forward, params, calib)
    leaves = paths.flatten(params)
    if 'embed/embedding' not in leaves:
      raise FewshotError(f'soft_prompt starts at rows of embed/embedding; {brief(list(leaves))}')
    table = leaves['embed/embedding']
    rows = table[jax.random.randint(key, (length,), 0, table.shape[0])]
    return theta | {'inputs': {'prompt': widen(rows)}}, state

  sited = in_activations('inputs|encoder', lambda key, site: {}, call)
  return sited._replace(init=init)
