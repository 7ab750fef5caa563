"""Small networks beside or behind the modules of a frozen one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.methods.activations import (
  Site,
  beside,
  in_activations,
  output,
  outputs,
  per_batch,
  sites,
  wide,
)
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
from fewshot.methods.paths import Where
from fewshot.methods.representation import real
from fewshot.methods.weights import layernorm

__all__ = [
  'adamix',
  'adapter',
  'compacter',
  'houlsby',
  'pfeiffer',
  'sct',
  'unipelt',
]
Array = jax.Array
Entries = dict[str, Array]


@method
def adapter(where: Where = r'.*/(attn|mlp)', width: int = 48) -> Method:
  """Bottleneck adapter (Houlsby et al. 2019, arXiv:1902.00751) after each sublayer.

      y = f(x) + gelu(f(x) W_down + b_down) W_up + b_up,   W_up = 0 at the start

  >>> adapter(width=16).mergeable
  False
  """
  at_least_one('adapter', width=width)
  return _behind(where, width, nn.gelu)


@method
def houlsby(where: Where = r'.*/(attn|mlp)', width: int = 64) -> Method:
  """The adapter as published (Houlsby et al. 2019, arXiv:1902.00751): the norms train too.

      y = f(x) + gelu(f(x) W_down + b_down) W_up + b_up,   and   layernorm()

  Starts as the base function, since W_up is zero and not, as there, of deviation 0.01.

  >>> houlsby(width=16).mergeable
  False
  """
  return _with_norms(adapter(where, width))


@method
def pfeiffer(where: Where = r'.*/mlp', width: int = 48) -> Method:
  """Pfeiffer's adapter (Pfeiffer et al. 2020, arXiv:2005.00247): one a block, after the MLP.

      y = f(x) + relu(f(x) W_down + b_down) W_up + b_up,   W_up = 0 at the start

  It reads what the MLP adds, before the residual and the norm that may follow.

  >>> pfeiffer(width=16).mergeable
  False
  """
  at_least_one('pfeiffer', width=width)
  return _behind(where, width, nn.relu)


@method
def compacter(
  where: Where = r'.*/(attn|mlp)', width: int = 24, n: int = 4, rank: int = 1
) -> Method:
  """Compacter (Karimi Mahabadi et al. 2021, arXiv:2106.04647): adapters of Kronecker products.

      W = sum_i A_i (x) S_i T_i,   A_i [n, n],   S_i [d / n, rank],   T_i [rank, k / n]

  Both maps of each adapter are such a W [d, k]; all maps of all sites share the rules A [n, n, n],
  and no W is ever formed.  The norms train too.  T of the upward map is zero at the start.

  >>> compacter(width=8).mergeable
  False
  """
  at_least_one('compacter', width=width, n=n, rank=rank)
  draw = nn.initializers.glorot_uniform(in_axis=-2, out_axis=-1, batch_axis=0)

  def rules(key: Array, found: dict[str, Site]) -> Entries:
    return {'rules': 0.01 * jax.random.normal(key, (n, n, n), wide(next(iter(found.values()))))}

  def init(key: Array, site: Site) -> Entries:
    d, dtype, keys = output(site).shape[-1], wide(site), jax.random.split(key, 3)
    if d % n or width % n:
      raise FewshotError(f'compacter(width={width}, n={n}): n divides the width and {d} channels')
    return {
      'down_left': draw(keys[0], (n, d // n, rank), dtype),
      'down_right': draw(keys[1], (n, rank, width // n), dtype),
      'down_bias': jnp.zeros(width, dtype),
      'up_left': draw(keys[2], (n, width // n, rank), dtype),
      'up_right': jnp.zeros((n, rank, d // n), dtype),
      'up_bias': jnp.zeros(d, dtype),
    }

  def call(t: Entries, f: Any, *args: Any, **kwargs: Any) -> Array:
    y = f(*args, **kwargs)
    hidden = nn.gelu(_phm(y, t['rules'], t['down_left'], t['down_right']) + t['down_bias'])
    return y + _phm(hidden, t['rules'], t['up_left'], t['up_right']) + t['up_bias']

  return _with_norms(in_activations(where, init, call, shared=rules))


@method
def unipelt(
  rank: int = 8,
  length: int = 10,
  width: int = 48,
  projections: Where = r'.*/attn/(query|value)',
  attention: Where = r'.*/attn/core',
  mlp: Where = r'.*/mlp',
) -> Method:
  """UniPELT (Mao et al. 2021, arXiv:2110.07577): gated LoRA, prefix and adapter in every block.

      projections:  y = f(x) + g x A B                               B = 0 at the start
      attention:    softmax(q [g P_k; k]^T) [g P_v; v]
      mlp:          y = f(x) + g (relu(f(x) W_down + b_down) W_up + b_up)   W_up = 0 at the start
      g = mean over the real tokens of sigmoid(x w + c),   w, c = 0 at the start

  One gate a site and row; x is the site's input, the queries at attention and f(x) at the MLP.  It
  averages over the whole input, so on a decoder a token sees later ones and no cache is continued.

  >>> unipelt(rank=2, length=2, width=4).mergeable
  False
  """
  at_least_one('unipelt', rank=rank, length=length, width=width)
  behind, linear = paths.selection(mlp), paths.selection(projections)

  def init(key: Array, site: Site, groups: int) -> Entries:
    d, dtype, out = site.x.shape[-1], wide(site), output(site).shape
    if linear.holds(site.path):
      a = jax.random.normal(key, (d, rank), dtype) / jnp.sqrt(d).astype(dtype)
      return {'a': a, 'b': jnp.zeros((rank, out[-1]), dtype)} | _gate_of(d, dtype)
    if behind.holds(site.path):
      return bottleneck(key, site, out[-1], width) | _gate_of(out[-1], dtype)
    keys, values = 0.02 * jax.random.normal(key, (2, length, groups, out[-1]), dtype)
    return {'keys': keys, 'values': values} | _gate_of(out[-2] * out[-1], dtype)

  everywhere = linear | behind | paths.selection(attention)
  return per_batch(everywhere, init, _gated, observe=_groups)


@method
def sct(where: Where = r'.*/attn', channels: int = 96, scale: float = 1.0) -> Method:
  """Salient channel tuning (Zhao et al. 2023, arXiv:2309.08513): a map among a few channels.

      y = f(x);   y_S' = y_S + s (y_S W + b),   W = 0 [k, k] and b = 0 at the start

  S are the k `channels` with the largest norm over the real tokens of the calibration batch, taken
  of each class and averaged.  After the attention it is what that adds that is read; where=
  '.*/block_.*' is the residual stream.

  >>> sct(channels=8).mergeable
  False
  """
  at_least_one('sct', channels=channels)

  def observe(forward: Forward, params: Params, calib: Calib, where: Where) -> Entries:
    seen = outputs(forward, params, calib.batch, where)
    return {p: _salience(h, calib) for p, h in seen.items()}

  def init(key: Array, site: Site, salience: Array) -> Entries:
    del key
    d, dtype = output(site).shape[-1], wide(site)
    if channels > d:
      raise FewshotError(f'sct(channels={channels}) is more than the {d} of {site.path!r}')
    best = jnp.sort(jax.lax.top_k(salience, channels)[1])
    square = jnp.zeros((channels, channels), dtype)
    return {'kernel': square, 'bias': jnp.zeros(channels, dtype), 'channels': best}

  def call(t: Entries, f: Any, *args: Any, **kwargs: Any) -> Array:
    y = f(*args, **kwargs)
    change = y[..., t['channels']] @ t['kernel'] + t['bias']
    return y.at[..., t['channels']].add(scale * change)

  return in_activations(where, init, call, frozen=('channels',), observe=observe)


@method
def adamix(where: Where = r'.*/mlp', width: int = 48, experts: int = 4) -> Method:
  """AdaMix (Wang et al. 2022, arXiv:2205.12410): a pass trains one of several adapters.

      y = f(x) + gelu(f(x) W_i + b_i) W_up + b_up,   W_up = 0 at the start

  In training i is drawn at each site and pass; in evaluation W and b are the means over the
  experts, which start alike.  W_up is shared by the experts of a site.

  >>> adamix(width=16).mergeable
  False
  """
  at_least_one('adamix', width=width, experts=experts)
  many = ('down', 'down_bias')

  def init(key: Array, site: Site) -> Entries:
    t = bottleneck(key, site, output(site).shape[-1], width)
    return t | {name: jnp.stack([t[name]] * experts) for name in many}

  def call(t: Entries, f: Any, *args: Any, **kwargs: Any) -> Array:
    key, y = t['key'], f(*args, **kwargs)
    drawn = None if key is None else jax.random.randint(key, (), 0, experts)
    one = {name: t[name].mean(0) if drawn is None else t[name][drawn] for name in many}
    return y + branch(t | one, y, nn.gelu)

  return in_activations(where, init, call, draws=True)


def bottleneck(key: Array, site: Site, d: int, width: int) -> Entries:
  """A map from d to what the site returns through `width` units, zero at the start."""
  out, dtype = output(site).shape[-1], wide(site)
  return {
    'down': jax.random.normal(key, (d, width), dtype) / jnp.sqrt(d).astype(dtype),
    'down_bias': jnp.zeros(width, dtype),
    'up': jnp.zeros((width, out), dtype),
    'up_bias': jnp.zeros(out, dtype),
  }


def branch(t: Entries, x: Array, act: Callable[[Array], Array]) -> Array:
  """act(x W_down + b_down) W_up + b_up."""
  return act(x @ t['down'] + t['down_bias']) @ t['up'] + t['up_bias']


def _behind(where: Where, width: int, act: Callable[[Array], Array]) -> Method:
  """An adapter that reads what each site returns, and adds to it."""

  def init(key: Array, site: Site) -> Entries:
    return bottleneck(key, site, output(site).shape[-1], width)

  def call(t: Entries, f: Any, *args: Any, **kwargs: Any) -> Array:
    y = f(*args, **kwargs)
    return y + branch(t, y, act)

  return in_activations(where, init, call)


def _with_norms(inner: Method) -> Method:
  """A method of sites that trains the model's norms too: theta has entries of both, by path."""
  norms = layernorm()

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    theta, state = inner.init(key, forward, params, calib)
    return theta | norms.init(key, forward, params, calib)[0], state

  def weights(theta: Theta, state: State, params: Params) -> Params:
    leaves = {p: t for p, t in theta.items() if not isinstance(t, dict)}
    return norms.weights(leaves, state, params)

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    return inner.wrap(forward, {p: t for p, t in theta.items() if isinstance(t, dict)}, state)

  return Method(init, weights, wrap)


def _phm(x: Array, rules: Array, left: Array, right: Array) -> Array:
  """x sum_i kron(rules_i, left_i right_i), of x [..., d] -> [..., k]; no product is formed."""
  x = x.reshape(*x.shape[:-1], len(rules), -1)
  y = jnp.einsum('...ap,ipr->...air', x, left)
  y = jnp.einsum('...air,iac->...cir', y, rules)
  y = jnp.einsum('...cir,irq->...cq', y, right)
  return y.reshape(*y.shape[:-2], -1)


def _groups(forward: Forward, params: Params, calib: Calib, where: Where) -> dict[str, int]:
  """Into how many heads the keys of a core are split; of other sites it means nothing."""
  every = sites(forward, params, calib.batch, '.*')
  found = paths.select(every, where, 'module')
  keys = {p: every.get(beside(p, 'key'), s) for p, s in found.items()}
  return {p: output(keys[p]).shape[-1] // output(s).shape[-1] for p, s in found.items()}


def _gate_of(d: int, dtype: Any) -> Entries:
  return {'gate': jnp.zeros(d, dtype), 'gate_bias': jnp.zeros(1, dtype)}


def _gated(batch: Batch) -> Callable[..., Array]:
  """The call of unipelt's three kinds of sites."""

  def gate(t: Entries, x: Array) -> Array:
    own = real(batch, x).astype(x.dtype)
    open_ = jax.nn.sigmoid(x @ t['gate'] + t['gate_bias']) * own
    return (open_.sum(1) / jnp.maximum(own.sum(1), 1))[:, None, None]

  def call(t: Entries, f: Any, x: Array, *rest: Any) -> Array:
    if 'cache' in batch:
      raise FewshotError('the gates of unipelt average whole inputs; decode without a cache')
    if 'a' in t:
      return f(x, *rest) + gate(t, x) * (x @ t['a'] @ t['b'])
    if 'keys' in t:
      return _prefixed(t, gate(t, x.reshape(*x.shape[:2], -1)), f, x, *rest)
    y = f(x, *rest)
    return y + gate(t, y) * branch(t, y, nn.relu)

  return call


def _prefixed(
  t: Entries, gate: Array, f: Any, q: Array, k: Array, v: Array, mask: Array, *bias: Array
) -> Array:
  """The core's output with gated keys and values, which all queries see, before k and v."""
  first = lambda p, x: jnp.concatenate([gate[..., None] * p, x], 1)  # noqa: E731
  front = lambda x: [(0, 0)] * (x.ndim - 1) + [(len(t['keys']), 0)]  # noqa: E731
  mask = jnp.pad(jnp.asarray(mask, bool), front(mask), constant_values=True)
  bias = tuple(jnp.pad(x, front(x)) for x in bias)
  return f(q, first(t['keys'], k), first(t['values'], v), mask, *bias)


def _salience(h: Array, calib: Calib) -> Array:
  """The norm of each channel over the examples of a class, averaged over the classes [D]."""
  h = h.reshape(len(h), -1, h.shape[-1]).astype(jnp.promote_types(h.dtype, jnp.float32))
  energy = (jnp.square(h) * real(calib.batch, h)[..., None]).sum(1)
  labels, one = calib.batch.get('labels'), jnp.ones((len(h), 1), h.dtype)
  known = labels is not None and calib.classes > 1
  classes = jax.nn.one_hot(labels, calib.classes, dtype=h.dtype) if known else one
  return jnp.sqrt(classes.T @ energy).mean(0)
