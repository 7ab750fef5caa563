"""Objectives on numbers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import objectives
from fewshot.errors import FewshotError
from fewshot.methods import spell

LOG = np.log
OUTPUTS = {'logits': jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))}
BATCH = {'labels': jnp.array([0, 1])}


def test_cross_entropy():
  loss = objectives.classification().loss(OUTPUTS, BATCH)
  np.testing.assert_allclose(loss, [-LOG(0.5), -LOG(0.1)], rtol=1e-6)


def test_label_smoothing():
  """q = (0.8, 0.1, 0.1) and (0.1, 0.8, 0.1) at s = 0.3."""
  loss = objectives.classification(smoothing=0.3).loss(OUTPUTS, BATCH)
  first = -(0.8 * LOG(0.5) + 0.2 * LOG(0.25))
  second = -(0.9 * LOG(0.1) + 0.1 * LOG(0.8))
  np.testing.assert_allclose(loss, [first, second], rtol=1e-6)


def test_score_is_accuracy():
  score = objectives.classification().score(OUTPUTS, BATCH)
  assert score.tolist() == [1.0, 0.0] and score.dtype == jnp.float32


def test_an_example_in_several_views_scores_once_by_its_mean_logits():
  """Views (2, 0) and (0, 1) of one example mean (1, 0.5): class 0, though one view says 1."""
  z = jnp.array([[2.0, 0], [0, 1], [-jnp.inf, 0], [0, 3]])
  batch = {'labels': jnp.array([0, 0, 0, 0]), 'example': jnp.array([7, 7, 3, 3])}
  o = objectives.classification()
  assert float(o.mean_score({'logits': z}, batch)) == 0.5  # Of two items one is right.
  rows = {'labels': batch['labels']}
  assert float(o.mean_score({'logits': z[1:]}, {'labels': rows['labels'][1:]})) == 0
  assert float(o.mean_score({'logits': z}, rows)) == 0.25


def test_means_are_weighted_where_there_are_weights():
  o = objectives.classification()
  assert float(o.mean_score(OUTPUTS, BATCH)) == 0.5
  weighted = BATCH | {'weights': jnp.array([1, 3])}
  assert float(o.mean_score(OUTPUTS, weighted)) == 0.25
  want = (-LOG(0.5) - 3 * LOG(0.1)) / 4
  np.testing.assert_allclose(o.mean(OUTPUTS, weighted), want, rtol=1e-6)
  nothing = BATCH | {'weights': jnp.zeros(2)}
  assert float(o.mean(OUTPUTS, nothing)) == 0.0


def test_gradient_is_softmax_minus_onehot():
  z = jnp.array([[1.0, -2.0, 0.5]])
  value = lambda z: objectives.classification().mean({'logits': z}, {'labels': jnp.array([2])})  # noqa: E731
  want = jax.nn.softmax(z) - jnp.array([[0, 0, 1.0]])
  np.testing.assert_allclose(jax.grad(value)(z), want, atol=1e-6)


def test_half_precision_logits_are_computed_in_float32():
  outputs = {'logits': jnp.array([[300.0, 0.0]], jnp.bfloat16)}
  loss = objectives.classification().loss(outputs, {'labels': jnp.array([1])})
  assert loss.dtype == jnp.float32 and float(loss[0]) == 300.0


def test_a_forward_without_logits_is_told_to_take_a_head():
  outputs = {'features': jnp.zeros((1, 2)), 'mask': jnp.ones((1, 2))}
  with pytest.raises(FewshotError, match=r'gives no logits .it has features, mask.; add a head'):
    objectives.classification().mean(outputs, {'labels': jnp.zeros(1, int)})


def test_hinge_is_the_mean_over_classes_of_what_comes_too_near():
  """Margins 1 - 2 + 1.5 = 0.5 and 1 - 2 + 0 < 0; then 1 - 0 + 2 = 3 and 1 - 0 + 1.5 = 2.5."""
  z = jnp.array([[2.0, 1.5, 0.0], [2.0, 1.5, 0.0]])
  loss = objectives.hinge().loss({'logits': z}, {'labels': jnp.array([0, 2])})
  np.testing.assert_allclose(loss, [0.5 / 3, 5.5 / 3], rtol=1e-6)
  wide = objectives.hinge(margin=2.5).loss({'logits': z}, {'labels': jnp.array([0, 2])})
  np.testing.assert_allclose(wide, [(2.0 + 0.5) / 3, (4.5 + 4.0) / 3], rtol=1e-6)


def test_hinge_is_averaged_over_the_slots_of_a_head_that_scores_each():
  """The mean of the slots' losses, which is not the loss of their mean logits."""
  slots = jnp.array([[[3.0, 0.0], [0.0, 3.0]]])
  outputs = {'slot_logits': slots, 'logits': slots.mean(1)}
  o, batch = objectives.hinge(), {'labels': jnp.array([0])}
  np.testing.assert_allclose(o.loss(outputs, batch), [(0 + 4.0) / 2 / 2], rtol=1e-6)
  np.testing.assert_allclose(o.loss({'logits': outputs['logits']}, batch), [0.5], rtol=1e-6)


# Two words: of two tokens, p = 0.5 and 0.25, and of one token, p = 0.8.
WORDS = {
  'word_logprobs': jnp.log(jnp.array([[[0.5, 0.25], [0.8, 1.0]]])),
  'word_mask': jnp.array([[True, True], [True, False]]),
  'logits': jnp.array([[LOG(0.125) / 2, LOG(0.8)]]),
}


def test_t_few():
  """Likelihood of the right tokens, unlikelihood of the wrong ones, and the choice among words."""
  long, short = -LOG(0.125) / 2, -LOG(0.8)  # Per token.
  choice = LOG(np.exp(-long) + np.exp(-short))
  right = long - LOG(1 - 0.8 + 0.01) + (choice + long)
  got = objectives.t_few().loss(WORDS, {'labels': jnp.array([0])})
  np.testing.assert_allclose(got, [right], rtol=1e-5)
  unlikely = -(LOG(1 - 0.5 + 0.01) + LOG(1 - 0.25 + 0.01)) / 2
  got = objectives.t_few().loss(WORDS, {'labels': jnp.array([1])})
  np.testing.assert_allclose(got, [short + unlikely + choice + short], rtol=1e-5)
  got = objectives.t_few(unlikelihood=0.5, choice=0.25).loss(WORDS, {'labels': jnp.array([1])})
  np.testing.assert_allclose(got, [short + unlikely / 2 + (choice + short) / 4], rtol=1e-5)
  assert objectives.t_few().score(WORDS, {'labels': jnp.array([1])}).tolist() == [1.0]


def test_decoupled_label_loss():
  o = objectives.decoupled()
  right = o.loss(WORDS, {'labels': jnp.array([0])})
  np.testing.assert_allclose(right, [-LOG(0.125) / 2 - LOG(0.2)], rtol=1e-4)
  right = o.loss(WORDS, {'labels': jnp.array([1])})
  np.testing.assert_allclose(right, [-LOG(0.8) - (LOG(0.5) + LOG(0.75)) / 2], rtol=1e-4)


@pytest.mark.parametrize('name', ['t_few', 'decoupled'])
def test_a_wrong_word_that_is_certain_has_a_finite_gradient(name):
  def value(logp):
    outputs = {'word_logprobs': logp, 'word_mask': jnp.ones((2, 1))}
    return objectives.VOCABULARY[name]().mean(outputs, {'labels': jnp.array([0])})

  gradient = jax.grad(value)(jnp.array([[[-50.0], [0.0]]]))
  assert np.isfinite(gradient).all() and gradient[0, 0, 0] < 0 < gradient[0, 1, 0]


@pytest.mark.parametrize('name', ['t_few', 'decoupled'])
def test_losses_of_words_are_told_which_head_gives_them(name):
  with pytest.raises(
    FewshotError, match=rf'{name} reads .*it has logits; take the head likelihood'
  ):
    objectives.VOCABULARY[name]().mean(OUTPUTS, BATCH)


# At temperature 1, of unit length: the first two are alike, the third is at right angles to them.
VIEWS = {'logits': jnp.zeros((3, 2)), 'features': jnp.array([[2.0, 0], [0.5, 0], [0, 3.0]])}


def test_supervised_contrast():
  """Of rows 0 and 1 the other is at exp(1) and row 2 at exp(0); row 2 is alone in its class."""
  o = objectives.supervised_contrastive(weight=2.0, temperature=1.0)
  contrast = -LOG(np.e / (np.e + 1))
  got = o.loss(VIEWS, {'labels': jnp.array([0, 0, 1])})
  np.testing.assert_allclose(got, LOG(2) + 2 * np.array([contrast, contrast, 0]), rtol=1e-5)
  hot = objectives.supervised_contrastive(temperature=0.5).loss(
    VIEWS, {'labels': jnp.zeros(3, int)}
  )
  e = np.exp(2)
  want = [-(LOG(e / (e + 1)) + LOG(1 / (e + 1))) / 2] * 2 + [LOG(2)]
  np.testing.assert_allclose(hot, LOG(2) + np.array(want), rtol=1e-5)


def test_a_contrast_counts_examples_by_their_weights():
  """Weight 0 is as if the row were not there, weight 2 as if the others met it twice."""
  o = objectives.supervised_contrastive(temperature=1.0)
  batch = {'labels': jnp.array([0, 0, 1]), 'weights': jnp.array([1.0, 1.0, 2.0])}
  want = -LOG(np.e / (np.e + 2))
  np.testing.assert_allclose(o.loss(VIEWS, batch)[:2], LOG(2) + want, rtol=1e-5)
  absent = batch | {'weights': jnp.array([1.0, 1.0, 0.0])}
  np.testing.assert_allclose(o.loss(VIEWS, absent)[:2], LOG(2), rtol=1e-5)
  alone = batch | {'weights': jnp.array([1.0, 0.0, 0.0])}
  np.testing.assert_allclose(o.mean(VIEWS, alone), LOG(2), rtol=1e-5)
  value = lambda f: o.mean(VIEWS | {'features': f}, alone)  # noqa: E731
  assert np.isfinite(jax.grad(value)(VIEWS['features'])).all()


def test_a_contrast_reads_the_slots_where_there_are_some():
  hidden = jnp.stack([jnp.zeros((3, 2)), VIEWS['features']], 1)  # [B, T = 2, D]
  batch = {'labels': jnp.array([0, 0, 1])}
  o = objectives.supervised_contrastive(temperature=1.0)
  outputs = VIEWS | {'hidden': hidden, 'features': jnp.ones((3, 2))}
  got = o.loss(outputs, batch | {'slots': jnp.ones((3, 1), int)})
  np.testing.assert_allclose(got, o.loss(VIEWS, batch), rtol=1e-5)


def test_an_objective_is_spelled_and_made_once():
  for text in (
    'classification()',
    'hinge(margin=2.0)',
    'hinge(margin=2)',
    't_few(choice=0.5)',
    'decoupled()',
  ):
    made = objectives.parse(text)
    assert spell(made) == text and objectives.parse(text) is made
  assert objectives.classification() is objectives.classification()


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('hing()', "unknown training objective 'hing'; did you mean 'hinge'"),
    ('hinge(margin="wide")', r'hinge\(margin=...\) takes float'),
    ('3', 'spells no objective; write for example classification'),
    ('supervised_contrastive(temperature=0)', 'temperature=0.*is not above 0'),
  ],
)
def test_what_is_no_objective_is_refused(text, said):
  with pytest.raises(FewshotError, match=said):
    objectives.parse(text)
