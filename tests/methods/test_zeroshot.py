"""Classes by texts of a class-name template, and SAFT on them."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import methods, objectives, papers
from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.methods.leaves import floats
from fewshot.models import clip, dual, mlp

KEY = jax.random.key(0)
TOWER = dual.Tower(dim=8, depth=1, heads=2, width=16)
CONFIG = clip.Config(TOWER, TOWER, vocab=12, positions=6, image_size=8, patch=4, project=6, eos=11)
FORWARD, PARAMS = clip.forward(CONFIG), clip.init(CONFIG, KEY)
TEXTS = ((10, 3, 11), (10, 4, 5, 11), (10, 6, 7, 8, 11))
RNG = np.random.default_rng(0)
BATCH = {'image': RNG.random((6, 8, 8, 3)).astype(np.float32), 'labels': np.arange(6) % 3}
CALIB = methods.Calib(BATCH, 3, objectives.classification().loss)


def by_texts(params: Any) -> Any:
  """The logits by one pass over images, and one over each text alone."""
  image = FORWARD(params, {'image': BATCH['image']})['image_features']
  rows = [np.array([t], np.int32) for t in TEXTS]
  texts = [FORWARD(params, {'tokens': t, 'mask': np.ones(t.shape, bool)}) for t in rows]
  features = jnp.concatenate([x['text_features'] for x in texts])
  return jnp.exp(params['scale']) * image @ features.T


def test_logits_are_the_similarities_to_the_texts_of_the_classes():
  method = methods.class_texts(TEXTS)
  headed = PARAMS | {'head': {'kernel': np.ones((6, 2), np.float32), 'bias': np.ones(2)}}
  assert method.init(KEY, FORWARD, headed, CALIB) == ({}, {})
  got = methods.adapt(method, FORWARD, {}, {})(headed, BATCH)['logits']
  np.testing.assert_allclose(got, by_texts(PARAMS), atol=1e-5)


def test_saft_trains_the_steepest_entries_for_classes_by_their_texts():
  hosted = papers.read(papers.FILE.read_text())['saft']['hosted_by']
  head, rest = methods.parse(hosted).parts
  assert head.made.fn is methods.class_texts
  method = methods.chain(methods.class_texts(TEXTS), rest)
  method = method.plan(FORWARD, PARAMS, CALIB)
  theta, state = jax.jit(lambda p: method.init(KEY, FORWARD, p, CALIB))(PARAMS)

  @jax.jit
  @jax.grad
  def slope(params: Any) -> Any:
    z = jax.nn.log_softmax(by_texts(params))
    return -z[jnp.arange(6), BATCH['labels']].mean()

  g = {p: np.abs(x) for p, x in floats(slope(PARAMS)).items()}
  flat = np.concatenate([x.ravel() for x in g.values()])
  n = math.ceil(0.001 * flat.size)
  assert methods.count(theta) == n
  for p, t in state[1].items():
    best = np.sort(np.argsort(-g[p].ravel(), kind='stable')[: t['index'].size])
    np.testing.assert_array_equal(t['index'], best)
  # Trained are these entries alone, and the texts stand for the classes all the while.
  moved = jax.tree.map(lambda x: x + 0.1, theta)
  new = method.weights(moved, state, PARAMS)
  pairs = zip(paths.flatten(PARAMS).values(), paths.flatten(new).values(), strict=True)
  assert sum(int((np.asarray(a) != b).sum()) for a, b in pairs) == n
  got = methods.adapt(method, FORWARD, moved, state)(PARAMS, BATCH)['logits']
  np.testing.assert_allclose(got, by_texts(new), atol=1e-5)


def test_mistakes_are_named():
  with pytest.raises(FewshotError, match='two classes or more'):
    methods.class_texts(((1,),))
  with pytest.raises(FewshotError, match='as the tokenizer gives them'):
    methods.class_texts(((1,), (-2,)))
  with pytest.raises(FewshotError, match='has no place for a name'):
    methods.templated(None, ['cat'], 'a photo')
  plain = mlp.Config(inputs=3, dim=4, depth=1)
  seen = methods.Calib({'x': np.ones((2, 3), np.float32)}, 3)
  with pytest.raises(FewshotError, match='a tower of texts beside'):
    methods.class_texts(TEXTS).init(KEY, mlp.forward(plain), mlp.init(plain, KEY), seen)
