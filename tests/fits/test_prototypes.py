"""prototypes() against class means in numpy."""

import jax
import numpy as np
import pytest

from fewshot import fits, methods, models, objectives
from fewshot.errors import FewshotError
from fewshot.fits.base import Data, Loss
from fewshot.methods import paths

RNG = np.random.default_rng(0)
X = RNG.normal(size=(9, 4)).astype(np.float32)
Y = np.array([0, 1, 2, 0, 1, 0, 0, 1, 2], np.int32)
FORWARD = models.from_function(lambda w, x: x @ w)
PARAMS = RNG.normal(size=(4, 5)).astype(np.float32)


def fit(spelling: str, labels: np.ndarray = Y):
  method = methods.parse(spelling)
  batch = {'x': X, 'labels': labels}
  theta, state = method.init(jax.random.key(0), FORWARD, PARAMS, methods.Calib(batch, 3))
  loss = Loss(FORWARD, method, PARAMS, objectives.classification())
  theta, state = fits.prototypes()(loss, theta, state, Data(batch), jax.random.key(0))
  return method, theta, state


def means(labels: np.ndarray = Y) -> np.ndarray:
  f = X @ PARAMS
  f = f / np.linalg.norm(f, axis=1, keepdims=True)
  return np.stack([f[labels == c].mean(0) for c in range(3)])


@pytest.mark.parametrize('distance', ['cosine', 'euclidean'])
def test_class_means_of_unit_features(distance):
  method, theta, state = fit(f"nearest_mean(distance='{distance}')")
  np.testing.assert_allclose(state['head']['means'], means(), atol=1e-6)
  assert paths.flatten(theta) == {}
  logits = methods.adapt(method, FORWARD, theta, state)(PARAMS, {'x': X})['logits']
  f, mu = X @ PARAMS, means()
  if distance == 'cosine':
    want = (f / np.linalg.norm(f, axis=1, keepdims=True)) @ (
      mu / np.linalg.norm(mu, axis=1, keepdims=True)
    ).T
  else:
    want = -((f[:, None] - mu) ** 2).sum(-1)
  np.testing.assert_allclose(logits, want, atol=1e-4)


def test_a_class_without_examples_has_a_mean_of_zero():
  labels = np.where(Y == 2, 0, Y).astype(np.int32)
  _, _, state = fit('nearest_mean()', labels)
  assert not state['head']['means'][2].any() and np.isfinite(state['head']['means']).all()


def test_in_a_chain_the_features_are_the_adapted_ones():
  _, _, state = fit("chain(tune('.*'), nearest_mean())")
  np.testing.assert_allclose(state[1]['head']['means'], means(), atol=1e-6)


@pytest.mark.parametrize(
  'spelling, message',
  [
    ('linear()', r'this method has 0, among no state at all'),
    ('chain(nearest_mean(), nearest_mean())', r'this method has 2, among .*head/means'),
  ],
)
def test_refused(spelling, message):
  with pytest.raises(FewshotError, match=r'prototypes\(\) fills the means of one.*' + message):
    fit(spelling)
