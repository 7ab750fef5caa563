"""Heads: where they start, and what they need."""

import jax
import numpy as np
import pytest

from fewshot import fits, methods, models, sweep
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


def unit(x: np.ndarray) -> np.ndarray:
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def begun(method, tiny):
  """theta of a head, and its logits as a function of theta, with the features they are of."""
  theta, state = method.init(KEY, tiny.forward, tiny.params, tiny.calib)

  def logits(theta):
    return methods.adapt(method, tiny.forward, theta, state)(tiny.params, tiny.batch)['logits']

  return theta, logits, np.asarray(tiny.forward(tiny.params, tiny.batch)['features'])


def test_cosine_is_the_scaled_angle_whatever_the_lengths(tiny):
  theta, logits, f = begun(methods.cosine(scale=4.0), tiny)
  kernel = np.asarray(theta['head']['kernel'])
  want = unit(f) @ unit(kernel.T).T
  np.testing.assert_allclose(logits(theta), 4 * want, atol=1e-5)
  longer = {'head': {'kernel': 7 * kernel, 'scale': np.float32(3)}}
  np.testing.assert_allclose(logits(longer), 3 * want, atol=1e-5)


def test_features_of_zero_have_a_finite_gradient():
  forward = models.from_function(lambda w, x: x @ w)
  params, batch = np.zeros((4, 3), np.float32), {'x': np.ones((2, 4), np.float32)}
  method = methods.cosine(classes=2)
  theta, state = method.init(KEY, forward, params, methods.Calib(batch))
  total = lambda w: methods.adapt(method, forward, theta, state)(w, batch)['logits'].sum()  # noqa: E731
  assert np.isfinite(jax.grad(total)(params)).all()


def test_mlp_has_one_hidden_layer(tiny, perturb):
  theta, logits, f = begun(methods.mlp(width=5), tiny)
  np.testing.assert_array_equal(logits(theta), 0)
  theta = perturb(theta)
  hidden, last = theta['head']['hidden'], theta['head']['last']
  x = f @ hidden['kernel'] + hidden['bias']
  x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  np.testing.assert_allclose(logits(theta), x @ last['kernel'] + last['bias'], atol=1e-5)


@pytest.mark.parametrize('distance', ['cosine', 'euclidean'])
def test_one_prototype_a_class_starts_as_the_nearest_mean(tiny, distance):
  theta, logits, f = begun(methods.learned_prototypes(1, distance, scale=2.0), tiny)
  f = unit(f) if distance == 'cosine' else f
  means = np.stack([f[tiny.batch['labels'] == c].mean(0) for c in range(3)])
  np.testing.assert_allclose(theta['head']['prototypes'][:, 0], means, atol=1e-5)
  want = -np.square(f[:, None] - means).sum(-1)
  if distance == 'cosine':
    want = f @ unit(means).T
  np.testing.assert_allclose(logits(theta), 2 * want, atol=1e-4)


@pytest.mark.parametrize(
  ('join', 'over'),
  [('mean', np.mean), ('max', np.max), ('logsumexp', lambda x, axis: np.log(np.exp(x).sum(axis)))],
)
def test_several_prototypes_are_joined(tiny, join, over):
  theta, logits, f = begun(methods.learned_prototypes(4, join=join, scale=1.0), tiny)
  p = np.asarray(theta['head']['prototypes'])
  assert p.shape == (3, 4, 32) and np.abs(p[:, 0] - p[:, 1]).max() > 1e-3
  scores = np.einsum('bd,ckd->bck', unit(f), unit(p))
  np.testing.assert_allclose(logits(theta), over(scores, axis=-1), atol=1e-5)


def test_prototypes_need_labels_to_start(tiny):
  batch = {k: v for k, v in tiny.batch.items() if k != 'labels'}
  with pytest.raises(FewshotError, match='start at class means, and the batch has no labels'):
    methods.learned_prototypes().init(
      KEY, tiny.forward, tiny.params, tiny.calib._replace(batch=batch)
    )


@pytest.mark.parametrize(
  ('make', 'said'),
  [
    (lambda: methods.mlp(width=0), 'width is at least 1'),
    (lambda: methods.learned_prototypes(0), 'count is at least 1'),
    (lambda: methods.learned_prototypes(join='sum'), 'there are mean, max, logsumexp'),
    (lambda: methods.learned_prototypes(distance='dot'), 'there are cosine, euclidean'),
    (lambda: methods.nearest_mean('dot'), 'there are cosine, euclidean'),
  ],
)
def test_unknown_arguments_are_refused(make, said):
  with pytest.raises(FewshotError, match=said):
    make()


HEADS = (
  methods.linear,
  methods.nearest_mean,
  methods.cosine,
  methods.mlp,
  methods.learned_prototypes,
)


@pytest.mark.parametrize('head', HEADS)
def test_a_head_refuses_what_it_cannot_classify(tiny, head):
  for classes, calib in ((0, tiny.calib._replace(classes=0)), (1, tiny.calib)):
    with pytest.raises(FewshotError, match=r'at least 2 classes, not [01]; pass classes='):
      head(classes=classes).init(KEY, tiny.forward, tiny.params, calib)
  forward = models.from_function(lambda w, x: x @ w, output='logits')
  calib = methods.Calib({'x': np.ones((2, 4), np.float32)}, 3)
  with pytest.raises(FewshotError, match=r"reads outputs\['features'\].*lacks; it has logits"):
    head().init(KEY, forward, np.ones((4, 3), np.float32), calib)


def test_the_majority_is_that_of_train_and_of_equals_the_first(tiny):
  method, forward = methods.majority(), lambda p, batch, key: {}
  labels = np.array([2, 2, 1, 1, 0, 2])
  for given, counts in ((labels, [1, 2, 3]), (labels[:5], [1, 2, 2])):
    calib = tiny.calib._replace(batch={k: v[: len(given)] for k, v in tiny.batch.items()})
    calib.batch['labels'] = given
    theta, state = method.init(jax.random.key(0), tiny.forward, tiny.params, calib)
    rows = {k: v[:2] for k, v in tiny.batch.items() if k != 'labels'}
    z = methods.adapt(method, forward, theta, state)(tiny.params, rows)['logits']
    np.testing.assert_array_equal(z, [counts, counts])
  assert z.argmax(-1).tolist() == [1, 1]
  with pytest.raises(FewshotError, match='counts labels'):
    method.init(jax.random.key(0), tiny.forward, tiny.params, tiny.calib._replace(batch=rows))


def test_a_sweep_of_the_majority_says_one_class(tiny):
  data = tiny.encoded._replace(train=tiny.encoded.train | {'labels': np.array([[0, 1, 1]] * 2)})
  data = data._replace(train={k: v[:, :3] for k, v in data.train.items()})
  found = list(sweep.sweep(tiny.model, data, methods.majority(), fits.untrained(), classes=3))
  assert len(found) == 2 and all((r.predictions == 1).all() for r in found)
