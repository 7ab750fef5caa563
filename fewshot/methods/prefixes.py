"""Trained keys and values in front of those of attention.

They attach at the cores, `.*/attn/core`, which are called with q [B, Q, H, D], k, v [B, K, G, D] of
G groups, a mask and maybe a bias.  Cross attention, `.*/cross/core`, stays as it is.  A pass that
continues from a cache reads all cached keys at the core: trained ones come first there, too.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fewshot.errors import FewshotError, brief
from fewshot.methods import paths
from fewshot.methods.activations import Site, beside, in_activations, sites
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
from fewshot.methods.weights import SHARED, join

__all__ = ['llama_adapter', 'prefix']
Array = jax.Array
CORES = r'.*/attn/core'
INPUTS = 'inputs'  # Where positions are counted.


@method
def prefix(length: int = 10, width: int | None = None, where: Where = CORES) -> Method:
  """Prefix tuning (Li & Liang 2021, arXiv:2101.00190): trained keys and values come first.

      y = softmax(q [K; k]^T) [V; v],   K, V [length, G, D] of every core

  K, V ~ N(0, 1) at the start.  With a `width` one MLP makes those of all cores:

      [K; V] = tanh(E W_1 + b_1) W_2 + b_2,   E [length, G D],   W_1 [G D, width]

  Every token attends to the prefix, so that no start is the base function.  Tokens stand behind it:
  their positions begin at `length`, as with Hugging Face's past_key_values.  P-tuning v2 (Liu et
  al. 2021, arXiv:2110.07602) is this method on encoders, with a linear head.

  >>> prefix(length=4).mergeable
  False
  """
  at_least_one('prefix', length=length, width=width)

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    read = jax.eval_shape(lambda: attended(forward, params, calib.batch, where))
    theta: Theta = {}
    for path, (k, _) in read.items():
      at, dtype = _key(key, path), jnp.promote_types(k.dtype, jnp.float32)
      theta[path] = (_ends if width else _direct)(at, (width or length, *k.shape[2:]), dtype)
    if width:
      d = k.shape[2] * k.shape[3]  # Of the last; the same in all layers of one stack.
      theta[SHARED] = _begin(_key(key, SHARED), (length, d), width, dtype)
    return theta | counting(forward, params, calib.batch), {}

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    ts = {p: {} if p == INPUTS else _made(t) for p, t in join(theta, state).items()}
    return prefixed(forward, ts, jnp.ones((1, length), bool))

  return Method(init, wrap=wrap)


@method
def llama_adapter(length: int = 10, where: Where = CORES) -> Method:
  """LLaMA-Adapter (Zhang et al. 2023, arXiv:2303.16199): a prompt behind a gate that starts closed.

      y = softmax(q k^T) v + g softmax(q (P W_k + b_k)^T) (P W_v + b_v)

  P [length, d] ~ N(0, 1), g = 0 is one number a core, and W_k, W_v are the block's own, frozen.
  The prompt has no positions.  The paper takes the upper blocks only: choose them by `where`.

  >>> llama_adapter(length=4).mergeable
  False
  """
  at_least_one('llama_adapter', length=length)

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    leaves, theta = paths.flatten(params), {}
    for path, site in _cores(forward, params, calib.batch, where).items():
      d, dtype = _kernel(leaves, path, 'key').shape[0], jnp.promote_types(site.x.dtype, jnp.float32)
      prompt = jax.random.normal(_key(key, path), (length, d), dtype)
      theta[path] = {'prompt': prompt, 'gate': jnp.zeros((), dtype)}
    return theta, {}

  def call(t: dict[str, Array], f: Any, q: Array, k: Array, *rest: Any) -> Array:
    heads = lambda x: jnp.broadcast_to(x.reshape(-1, *k.shape[2:]), (len(q), length, *k.shape[2:]))  # noqa: E731
    own = f(q, heads(t['keys']), heads(t['values']), jnp.ones((len(q), length), bool))
    return f(q, k, *rest) + t['gate'] * own

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    def adapted(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
      ts = {p: {'gate': t['gate'], **_projected(params, p, t)} for p, t in theta.items()}
      return at_cores(call).wrap(forward, ts, state)(params, batch, key)

    return adapted

  return Method(init, wrap=wrap)


def prefixed(
  forward: Forward, ts: dict[str, dict[str, Array]], seen: Array, count: Array | None = None
) -> Forward:
  """The forward whose cores read the keys and values of ts first, where `seen` [1 or B, n] holds.

  Positions begin at `count` (or [B, 1] of them), by default n.
  """
  n = seen.shape[1]
  offset = jnp.asarray(n if count is None else count, jnp.int32)

  def call(t: dict[str, Array], f: Any, *args: Any) -> Any:
    return _read(t, seen, f, *args) if t else _shifted(offset, f, *args)

  inner = at_cores(call).wrap(forward, ts, {})

  def adapted(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
    if INPUTS in ts:
      _check_room(params, batch, n)
    return inner(params, batch, key)

  return adapted


def _read(
  t: dict[str, Array], seen: Array, f: Any, q: Array, k: Array, v: Array, mask: Array, *bias: Array
) -> Array:
  """The core's output with the keys and values of t before k and v; they have no bias."""
  first = lambda p, x: jnp.concatenate([jnp.broadcast_to(p, (len(q), *p.shape)), x], 1)  # noqa: E731
  n = seen.shape[1]
  seen = seen if mask.ndim == 2 else seen[:, None, None]
  seen = jnp.broadcast_to(seen, (*mask.shape[:-1], n))
  mask = jnp.concatenate([seen, jnp.asarray(mask, bool)], -1)
  bias = tuple(jnp.pad(x, [(0, 0)] * 3 + [(n, 0)]) for x in bias)
  return f(q, first(t['keys'], k), first(t['values'], v), mask, *bias)


def _shifted(offset: Array, f: Any, x: Array, mask: Array, positions: Array, *rest: Array) -> Any:
  """The inputs of a stack whose tokens stand behind a prefix; a cache counts it already."""
  going_on = mask.shape[1] > x.shape[1]
  return f(x, mask, positions if going_on else positions + offset, *rest)


def _cores(forward: Forward, params: Params, batch: Batch, where: Where) -> dict[str, Site]:
  """The selected cores of attention; anything else is refused."""
  found = sites(forward, params, batch, where)
  odd = [p for p, site in found.items() if site.inputs < 4 or site.x.ndim != 4]
  if odd:
    raise FewshotError(
      f'{brief(odd)}: no cores of attention; keys and values attach where q, k, v and a mask come '
      f'together, as in where={CORES!r}'
    )
  return found


def attended(
  forward: Forward, params: Params, batch: Batch, where: Where
) -> dict[str, tuple[Array, Array]]:
  """The keys and values [B, K, G, D] that the selected cores read, by path."""
  read: list[tuple[Array, Array]] = []

  def call(t: dict[str, Array], f: Any, *args: Any) -> Array:
    del t
    read.append((args[1], args[2]))
    return f(*args)

  found = _cores(forward, params, batch, where)  # In the order of the calls.
  at_cores(call).wrap(forward, {p: {} for p in found}, {})(params, batch)
  return dict(zip(found, read, strict=True))


def at_cores(call: Any) -> Method:
  """Only its `wrap` is used, with entries of t that are made from theta and params."""
  return in_activations(CORES, lambda key, site: {}, call)


def counting(forward: Forward, params: Params, batch: Batch) -> Theta:
  """An empty entry for `inputs` where tokens get their positions there: images have none."""
  site = sites(forward, params, batch, '.*').get(INPUTS)
  return {INPUTS: {}} if site is not None and site.inputs > 2 else {}


def _check_room(params: Params, batch: Batch, length: int) -> None:
  """Refuses inputs that reach beyond a table of positions, which a lookup would not tell."""
  table = paths.flatten(params).get(f'{INPUTS}/positions/embedding')
  if table is None or 'cache' in batch or 'tokens' not in batch:
    return
  tokens = batch['tokens'].shape[-1] + (batch['room'].shape[0] if 'room' in batch else 0)
  if length + tokens > len(table):
    raise FewshotError(
      f'a prefix of {length} and an input of {tokens} tokens do not fit the {len(table)} positions '
      'of this model; cut the texts at fewer tokens, or take a shorter prefix'
    )


def _direct(key: Array, shape: tuple[int, ...], dtype: Any) -> dict[str, Array]:
  """Keys and values of one core."""
  k, v = jax.random.normal(key, (2, *shape), dtype)
  return {'keys': k, 'values': v}


def _begin(key: Array, shape: tuple[int, int], width: int, dtype: Any) -> dict[str, Array]:
  """What all cores share of the MLP: E, W_1, b_1."""
  one, two = jax.random.split(key)
  embedding = jax.random.normal(one, shape, dtype)
  return {'embedding': embedding} | dense('hidden', two, (shape[1], width), dtype)


def _ends(key: Array, shape: tuple[int, ...], dtype: Any) -> dict[str, Array]:
  """What one core has of the MLP: its columns of W_2 [width, 2, G, D] and b_2."""
  width, *heads = shape
  return dense('out', key, (width, 2, *heads), dtype)


def dense(name: str, key: Array, shape: tuple[int, ...], dtype: Any) -> dict[str, Array]:
  """A linear map's kernel and bias as PyTorch starts them: uniform up to 1 / sqrt(fan in)."""
  limit = shape[0] ** -0.5
  one, two = jax.random.split(key)
  draw = lambda k, s: jax.random.uniform(k, s, dtype, -limit, limit)  # noqa: E731
  return {name: draw(one, shape), f'{name}_bias': draw(two, shape[1:])}


def _made(t: dict[str, Array]) -> dict[str, Array]:
  """Keys and values [length, G, D] of one core: its own, or what the MLP makes."""
  if 'keys' in t:
    return t
  hidden = jnp.tanh(t['embedding'] @ t['hidden'] + t['hidden_bias'])
  kv = jnp.tensordot(hidden, t['out'], 1) + t['out_bias']
  return {'keys': kv[:, 0], 'values': kv[:, 1]}


def _projected(params: Params, core: str, t: dict[str, Array]) -> dict[str, Array]:
  """Keys and values [length, G D] of a prompt [length, d], by the maps beside the core."""
  leaves, out = paths.flatten(params), {}
  for name in ('key', 'value'):
    y, bias = t['prompt'] @ _kernel(leaves, core, name), f'{beside(core, name)}/bias'
    out[f'{name}s'] = y + leaves[bias] if bias in leaves else y
  return out


def _kernel(leaves: dict[str, Array], core: str, name: str) -> Array:
  path = f'{beside(core, name)}/kernel'
  if path not in leaves:
    raise FewshotError(f'llama_adapter projects its prompt by {path!r}, which is not there')
  return leaves[path]


def _key(key: Array, path: str) -> Array:
  return jax.random.fold_in(key, paths.stable_hash(path))
