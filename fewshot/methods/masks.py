"""Selections of leaves by what they are: attention, layers, tokens; and masks between 0 and 1."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fewshot.errors import FewshotError, brief
from fewshot.methods import paths
from fewshot.methods.base import Calib, Forward, Method, Params, State, Theta, at_least_one, method
from fewshot.methods.paths import Where
from fewshot.methods.scoring.base import Score
from fewshot.methods.weights import floats, in_weights, trained, tune, widen

__all__ = [
  'attention_only',
  'embeddings',
  'last_layers',
  'layers',
  'random_half',
  'reinitialised',
  'soft_mask',
  'tokens',
]
Array = jax.Array
BLOCK = re.compile(r'(?P<stack>(.*?/)??)(stage_(?P<stage>\d+)/)?block_(?P<block>\d+)/(?P<rest>.*)')


@method
def attention_only() -> Method:
  """Attention tuning (Touvron et al. 2022, arXiv:2203.09795): attention trains, MLPs stay frozen.

  >>> attention_only().mergeable
  True
  """
  return tune(r'(.*/)?(attn|cross)/.*')


@method
def embeddings() -> Method:
  """What is before the first block trains: tables of tokens, positions and types, patches.

  >>> embeddings().mergeable
  True
  """
  return tune(r'(.*/)?(embed|inputs)/.*')


@method
def layers(first: int = 0, last: int = -1, where: Where = '.*') -> Method:
  """The blocks `first` to `last` train, both included (Lee et al. 2019, arXiv:1911.03090).

  -1 is the last block of the model.

  Blocks are counted through the stages of a CNN, and in each of several stacks (two towers, encoder
  and decoder) by itself; `where` selects among their leaves.  A block beyond the depth is refused.

  >>> from fewshot.methods import spell
  >>> spell(layers(6, 11, where='.*/attn/.*'))
  "layers(first=6, last=11, where='.*/attn/.*')"
  """
  if (first < 0) == (last < 0) and first > last:
    raise FewshotError(f'layers(first={first}, last={last}) is empty; first is at most last')

  def choose(leaves: dict[str, Array]) -> list[str]:
    places = places_of(leaves)
    chosen = []
    for p in paths.select(leaves, where):
      if p in places:
        at = places[p]
        low, high = (_block(i, at) for i in (first, last))
        chosen += [p] * (low <= at.block <= high)
    if not chosen:
      raise FewshotError(f'layers(first={first}, last={last}) and where= have no leaf in common')
    return chosen

  return _tuned(choose)


@method
def last_layers(k: int = 1, where: Where = '.*') -> Method:
  """The last k blocks train (Lee et al. 2019, arXiv:1911.03090), as `layers(-k, -1)`.

  >>> last_layers(2).mergeable
  True
  """
  at_least_one('last_layers', k=k)
  return layers(-k, -1, where)


@method
def tokens(ids: tuple[int, ...], where: Where = r'(.*/)?embed/embedding') -> Method:
  """Trainable tokens: of the embedding table only the rows of these tokens train.

      E'[ids] = theta,   theta [n, d] starts as E[ids]

  Only the n rows are kept and stored.  Where the output matrix is tied to the table, it follows.

  >>> from fewshot.methods import spell
  >>> spell(tokens((7, 9)))
  'tokens((7, 9))'
  """
  if not ids or len(set(ids)) < len(ids) or any(type(i) is not int or i < 0 for i in ids):
    raise FewshotError(f'tokens({ids}) takes ids of different tokens, for example tokens((7, 9))')
  index = np.array(ids)

  def init(key: Array, w: Array) -> Array:
    del key
    if max(ids) >= w.shape[0]:
      raise FewshotError(f'there is no token {max(ids)}; the table has {w.shape[0]} rows')
    return jnp.asarray(w)[index]

  def weight(t: Array, w: Array) -> Array:
    return jnp.asarray(w).at[index].set(t.astype(w.dtype))

  return in_weights(where, init, weight)


@method
def random_half(seed: int = 0) -> Method:
  """Half fine-tuning, HFT (Hui et al. 2024, arXiv:2404.18466): half of each block trains.

  In each block half of the modules of every category (attention, MLP, norms; of a CNN convolutions
  and norms) are drawn by `seed` and train; of an odd number half of the blocks train the larger
  part.  What is outside the blocks (embeddings, the final norm, the head) trains.  Each round of
  the paper draws anew: give it another seed.

  >>> random_half(seed=3).mergeable
  True
  """

  def choose(leaves: dict[str, Array]) -> list[str]:
    places = places_of(leaves)
    groups = categories(places)
    kept = {
      (stack, block, module)
      for (stack, category), blocks in groups.items()
      for block, modules in _halves(blocks, paths.stable_hash(seed, stack, category)).items()
      for module in modules
    }
    of = lambda p: (places[p].stack, places[p].block, places[p].module)  # noqa: E731
    return [p for p in leaves if p not in places or of(p) in kept]

  return _tuned(choose)


@method
def reinitialised(layers: int = 1, std: float = 0.02) -> Method:
  """Re-initialised top layers (Zhang et al. 2021, arXiv:2006.05987): the last blocks start anew.

      kernel ~ N(0, std^2),   bias = 0,   scale of a norm = 1

  Drawn by the run's key, in each stack by itself.  Nothing trains here: put it before what trains
  them, `chain(reinitialised(2), full(), linear())`.  0.02 is how BERT itself was initialised; the
  pooler that the paper starts anew too is no part of the encoders here.

  >>> reinitialised(2).mergeable
  True
  """
  at_least_one('reinitialised', layers=layers)
  if std <= 0:
    raise FewshotError(f'reinitialised(std={std}) draws nothing; std is above 0')
  constants = {'bias': jnp.zeros, 'scale': jnp.ones}

  def fresh(key: Array, p: str, w: Array) -> Array:
    if p.rpartition('/')[-1] in constants:
      return constants[p.rpartition('/')[-1]](w.shape, w.dtype)
    key = jax.random.fold_in(key, paths.stable_hash(p))
    return (std * jax.random.normal(key, w.shape)).astype(w.dtype)

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    del forward, calib
    places = places_of(paths.flatten(params))
    top = {p for p, at in places.items() if at.block >= _block(-layers, at)}
    top |= {p.removesuffix('/qvalue') for p in top}  # Which are refused.
    found = trained(params, paths.Selection(top.__contains__))
    return {}, {p: fresh(key, p, w) for p, w in found.items()}

  def weights(theta: Theta, state: State, params: Params) -> Params:
    del theta
    return paths.replace(params, state)

  return Method(init, weights)


@method
def soft_mask(
  score: Score, where: Where = '.*', keep: str = 'largest', granularity: str = 'entry',
  scale: str = 'max',
) -> Method:  # fmt: skip
  """Soft masks of CoFiTune (Zhang et al. 2024, arXiv:2404.10306): each entry at a pace of its own.

      W <- W + f u,   f = I  (keep='largest')   or   f = 1 - I  (keep='smallest')
      I = |s| / max |s|  (scale='max')   or   I = |tanh((s - mean s) / std s)|  (scale='tanh')

  u is the optimizer's update, s the score of each leaf, found once, at the start, on the training
  examples; f is state.  With granularity='column' an output has one s, the mean over its inputs.
  The authors scale gradients by 1 - I, which is the same for SGD, and which Adam would undo.

  >>> from fewshot.methods.scoring import fisher
  >>> soft_mask(fisher(), keep='smallest').mergeable
  True
  """
  for name, given, known in (
    ('keep', keep, ('largest', 'smallest')),
    ('granularity', granularity, ('entry', 'column')),
    ('scale', scale, ('max', 'tanh')),
  ):
    if given not in known:
      raise FewshotError(f'soft_mask({name}={given!r}) is not known; take one of {known}')
  if score.of != 'entry':
    raise FewshotError(f'soft_mask() takes scores of entries, and this one is of a {score.of}')
  base = tune(where)

  def factor(s: Array) -> Array:
    if granularity == 'column' and s.ndim > 1:
      s = s.mean(tuple(range(s.ndim - 1)), keepdims=True)
    if scale == 'tanh':
      importance = jnp.abs(jnp.tanh((s - s.mean()) / jnp.maximum(s.std(), 1e-30)))
    else:
      importance = jnp.abs(s) / jnp.maximum(jnp.abs(s).max(), 1e-30)
    return importance if keep == 'largest' else 1 - importance

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    theta, _ = base.init(key, forward, params, calib)
    found = score.fn(key, forward, params, calib)
    return theta, {'soft': {p: factor(found[p]) for p in theta if p in found}}

  return base._replace(init=init, optimizer=_scaled)


def _scaled(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
  """`tx`, its updates multiplied by the factors in state."""
  inner = optax.with_extra_args_support(tx)

  def update(grads: Theta, opt: Any, theta: Theta, *, method_state: State, **extra: Any) -> Any:
    updates, opt = inner.update(grads, opt, theta, method_state=method_state, **extra)
    return {p: u * method_state['soft'].get(p, 1) for p, u in updates.items()}, opt

  return optax.GradientTransformationExtraArgs(inner.init, update)


def categories(places: Mapping[str, '_Place']) -> dict[tuple[str, str], dict[int, list[str]]]:
  """{(stack, category): {block: modules}}, a category such as attn, mlp or ln."""
  groups: dict[tuple[str, str], dict[int, list[str]]] = {}
  for at in places.values():
    category = re.sub(r'_?\d+$', '', at.module.split('/')[0])
    found = groups.setdefault((at.stack, category), {}).setdefault(at.block, [])
    found += [at.module] * (at.module not in found)
  return groups


def _halves(blocks: dict[int, list[str]], seed: int) -> dict[int, list[str]]:
  """Half of the modules of each block; where their number is odd, rounded up in half the blocks."""
  rng = np.random.default_rng(seed)
  order = [int(i) for i in rng.permutation(sorted(blocks))]
  up = set(order[: -(-len(order) // 2)])
  return {
    i: [str(m) for m in rng.permutation(sorted(blocks[i]))[: (len(blocks[i]) + (i in up)) // 2]]
    for i in order
  }


class _Place(NamedTuple):
  """Where in a model a leaf is."""

  stack: str  # The path before the blocks: 'encoder/', of a CNN ''.
  depth: int  # How many blocks the stack has.
  block: int
  module: str  # The path within the block; of a leaf of the block itself, its name.


def places_of(leaves: Iterable[str]) -> dict[str, _Place]:
  """Where the leaves of blocks are; blocks are counted through the stages."""
  names = list(leaves)
  found = {p: m for p in names if (m := BLOCK.fullmatch(p))}
  if not found:
    raise FewshotError(f'there are no blocks (block_<i>) among {brief(names)}')
  at = {p: (m['stack'], int(m['stage'] or 0), int(m['block'])) for p, m in found.items()}
  order = {s: sorted({a for a in at.values() if a[0] == s}) for s in {a[0] for a in at.values()}}
  return {
    p: _Place(s, len(order[s]), order[s].index(at[p]), m['rest'].rpartition('/')[0] or m['rest'])
    for p, m in found.items()
    for s in [m['stack']]
  }


def _block(i: int, at: _Place) -> int:
  """The block that i means, negative ones counted from the end."""
  if not -at.depth <= i < at.depth:
    name = at.stack.rstrip('/') or 'the model'
    raise FewshotError(f'there is no block {i}; {name} has {at.depth}, 0 to {at.depth - 1}')
  return i % at.depth


def _tuned(choose: Callable[[dict[str, Array]], list[str]]) -> Method:
  """`tune` of leaves that are chosen once the params are known."""

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    del key, forward, calib
    leaves = floats(params)
    return {p: widen(leaves[p]) for p in choose(leaves)}, {}

  return tune()._replace(init=init)
