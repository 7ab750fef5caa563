"""What causal language models share around their blocks: the root module and its forward."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fewshot.errors import FewshotError
from fewshot.models import cache
from fewshot.models.layers import classify

Array = jax.Array


class Causal(nn.Module):
  """tokens [B, T], mask [B, T] -> features [B, D], hidden [B, T, D], token_logits [B, T, V].

  The root of a family's models: its config has `vocab`, `dim` and `tied`; `inputs` and `encoder`
  are its classes, made with (config, room).  token_logits are [B, M, V] at the positions `slots`
  [B, M] where given; `room` begins a cache, see models/cache.py.
  """

  config: Any
  inputs: Callable[..., nn.Module]
  encoder: Callable[..., nn.Module]

  @nn.compact
  def __call__(
    self, tokens: Array, mask: Array, slots: Array | None = None, room: int | None = None
  ) -> dict[str, Array]:
    c = self.config
    embed = nn.Embed(c.vocab, c.dim, name='embed')
    held = self.variables.get('cache', {}).get('encoder')
    x = self.inputs(c, room, name='inputs')(embed(tokens), *cache.places(held, mask))
    x = self.encoder(c, room, name='encoder')(*x)
    last = jnp.where(mask, jnp.arange(mask.shape[1]), 0).max(-1)
    features = jnp.take_along_axis(x, last[:, None, None], 1)[:, 0]
    asked = x if slots is None else jnp.take_along_axis(x, slots[..., None], 1)
    head = embed.attend if c.tied else nn.Dense(c.vocab, use_bias=False, name='lm_head')
    every = {'features': features, 'hidden': x, 'mask': mask, 'token_logits': head(asked)}
    return every | classify(self, features)


def init(module: Causal, key: Array) -> Any:
  """Random params."""
  batch = example(module.config)
  return module.init(key, batch['tokens'], batch['mask'])['params']


def example(config: Any) -> dict[str, Array]:
  """A batch of one."""
  del config
  return {'tokens': jnp.zeros((1, 2), int), 'mask': jnp.ones((1, 2), bool)}


def forward(module: Causal) -> Callable[..., dict[str, Any]]:
  """The pure function (params, batch, key=None) -> outputs of a causal model.

  batch has tokens [B, T] and mask [B, T], maybe `slots`; with `room` the outputs have a `cache`,
  and with that `cache` the tokens [B, t] continue (see models/cache.py; mask is then optional).
  """

  def apply(params: Any, batch: dict[str, Any], key: Array | None = None) -> dict[str, Any]:
    tokens, mask = _read(batch)
    variables = {'params': params} | {k: batch[k] for k in ('cache',) if k in batch}
    room = batch['room'].shape[0] if 'room' in batch else None
    rngs = None if key is None else {'dropout': key}
    args = tokens, mask, batch.get('slots'), room
    if room is None and 'cache' not in batch:
      return module.apply(variables, *args, rngs=rngs)  # type: ignore[return-value]
    outputs, changed = module.apply(variables, *args, rngs=rngs, mutable=['cache'])
    return outputs | changed

  return apply


def _read(batch: dict[str, Any]) -> tuple[Array, Array]:
  """tokens and mask of a batch; one without them is refused."""
  if 'cache' in batch and 'room' in batch:
    raise FewshotError('a batch has room (to begin a cache) or a cache (to continue), not both')
  if 'tokens' not in batch or ('mask' not in batch and 'cache' not in batch):
    raise FewshotError(
      f'this model reads tokens and mask, and the batch has {", ".join(batch) or "nothing"}; '
      'give it texts, or a dict of both arrays'
    )
  mask = batch.get('mask')
  mask = jnp.ones(batch['tokens'].shape, bool) if mask is None else jnp.asarray(mask, bool)
  return jnp.asarray(batch['tokens']), mask


def check_length(length: int, room: int | None, positions: int) -> None:
  """Refuses inputs, with what is to be generated after them, that the positions do not hold."""
  if length + (room or 0) > positions:
    more = f' and {room} more to generate' if room else ''
    raise FewshotError(
      f'an input of {length} tokens (prompts counted){more} is longer than the {positions} '
      'positions of this model; cut the texts (max_length), or take a lower length of '
      'demonstrations and prompts' + (', or generate fewer' * bool(room))
    )
