"""Methods that scale and shift activations: exactly what linear maps and norms can take in."""

from typing import Any

import jax
import jax.numpy as jnp

from fewshot.errors import FewshotError, brief
from fewshot.methods import paths
from fewshot.methods.activations import Site, in_activations, output, wide
from fewshot.methods.base import Method, Params, State, Theta, method
from fewshot.methods.paths import Where
from fewshot.methods.weights import in_weights, join

__all__ = ['abnn', 'film', 'gain', 'ia3', 'ssf']
Array = jax.Array
MAPS = r'query|key|value|out|up|down|gate|conv_\d+'
NORMS = r'ln\d*|norm_\d+'


@method
def ia3(outputs: Where = r'.*/(key|value)', inputs: Where = r'.*/mlp/down') -> Method:
  """(IA)^3 (Liu et al. 2022, arXiv:2205.05638): learned vectors rescale keys, values, FFN hidden.

      k' = l_k * k,   v' = l_v * v,   FFN(x) = (l_ff * act(x W_up)) W_down

  The outputs of the sites in `outputs` and the inputs of those in `inputs` are scaled.

  >>> ia3().mergeable
  True
  """
  scaled, fed = paths.selection(outputs), paths.selection(inputs)

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


@method
def ssf(where: Where = rf'.*/({MAPS}|{NORMS})', std: float = 0.0) -> Method:
  """SSF (Lian et al. 2022, arXiv:2210.08823): features are scaled and shifted.

      y = gamma * f(x) + beta,   gamma ~ N(1, std^2), beta ~ N(0, std^2) a channel

  After every linear map, convolution and norm.  A module without a bias is only scaled, so that the
  whole merges into kernels, scales and biases.  `std` is 0 by default, so that training starts from
  the model; the paper has 0.02.

  >>> ssf().mergeable
  True
  """
  return _affine(where, std, shift_all=False)


@method
def film(where: Where = rf'.*/({NORMS})') -> Method:
  """FiLM (Perez et al. 2017, arXiv:1709.07871) of one task: channels are scaled and shifted.

      y = gamma * f(x) + beta,   gamma = 1 and beta = 0 at the start

  After norms, as CNAPs (arXiv:1906.07697) and FiT (arXiv:2206.08671) have it, but at any site that
  returns an array; it merges where the site is a norm, a linear map or a convolution with a bias.

  >>> film('.*/norm_1').mergeable
  True
  """
  return _affine(where, 0.0, shift_all=True)


@method
def gain(where: Where = rf'.*/({MAPS})/kernel') -> Method:
  """GainTuning (Mohan et al. 2021, arXiv:2107.12815): one multiplier for each output channel.

      W' = W * g,   g [k] = 1 at the start; biases stay

  >>> gain('.*/conv_.*/kernel').mergeable
  True
  """
  return in_weights(
    where,
    init=lambda key, w: jnp.ones(w.shape[-1:], w.dtype),
    weight=lambda t, w: w * t,
  )


@method
def abnn(where: Where = rf'.*/({NORMS})', std: float = 1.0) -> Method:
  """ABNN (Franchi et al. 2023, arXiv:2312.15297): norms with random gains, for uncertainty.

      y = (1 + eps) gamma * norm(x) + beta,   eps ~ N(0, std^2) for each channel and pass

  gamma and beta start as the norm's own and train.  A forward pass without a key has no noise, and
  is what merges; the mean over passes with keys is the Bayesian prediction.

  >>> abnn(std=0.5).mergeable
  True
  """

  def init(key: Array, site: Site) -> dict[str, Array]:
    del key
    ones, bias = jnp.ones(output(site).shape[-1:], wide(site)), site.own.get('bias')
    if bias is None:
      return {'gamma': ones}
    return {'gamma': ones, 'shift': 0 * ones, 'center': jnp.asarray(bias, wide(site))}

  def call(t: dict[str, Array], f: Any, x: Array) -> Array:
    y = f(x) - t.get('center', 0)
    noise = 0 if t['key'] is None else std * jax.random.normal(t['key'], y.shape[-1:], y.dtype)
    return y * (t['gamma'] * (1 + noise)) + t.get('center', 0) + t.get('shift', 0)

  def merge(theta: Theta, state: State, params: Params) -> Params:
    affine: dict[str, dict[str, Array]] = {}
    for p, t in join(theta, state).items():
      affine[p] = {'gamma': t['gamma']}
      if 'shift' in t:
        affine[p]['beta'] = t['shift'] + t['center'] * (1 - t['gamma'])
    return _merge_affine(affine, {}, params)

  made = in_activations(where, init, call, frozen=('center',), draws=True)
  return made._replace(merge=merge)


def _affine(where: Where, std: float | Array, shift_all: bool) -> Method:
  """y = gamma * f(x) + beta; without `shift_all`, beta only where the module has a bias."""

  def init(key: Array, site: Site) -> dict[str, Array]:
    shape, dtype = output(site).shape[-1:], wide(site)
    gamma, beta = std * jax.random.normal(key, (2, *shape), dtype)
    t = {'gamma': 1 + gamma}
    return t | {'beta': beta} if shift_all or 'bias' in site.own else t

  def call(t: dict[str, Array], f: Any, *args: Any, **kwargs: Any) -> Array:
    y = f(*args, **kwargs) * t['gamma']
    return y + t['beta'] if 'beta' in t else y

  return in_activations(where, init, call)._replace(merge=_merge_affine)


def _merge_affine(theta: Theta, state: State, params: Params) -> Params:
  """Into the kernel or the scale of each module, and its bias."""
  del state
  flat, new = paths.flatten(params), {}
  for p, t in theta.items():
    own = {q.removeprefix(f'{p}/'): w for q, w in flat.items() if q.startswith(f'{p}/')}
    known = {'kernel', 'scale', 'bias', 'mean', 'var'}  # The last two: statistics of a norm.
    if own.keys() - known or not own.keys() & {'kernel', 'scale'}:
      raise FewshotError(
        f'{p!r} has no weight form: it holds {brief(list(own)) or "no parameters"}; a scale and '
        'shift merge into linear maps, convolutions and norms; choose such modules by where='
      )
    if 'beta' in t and 'bias' not in own:
      raise FewshotError(f'{p!r} has no bias to merge a shift into; use ssf, which only scales it')
    for k in own.keys() & {'kernel', 'scale', 'bias'}:
      w = own[k] * t['gamma'] + (t['beta'] if k == 'bias' else 0)
      new[f'{p}/{k}'] = w.astype(own[k].dtype)
  return paths.replace(params, new)
