"""Methods in activation space: theta acts where a module is called, and the model never knows.

A site is a module's path, as `flax.linen.intercept_methods` sees it.  Only this file and what is
built on it needs Flax.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

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
)
from fewshot.methods.paths import Where
from fewshot.methods.weights import SHARED, join, split


class Site(NamedTuple):
  """What one module call looks like: its path, and the shapes of its first input and output."""

  path: str
  x: jax.ShapeDtypeStruct
  out: Any
  inputs: int = 1  # How many it takes.
  own: Mapping[str, Array] = MappingProxyType(
    {}
  )  # The module's own leaves: a kernel, maybe a bias.
  others: tuple[Any, ...] = ()  # The shapes of its further inputs.


def sites(forward: Forward, params: Params, batch: Batch, where: Where) -> dict[str, Site]:
  """The module calls that `where` selects, by path; traces, computes nothing.

  Raises `FewshotError` when the pattern matches no module that is called.
  """
  _check_unjitted(forward)
  seen: dict[str, Site] = {}
  leaves = paths.flatten(params)

  def record(next_fn: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    out = next_fn(*args, **kwargs)
    if context.method_name == '__call__' and args and hasattr(args[0], 'dtype'):
      path = path_of(context)
      shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)  # noqa: E731
      own = {k: leaves[f'{path}/{k}'] for k in ('kernel', 'bias') if f'{path}/{k}' in leaves}
      first, *others = (shape(x) for x in args if hasattr(x, 'dtype'))
      found = Site(path, first, jax.tree.map(shape, out), len(args), own, tuple(others))
      seen.setdefault(path, found)
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


def path_of(context: nn.module.InterceptorContext) -> str:
  """The path of the module that is called; '' for the root and for one that is not bound."""
  return '/'.join(context.module.path) if context.module.scope is not None else ''


def _check_unjitted(forward: Forward) -> None:
  # On its first trace a jitted forward would be intercepted, and keep that trace for ever.
  if isinstance(forward, jax.stages.Wrapped):
    raise FewshotError(
      'the forward is jitted, so activation methods cannot reach inside; jit only the outermost '
      'function'
    )


def inputs(
  forward: Forward, params: Params, batch: Batch, where: Where
) -> dict[str, Float[Array, 'N D']]:
  """What the selected modules read, by path: rows of their first input, those of padding zero.

  For methods that start from data (EVA, CorDA): a covariance is x.T @ x.
  """

  def rows(x: Array) -> Array:
    mask = batch.get('mask')
    if mask is not None and mask.shape == x.shape[:-1]:
      x = jnp.where(mask[..., None], x, 0)
    return x.reshape(-1, x.shape[-1])

  found = sites(forward, params, batch, where)
  return {p: rows(args[0]) for p, (args, _) in _calls(forward, params, batch, found).items()}


def outputs(forward: Forward, params: Params, batch: Batch, where: Where) -> dict[str, Array]:
  """What the selected modules return, by path; each returns one floating array."""
  found = {p: output(s) for p, s in sites(forward, params, batch, where).items()}
  return {p: y for p, (_, y) in _calls(forward, params, batch, found).items()}


def _calls(
  forward: Forward, params: Params, batch: Batch, found: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
  """The arguments and the result of the first call of each module in `found`, in its order."""
  seen: dict[str, tuple[Any, Any]] = {}

  def record(next_fn: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    y = next_fn(*args, **kwargs)
    path = path_of(context)
    if path in found and context.method_name == '__call__':
      seen.setdefault(path, (args, y))
    return y

  with nn.intercept_methods(record):
    forward(params, batch)
  return {p: seen[p] for p in found}


def attended(f: Callable[..., Any], *args: Any) -> tuple[Any, tuple[Array, Array]]:
  """What a block returns, and the queries and keys [B, T, H, D] of the attention in it."""
  seen: list[Any] = []

  def record(next_fn: Any, given: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    if path_of(context).rpartition('/')[-1] == 'core':
      seen.append(given[:2])
    return next_fn(*given, **kwargs)

  with nn.intercept_methods(record):
    y = f(*args)
  return y, seen[0]


def in_activations(
  where: Where,
  init: Callable[..., dict[str, Array]],
  call: Callable[..., Any],
  weight: Callable[[dict[str, Array], dict[str, Array]], dict[str, Array]] | None = None,
  frozen: tuple[str, ...] = (),
  *,
  shared: Callable[[Array, dict[str, Site]], dict[str, Array]] | None = None,
  observe: Callable[[Forward, Params, Calib, Where], dict[str, Any]] | None = None,
  draws: bool = False,
) -> Method:
  """A method from functions of one site.

  `init(key, site) -> t` starts it, `call(t, next_fn, x, ...) -> y` stands in for the module call,
  and `weight(t, leaves) -> leaves` is the same change made to the module's own params ({'kernel',
  'bias'}), where there is one.  t is a dict of arrays; its entries named in `frozen` ride along
  in state.  theta is float32 or wider, and reaches `call` in the dtype of the activations.

  Args:
    shared: (key, sites) -> entries of t that all sites have in common, kept under the path '*'.
    observe: (forward, params, calib, where) -> what `init` gets of each site as third argument.
    draws: whether `call` is random: t['key'] is then the site's key of the pass, None where there
      is none (evaluation).
  """

  def init_all(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    found = sites(forward, params, calib.batch, where)
    seen = observe(forward, params, calib, where) if observe else {}
    rest = lambda p: (seen[p],) if observe else ()  # noqa: E731
    at = lambda p: jax.random.fold_in(key, paths.stable_hash(p))  # noqa: E731
    ts = {p: init(at(p), s, *rest(p)) for p, s in found.items()}
    return split(ts | {SHARED: shared(at(SHARED), found)} if shared else ts, frozen)

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    return _intercepted(forward, join(theta, state), call, draws)

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


def per_batch(
  where: Where,
  init: Callable[..., dict[str, Array]],
  call: Callable[[Batch], Callable[..., Any]],
  **more: Any,
) -> Method:
  """As `in_activations`, but of a call that is made for each batch: `call(batch)(t, f, ...)`."""

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    def adapted(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
      of_batch = in_activations(where, init, call(batch), **more)
      return of_batch.wrap(forward, theta, state)(params, batch, key)

    return adapted

  return in_activations(where, init, call({}), **more)._replace(wrap=wrap)


def _dense(path: str, flat: dict[str, Array]) -> dict[str, Array]:
  """The leaves of a module by name: a kernel, maybe a bias."""
  own = {p.removeprefix(f'{path}/'): w for p, w in flat.items() if p.startswith(f'{path}/')}
  if 'kernel/qvalue' in own:
    raise FewshotError(
      f'{path!r} is quantised, so nothing can be merged into it; choose other modules by where=, '
      'or dequantise the params first'
    )
  if 'kernel' not in own or own.keys() - {'kernel', 'bias'}:
    raise FewshotError(
      f'{path!r} has no weight form: it holds {brief(list(own)) or "no parameters"}, and only a '
      'linear map (kernel, bias) can be merged; choose such modules by where='
    )
  return own


def beside(path: str, name: str) -> str:
  """The path of the module of this name in the module that `path` is in."""
  return f'{path.rpartition("/")[0]}/{name}'.removeprefix('/')


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
  forward: Forward, ts: dict[str, dict[str, Array]], call: Callable[..., Any], draws: bool
) -> Forward:
  _check_unjitted(forward)

  def adapted(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
    visits: dict[str, int] = dict.fromkeys(ts, 0)

    def interceptor(next_fn: Any, args: Any, kwargs: Any, context: Any) -> Any:
      path = path_of(context)
      if path not in ts or context.method_name not in ('__call__', 'attend'):
        return next_fn(*args, **kwargs)
      visits[path] += 1
      if visits[path] > 1 or context.method_name == 'attend':
        raise FewshotError(
          f'{path!r} is used more than once in a forward pass (shared or tied weights), so an '
          'activation method cannot tell its uses apart; use the weight form: as_weights(...)'
        )
      t = jax.tree.map(lambda v: _like(v, args[0]), ts[path])
      if draws:
        salt = paths.stable_hash(path)
        t['key'] = None if key is None else jax.random.fold_in(key, salt)
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


def _like(v: Array, x: Array) -> Array:
  """v in the dtype of the activations, where both are floating: tokens and indices are not."""
  both = jnp.issubdtype(v.dtype, jnp.inexact) and jnp.issubdtype(x.dtype, jnp.inexact)
  return jnp.asarray(v, x.dtype if both else v.dtype)  # numpy would promote otherwise than JAX.
