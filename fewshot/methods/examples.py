"""What examples in a context say, which are drawn, and how they stand one after another.

What an example says is its text up to the slot, then its `answer` [B, A] (token ids, -1 behind
them) where the batch has one, then a separator.  In a masked model the answer stands in the slots.
Examples are drawn balanced over classes, 0 `shots` for all of them; whole ones are left out until
the rest fits the length, so that one longer than that is never shown; those that stay are put one
after another, without holes, in random order.

Some tokenizers begin each text with a token of its own, `bos`.  A context then has it in front,
once, and rows that are read after a context pass over theirs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.methods.base import Batch, Params, at_least_one

Array = jax.Array
BASE = 1_000_003  # Of the fingerprints.


class Shown(NamedTuple):
  """Which examples a method shows, and how."""

  name: str
  shots: int
  length: int
  separator: tuple[int, ...]
  bos: int | None


def checked(shown: Shown) -> Shown:
  """The same; what is no count and no token is refused."""
  at_least_one(shown.name, length=shown.length)
  if shown.shots < 0:
    raise FewshotError(f'{shown.name}(shots={shown.shots}): 1 or more, or 0 for all examples')
  ids = [*shown.separator, *([] if shown.bos is None else [shown.bos])]
  if any(type(i) is not int or i < 0 for i in ids):
    raise FewshotError(f'{shown.name}: separator and bos are token ids, not {ids}')
  return shown


def check_texts(shown: Shown, batch: Batch, params: Params) -> None:
  """Refuses a batch without texts, and tokens that the model does not have."""
  if 'tokens' not in batch or 'mask' not in batch:
    raise FewshotError(
      f'{shown.name} starts from rows of tokens and mask, and the batch has '
      f'{", ".join(batch) or "nothing"}; take a model of texts'
    )
  table = paths.flatten(params).get('embed/embedding', np.zeros((0, 0)))
  odd = [i for i in (*shown.separator, shown.bos or 0) if i >= table.shape[0] > 0]
  if odd:
    raise FewshotError(f'{shown.name}: there is no token {odd[0]}; the model has {table.shape[0]}')


def laid_out(
  key: Array, shown: Shown, batch: Batch, causal: bool
) -> tuple[Batch, dict[str, Array]]:
  """The examples as one row of `length` tokens, and which tokens are whose.

  seen [length] holds where there is a token; owner [length] is the fingerprint of its row.
  """
  tokens, mask = written(batch, causal, shown.separator)
  led = begins(shown.bos, tokens, mask)
  mask = mask.at[:, 0].set(mask[:, 0] & ~led)
  draw, shuffle = jax.random.split(key)
  chosen = _drawn(draw, batch, len(tokens))[: shown.shots or None]
  sizes, limit = mask.sum(1)[chosen], shown.length - led.any()
  kept = (sizes <= limit) & (jnp.cumsum(jnp.where(sizes <= limit, sizes, 0)) <= limit)
  order = jax.random.permutation(shuffle, len(chosen))
  chosen, kept = chosen[order], kept[order]
  owner = jnp.broadcast_to(fingerprint(batch)[:, None], mask.shape)
  # The token that begins a text is nobody's.
  flat = lambda x, first: jnp.concatenate([jnp.asarray(first, x.dtype)[None], x.reshape(-1)])  # noqa: E731
  real = flat(mask[chosen] & kept[:, None], led.any())
  at = jnp.argsort(~real, stable=True)[: shown.length]
  pick = lambda x: jnp.pad(x[at], (0, shown.length - len(at)))  # noqa: E731
  seen = pick(real)
  text = {'tokens': pick(flat(tokens[chosen], shown.bos or 0))[None], 'mask': seen[None]}
  return text, {'seen': seen, 'owner': pick(flat(owner[chosen], 0))}


def written(batch: Batch, causal: bool, separator: tuple[int, ...]) -> tuple[Array, Array]:
  """What each example says [B, L], and which of it is real."""
  tokens, mask = jnp.asarray(batch['tokens'], jnp.int32), jnp.asarray(batch['mask'], bool)
  answer = slots = None
  if 'decoder_tokens' not in batch:  # Whose slots they would be.
    answer, slots = batch.get('answer'), batch.get('slots')
  if causal and slots is not None:
    mask = mask & (jnp.arange(mask.shape[1]) <= slots[:, -1:])
  pieces = [(tokens, mask)]
  if causal and answer is not None:
    pieces.append((answer, answer >= 0))
  elif answer is not None and slots is not None:
    n = min(answer.shape[1], slots.shape[1])
    at = jnp.arange(len(tokens))[:, None], slots[:, :n]
    filled = tokens.at[at].set(jnp.where(answer[:, :n] >= 0, answer[:, :n], tokens[at]))
    pieces = [(filled, mask)]
  ends = jnp.broadcast_to(jnp.array(separator, jnp.int32), (len(tokens), len(separator)))
  pieces.append((ends, jnp.ones(ends.shape, bool)))
  return tuple(jnp.concatenate(p, 1) for p in zip(*pieces, strict=True))  # type: ignore[return-value]


def _drawn(key: Array, batch: Batch, rows: int) -> Array:
  """All rows in random order, but that each class has had its k-th before one has its next."""
  order = jax.random.permutation(key, rows)
  labels = jnp.asarray(batch.get('labels', jnp.zeros(rows, int)))[order]
  by_class = jnp.argsort(labels, stable=True)
  grouped = labels[by_class]
  turn = jnp.arange(rows) - jnp.searchsorted(grouped, grouped)  # Its place in its class.
  turn = jnp.zeros(rows, int).at[by_class].set(turn)
  return order[jnp.argsort(turn, stable=True)]


def begins(bos: int | None, tokens: Array, mask: Array) -> Array:
  """Which rows begin with the token `bos`: [B]."""
  return mask[:, 0] & (tokens[:, 0] == (-1 if bos is None else bos))


def fingerprint(batch: Batch) -> Array:
  """A number of 32 bits for each row's example, however it is padded: [B].

  That is of its real tokens; where an example has several views, the batch says which it is.
  """
  if 'example' in batch:
    return jnp.asarray(batch['example']).astype(jnp.uint32) + 1
  mask = jnp.asarray(batch['mask'], bool)
  powers = jnp.cumprod(jnp.full(mask.shape[1] + 1, BASE, jnp.uint32))
  terms = (jnp.asarray(batch['tokens']).astype(jnp.uint32) + 1) * powers[jnp.cumsum(mask, 1)]
  return jnp.where(mask, terms, jnp.uint32(0)).sum(1, dtype=jnp.uint32)
