"""Updates of convolution kernels [h, w, d, k] and dense ones [d, k]; adapters of convolutions."""

from typing import Any

import jax
import jax.numpy as jnp

from fewshot.errors import FewshotError
from fewshot.methods.activations import Site, in_activations, wide
from fewshot.methods.base import Method, at_least_one, method
from fewshot.methods.paths import Where
from fewshot.methods.weights import check_kernel, in_weights

__all__ = ['conv_adapter', 'conv_lora', 'flora', 'tsa']
Array = jax.Array
Entries = dict[str, Array]
KERNELS = r'(.*/)?conv_\d+/kernel'
KAIMING = jax.nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')  # Within 1/sqrt(fan in).


@method
def conv_lora(where: Where = KERNELS, rank: int = 8, alpha: float = 16.0) -> Method:
  """LoRA of convolutions (Hu et al. 2021, arXiv:2106.09685): to r channels, then 1 x 1 to k.

      W'[h, w] = W[h, w] + (alpha / r) A[h, w] B,   A [h, w, d, r],   B = 0 [r, k]

  The form of HF PEFT and LyCORIS (LoCon); A is uniform within 1 / sqrt(h w d).

  >>> conv_lora(rank=4).mergeable
  True
  """
  at_least_one('conv_lora', rank=rank)

  def init(key: Array, w: Array) -> Entries:
    check_kernel('conv_lora', w)
    dtype = jnp.promote_types(w.dtype, jnp.float32)
    a = KAIMING(key, (*w.shape[:-1], rank), dtype)
    return {'a': a, 'b': jnp.zeros((rank, w.shape[-1]), dtype)}

  def weight(t: Entries, w: Array) -> Array:
    return w + alpha / rank * jnp.tensordot(t['a'], t['b'], 1)

  return in_weights(where, init, weight)


@method
def flora(
  where: Where = KERNELS, rank: int = 16, kernel_rank: int = 2, scale: float = 4.0
) -> Method:
  """FLoRA (Si et al. 2024, arXiv:2405.14739): the update has a Tucker core, no mode is flattened.

      W' = W + s G x_h U_h x_w U_w x_d U_d x_k U_k,   G = 0 [r_h, r_w, r_d, r_k]

  The factor U_n [n, r_n] of each mode is normal with variance 1 / (2 r_n); r_d and r_k are `rank`,
  r_h and r_w are `kernel_rank`, or the size of the mode where that is smaller.

  >>> flora(rank=4).mergeable
  True
  """
  if rank < 1 or kernel_rank < 1:
    raise FewshotError(f'flora(rank={rank}, kernel_rank={kernel_rank}): ranks are at least 1')

  def init(key: Array, w: Array) -> Entries:
    check_kernel('flora', w)
    dtype = jnp.promote_types(w.dtype, jnp.float32)
    wanted = (*[kernel_rank] * (w.ndim - 2), rank, rank)
    ranks = tuple(map(min, wanted, w.shape))
    keys = jax.random.split(key, w.ndim)
    modes = enumerate(zip(keys, w.shape, ranks, strict=True))
    factors = {
      f'u{i}': jax.random.normal(k, (n, r), dtype) / (2 * r) ** 0.5 for i, (k, n, r) in modes
    }
    return factors | {'core': jnp.zeros(ranks, dtype)}

  def weight(t: Entries, w: Array) -> Array:
    delta = t['core']
    for i in range(w.ndim):  # Each product moves the next mode to the front.
      delta = jnp.tensordot(delta, t[f'u{i}'], ((0,), (1,)))
    return w + scale * delta

  return in_weights(where, init, weight)


@method
def tsa(where: Where = r'.*/block_\d+/conv_\d+/kernel', form: str = 'matrix') -> Method:
  """TSA (Li et al. 2022, arXiv:2107.00358): a 1 x 1 convolution beside each convolution.

      y = x * W + x * alpha,   alpha = 0 [d, k]

  On the kernel: alpha is added at its centre, which is the convolution of the same stride beside
  it where the padding is symmetric, as in ResNets.  With the form 'channel' alpha is a vector [d]
  where d = k.  The authors start at 1e-4 I; 0 is the pretrained function exactly.

  >>> tsa(form='channel').mergeable
  True
  """
  if form not in ('matrix', 'channel'):
    raise FewshotError(f"tsa(form={form!r}) is not known; known: 'channel', 'matrix'")

  def init(key: Array, w: Array) -> Entries:
    del key
    check_kernel('tsa', w)
    if not all(n % 2 for n in w.shape[:-2]):
      raise FewshotError(f'tsa adds to the centre of a kernel, and one of {list(w.shape)} has none')
    d, k = w.shape[-2:]
    shape = (d,) if form == 'channel' and d == k else (d, k)
    return {'alpha': jnp.zeros(shape, jnp.promote_types(w.dtype, jnp.float32))}

  def weight(t: Entries, w: Array) -> Array:
    alpha = jnp.diag(t['alpha']) if t['alpha'].ndim == 1 else t['alpha']
    centre = tuple(n // 2 for n in w.shape[:-2])
    return jnp.asarray(w, alpha.dtype).at[centre].add(alpha)

  return in_weights(where, init, weight)


@method
def conv_adapter(where: Where = r'.*/block_\d+/conv_\d+', reduction: int = 4) -> Method:
  """Conv-Adapter (Chen et al. 2022, arXiv:2208.07463): a bottleneck beside each convolution.

      y = x * W + s (relu(x *_g D) U),   U = 0 [b, k],   s = 1 [k],   b = d / reduction

  D [h, w, reduction, b] is as large as W's kernel and of its stride; each of its b channels reads
  `reduction` channels of x.

  >>> conv_adapter(reduction=8).mergeable
  False
  """
  if reduction < 1:
    raise FewshotError(f'conv_adapter(reduction={reduction}): reduction is at least 1')

  def init(key: Array, site: Site) -> Entries:
    shape, channels = site.own['kernel'].shape if 'kernel' in site.own else (), site.x.shape[-1]
    if len(shape) != 4 or shape[2] != channels or not shape[0] % 2 == shape[1] % 2 == 1:
      raise FewshotError(
        f'{site.path!r} is no dense convolution of odd size (its kernel: {list(shape) or "none"}); '
        'choose such modules by where='
      )
    if channels % reduction:
      raise FewshotError(f'reduction={reduction} does not divide {channels} ({site.path!r} reads)')
    width, dtype = channels // reduction, wide(site)
    down = KAIMING(key, (*shape[:2], reduction, width), dtype)
    up, scale = jnp.zeros((width, shape[-1]), dtype), jnp.ones(shape[-1], dtype)
    return {'down': down, 'up': up, 'scale': scale}

  def call(t: Entries, f: Any, x: Array) -> Array:
    y, down = f(x), t['down']
    z = jax.lax.conv_general_dilated(
      x,
      down,
      [-(-n // m) for n, m in zip(x.shape[1:3], y.shape[1:3], strict=True)],
      [(n // 2, n // 2) for n in down.shape[:2]],
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=down.shape[-1],
    )
    return y + jax.nn.relu(z) @ t['up'] * t['scale']

  return in_activations(where, init, call)
