"""What only an accelerator can show, run by make test-gpu; elsewhere all skip, with the reason."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import fits, methods, sweep
from fewshot.models import layers

pytestmark = [
  pytest.mark.gpu,
  pytest.mark.skipif(jax.default_backend() != 'gpu', reason='there is no GPU here'),
]
METHOD = methods.parse('chain(lora(rank=2), linear())')
FIT = fits.sgd(steps=4, lr=0.02, batch=6)


def results(tiny: Any, model: Any = None, **options: str) -> list[sweep.Result]:
  given = model or tiny.model
  chosen = sweep.Options(**options)
  return list(sweep.sweep(given, tiny.encoded, METHOD, FIT, classes=3, options=chosen))


def assert_same(got: Any, want: Any, atol: float) -> None:
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a.logits, b.logits, atol=atol)


def test_a_sweep_on_the_gpu_is_one_on_the_cpu(tiny):
  with jax.default_device(jax.devices('cpu')[0]):
    want = results(tiny, packing='off', prefix='off')
  assert_same(results(tiny, packing='off', prefix='off'), want, 2e-2)  # TF32 products.


def test_shortcuts_and_remat_change_no_result(tiny):
  plain = results(tiny, packing='off', prefix='off')
  for options in ({'packing': 'on', 'prefix': 'on'}, {'remat': 'nothing'}, {'loop': 'steps'}):
    assert_same(results(tiny, **options), plain, 2e-2)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_narrow_weights_learn_as_wide_ones(tiny, dtype):
  """Attention is then cuDNN's fused kernel."""
  cast = lambda x: jnp.asarray(x, dtype) if np.issubdtype(x.dtype, np.floating) else x  # noqa: E731
  narrow = tiny.model._replace(params=jax.tree.map(cast, tiny.params))
  wide = results(tiny)
  for a, b in zip(results(tiny, narrow), wide, strict=True):
    assert np.isfinite(a.curve).all()
    np.testing.assert_allclose(a.curve, b.curve, atol=0.1)


def test_fused_attention_is_the_core():
  q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 16, 4, 32), jnp.bfloat16)
  mask = jnp.arange(16) < jnp.array([[16], [9]])
  assert layers.fused(q)
  fused = layers.Core().apply({}, q, k, v, mask)
  wide = layers.Core().apply({}, *(x.astype(jnp.float32) for x in (q, k, v)), mask)
  np.testing.assert_allclose(fused.astype(jnp.float32), wide, atol=3e-2)
