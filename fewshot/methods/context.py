"""Examples as a context: the model reads them once, and every text is read after them.

What an example says is its text up to the slot, then its `answer` [B, A] (token ids, -1 behind
them) where the batch has one, then a separator.  In a masked model the answer stands in the slots.
Examples are drawn balanced over classes, 0 `shots` for all of them; whole ones are left out until
the rest fits the length, so that one longer than that is never shown; those that stay are put one
after another, without holes, in random order.

Some tokenizers begin each text with a token of its own, `bos`.  A context then has it in front,
once, and rows that are read after a context pass over theirs.
"""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.methods.base import (
  Batch,
  Calib,
  Forward,
  Method,
  Outputs,
  Params,
  State,
  Theta,
  at_least_one,
  method,
)
from fewshot.methods.paths import Where
from fewshot.methods.prefixes import CORES, INPUTS, at_cores, attended, counting, prefixed
from fewshot.methods.weights import SHARED, widen

__all__ = ['context_tuning', 'demonstrations']
Array = jax.Array
BASE = 1_000_003  # Of the fingerprints.


@method
def demonstrations(
  shots: int = 8, length: int = 512, separator: tuple[int, ...] = (), bos: int | None = None
) -> Method:
  """In-context learning (Brown et al. 2020, arXiv:2005.14165): a decoder reads examples first.

      y = f([x_1 a_1 s ... x_n a_n s x])   at the places of x,   n <= shots

  The examples are rows that the run starts from, drawn and ordered by its key.  The model, as it is
  then, reads them once, and each pass goes on from that cache (see models/cache.py): a row costs
  its own tokens alone, and windows and positions are those of the joint text.  Nothing trains; a
  soft prompt chained behind it is not read, as in each pass that goes on: take `prefix` there.

  Raises `FewshotError` for a model without such a cache, and behind a soft prompt.

  >>> demonstrations(shots=4, separator=(198,)).mergeable
  False
  """
  shown = _checked(Shown('demonstrations', shots, length, separator, bos))

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    _check_texts(shown, calib.batch, params)
    if not _continues(forward, params, calib.batch):
      raise FewshotError(
        'demonstrations are read before a text, so nothing in them may depend on it, and this '
        'model reads both ways or keeps no cache; load a causal language model'
      )
    text, _ = _context(key, shown, calib.batch, causal=True)
    cache = forward(params, text | {'room': jnp.zeros(0, bool)})['cache']
    if _slots(cache) != length:
      raise FewshotError('a soft prompt before demonstrations could not train; take prefix() there')
    return {}, {SHARED: cache}

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    def adapted(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
      if 'cache' in batch:  # The examples are in it.
        return forward(params, batch, key)
      rows, length = batch['tokens'].shape
      more = length + (len(batch['room']) if 'room' in batch else 0)
      own, begun = _passed_over(bos, batch)
      own = {n: x for n, x in own.items() if n != 'room'}
      own['cache'] = _grown(state[SHARED], rows, more)
      outputs = dict(_earlier(forward, begun)(params, own, key))
      return outputs if 'room' in batch else {n: x for n, x in outputs.items() if n != 'cache'}

    return adapted

  return Method(init, wrap=wrap)


@method
def context_tuning(
  shots: int = 0,
  length: int = 512,
  separator: tuple[int, ...] = (),
  bos: int | None = None,
  dropout: float = 0.05,
  where: Where = CORES,
) -> Method:
  """Context tuning, CT-KV (Lu et al. 2025, arXiv:2507.04221): a prefix that starts as the examples.

  The frozen model reads examples as `demonstrations` does; K and V [length, G, D] of every core
  are what it attends to then, and train:

      y = softmax(q [K; k]^T) [V; v]

  So a decoder starts as `demonstrations` with the same arguments and key, but that every token sees
  the whole context, in a model with windows too.  In training (when the forward pass has a key) a
  row does not see its own example, and each token of the context is hidden with the probability
  `dropout`.  For CT-Prompt see `soft_prompt`.

  >>> context_tuning(length=8).mergeable
  False
  """
  shown = _checked(Shown('context_tuning', shots, length, separator, bos))
  if not 0 <= dropout < 1:
    raise FewshotError(f'context_tuning(dropout={dropout}) is no probability below 1')
  salt = paths.stable_hash('context_tuning')

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    _check_texts(shown, calib.batch, params)
    causal = _continues(forward, params, calib.batch)
    text, state = _context(key, shown, calib.batch, causal)
    read = attended(forward, params, text, where)
    theta = {p: {'keys': widen(k[0]), 'values': widen(v[0])} for p, (k, v) in read.items()}
    return theta | counting(forward, params, calib.batch), {SHARED: state}

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    context = state[SHARED]

    def adapted(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
      seen, (own, begun) = context['seen'][None], _passed_over(bos, batch)
      if key is not None:
        mine = _fingerprint(batch.get('read', batch))[:, None] == context['owner']
        kept = jax.random.bernoulli(jax.random.fold_in(key, salt), 1.0 - dropout, mine.shape)
        seen = seen & kept & ~mine
      return prefixed(forward, theta, seen, context['seen'].sum() - begun)(params, own, key)

    return adapted

  return Method(init, wrap=wrap, draws_as='demonstrations')


class Shown(NamedTuple):
  """Which examples a method shows, and how."""

  name: str
  shots: int
  length: int
  separator: tuple[int, ...]
  bos: int | None


class Room(NamedTuple):
  """How many of the examples that a method asks for fit its length, by which are drawn."""

  method: str  # As spelled.
  asked: int
  rows: int  # That there are.
  least: int
  most: int
  needed: int  # The length at which all fit, whichever are drawn.

  @property
  def said(self) -> str:
    """What is shown other than as asked; '' where nothing is."""
    few = str(self.most) if self.least == self.most else f'{self.least} to {self.most}'
    if self.least < min(self.asked, self.rows):
      return (
        f'{few} of {min(self.asked, self.rows)} examples fit the length of {self.method}; '
        f'length={self.needed} holds all'
      )
    short = self.rows < self.asked
    return f'{self.rows} examples are all that {self.method} has to show' if short else ''


def room(method: Method, forward: Forward, params: Params, batch: Batch) -> list[Room]:
  """What the methods of a chain that show examples can show of a run's train rows [N, ...]."""
  shows, out = (demonstrations, context_tuning), []
  for made in (p.made for p in method.parts or (method,)):
    if made is None or made.fn not in shows:
      continue
    called = inspect.signature(made.fn).bind(*made.args, **dict(made.named))
    called.apply_defaults()
    asked = Shown('', *(called.arguments[n] for n in ('shots', 'length', 'separator', 'bos')))
    out.append(_room(made.text(), asked, batch, _continues(forward, params, batch)))
  return out


def _room(method: str, shown: Shown, batch: Batch, causal: bool) -> Room:
  """Longer examples first fill the room with the fewest, shorter ones with the most."""
  tokens, mask = _written(batch, causal, shown.separator)
  led = np.asarray(_begins(shown.bos, tokens, mask))
  sizes = np.sort(np.asarray(mask).sum(1) - led)  # What begins a text stands there once.
  first = int(led.any())
  asked = shown.shots or len(sizes)
  limit, n = shown.length - first, min(asked, len(sizes))
  fit = lambda s: int((np.cumsum(s[s <= limit]) <= limit).sum())  # noqa: E731
  needed = int(sizes[-n:].sum()) + first
  return Room(method, asked, len(sizes), fit(sizes[::-1][:n]), fit(sizes[:n]), needed)


def _checked(shown: Shown) -> Shown:
  """The same; what is no count and no token is refused."""
  at_least_one(shown.name, length=shown.length)
  if shown.shots < 0:
    raise FewshotError(f'{shown.name}(shots={shown.shots}): 1 or more, or 0 for all examples')
  ids = [*shown.separator, *([] if shown.bos is None else [shown.bos])]
  if any(type(i) is not int or i < 0 for i in ids):
    raise FewshotError(f'{shown.name}: separator and bos are token ids, not {ids}')
  return shown


def _check_texts(shown: Shown, batch: Batch, params: Params) -> None:
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


def _continues(forward: Forward, params: Params, batch: Batch) -> bool:
  """Whether tokens can be read after others that were read alone: a decoder with a cache."""
  if 'decoder_tokens' in batch:  # The texts are its encoder's.
    return False
  text = {n: jnp.asarray(batch[n])[:1] for n in ('tokens', 'mask')}
  text['room'] = jnp.zeros(0, bool)
  return 'cache' in jax.eval_shape(lambda p, b: forward(p, b), params, text)


def _context(
  key: Array, shown: Shown, batch: Batch, causal: bool
) -> tuple[Batch, dict[str, Array]]:
  """The examples as one row of `length` tokens, and which tokens are whose.

  seen [length] holds where there is a token; owner [length] is the fingerprint of its row.
  """
  tokens, mask = _written(batch, causal, shown.separator)
  led = _begins(shown.bos, tokens, mask)
  mask = mask.at[:, 0].set(mask[:, 0] & ~led)
  draw, shuffle = jax.random.split(key)
  chosen = _drawn(draw, batch, len(tokens))[: shown.shots or None]
  sizes, limit = mask.sum(1)[chosen], shown.length - led.any()
  kept = (sizes <= limit) & (jnp.cumsum(jnp.where(sizes <= limit, sizes, 0)) <= limit)
  order = jax.random.permutation(shuffle, len(chosen))
  chosen, kept = chosen[order], kept[order]
  owner = jnp.broadcast_to(_fingerprint(batch)[:, None], mask.shape)
  # The token that begins a text is nobody's.
  flat = lambda x, first: jnp.concatenate([jnp.asarray(first, x.dtype)[None], x.reshape(-1)])  # noqa: E731
  real = flat(mask[chosen] & kept[:, None], led.any())
  at = jnp.argsort(~real, stable=True)[: shown.length]
  pick = lambda x: jnp.pad(x[at], (0, shown.length - len(at)))  # noqa: E731
  seen = pick(real)
  text = {'tokens': pick(flat(tokens[chosen], shown.bos or 0))[None], 'mask': seen[None]}
  return text, {'seen': seen, 'owner': pick(flat(owner[chosen], 0))}


def _written(batch: Batch, causal: bool, separator: tuple[int, ...]) -> tuple[Array, Array]:
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


def _begins(bos: int | None, tokens: Array, mask: Array) -> Array:
  """Which rows begin with the token `bos`: [B]."""
  return mask[:, 0] & (tokens[:, 0] == (-1 if bos is None else bos))


def _passed_over(bos: int | None, batch: Batch) -> tuple[Batch, Array]:
  """The batch whose rows are not seen to begin with `bos`, and which did [B, 1]."""
  if bos is None or 'cache' in batch:
    return batch, jnp.zeros((1, 1), jnp.int32)
  mask = jnp.asarray(batch['mask'], bool)
  led = _begins(bos, batch['tokens'], mask)
  return batch | {'mask': mask.at[:, 0].set(mask[:, 0] & ~led)}, led[:, None].astype(jnp.int32)


def _earlier(forward: Forward, by: Array) -> Forward:
  """The forward whose tokens stand `by` [B, 1] places earlier."""

  def call(t: Any, f: Any, x: Array, mask: Array, positions: Array, *rest: Array) -> Any:
    del t
    return f(x, mask, positions - by, *rest)

  return at_cores(call).wrap(forward, {INPUTS: {}}, {})


def _slots(cache: Any) -> int:
  """How many tokens a cache holds."""
  return next(x.shape[1] for x in jax.tree.leaves(cache) if x.ndim)


def _grown(cache: Any, rows: int, more: int) -> Any:
  """The cache of one row as that of many, with room for more tokens."""
  held = _slots(cache)

  def leaf(x: Array) -> Array:
    if not x.ndim:  # The next slot, as a number that the compiler knows.
      return jnp.asarray(held, x.dtype)
    x = jnp.broadcast_to(x, (rows, *x.shape[1:]))
    return jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2))

  return jax.tree.map(leaf, cache)


def _fingerprint(batch: Batch) -> Array:
  """A number of 32 bits for each row's example, however it is padded: [B].

  That is of its real tokens; where an example has several views, the batch says which it is.
  """
  if 'example' in batch:
    return jnp.asarray(batch['example']).astype(jnp.uint32) + 1
  mask = jnp.asarray(batch['mask'], bool)
  powers = jnp.cumprod(jnp.full(mask.shape[1] + 1, BASE, jnp.uint32))
  terms = (jnp.asarray(batch['tokens']).astype(jnp.uint32) + 1) * powers[jnp.cumsum(mask, 1)]
  return jnp.where(mask, terms, jnp.uint32(0)).sum(1, dtype=jnp.uint32)
