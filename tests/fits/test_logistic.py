"""logistic() against scikit-learn, and against the gradient of its own objective in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fewshot import fits, methods, models, objectives
from fewshot.errors import FewshotError
from fewshot.fits.base import Data, Loss
from fewshot.fits.logistic import head_of, regress
from fewshot.methods import paths

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
X = (RNG.normal(size=(24, 6)) + 2).astype(np.float32)
Y = np.arange(24, dtype=np.int32) % 3
PARAMS = RNG.normal(size=(6, 6)).astype(np.float32)
FORWARD = models.from_function(lambda w, x: x @ w)
solved = jax.jit(functools.partial(regress, iterations=100), static_argnames='classes')


def run(batch, spelling='linear()', l2=1.0):
  """theta of the fit, from a theta that is not zero: where it starts is no matter."""
  method = methods.parse(spelling)
  theta, state = method.init(KEY, FORWARD, PARAMS, methods.Calib(batch, 3))
  theta = jax.tree.map(lambda x: x + 0.5, theta)
  loss = Loss(FORWARD, method, PARAMS, objectives.classification())
  return fits.logistic(l2)(loss, theta, state, Data(batch), KEY)[0]


def logits(kernel, bias, f=X):
  z = np.asarray(f @ kernel + bias)
  return z - z.mean(1, keepdims=True)


def by_sklearn(f, y, l2=1.0):
  found = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=10_000).fit(f.astype(np.float64), y)
  z = found.decision_function(f)
  z = np.stack([-z, z], 1) / 2 if z.ndim == 1 else z
  return z - z.mean(1, keepdims=True)


@pytest.mark.parametrize('classes', [2, 3])
@pytest.mark.parametrize('l2', [0.3, 20.0])
def test_scikit_learns_logistic_regression(classes, l2):
  y = (np.arange(24) % classes).astype(np.int32)
  got = logits(*solved(X, y, np.ones(24, np.float32), classes=classes, l2=l2))
  np.testing.assert_allclose(got, by_sklearn(X, y, l2), atol=1e-3)
  assert np.ptp(got) > 0.1


def test_the_gradient_is_zero_and_the_bias_is_not_penalised():
  weights = RNG.uniform(0.2, 2, 24).astype(np.float32)
  kernel, bias = (np.asarray(x, np.float64) for x in solved(X, Y, weights, classes=3, l2=0.5))
  z = X @ kernel + bias
  p = np.exp(z - z.max(1, keepdims=True))
  d = weights[:, None] * (p / p.sum(1, keepdims=True) - np.eye(3)[Y])
  np.testing.assert_allclose(X.T @ d + 0.5 * kernel, 0, atol=2e-3)
  np.testing.assert_allclose(d.sum(0), 0, atol=2e-3)


def test_an_example_of_no_weight_is_not_there():
  weights = (np.arange(24) < 18).astype(np.float32)
  kernel, bias = solved(X, Y, weights, classes=3, l2=1.0)
  want = by_sklearn(X[:18], Y[:18])
  np.testing.assert_allclose(logits(kernel, bias, X[:18]), want, atol=1e-3)


def test_a_class_without_examples_is_finite_and_never_predicted():
  z = logits(*solved(X, Y % 2, np.ones(24, np.float32), classes=3, l2=1.0))
  assert np.isfinite(z).all() and not (z.argmax(1) == 2).any()


def test_a_head_in_a_chain_is_set_on_the_adapted_features_and_the_rest_stays():
  theta = run({'x': X, 'labels': Y}, "chain(tune('.*'), linear())")
  ((moved,),) = (paths.flatten(theta[0]).values(),)
  np.testing.assert_allclose(moved, PARAMS + 0.5)
  f = X @ (PARAMS + 0.5)
  head = theta[1]['head']
  np.testing.assert_allclose(logits(head['kernel'], head['bias'], f), by_sklearn(f, Y), atol=2e-3)


def test_tuned_leaves_called_head_are_no_head(tiny):
  """full() on a model with a classifier of its own trains leaves of the same path."""
  method = methods.parse('chain(full(), linear())')
  theta, _ = methods.shapes(method, tiny.forward, tiny.params, tiny.calib)
  assert sum(p.endswith('head/kernel') for p in paths.flatten(theta)) == 2
  assert head_of('logistic', theta) == '1/head'


def test_runs_side_by_side_are_the_runs():
  """Each with its examples, its labels and its penalty, which may be traced."""
  x = RNG.normal(size=(3, 24, 6)).astype(np.float32)
  y, l2 = np.stack([Y, RNG.permutation(Y), Y[::-1]]), np.array([0.1, 1.0, 10.0], np.float32)
  many = jax.jit(jax.vmap(lambda x, y, l2: run({'x': x, 'labels': y}, l2=l2)))(x, y, l2)['head']
  for i in range(3):
    one = solved(x[i] @ PARAMS, y[i], jnp.ones(24), classes=3, l2=float(l2[i]))
    f = x[i] @ PARAMS
    got = logits(many['kernel'][i], many['bias'][i], f)
    np.testing.assert_allclose(got, logits(*one, f), atol=2e-3)


@pytest.mark.parametrize(
  ('spelling', 'said'),
  [
    ('nearest_mean()', 'has 0, among no theta at all'),
    ('mlp(width=4)', 'has 0, among head/hidden/bias'),
    ('cosine()', 'has 0, among head/kernel, head/scale'),
    ('chain(linear(), linear())', 'this method has 2'),
  ],
)
def test_other_heads_are_refused(spelling, said):
  with pytest.raises(FewshotError, match=r'logistic\(\) sets the kernel and bias of one.*' + said):
    run({'x': X, 'labels': Y}, spelling)


def test_arguments_that_make_no_sense():
  with pytest.raises(FewshotError, match=r'logistic\(l2=0\) has no optimum'):
    fits.parse('logistic(l2=0)')
  with pytest.raises(FewshotError, match='iterations=0 is no whole number of at least 1'):
    fits.parse('logistic(iterations=0)')
