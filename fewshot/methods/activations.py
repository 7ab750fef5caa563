"""Methods in activation space: theta acts where a module is called, and the model never knows.

A site is a module's path, as `flax.linen.intercept_methods` sees it.  Only this file and what is
built on it needs Flax.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fewshot.errors import FewshotError, brief
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
  method,
)
from fewshot.methods.paths import Where
from fewshot.methods.weights import join, split

Array = jax.Array


class Site(NamedTuple):
  """What one module call looks like: its path, and the shapes of its first input and output."""

  path: str
  x: jax.ShapeDtypeStruct
  out: Any
  inputs: int = 1  # How many it takes.


def sites(forward: Forward, params: Params, batch: Batch, where: Where) -> dict[str, Site]:
  """The module calls that `where` selects, by path; traces, computes nothing.

  Raises `FewshotError` when the pattern matches no module that is called.
  """
  _check_unjitted(forward)
  seen: dict[str, Site] = {}

  def record(next_fn: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    out = next_fn(*args, **kwargs)
    if context.method_name == '__call__' and args and hasattr(args[0], 'dtype'):
      path = '/'.join(context.module.path)
      shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)  # noqa: E731
      seen.setdefault(path, Site(path, shape(args[0]), jax.tree.map(shape, out), len(args)))
    return out

  with nn.intercept_methods(record):
    # A fresh function: JAX caches traces by identity, and a cached trace runs no Python.
    jax.eval_shape(lambda params, batch: forward(params, batch), params, batch)
  if not seen:
    raise FewshotError(
      'no module call was seen: the forward is no Linen module, or it is jitted; activation '
      'methods need an unjitted Linen forward (jit only the outermost function)'
    )
  return paths.select({p: s for p, s in seen.items() if p}, where, 'module')


def _check_unjitted(forward: Forward) -> None:
  # On its first trace a jitted forward would be intercepted, and keep that trace for ever.
  if isinstance(forward, jax.stages.Wrapped):
    raise FewshotError(
      'the forward is jitted, so activation methods cannot reach inside; jit only the outermost '
      'function'
    )


def in_activations(
  where: Where,
  init: Callable[[Array, Site], dict[str, Array]],
  call: Callable[..., Any],
  weight: Callable[[dict[str, Array], dict[str, Array]], dict[str, Array]] | None = None,
  frozen: tuple[str, ...] = (),
) -> Method:
  """A method from functions of one site.

  `init(key, site) -> t` starts it, `call(t, next_fn, x, ...) -> y` stands in for the module call,
  and `weight(t, leaves) -> leaves` is the same change made to the module's own params ({'kernel',
  'bias'}), where there is one.  t is a dict of arrays; its entries named in `frozen` ride along
  in state.  theta is float32 or wider, and reaches `call` in the dtype of the activations.
  """

  def init_all(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    found = sites(forward, params, calib.batch, where)
    ts = {p: init(jax.random.fold_in(key, paths.stable_hash(p)), s) for p, s in found.items()}
    return split(ts, frozen)

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    return _intercepted(forward, join(theta, state), call)

  def merge(theta: Theta, state: State, params: Params) -> Params:
    assert weight is not None
    flat, new = paths.flatten(params), {}
    for p, t in join(theta, state).items():
      own = _dense(p, flat)
      for name, w in weight(t, own).items():
        if w.shape != own[name].shape:
          raise FewshotError(f'{p}/{name} {own[name].shape} cannot take a change of {w.shape}')
        new[f'{p}/{name}'] = w.astype(own[name].dtype)
    return paths.replace(params, new)

  return Method(init_all, wrap=wrap, merge=merge if weight else None)


def _dense(path: str, flat: dict[str, Array]) -> dict[str, Array]:
  """The leaves of a module by name: a kernel, maybe a bias."""
  own = {p.removeprefix(f'{path}/'): w for p, w in flat.items() if p.startswith(f'{path}/')}
  if 'kernel' not in own or own.keys() - {'kernel', 'bias'}:
    raise FewshotError(
      f'{path!r} has no weight form: it holds {brief(list(own)) or "no parameters"}, and only a '
      'linear map (kernel, bias) can be merged; choose such modules by where='
    )
  return own


def output(site: Site) -> jax.ShapeDtypeStruct:
  """The one floating array that a site returns; any other site is refused."""
  out = site.out
  if not hasattr(out, 'dtype') or not jnp.issubdtype(out.dtype, jnp.inexact):
    raise FewshotError(f'{site.path!r} returns {out}, not one floating array; choose other modules')
  return out


def wide(site: Site) -> Any:
  """The dtype that theta has at a site: the activations', at least float32."""
  return jnp.promote_types(site.x.dtype, jnp.float32)


def _intercepted(
  forward: Forward, ts: dict[str, dict[str, Array]], call: Callable[..., Any]
) -> Forward:
  _check_unjitted(forward)

  def adapted(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
    visits: dict[str, int] = dict.fromkeys(ts, 0)

    def interceptor(next_fn: Any, args: Any, kwargs: Any, context: Any) -> Any:
      path = '/'.join(context.module.path) if context.module.scope is not None else ''
      if path not in ts or context.method_name not in ('__call__', 'attend'):
        return next_fn(*args, **kwargs)
      visits[path] += 1
      if visits[path] > 1 or context.method_name == 'attend':
        raise FewshotError(
          f'{path!r} is used more than once in a forward pass (shared or tied weights), so an '
          'activation method cannot tell its uses apart; use the weight form: as_weights(...)'
        )
      dtype = args[0].dtype if jnp.issubdtype(args[0].dtype, jnp.inexact) else None
      t = jax.tree.map(lambda v: v.astype(dtype or v.dtype), ts[path])  # Tokens are integers.
      return call(t, next_fn, *args, **kwargs)

    with nn.intercept_methods(interceptor):
      outputs = forward(params, batch, key)
    missed = [p for p, n in visits.items() if not n]
    if missed and 'cache' not in batch:  # What is in a cache is not computed again.
      raise FewshotError(
        f'the forward never called {brief(missed)}: it is jitted (a cached trace runs no Python; '
        'jit only the outermost function), or it is another model'
      )
    return outputs

  return adapted


@method
def ia3(outputs: Where = r'.*/(key|value)', inputs: Where = r'.*/mlp/down') -> Method:
  """(IA)^3 (Liu et al. 2022, arXiv:2205.05638): learned vectors rescale keys, values, FFN hidden.

      k' = l_k * k,   v' = l_v * v,   FFN(x) = (l_ff * act(x W_up)) W_down

  The outputs of the sites in `outputs` and the inputs of those in `inputs` are scaled.

  >>> ia3().mergeable
  True
  """
  scaled, fed = _selection(outputs), _selection(inputs)

  def init(key: Array, site: Site) -> dict[str, Array]:
    del key
    if fed.holds(site.path):
      return {'l_in': jnp.ones(site.x.shape[-1:], wide(site))}
    return {'l_out': jnp.ones(output(site).shape[site.x.ndim - 1 :], wide(site))}

  def call(t: dict[str, Array], f: Any, x: Array, *rest: Any) -> Array:
    return f(x * t['l_in'], *rest) if 'l_in' in t else f(x, *rest) * t['l_out']

  def weight(t: dict[str, Array], w: dict[str, Array]) -> dict[str, Array]:
    if 'l_in' in t:
      return {'kernel': w['kernel'] * t['l_in'].reshape(-1, *[1] * (w['kernel'].ndim - 1))}
    return {k: v * t['l_out'] for k, v in w.items()}

  return in_activations(scaled | fed, init, call, weight)


def _selection(where: Where) -> paths.Selection:
  return paths.at(where) if isinstance(where, str) else where


@method
def adapter(where: Where = r'.*/(attn|mlp)', width: int = 48) -> Method:
  """Bottleneck adapter (Houlsby et al. 2019, arXiv:1902.00751) after each sublayer.

      y = f(x) + gelu(f(x) W_down + b_down) W_up + b_up,   W_up = 0 at the start

  >>> adapter(width=16).mergeable
  False
  """
  if width < 1:
    raise FewshotError(f'adapter(width={width}) has no units; width is at least 1')

  def init(key: Array, site: Site) -> dict[str, Array]:
    d, dtype = output(site).shape[-1], wide(site)
    return {
      'down': jax.random.normal(key, (d, width), dtype) / jnp.sqrt(d).astype(dtype),
      'down_bias': jnp.zeros(width, dtype),
      'up': jnp.zeros((width, d), dtype),
      'up_bias': jnp.zeros(d, dtype),
    }

  def call(t: dict[str, Array], f: Any, *args: Any, **kwargs: Any) -> Array:
    y = f(*args, **kwargs)
    return y + nn.gelu(y @ t['down'] + t['down_bias']) @ t['up'] + t['up_bias']

  return in_activations(where, init, call)
