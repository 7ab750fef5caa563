"""Labels with explanations: the loss of the whole text, the class of its first token."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import fits, methods, objectives, papers
from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.models import t5
from tests.models import test_t5

KEY = jax.random.key(0)
FORWARD = t5.forward(test_t5.CONFIG)
RNG = np.random.default_rng(1)
LENGTHS = np.array([[3], [1], [2]])
BATCH = {
  'tokens': RNG.integers(1, 40, (3, 6)).astype(np.int32),
  'mask': np.arange(6) < np.array([[6], [2], [4]]),
  'targets': RNG.integers(3, 40, (3, 3)).astype(np.int32),
  'targets_mask': np.arange(3) < LENGTHS,
  'labels': np.array([0, 1, 0]),
}
CALIB = methods.Calib(BATCH, 2, objectives.classification().loss)


@pytest.fixture(scope='module')
def params() -> Any:
  return test_t5.random_params(test_t5.CONFIG)


def text_loss(params: Any) -> Any:
  """The mean of -log p over all tokens, by a decoder pass for each text and length of its start."""
  terms = []
  for i in range(3):
    for t in range(int(LENGTHS[i, 0])):
      start = np.concatenate([[0], BATCH['targets'][i, :t]])[None].astype(np.int32)
      row = {k: BATCH[k][i : i + 1] for k in ('tokens', 'mask')} | {'decoder_tokens': start}
      z = FORWARD(params, row)['token_logits'][0, -1]
      terms.append(-jax.nn.log_softmax(z)[BATCH['targets'][i, t]])
  return jnp.stack(terms).mean()


def test_sparsefit_trains_norms_and_queries_by_the_label_with_its_explanation(params):
  hosted = papers.read(papers.FILE.read_text())['sparsefit']['hosted_by']
  method = methods.parse(hosted.replace('(10998, 10747)', '(4, 9)'))  # Of a small vocabulary.
  theta, state = method.init(KEY, FORWARD, params, CALIB)
  trained = {p for part in theta for p in part}
  norms = {p for p in paths.flatten(params) if p.endswith('/scale')}
  queries = {p for p in paths.flatten(params) if p.endswith('/query/kernel')}
  assert trained == norms | queries and len(queries) == 6  # Cross attention's are two of them.
  loss = fits.Loss(FORWARD, method, params, objectives.classification())
  got = paths.flatten(jax.jit(jax.grad(lambda t: loss(t, state, BATCH)[0]))(theta))
  want = paths.flatten(jax.jit(jax.grad(text_loss))(params))
  for p, g in got.items():
    np.testing.assert_allclose(g, want[p.split('/', 1)[1]], rtol=2e-3, atol=2e-5)


def test_a_class_is_answered_by_the_first_token_whatever_the_targets(params):
  method = methods.explained((4, 9))
  run = jax.jit(lambda b: methods.adapt(method, FORWARD, {}, {})(params, b)['logits'])
  bare = {k: BATCH[k] for k in ('tokens', 'mask')}
  first = bare | {'decoder_tokens': np.zeros((3, 1), np.int32)}
  want = FORWARD(params, first)['token_logits'][:, 0, np.array([4, 9])]
  np.testing.assert_allclose(run(BATCH), want, atol=1e-4)
  np.testing.assert_allclose(run(bare), want, atol=1e-4)


@pytest.mark.parametrize(
  ('words', 'said'), [((4,), 'of each class, all different'), ((4, 99), 'there is no token 99')]
)
def test_mistakes_are_named(params, words, said):
  with pytest.raises(FewshotError, match=said):
    methods.explained(words).init(KEY, FORWARD, params, CALIB)
