"""Methods in input space: trained vectors that the model reads as if they were tokens."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fewshot.errors import FewshotError, brief
from fewshot.methods import paths
from fewshot.methods.activations import Site, in_activations
from fewshot.methods.base import (
  Batch,
  Calib,
  Forward,
  Method,
  Params,
  State,
  Theta,
  at_least_one,
  method,
)
from fewshot.methods.prefixes import dense
from fewshot.methods.weights import widen

__all__ = ['dept', 'ept', 'p_tuning', 'scaled_prompt', 'soft_prompt']
Array = jax.Array
Entries = dict[str, Array]
Init = Literal['vocabulary', 'random', 'examples', 'domain']


@method
def soft_prompt(
  length: int = 10, init: Init = 'vocabulary', tokens: tuple[int, ...] = ()
) -> Method:
  """Prompt tuning (Lester et al. 2021, arXiv:2104.08691): trained vectors before the tokens.

      x' = [P; embed(x)],   P [length, d]

  P starts at random rows of the embedding table; with `init='random'` at N(0, 1); with
  `init='examples'` at the tokens of the rows that a run starts from, one after another, which is
  CT-Prompt (Lu et al. 2025, arXiv:2507.04221); with `tokens` at these ids, of a text or of class
  names, again and again up to the length.  With `init='domain'` it starts after BayesPrompt (Li et
  al. 2024, arXiv:2401.14166) at draws from Gaussians of the mean embeddings of the examples:

      P_j ~ N(mu_c, diag sigma_c^2),   c the class of an example that is drawn for each j

  The authors fit their mixture by EM, move particles towards it, and take the mean of some.

  Positions are added after the prompt.  The stack's outputs at the prompt are dropped, but where a
  decoder reads them they are kept.

  >>> soft_prompt(length=4).mergeable
  False
  """
  rows = _rows('soft_prompt', length, init, tokens)
  start = lambda key, table, batch: {'prompt': rows(key, table, batch)}  # noqa: E731
  return _prompted('soft_prompt', length, start, lambda t: t['prompt'])


@method
def scaled_prompt(
  length: int = 10, init: Init = 'vocabulary', tokens: tuple[int, ...] = ()
) -> Method:
  """Scaled prompt tuning (Hu et al. 2023, arXiv:2309.06759): a soft prompt with trained gains.

      x' = [s * P; embed(x)],   P [length, d] starts as in `soft_prompt`,   s [d] at 1

  >>> scaled_prompt(length=4).mergeable
  False
  """
  rows = _rows('scaled_prompt', length, init, tokens)

  def start(key: Array, table: Array, batch: Batch) -> Entries:
    prompt = rows(key, table, batch)
    return {'prompt': prompt, 'scale': jnp.ones(prompt.shape[1], prompt.dtype)}

  return _prompted('scaled_prompt', length, start, lambda t: t['scale'] * t['prompt'])


@method
def p_tuning(
  length: int = 20, encoder: Literal['mlp', 'lstm'] = 'mlp', width: int = 128, layers: int = 2
) -> Method:
  """P-tuning (Liu et al. 2021, arXiv:2103.10385): a network makes the prompt of its own input.

      mlp:   P = W_3 relu(W_2 relu(W_1 E)),   of `width`, `width` and d units
      lstm:  P = W_2 relu(W_1 bilstm(E)),     of `layers` x `width` each way, 2 `width` and d units

  E [length, d] ~ N(0, 1); kernels and biases start uniform up to 1 / sqrt(fan in).  The shapes are
  those of HF PEFT.

  >>> p_tuning(length=4, width=8).mergeable
  False
  """
  if encoder not in ('mlp', 'lstm'):
    raise FewshotError(f'p_tuning(encoder={encoder!r}); there are mlp, lstm')
  if encoder == 'mlp' and layers != 2:
    raise FewshotError(f'p_tuning(layers={layers}) is of the lstm; the mlp has three maps')
  at_least_one('p_tuning', width=width, layers=layers)

  def start(key: Array, table: Array, batch: Batch) -> Entries:
    del batch
    d, dtype = table.shape[1], jnp.promote_types(table.dtype, jnp.float32)
    keys = jax.random.split(key, 2)
    maps = {'in': (d, width), 'middle': (width, width), 'out': (width, d)}
    if encoder == 'lstm':
      maps = _lstm_maps(d, width, layers) | {'middle': (2 * width,) * 2, 'out': (2 * width, d)}
    e = jax.random.normal(keys[0], (length, d), dtype)
    at = lambda name: jax.random.fold_in(keys[1], paths.stable_hash(name))  # noqa: E731
    made = [dense(n, at(n), s, dtype) for n, s in maps.items()]
    return {'embedding': e} | {k: v for m in made for k, v in m.items()}

  def prompt(t: Entries) -> Array:
    x = t['embedding']
    x = _bilstm(t, x, layers) if encoder == 'lstm' else jax.nn.relu(_map(t, 'in', x))
    return _map(t, 'out', jax.nn.relu(_map(t, 'middle', x)))

  return _prompted('p_tuning', length, start, prompt)


@method
def dept(length: int = 40, rank: int = 45, max_length: int = 256) -> Method:
  """DePT (Shi & Lipani 2023, arXiv:2309.05173): a short prompt, and a low-rank change of tokens.

      x'_t = embed(x_t) + (A B)_t,   A [max_length, rank],   B = 0 [rank, d] at the start

  The prompt [length, d] is that of `soft_prompt`; A ~ U(-1/sqrt(rank), 1/sqrt(rank)).  A row of A B
  belongs to a place in the text, whatever token is there; tokens beyond max_length stay.

  >>> dept(length=2, rank=3).mergeable
  False
  """
  at_least_one('dept', rank=rank, max_length=max_length)
  rows = _rows('dept', length)

  def start(key: Array, table: Array, batch: Batch) -> Entries:
    return {'prompt': rows(key, table, batch)} | _low_rank(key, table, rank, max_length)

  return _prompted('dept', length, start, lambda t: t['prompt'], _change)


@method
def ept(length: int = 60, rank: int = 30, spaces: int = 4, max_length: int = 256) -> Method:
  """EPT (Lan et al. 2024, arXiv:2405.11464): DePT's prompt, fused with A B and seen in subspaces.

      F = P + softmax(P (A B)^T / sqrt(d)) A B                            prompt fusion
      P' = F + sum_i g_i U_i V_i F,   g = softmax(mean(F) W)              projections, gated

  A, B change the tokens as in `dept`; U_i V_i [d, rank] [rank, d] with V_i = 0 at the start.  The
  paper's idea as its abstract states it: the form of the projections is ours.

  >>> ept(length=2, rank=3).mergeable
  False
  """
  at_least_one('ept', rank=rank, spaces=spaces, max_length=max_length)
  rows = _rows('ept', length)

  def start(key: Array, table: Array, batch: Batch) -> Entries:
    t = {'prompt': rows(key, table, batch)} | _low_rank(key, table, rank, max_length)
    d, dtype = table.shape[1], t['a'].dtype
    u, gate = jax.random.split(jax.random.fold_in(key, paths.stable_hash('spaces')))
    return t | {
      'u': jax.random.normal(u, (spaces, d, rank), dtype) / jnp.sqrt(d).astype(dtype),
      'v': jnp.zeros((spaces, rank, d), dtype),
      'gate': jax.random.normal(gate, (d, spaces), dtype) / jnp.sqrt(d).astype(dtype),
    }

  def prompt(t: Entries) -> Array:
    ab = t['a'] @ t['b']
    f = t['prompt']
    f = f + jax.nn.softmax(f @ ab.T / ab.shape[1] ** 0.5) @ ab
    g = jax.nn.softmax(f.mean(0) @ t['gate'])
    return f + jnp.einsum('s,ld,sdr,sre->le', g, f, t['u'], t['v'])

  return _prompted('ept', length, start, prompt, _change)


def _prompted(
  name: str,
  length: int,
  start: Callable[[Array, Array, Batch], Entries],
  prompt: Callable[[Entries], Array],
  change: Callable[[Entries, Array], Array] | None = None,
) -> Method:
  """A method that puts `prompt(t)` [length, d] before the tokens.

  `start(key, table, batch) -> t`, of the embedding table [V, d]; `change(t, places)` is added to
  the tokens at these places [B, T] of the text.
  """
  at_least_one(name, length=length)

  def call(t: Entries, f: Any, x: Array, mask: Array, *per_token: Array) -> Any:
    going_on = mask.shape[1] > x.shape[1]  # Decoding: the prompt is in the cache.
    if not t:  # The encoder's site: its input is already longer.
      return f(x, mask, *per_token) if going_on else f(x, mask, *per_token)[:, length:]
    positions, *rest = per_token
    if change is not None:
      places = positions - length if going_on else positions - positions[:, :1]
      x = x + change(t, places)
    if going_on:
      return f(x, mask, *per_token)
    return f(*_behind(prompt(t), x, mask, positions, *rest))

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    leaves = paths.flatten(params)
    if 'embed/embedding' not in leaves:
      raise FewshotError(
        f'{name} reads a table of tokens, embed/embedding; there are {brief(list(leaves))}'
      )
    decoded = any(p.startswith('decoder/') for p in leaves)
    theta, state = (kept if decoded else dropped).init(key, forward, params, calib)
    table = jnp.asarray(leaves['embed/embedding'])
    return theta | {'inputs': widen(start(key, table, calib.batch))}, state

  def check(key: Array, site: Site) -> Entries:
    if site.path == 'inputs' and site.others and site.others[0].shape[1] > site.x.shape[1]:
      raise FewshotError(
        f'{name} is not read behind demonstrations, whose cache each text goes on from, and could '
        'not train; take prefix() there'
      )
    return {}

  kept = in_activations('inputs', check, call)
  dropped = in_activations('inputs|encoder', check, call)
  return dropped._replace(init=init)


def _behind(
  prompt: Array, x: Array, mask: Array, positions: Array, *rest: Array
) -> tuple[Array, ...]:
  """The arguments of `inputs` with a prompt [length, d] and its positions before x [B, T, d]."""
  length = len(prompt)
  x = jnp.concatenate([jnp.broadcast_to(prompt, (x.shape[0], *prompt.shape)), x], 1)
  own = positions[:, :1] + jnp.arange(length, dtype=positions.dtype)
  positions = jnp.concatenate([own, positions + length], 1)
  first = ((0, 0), (length, 0))
  mask = jnp.pad(mask, first, constant_values=True)
  return x, mask, positions, *(jnp.pad(r, first) for r in rest)


def _rows(
  name: str, length: int, init: Init = 'vocabulary', tokens: tuple[int, ...] = ()
) -> Callable[[Array, Array, Batch], Array]:
  """(key, table, batch) -> the vectors [length, d] that a prompt starts as."""
  if init not in Init.__args__:  # type: ignore[attr-defined]
    known = ', '.join(Init.__args__)  # type: ignore[attr-defined]
    raise FewshotError(f'{name}(init={init!r}); there are {known}')
  if not all(type(i) is int for i in tokens):
    raise FewshotError(
      f'{name}(tokens={tokens}): tokens are ids of the vocabulary, (2054, 2003, ...)'
    )
  if tokens and init != 'vocabulary':
    raise FewshotError(f'{name} starts at tokens={tokens} or at init={init!r}, not at both')

  def rows(key: Array, table: Array, batch: Batch) -> Array:
    size = table.shape[0]
    if any(not 0 <= i < size for i in tokens):
      raise FewshotError(f'{name}(tokens={tokens}): the table has the ids 0 to {size - 1}')
    if tokens:
      return table[jnp.asarray([tokens[i % len(tokens)] for i in range(length)])]
    if init == 'examples':
      return table[_examples(batch, length)]
    if init == 'domain':
      return _domain(key, table, batch, length)
    if init == 'random':
      dtype = jnp.promote_types(table.dtype, jnp.float32)
      return jax.random.normal(key, (length, table.shape[1]), dtype)
    return table[jax.random.randint(key, (length,), 0, size)]

  return rows


def _examples(batch: Batch, length: int) -> Array:
  """The real tokens of all rows, one after another, again and again up to the length."""
  mask = jnp.asarray(batch['mask'], bool).reshape(-1)
  order = jnp.argsort(~mask, stable=True)[jnp.arange(length) % jnp.maximum(mask.sum(), 1)]
  return jnp.asarray(batch['tokens']).reshape(-1)[order]


def _domain(key: Array, table: Array, batch: Batch, length: int) -> Array:
  """Draws [length, d] from a Gaussian a class of the rows' mean embeddings, one class a draw."""
  mask = jnp.asarray(batch['mask'], jnp.float32)[..., None]
  e = (widen(table)[jnp.asarray(batch['tokens'])] * mask).sum(1) / jnp.maximum(mask.sum(1), 1)
  labels = jnp.asarray(batch.get('labels', jnp.zeros(len(e), jnp.int32)))
  same = (labels[:, None] == labels).astype(e.dtype)
  same = same / same.sum(1, keepdims=True)
  mean = same @ e  # [N, d], of each row's class.
  deviation = jnp.sqrt(jnp.maximum(same @ (e * e) - mean * mean, 0))
  drawn, noise = jax.random.split(key)
  at = jax.random.randint(drawn, (length,), 0, len(e))
  return mean[at] + deviation[at] * jax.random.normal(noise, (length, e.shape[1]), e.dtype)


def _low_rank(key: Array, table: Array, rank: int, max_length: int) -> Entries:
  """A and B of a change of embedded tokens that starts at zero."""
  dtype = jnp.promote_types(table.dtype, jnp.float32)
  key = jax.random.fold_in(key, paths.stable_hash('a'))
  a = jax.random.uniform(key, (max_length, rank), dtype, -1, 1) * rank**-0.5
  return {'a': a, 'b': jnp.zeros((rank, table.shape[1]), dtype)}


def _change(t: Entries, places: Array) -> Array:
  """(A B) at the places [B, T] -> [B, T, d]; zero beyond the last row of A."""
  return jnp.take(t['a'], places, 0, mode='fill', fill_value=0) @ t['b']


def _map(t: Entries, name: str, x: Array) -> Array:
  return x @ t[name] + t[f'{name}_bias']


def _lstm_maps(d: int, width: int, layers: int) -> dict[str, tuple[int, int]]:
  """The kernels of a bidirectional LSTM, by name: from inputs, and from its own last output."""
  maps = {}
  for i in range(layers):
    for way in ('forward', 'backward'):
      maps[f'{way}_{i}_in'] = (2 * width if i else d, 4 * width)
      maps[f'{way}_{i}_hidden'] = (width, 4 * width)
  return maps


def _bilstm(t: Entries, x: Array, layers: int) -> Array:
  """x [T, d] -> [T, 2 width]: every layer reads both directions of the one below."""
  for i in range(layers):
    ways = [_lstm(t, f'{way}_{i}', x, way == 'backward') for way in ('forward', 'backward')]
    x = jnp.concatenate(ways, 1)
  return x


def _lstm(t: Entries, name: str, x: Array, reverse: bool) -> Array:
  """One direction of one layer; the gates are i, f, g, o, as in PyTorch."""

  def step(carry: tuple[Array, Array], z: Array) -> tuple[tuple[Array, Array], Array]:
    h, c = carry
    i, f, g, o = jnp.split(z + _map(t, f'{name}_hidden', h), 4)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h

  z = _map(t, f'{name}_in', x)
  zero = jnp.zeros(z.shape[1] // 4, z.dtype)
  return jax.lax.scan(step, (zero, zero), z, reverse=reverse)[1]
