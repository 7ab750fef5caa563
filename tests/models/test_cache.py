"""The key-value cache: what goes on from it computes what the whole text does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fewshot.errors import FewshotError
from fewshot.models import cache
from tests.models.decoders import FAMILIES, Decoder, tiny

LENGTHS = np.array([6, 3, 1])
NEW = np.random.default_rng(7).integers(1, 50, (3, 4)).astype(np.int32)


@pytest.fixture(params=FAMILIES)
def model(request) -> Decoder:
  return tiny(request.param)


def whole(model, new) -> np.ndarray:
  """The logits [B, new] at tokens appended to each row, by the whole text at once."""
  count = new.shape[1]
  tokens = np.pad(model.batch['tokens'], ((0, 0), (0, count)))
  index = LENGTHS[:, None] + np.arange(count)
  np.put_along_axis(tokens, index, new, 1)
  mask = np.arange(tokens.shape[1]) < (LENGTHS + count)[:, None]
  logits = model.forward(model.params, {'tokens': tokens, 'mask': mask})['token_logits']
  return np.take_along_axis(np.asarray(logits), index[..., None], 1)


def begun(model, room, **changed):
  return model.forward(model.params, model.batch | {'room': jnp.zeros(room)} | changed)


def test_a_prefill_computes_what_a_plain_pass_does(model):
  want = model.forward(model.params, model.batch)
  got = begun(model, 4)
  held = got.pop('cache')
  assert got.keys() == want.keys()
  real = model.batch['mask']
  for name in ('hidden', 'token_logits'):
    np.testing.assert_allclose(got[name][real], want[name][real], atol=1e-5)
  np.testing.assert_allclose(got['features'], want['features'], atol=1e-5)
  shapes = jax.tree.map(np.shape, held['encoder'])
  groups, d = (4, 4) if model.name == 'gpt2' else (2, 6)
  attn = {'keys': (3, 10, groups, d), 'values': (3, 10, groups, d)}
  assert shapes == {
    'index': (), 'mask': (3, 10), 'positions': (3, 10),
    'block_0': {'attn': attn}, 'block_1': {'attn': attn},
  }  # fmt: skip


def test_rows_of_unequal_length_go_on_token_by_token(model):
  want, step = whole(model, NEW), jax.jit(model.forward)
  held = begun(model, 4)['cache']
  for i in range(4):
    out = step(model.params, {'tokens': NEW[:, i : i + 1], 'cache': held})
    held = out['cache']
    assert np.abs(out['token_logits'][:, 0] - want[:, i]).max() <= 1e-5
    np.testing.assert_array_equal(out['features'], out['hidden'][:, 0])


def test_several_tokens_at_once_some_of_them_padding(model):
  want = whole(model, NEW)
  mask = np.array([[True, True, True], [True, False, False], [True, True, False]])
  out = model.forward(
    model.params, {'tokens': NEW[:, :3], 'mask': mask, 'cache': begun(model, 4)['cache']}
  )
  assert np.abs(np.asarray(out['token_logits']) - want[:, :3])[mask].max() <= 1e-5
  last = mask.sum(1)
  then = {'tokens': NEW[np.arange(3), last][:, None], 'cache': out['cache']}
  logits = model.forward(model.params, then)['token_logits'][:, 0]
  assert np.abs(logits - want[np.arange(3), last]).max() <= 1e-5


def test_what_stands_in_padding_is_never_read(model):
  noise = np.where(model.batch['mask'], model.batch['tokens'], 9)
  step = lambda held: model.forward(model.params, {'tokens': NEW[:, :1], 'cache': held})  # noqa: E731
  want = step(begun(model, 1)['cache'])['token_logits']
  got = step(begun(model, 1, tokens=noise)['cache'])['token_logits']
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_methods_see_the_same_sites_and_can_tell_that_a_pass_goes_on(model):
  def run(batch):
    seen = {}

    def record(next_fn, args, kwargs, context):
      if context.method_name == '__call__':
        seen['/'.join(context.module.path)] = args
      return next_fn(*args, **kwargs)

    with nn.intercept_methods(record):
      return seen, model.forward(model.params, batch)

  plain, _ = run(model.batch)
  first, out = run(model.batch | {'room': jnp.zeros(2)})
  then, _ = run({'tokens': NEW[:, :1], 'cache': out['cache']})
  assert plain.keys() == first.keys() == then.keys()
  for site in ('inputs', 'encoder'):
    assert first[site][0].shape[1] == first[site][1].shape[1] == 6
    assert then[site][0].shape[1] == 1 and then[site][1].shape == (3, 8)
    np.testing.assert_array_equal(then[site][2], LENGTHS[:, None])
  q, k, _, mask = then['encoder/block_0/attn/core']
  assert q.shape[1] == 1 and k.shape[1] == 8 and mask.shape == (3, 1, 1, 8)


def test_a_cache_has_the_dtype_of_its_keys(model):
  half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), model.params)
  out = model.forward(half, model.batch | {'room': jnp.zeros(1)})
  assert out['cache']['encoder']['block_0']['attn']['keys'].dtype == jnp.bfloat16
  then = model.forward(half, {'tokens': NEW[:, :1], 'cache': out['cache']})
  assert then['token_logits'].dtype == jnp.bfloat16


def test_a_full_cache(model):
  held = begun(model, 1)['cache']
  held = model.forward(model.params, {'tokens': NEW[:, :1], 'cache': held})['cache']
  with pytest.raises(FewshotError, match='holds 7 tokens and 7 are in it, so 1 more do not fit'):
    model.forward(model.params, {'tokens': NEW[:, :1], 'cache': held})
  with pytest.raises(FewshotError, match='more do not fit; give the first pass more room'):
    jax.jit(model.forward)(model.params, {'tokens': np.ones((3, 8), int), 'cache': held})


def test_room_beyond_the_positions_is_refused_at_once(model):
  begun(model, 18)
  with pytest.raises(FewshotError, match=r'6 tokens .* and 19 more to generate is longer than'):
    begun(model, 19)


def test_room_and_a_cache_contradict_each_other(model):
  with pytest.raises(FewshotError, match=r'room .* or a cache .* not both'):
    begun(model, 1, cache=begun(model, 1)['cache'])


def test_causal_goes_by_positions_not_by_slots():
  """Row 0 has a padded slot between its tokens, and positions that skip it."""
  mask = jnp.array([[True, False, True, True]])
  keys = cache.Keys(mask, jnp.array([[0, 1, 1, 2]]))
  seen = cache.causal(keys, jnp.array([[1, 2]]))
  assert seen.astype(int).tolist() == [[[[1, 0, 1, 0], [1, 0, 1, 1]]]]
  near = cache.causal(keys, jnp.array([[1, 2]]), window=2)
  assert near.astype(int).tolist() == [[[[1, 0, 1, 0], [0, 0, 1, 1]]]]
