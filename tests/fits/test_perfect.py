"""perfect() against sgd() and class means at the slots in numpy."""

import jax
import numpy as np
import pytest

from fewshot import fits, methods, objectives
from fewshot.errors import FewshotError
from fewshot.fits.base import Data, Loss

RNG = np.random.default_rng(0)
H = RNG.normal(size=(12, 5, 4)).astype(np.float32)  # What is read at 5 places.
Y = np.array([0, 1, 2] * 4, np.int32)
SLOTS = np.stack([RNG.permutation(5)[:2] for _ in range(12)]).astype(np.int32)
BATCH = {'x': H, 'slots': SLOTS, 'labels': Y}
PARAMS = RNG.normal(size=(4, 4)).astype(np.float32)
FIT = {'steps': 3, 'lr': 0.01, 'head_lr': 0.1, 'batch': 4}
METHOD = methods.parse("chain(tune('.*'), label_embeddings(tokens=2, prototypes=True))")


def forward(params, batch, key=None):
  hidden = batch['x'] @ params
  return {'hidden': hidden, 'features': hidden.mean(1), 'mask': np.ones((len(hidden), 5), bool)}


def run(fit, data=Data(BATCH), method=METHOD):  # noqa: B008
  calib = methods.Calib(BATCH, 3)
  theta, state = method.init(jax.random.key(0), forward, PARAMS, calib)
  loss = Loss(forward, method, PARAMS, objectives.hinge())
  return jax.jit(lambda t, s: fit(loss, t, s, data, jax.random.key(1)))(theta, state)


def at_slots(theta) -> np.ndarray:
  """The adapted hidden states at the slots [N, M, D]."""
  params = METHOD.parts[0].weights(theta[0], {}, PARAMS)
  return np.asarray(H @ params)[np.arange(12)[:, None], SLOTS]


def means(theta) -> np.ndarray:
  h = at_slots(theta)
  return np.stack([h[c == Y].mean(0) for c in range(3)])


def same(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-6)


def test_it_trains_as_sgd_does_and_then_keeps_the_class_means():
  arguments = FIT | {'schedule': 'linear', 'clip': 1.0}
  theta, state = run(fits.perfect(**FIT))
  other, untouched = run(fits.sgd(**arguments))
  same(theta, other)
  assert not untouched[1]['head']['slot_means'].any()
  np.testing.assert_allclose(state[1]['head']['slot_means'], means(theta), atol=1e-5)


def test_the_means_are_of_the_theta_that_was_best_on_dev():
  dev = {k: v[:6] for k, v in BATCH.items()}
  wild = FIT | {'lr': 0.5, 'head_lr': 3.0, 'eval_every': 1, 'steps': 5}
  theta, state = run(fits.perfect(**wild), Data(BATCH, dev))
  same(theta, run(fits.sgd(**wild | {'schedule': 'linear', 'clip': 1.0}), Data(BATCH, dev))[0])
  np.testing.assert_allclose(state[1]['head']['slot_means'], means(theta), atol=1e-4)


def test_the_class_is_that_of_the_nearest_prototype_at_any_slot():
  theta, state = run(fits.perfect(**FIT))
  adapted = methods.adapt(METHOD, forward, theta, state)
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
  h, mu = unit(at_slots(theta)), unit(means(theta))
  want = np.full((12, 3), -np.inf)
  for c in range(3):
    for m in (0, 1):
      want[:, c] = np.maximum(want[:, c], -((h[:, m] - mu[c, m]) ** 2).sum(-1))
  np.testing.assert_allclose(adapted(PARAMS, BATCH)['logits'], want, atol=1e-4)
  training = adapted(PARAMS, BATCH, jax.random.key(0))
  np.testing.assert_allclose(training['logits'], training['slot_logits'].mean(1), atol=1e-6)


def test_before_the_means_are_kept_the_embeddings_say_the_class():
  theta, state = METHOD.init(jax.random.key(0), forward, PARAMS, methods.Calib(BATCH, 3))
  outputs = methods.adapt(METHOD, forward, theta, state)(PARAMS, BATCH)
  np.testing.assert_allclose(outputs['logits'], outputs['slot_logits'].mean(1), atol=1e-6)


def test_its_rates_can_be_swept():
  fit = fits.parse('perfect(steps=3, batch=4)')
  assert methods.remake(fit, lr=0.5).made.text() == 'perfect(steps=3, lr=0.5, batch=4)'
  assert fit.varies == fits.sgd().varies


def test_a_head_without_prototypes_is_refused():
  with pytest.raises(FewshotError, match=r'this method has 0 that take some; write label_embed'):
    run(fits.perfect(**FIT), method=methods.label_embeddings(tokens=2))
