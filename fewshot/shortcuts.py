"""Shortcuts: forwards that give the same outputs as another at less cost.

*Packing.*  Texts of a minibatch are of unequal length, and a padded batch [B, T] computes what is
thrown away.  Behind `inputs`, the real tokens are laid into fewer rows [R, T] side by side, each
text in one piece; a block-diagonal mask keeps texts apart, and the stack's output is laid out as
before.  Whatever acts token by token, or by relative distance, is not changed by that
(Krell et al. 2021, arXiv:2107.02027).

*Resuming.*  Few-shot data is fixed, so what lies below the first adapted block is a constant of
each example.  It is computed once and put in the batch under `PREFIX`; the block's call returns
it, and XLA removes all that came before.

Neither is assumed to hold: `engine` tries a shortcut on real examples before it is taken.
"""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fewshot.methods.activations import path_of
from fewshot.methods.base import Batch, Forward, Outputs, Params

Array = jax.Array
PREFIX = 'prefix'  # The entry of a batch that holds what `Shortcut.resume` returns, [B, ...].
STACK, BLOCK = 'encoder', re.compile(r'encoder/block(_\d+)?')


class Shortcut(NamedTuple):
  """What is taken: the rows that a minibatch is packed into, the block that is resumed behind."""

  rows: int = 0  # 0: not packed.
  resume: str = ''  # A module's path; '': from the start.
  shape: tuple[int, ...] = ()  # Of the masks that are packed so; () for all.


class Layout(NamedTuple):
  """Where each of B texts lies among R rows of T tokens, first fit by decreasing length."""

  row: Array  # [B]; R where it did not fit.
  start: Array  # [B], its first column.
  text: Array  # [R, T], which text a cell holds; B where none.
  offset: Array  # [R, T], which of its tokens.

  def pack(self, x: Array) -> Array:
    """[B, T, ...] -> [R, T, ...]; free cells repeat some token."""
    return jnp.asarray(x)[jnp.minimum(self.text, x.shape[0] - 1), self.offset]

  def unpack(self, x: Array) -> Array:
    """[R, T, ...] -> [B, T, ...]; what is behind a text's end is some other token.

    A text that did not fit becomes NaN: a wrong plan is to be seen.
    """
    columns = jnp.minimum(self.start[:, None] + jnp.arange(x.shape[1]), x.shape[1] - 1)
    y = x[jnp.minimum(self.row, x.shape[0] - 1)[:, None], columns]
    fits = (self.row < x.shape[0]).reshape(-1, *[1] * (y.ndim - 1))
    return jnp.where(fits, y, jnp.nan) if jnp.issubdtype(y.dtype, jnp.inexact) else y


def layout(mask: Array, rows: int) -> Layout:
  """The layout of texts whose mask [B, T] is true for a first part of each row."""
  (b, width), lengths = mask.shape, jnp.asarray(mask).sum(-1)
  order = jnp.argsort(-lengths, stable=True)

  def place(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
    free, row, start = carry
    n = lengths[order[i]]
    fits = free >= n
    r = jnp.where(fits.any(), jnp.argmax(fits), rows)
    begin = width - free.at[r].get(mode='fill', fill_value=width)
    where = order[i]
    return free.at[r].add(-n, mode='drop'), row.at[where].set(r), start.at[where].set(begin)

  empty, zeros = jnp.full(rows, width, lengths.dtype), jnp.zeros(b, lengths.dtype)
  _, row, start = jax.lax.fori_loop(0, b, place, (empty, zeros, zeros))
  cell = jnp.arange(width)[None, :, None]
  covers = (row == jnp.arange(rows)[:, None, None]) & (start <= cell) & (cell < start + lengths)
  text = jnp.where(covers.any(-1), covers.argmax(-1), b)  # [R, T]
  offset = jnp.arange(width) - start[jnp.minimum(text, b - 1)]
  return Layout(row, start, text, jnp.where(text < b, offset, 0))


def rows_needed(lengths: np.ndarray, width: int) -> int:
  """How many rows of `width` the first fit by decreasing length takes for `lengths` [..., B].

  >>> rows_needed(np.array([[5, 2, 3, 6], [1, 1, 1, 1]]), 8)
  2
  """
  batches = -np.sort(-lengths.reshape(-1, lengths.shape[-1]), axis=-1)
  free = np.full(batches.shape, width)  # [N, rows]: as many rows as texts always do.
  for n in batches.T:
    r = np.argmax(free >= n[:, None], axis=1)
    free[np.arange(len(free)), r] -= n
  return int((free < width).sum(1).max())


def shorten(forward: Forward, shortcut: Shortcut) -> Forward:
  """`forward` by a shortcut; where it resumes, batches hold `PREFIX`."""

  def short(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
    with nn.intercept_methods(_interceptor(shortcut, batch)):
      return forward(params, batch, key)

  return short


def _interceptor(shortcut: Shortcut, batch: Batch) -> Any:
  packed: list[Layout] = []  # Of this pass, while it is inside the stack.

  def intercept(next_fn: Any, args: Any, kwargs: Any, context: Any) -> Any:
    if context.method_name != '__call__':
      return next_fn(*args, **kwargs)
    path = path_of(context)
    fits = shortcut.shape in ((), args[1].shape) if path == STACK else False
    if fits and shortcut.rows:  # A method may pass other texts, too: those are not planned.
      return _packed_stack(next_fn, args, shortcut.rows, packed)
    if packed and BLOCK.fullmatch(path):
      args = (args[0], _apart(args[1], packed[0].text), *args[2:])
    out = next_fn(*args, **kwargs)
    if not shortcut.resume or path != shortcut.resume:
      return out
    return packed[0].pack(batch[PREFIX]) if packed else batch[PREFIX]

  return intercept


def _packed_stack(next_fn: Any, args: Any, rows: int, packed: list[Layout]) -> Array:
  """The stack's call on packed rows: x [B, T, D], mask [B, T], and what else is by token."""
  mask = args[1]
  packed.append(layout(mask, rows))
  x, real, *rest = (packed[0].pack(a) for a in args)
  real &= packed[0].text < mask.shape[0]
  y = next_fn(x, real, *rest)
  return packed.pop().unpack(y)


def _apart(mask: Array, text: Array) -> Array:
  """A mask [R, K] or [R, 1, Q, K] that is true within a text alone, [R, 1, Q, K]."""
  same = (text[:, :, None] == text[:, None, :])[:, None]
  return same & (mask[:, None, None, :] if mask.ndim == 2 else mask)


def outputs_of(forward: Forward, seen: dict[str, Array]) -> Forward:
  """`forward`, with the output of every module that is called once put into `seen` by its path.

  An output that is not one floating array [B, ...] is left out.
  """

  def recorded(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
    calls: dict[str, int] = {}

    def record(next_fn: Any, args: Any, kwargs: Any, context: Any) -> Any:
      y = next_fn(*args, **kwargs)
      path = path_of(context)
      if context.method_name == '__call__' and path:
        calls[path] = calls.get(path, 0) + 1
        seen[path] = y
      return y

    seen.clear()
    with nn.intercept_methods(record):
      outputs = forward(params, batch, key)
    for path, y in list(seen.items()):
      if calls[path] > 1 or not jnp.issubdtype(getattr(y, 'dtype', bool), jnp.inexact):
        del seen[path]
    return outputs

  return recorded
