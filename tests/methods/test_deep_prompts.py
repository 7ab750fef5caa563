"""Visual prompts: where they stand, which blocks read which, and what is returned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import methods
from fewshot.errors import FewshotError
from fewshot.methods import in_activations
from tests.laws import laws

KEY, LENGTH = jax.random.key(0), 3
FAMILIES = ['vit-tiny', 'deit-tiny', 'dinov2-registers-tiny', 'clip-tiny']


def started(name, deep=False):
  on, method = laws.fixture(name), methods.vpt(length=LENGTH, deep=deep)
  batch = {'image': on.batch['image']}
  calib = methods.Calib(batch)
  theta, state = method.init(KEY, on.model.forward, on.model.params, calib)
  adapted = methods.adapt(method, on.model.forward, theta, state)
  return on.model, batch, theta, adapted(on.model.params, batch)


@pytest.mark.parametrize('name', FAMILIES)
def test_prompts_are_read_behind_the_class_token_and_not_returned(name):
  model, batch, theta, out = started(name)
  tower = 'image/encoder' if name.startswith('clip') else 'encoder'
  assert list(theta) == [tower]
  prompt = jnp.asarray(theta[tower]['prompt'])[None]
  limit = np.sqrt(6 / (np.prod(model_patch(model, tower)) + prompt.shape[-1]))
  assert 0.8 * limit < np.abs(prompt).max() <= limit

  def call(t, f, x, mask):
    many = jnp.repeat(prompt, len(x), 0)
    y = f(jnp.concatenate([x, many], 1), jnp.ones((len(x), x.shape[1] + LENGTH), bool))
    return y[:, : x.shape[1]]

  # Nothing but positions, which prompts lack, tells where a token stands: here they are the last.
  last = in_activations(tower, lambda key, site: {}, call).wrap(model.forward, {tower: {}}, {})
  want = last(model.params, batch)
  for key in ('features', 'hidden'):
    np.testing.assert_allclose(out[key], want[key], atol=1e-5)


def model_patch(model, tower):
  params = model.params['image'] if tower.startswith('image') else model.params
  return params['embed']['kernel'].shape[:-1]


def test_deep_prompts_replace_those_of_the_block_before():
  """Each block reads its own; what the block before made of its prompts is read by none."""
  model, batch, theta, out = started('vit-tiny', deep=True)
  assert set(theta) == {'encoder', 'encoder/block_1'}
  read = []

  def call(t, f, x, mask):
    read.append((x, f(x, mask)))
    return read[-1][1]

  paths = {f'encoder/block_{i}': {} for i in (0, 1)}
  probe = in_activations('', lambda key, site: {}, call).wrap(model.forward, paths, {})
  methods.vpt(LENGTH, deep=True).wrap(probe, theta, {})(model.params, batch)
  (first, made), (second, _) = read
  np.testing.assert_array_equal(first[0, 1 : 1 + LENGTH], theta['encoder']['prompt'])
  np.testing.assert_array_equal(second[0, 1 : 1 + LENGTH], theta['encoder/block_1']['next'])
  np.testing.assert_array_equal(second[:, 1 + LENGTH :], made[:, 1 + LENGTH :])
  np.testing.assert_array_equal(second[:, 0], made[:, 0])
  assert out['hidden'].shape == model.forward(model.params, batch)['hidden'].shape


@pytest.mark.parametrize('name', ['bert-tiny', 'siglip-tiny', 'resnet-tiny'])
def test_models_without_a_class_token_of_images_are_refused(name):
  on = laws.fixture(name)
  with pytest.raises(FewshotError, match='behind a class token of images, inputs/cls; there are'):
    methods.vpt().init(KEY, on.model.forward, on.model.params, on.calib)
  with pytest.raises(FewshotError, match='too small; length is at least 1'):
    methods.vpt(length=0)
