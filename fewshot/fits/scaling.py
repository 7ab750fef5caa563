"""Loss scaling: small gradients of float16 weights, kept from vanishing (Micikevicius et al. 2018).

The loss is multiplied by a factor before the backward pass and the gradient divided by it after.
Where that overflows, the step is left out and the factor halved; after `PATIENCE` good steps it is
doubled (arXiv:1710.03740, section 3.2).
"""

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
START, PATIENCE, LARGEST = 2.0**15, 200, 2.0**24


def needed(params: Any) -> bool:
  """Whether any frozen weight is float16; bfloat16 has the range of float32.

  >>> needed({'kernel': jnp.zeros(2, jnp.float16)}), needed({'kernel': jnp.zeros(2)})
  (True, False)
  """
  return any(x.dtype == jnp.float16 for x in jax.tree.leaves(params) if hasattr(x, 'dtype'))


def start() -> dict[str, Array]:
  """The factor, and how many steps in a row were finite."""
  return {'factor': jnp.array(START), 'good': jnp.zeros((), jnp.int32)}


def keep_finite(grads: Any, new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
  """The new carry where every gradient is finite, else the old one; the factor moves on."""
  finite = jnp.array(True)
  for g in jax.tree.leaves(grads):
    finite &= jnp.isfinite(g).all()
  scale = old['scale']
  good = jnp.where(finite, scale['good'] + 1, 0)
  longer = jnp.minimum(scale['factor'] * 2, LARGEST)
  grown = jnp.where(good >= PATIENCE, longer, scale['factor'])
  moved = {
    'factor': jnp.where(finite, grown, jnp.maximum(scale['factor'] / 2, 1.0)),
    'good': jnp.where(good >= PATIENCE, 0, good),
  }
  parts = ('theta', 'state', 'opt')
  kept = {k: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new[k], old[k]) for k in parts}
  return new | kept | {'scale': moved}
