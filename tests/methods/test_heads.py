"""Heads: where they start, and what they need."""

import jax
import numpy as np
import pytest

from fewshot import methods, models
from fewshot.errors import FewshotError

KEY = jax.random.key(0)


def test_a_fresh_head_starts_at_zero(tiny):
  theta, state = methods.linear().init(KEY, tiny.forward, tiny.params, tiny.calib)
  outputs = methods.adapt(methods.linear(), tiny.forward, theta, state)(tiny.params, tiny.batch)
  assert outputs['logits'].shape == (6, 3)
  np.testing.assert_array_equal(outputs['logits'], 0)


def test_the_class_count_is_the_tasks_or_ones_own(tiny):
  shape = lambda m: m.init(KEY, tiny.forward, tiny.params, tiny.calib)[0]['head']['bias'].shape  # noqa: E731
  assert shape(methods.linear()) == (3,)
  assert shape(methods.linear(classes=5)) == (5,)


def test_a_merged_head_is_read_by_a_backbone_that_had_none(tiny, perturb):
  headless = {k: v for k, v in tiny.params.items() if k != 'head'}
  theta, state = methods.linear().init(KEY, tiny.forward, headless, tiny.calib)
  theta = perturb(theta)
  merged = methods.merge(methods.linear(), theta, state, headless)
  want = methods.adapt(methods.linear(), tiny.forward, theta, state)(headless, tiny.batch)
  np.testing.assert_allclose(tiny.forward(merged, tiny.batch)['logits'], want['logits'], atol=1e-5)
  assert 'logits' not in tiny.forward(headless, tiny.batch)


@pytest.mark.parametrize('distance', ['cosine', 'euclidean'])
def test_a_class_mean_is_nearest_to_itself(tiny, distance):
  method = methods.nearest_mean(distance)
  theta, state = method.init(KEY, tiny.forward, tiny.params, tiny.calib)
  assert jax.tree.leaves(theta) == []
  features = tiny.forward(tiny.params, tiny.batch)['features'][:3]
  state = {'head': {'means': features}}
  logits = methods.adapt(method, tiny.forward, theta, state)(tiny.params, tiny.batch)['logits']
  np.testing.assert_array_equal(logits[:3].argmax(-1), np.arange(3))
  closest = 1 if distance == 'cosine' else 0
  np.testing.assert_allclose(np.diag(logits[:3]), closest, atol=1e-5)
  assert (np.asarray(logits) <= closest + 1e-5).all()


def test_an_empty_class_mean_gives_finite_logits(tiny):
  method = methods.nearest_mean()
  theta, state = method.init(KEY, tiny.forward, tiny.params, tiny.calib)
  logits = methods.adapt(method, tiny.forward, theta, state)(tiny.params, tiny.batch)['logits']
  np.testing.assert_array_equal(logits, 0)


@pytest.mark.parametrize('head', [methods.linear, methods.nearest_mean])
def test_a_head_refuses_what_it_cannot_classify(tiny, head):
  for classes, calib in ((0, tiny.calib._replace(classes=0)), (1, tiny.calib)):
    with pytest.raises(FewshotError, match=r'at least 2 classes, not [01]; pass classes='):
      head(classes=classes).init(KEY, tiny.forward, tiny.params, calib)
  forward = models.from_function(lambda w, x: x @ w, output='logits')
  calib = methods.Calib({'x': np.ones((2, 4), np.float32)}, 3)
  with pytest.raises(FewshotError, match=r"reads outputs\['features'\].*lacks; it has logits"):
    head().init(KEY, forward, np.ones((4, 3), np.float32), calib)
