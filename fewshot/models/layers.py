"""Layers that the backbones share: attention's core, MLPs, rotary positions, dropout."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

Given = Array | np.ndarray  # What a batch may hold.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  # By erf and not, as jax.nn has it, erfc: its tail is exact, and its gradient half as fast here.
  'gelu': lambda x: x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5)),
  'gelu_new': nn.gelu,
  'gelu_pytorch_tanh': nn.gelu,
  'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),
  'relu': nn.relu,
  'relu6': nn.relu6,
  'silu': nn.silu,
}


class Core(nn.Module):
  """Softmax attention, where prefixes attach.

      softmax(scale q k^T + bias, over the keys that mask shows) v

  G groups of H / G heads share keys and values.  The mask is true where a key is seen, for all
  queries [B, K] or each [B, 1, Q, K]; the bias broadcasts to [B, H, Q, K].
  """

  scale: float | None = None  # Of the scores; 1 / sqrt(D) by default.

  @nn.compact
  def __call__(
    self,
    q: Float[Array, 'B Q H D'],
    k: Float[Array, 'B K G D'],
    v: Float[Array, 'B K G D'],
    mask: Bool[Given, 'B K'] | Bool[Given, 'B 1 Q K'],
    bias: Float[Array, '#B #H #Q K'] | None = None,
  ) -> Float[Array, 'B Q H D']:
    if bias is None and fused(q):
      seen = mask[:, None, None, :] if mask.ndim == 2 else mask
      return jax.nn.dot_product_attention(
        q, k, v, mask=jnp.asarray(seen), scale=self.scale, implementation='cudnn'
      )
    # Heads first, the softmax spelled out and normalised after the product with v: on a CPU this
    # halves the time of the gradient against einsum over [B, T, H, D] and jax.nn.softmax.
    (b, queries, heads, d), groups = q.shape, k.shape[2]
    k, v = (jnp.moveaxis(x, 2, 1) for x in (k, v))  # [B, G, K, D]
    q = jnp.moveaxis(q * jnp.asarray(self.scale or d**-0.5, q.dtype), 2, 1)
    q = q.reshape(b, groups, heads // groups * queries, d)
    scores = jnp.einsum('bgqd,bgkd->bgqk', q, k).reshape(b, heads, queries, -1)
    mask = mask[:, None, None, :] if mask.ndim == 2 else mask
    scores = scores + jnp.where(mask, 0, jnp.finfo(q.dtype).min / 2).astype(q.dtype)
    scores = scores if bias is None else scores + bias.astype(q.dtype)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1)[..., None]
    weights = weights.reshape(b, groups, heads // groups * queries, -1)
    y = jnp.einsum('bgqk,bgkd->bgqd', weights, v).reshape(b, heads, queries, d) / total
    return jnp.moveaxis(y, 1, 2)


def fused(q: Array) -> bool:
  """Whether attention on q [B, T, H, D] takes cuDNN's fused kernel: half precision on a GPU."""
  narrow = q.dtype in (jnp.float16, jnp.bfloat16)
  return jax.default_backend() == 'gpu' and narrow and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128


class Mlp(nn.Module):
  """Two dense layers with an activation between; with `gated`, down(act(gate(x)) * up(x))."""

  width: int
  activation: str = 'gelu'
  gated: bool = False
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: Float[Array, '*T D']) -> Float[Array, '*T D']:
    act = ACTIVATIONS[self.activation]
    dense = lambda n, name: nn.Dense(n, self.use_bias, name=name)  # noqa: E731
    y = dense(self.width, 'up')(x)
    y = act(dense(self.width, 'gate')(x)) * y if self.gated else act(y)
    return dense(x.shape[-1], 'down')(y)


class RMSNorm(nn.Module):
  """x / sqrt(mean(x^2) + eps) * scale (Zhang & Sennrich 2019, arXiv:1910.07467), in x's dtype.

  The mean is taken in float32 or wider, and so is the gain where it is stored so.
  """

  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: Float[Array, '*T D']) -> Float[Array, '*T D']:
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + self.eps)
    return (y * scale.astype(y.dtype)).astype(x.dtype)


def rotate(
  x: Float[Array, 'B T H D'],
  positions: Int[Given, '#B T'],
  w: Float[np.ndarray, ' half'],
  interleaved: bool = False,
) -> Float[Array, 'B T H D']:
  """Rotary positions (Su et al. 2021, arXiv:2104.09864) of frequencies w [D / 2].

      (a, b) -> (a cos(p w) - b sin(p w), b cos(p w) + a sin(p w))

  The pairs (a, b) are (x_i, x_(i + D/2)), or (x_2i, x_(2i+1)) where `interleaved`.
  """
  half = x.shape[-1] // 2
  angles = positions[..., None, None].astype(jnp.float32) * jnp.asarray(w, jnp.float32)
  cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
  a, b = (x[..., ::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
  a, b = a * cos - b * sin, b * cos + a * sin
  return jnp.stack([a, b], -1).reshape(x.shape) if interleaved else jnp.concatenate([a, b], -1)


def bucket(distance: Array, count: int, farthest: int, both: bool) -> Array:
  """The bucket of key position - query position (Raffel et al. 2020, arXiv:1910.10683).

  One each for the near, wider ones further off:

      n < m:   n                  m = half of the buckets of a direction
      n >= m:  m + floor(m log(n / m) / log(farthest / m)), at most the last

  With `both`, later keys have the upper half of the buckets; else they share bucket 0.

  >>> bucket(jnp.array([-200, -9, -3, 0, 3]), 8, 10, both=False).tolist()
  [7, 7, 3, 0, 0]
  """
  ways = count // 2 if both else count
  near, n = ways // 2, np.arange(farthest + 1)
  far = np.log(np.maximum(n, 1) / near) / np.log(farthest / near) * (ways - near)
  table = np.where(n < near, n, near + (far + 1e-6).astype(int)).clip(0, ways - 1)
  back = jnp.abs(distance) if both else jnp.maximum(-distance, 0)
  found = jnp.asarray(table, jnp.int32)[jnp.minimum(back, farthest)]
  return jnp.where(distance > 0, found + ways, found) if both else found


def drop(module: nn.Module, rate: float, x: Array) -> Array:
  """Dropout when the forward pass was given a key, none otherwise."""
  if not rate or not module.has_rng('dropout'):
    return x
  keep = jax.random.bernoulli(module.make_rng('dropout'), 1 - rate, x.shape)
  return jnp.where(keep, x / (1 - rate), 0)


def mean_pool(x: Float[Array, 'B T D'], mask: Bool[Given, 'B T']) -> Float[Array, 'B D']:
  """The mean of x over the positions where the mask holds."""
  real = mask[..., None].astype(x.dtype)
  return (x * real).sum(1) / jnp.maximum(real.sum(1), 1)


def classify(module: nn.Module, features: Float[Array, 'B D']) -> dict[str, Array]:
  """{'logits': ...} where params have a `head`, as a merged classifier does; else nothing.

  Called inside a compact method, whose module then owns `head`.
  """
  if 'head' not in module.variables.get('params', {}):
    return {}
  classes = module.variables['params']['head']['kernel'].shape[-1]
  return {'logits': nn.Dense(classes, name='head')(features)}
