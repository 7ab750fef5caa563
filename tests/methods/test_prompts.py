"""Soft prompts: what the model reads, and what it returns."""

import jax
import numpy as np
import pytest

from fewshot import methods, models
from fewshot.errors import FewshotError
from fewshot.models import bert
from tests.models import decoders

KEY = jax.random.key(0)
LENGTH = 3


def prompted(tiny):
  method = methods.soft_prompt(length=LENGTH)
  theta, state = method.init(KEY, tiny.forward, tiny.params, tiny.calib)
  return method, theta, state


def test_it_starts_as_the_model_that_reads_these_tokens_first(tiny):
  """The prompt starts at rows of the table: real tokens in front give the same outputs."""
  method, theta, state = prompted(tiny)
  table, prompt = tiny.params['embed']['embedding'], np.asarray(theta['inputs']['prompt'])
  ids = np.array([np.flatnonzero((table == row).all(-1))[0] for row in prompt])
  size = len(tiny.batch['tokens'])
  longer = {
    'tokens': np.concatenate([np.broadcast_to(ids, (size, LENGTH)), tiny.batch['tokens']], 1),
    'mask': np.pad(tiny.batch['mask'], ((0, 0), (LENGTH, 0)), constant_values=True),
  }
  want = tiny.forward(tiny.params, longer)['hidden'][:, LENGTH:]
  got = methods.adapt(method, tiny.forward, theta, state)(tiny.params, tiny.batch)
  real = tiny.batch['mask']
  np.testing.assert_allclose(np.asarray(got['hidden'])[real], np.asarray(want)[real], atol=1e-5)


def test_outputs_keep_the_length_of_the_tokens(tiny):
  method, theta, state = prompted(tiny)
  want = tiny.forward(tiny.params, tiny.batch)
  got = methods.adapt(method, tiny.forward, theta, state)(tiny.params, tiny.batch)
  assert jax.tree.map(np.shape, got) == jax.tree.map(np.shape, want)
  np.testing.assert_array_equal(got['mask'], tiny.batch['mask'])


def test_padding_does_not_change_what_a_prompt_does(tiny, perturb):
  method, theta, state = prompted(tiny)
  adapted = methods.adapt(method, tiny.forward, perturb(theta), state)
  longer = {k: np.pad(tiny.batch[k], ((0, 0), (0, 4))) for k in ('tokens', 'mask')}
  want = adapted(tiny.params, tiny.batch)['features']
  np.testing.assert_allclose(adapted(tiny.params, longer)['features'], want, atol=1e-5)


def test_two_prompts_are_both_read(tiny, perturb):
  two = methods.chain(methods.soft_prompt(length=2), methods.soft_prompt(length=4))
  theta, state = two.init(KEY, tiny.forward, tiny.params, tiny.calib)
  logits = lambda t: np.asarray(  # noqa: E731
    methods.adapt(two, tiny.forward, t, state)(tiny.params, tiny.batch)['logits']
  )
  base = logits(theta)
  for i in (0, 1):
    moved = (*theta[:i], perturb(theta[i]), *theta[i + 1 :])
    assert np.abs(logits(moved) - base).max() > 1e-3


def test_a_prompt_longer_than_the_positions_is_refused(tiny):
  method = methods.soft_prompt(length=60)
  theta, state = method.init(KEY, tiny.forward, tiny.params, tiny.calib)
  with pytest.raises(FewshotError, match=r'67 tokens \(prompts counted\) .* 64 positions'):
    methods.adapt(method, tiny.forward, theta, state)(tiny.params, tiny.batch)


def test_a_model_without_an_embedding_table_is_refused(tiny):
  class Inputs(bert.nn.Module):
    @bert.nn.compact
    def __call__(self, x):
      return bert.nn.Dense(4, name='inputs')(x)

  forward = models.from_linen(Inputs())
  params = Inputs().init(KEY, np.ones((1, 2)))['params']
  calib = methods.Calib({'x': np.ones((1, 2), np.float32)})
  with pytest.raises(FewshotError, match='table of tokens, embed/embedding; there are inputs/bias'):
    methods.soft_prompt().init(KEY, forward, params, calib)


def test_a_prompt_is_in_the_cache_and_read_only_once(perturb):
  """Decoding goes on behind it: at its positions, with a mask wider than the new token."""
  model = decoders.tiny('gpt2')
  method = methods.soft_prompt(length=LENGTH)
  theta, state = method.init(KEY, model.forward, model.params, methods.Calib(model.batch))
  adapted = methods.adapt(method, model.forward, perturb(theta), state)
  out = adapted(model.params, model.batch | {'room': np.zeros(2)})
  held = out['cache']['encoder']
  assert out['hidden'].shape == (3, 6, 16) and held['mask'].shape == (3, LENGTH + 6 + 2)
  np.testing.assert_array_equal(held['mask'].sum(1), LENGTH + model.batch['mask'].sum(1))
  new = np.array([[4], [5], [6]])
  then = adapted(model.params, {'tokens': new, 'cache': out['cache']})
  assert then['hidden'].shape == (3, 1, 16)
  held = then['cache']['encoder']
  np.testing.assert_array_equal(held['positions'][:, -2], LENGTH + model.batch['mask'].sum(1))
  longer = {
    'tokens': np.array([[*model.batch['tokens'][0], 4]]),
    'mask': np.ones((1, 7), bool),
  }
  want = adapted(model.params, longer)['token_logits'][:, -1]
  np.testing.assert_allclose(then['token_logits'][:1, 0], want, atol=1e-5)
