"""The key-value cache: what a causal stack remembers of the tokens it has read.

Decoding one token after another, each pass reads its new tokens alone; keys and values of all
earlier ones are in the cache.  It is a pytree that a forward pass returns and the next one takes:

    outputs = forward(params, {'tokens': [B, T], 'mask': [B, T], 'room': zeros(n)})    prefill
    outputs = forward(params, {'tokens': [B, t], 'cache': outputs['cache']})           as often as
                                                                                   n tokens last

`room` is an array whose length says how many more tokens the cache shall hold: a shape, so that the
program can be compiled.  The cache has S = T' + n slots, where T' is the length behind `inputs` (a
soft prompt makes it longer than T), and every array in it starts with the axis of the batch, but
for the scalar `index`:

    <stack>/index []             the slot that the next token is written to, the same in all rows
    <stack>/mask [B, S]          which slots hold a real token
    <stack>/positions [B, S]     where each stands in its row
    <stack>/.../attn/keys, values [B, S, G, D]

Rows of unequal length are padded on the right.  Their padding stays in the cache, masked, and the
tokens after it continue the positions of the row's own real tokens; attention goes by positions,
never by slots, so padding changes nothing.

In Flax terms this is the variable collection 'cache': neither methods nor interceptors see it.
What a method adds at `attn/core` (prefixes) is not written to it; what it changes at `attn/key` is.
A method at `inputs` or `<stack>` can tell a pass that continues: its mask is [B, S], wider than its
x [B, t, D], while in all other passes both have one length.  A soft prompt is in the cache since
the prefill, so it then passes its arguments on as they are.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fewshot.errors import FewshotError

Array = jax.Array


class Keys(NamedTuple):
  """What a pass can attend to: the slots of the cache, or its own tokens where there is none."""

  mask: Array  # [B, K], true where a slot holds a real token.
  positions: Array  # [B, K].
  start: Array | None = None  # The first slot that this pass writes; None without a cache.


def places(cache: Mapping[str, Any] | None, mask: Array) -> tuple[Array, Array]:
  """The mask and positions of a pass's tokens, as `inputs` takes them.

  Args:
    cache: the stack's own entries (mask, positions, index) of an earlier pass, or None.
    mask: [B, t], of the new tokens.

  Returns:
    Without a cache, the mask as it is and positions 0, 1, ...; with one, the mask [B, S] of all
    slots and positions [B, t] that continue those of each row's real tokens.

  Raises:
    FewshotError: the cache is full; inside `jit` only where no slot count could be enough.
  """
  positions = jnp.broadcast_to(jnp.arange(mask.shape[1], dtype=jnp.int32), mask.shape)
  if cache is None:
    return mask, positions
  size, index = cache['mask'].shape[1], cache['index']
  used = 0 if isinstance(index, jax.core.Tracer) else int(index)
  if used + mask.shape[1] > size:
    raise FewshotError(
      f'the cache holds {size} tokens and {used} are in it, so {mask.shape[1]} more do not fit; '
      "give the first pass more room: {'room': zeros(n), ...}"
    )
  last = jnp.where(cache['mask'], cache['positions'], -1).max(-1, keepdims=True)
  return jax.lax.dynamic_update_slice_in_dim(cache['mask'], mask, index, 1), last + 1 + positions


def keys(module: nn.Module, mask: Array, positions: Array, room: int | None) -> Keys:
  """The keys of this pass; `module`, the stack in its compact call, remembers them.

  mask [B, T] or, where the pass continues, [B, S]; positions [B, T] of its tokens; `room` for how
  many tokens a prefill leaves space, None where nothing is to be remembered.
  """
  first = not module.has_variable('cache', 'index')
  if first and room is None:
    return Keys(mask, positions)
  if first:
    mask = jnp.pad(mask, ((0, 0), (0, room or 0)))
  index = module.variable('cache', 'index', lambda: jnp.zeros((), jnp.int32))
  start, index.value = index.value, index.value + positions.shape[1]
  module.variable('cache', 'mask', lambda: mask).value = mask
  return Keys(mask, remember(module, 'positions', positions, start, mask.shape[1]), start)


def remember(module: nn.Module, name: str, x: Array, start: Array | None, size: int) -> Array:
  """Writes x [B, t, ...] to the slots from `start` on, and returns all `size` slots.

  Where start is None there is no cache, and x is all there is.  `module` is in its compact call.
  """
  if start is None:
    return x
  empty = lambda: jnp.zeros((x.shape[0], size, *x.shape[2:]), x.dtype)  # noqa: E731
  held = module.variable('cache', name, empty)
  held.value = jax.lax.dynamic_update_slice_in_dim(held.value, x, start, 1)
  return held.value


def causal(keys: Keys, positions: Array, window: int | None = None) -> Array:
  """What each query sees [B, 1, Q, K]: real keys at its position or before, the last `window`.

  >>> own = Keys(jnp.ones((1, 4), bool), jnp.arange(4)[None])
  >>> causal(own, own.positions, window=2)[0, 0].astype(int).tolist()
  [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
  """
  back = positions[:, :, None] - keys.positions[:, None, :]
  seen = keys.mask[:, None, :] & (back >= 0)
  return (seen if window is None else seen & (back < window))[:, None]
