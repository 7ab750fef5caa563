"""calibrated() against its formula, on a forward whose logits are looked up."""

import jax
import numpy as np
import pytest

from fewshot import methods
from fewshot.errors import FewshotError
from tests.laws import laws
from tests.models import decoders

KEY = jax.random.key(0)
SAID = np.zeros((10, 3), np.float32)  # The logits of each token, the last of a row.
SAID[4], SAID[5], SAID[6] = np.log([6, 3, 1]), np.log([8, 1, 1]), np.log([4, 5, 1])


def toy(params, batch, key=None):
  """Logits are those of the token at the first slot, or the last token; twice with types."""
  last = batch['mask'].sum(1, keepdims=True) - 1
  slots = batch.get('slots', last)[:, :1]
  logits = params[np.take_along_axis(np.asarray(batch['tokens']), slots, 1)[:, 0]]
  return {'logits': logits * 2 if 'types' in batch else logits}


def calibrate(method, batch, key=None):
  return methods.adapt(method, toy, {}, {})(SAID, batch, key)['logits']


ROWS = {'tokens': np.array([[4, 0], [9, 5]]), 'mask': np.array([[1, 0], [1, 1]], bool)}


def test_probabilities_are_divided_by_those_of_inputs_without_content():
  """[.6 .3 .1] and [.8 .1 .1] by the mean of [.8 .1 .1] and [.4 .5 .1], which is [.6 .3 .1]."""
  method = methods.calibrated(((5,), (9, 9, 6)))
  got = np.exp(calibrate(method, ROWS))
  np.testing.assert_allclose(got, [[1, 1, 1], [8 / 6, 1 / 3, 1]], atol=1e-6)


def test_what_says_nothing_is_unbiased():
  """By itself as the one input without content, every class is as likely."""
  got = jax.nn.softmax(calibrate(methods.calibrated(((9, 4),)), ROWS))
  np.testing.assert_allclose(got[0], [1 / 3] * 3, atol=1e-6)


def test_slots_are_the_mask_tokens_and_types_are_zero():
  """Token 7 is the mask: the logits there are its own, as those of the plain rows are."""
  said = SAID.copy()
  said[7] = np.log([1, 1, 2])
  method = methods.calibrated(((4, 7, 4, 5), (7, 5)), mask=7)
  adapted = methods.adapt(method, toy, {}, {})
  got = np.exp(adapted(said, ROWS)['logits'])
  np.testing.assert_allclose(got[0], np.array([0.6, 0.3, 0.1]) / [0.25, 0.25, 0.5], atol=1e-6)
  got = np.exp(adapted(said, ROWS | {'types': np.zeros((2, 2), int)})['logits'])
  squared = np.array([[36, 9, 1], [1, 1, 4]]) / [[46], [6]]
  np.testing.assert_allclose(got[0], squared[0] / squared[1], atol=1e-6)


def test_in_training_logits_stay():
  got = calibrate(methods.calibrated(((5,),)), ROWS, KEY)
  np.testing.assert_array_equal(got, SAID[[4, 5]])


def test_inputs_without_content_are_read_after_the_examples_too():
  """chain(demonstrations, verbalizer, calibrated) divides by what the same chain says of them."""
  model = decoders.tiny('llama')
  scored = 'demonstrations(shots=2, length=12), verbalizer(((7,), (9, 12)))'
  batch = model.batch | {'labels': np.array([0, 1, 0])}

  def adapted(spelling):
    method = methods.parse(f'chain({spelling})')
    init = jax.jit(lambda p: method.init(KEY, model.forward, p, methods.Calib(batch, 2)))
    theta, state = init(model.params)
    return jax.jit(methods.adapt(method, model.forward, theta, state))

  plain = adapted(scored)
  text = lambda *t: {'tokens': np.array([t]), 'mask': np.ones((1, len(t)), bool)}  # noqa: E731
  p = lambda b: np.asarray(jax.nn.softmax(plain(model.params, b)['logits']))  # noqa: E731
  want = p(model.batch) / ((p(text(3, 4, 5)) + p(text(6, 5))) / 2)
  got = adapted(f'{scored}, calibrated(((3, 4, 5), (6, 5)))')(model.params, model.batch)['logits']
  np.testing.assert_allclose(np.exp(got), want, rtol=1e-4)


@pytest.mark.parametrize('head', ['verbalizer(((7,), (9,)))', 'likelihood(((7,), (9, 12)))'])
def test_an_encoder_decoder_reads_inputs_without_content_as_its_texts(head):
  """Decoding them starts with the batch's token, which is 3 here, and the words are read there."""
  on = laws.fixture('t5-tiny').model
  start = lambda n: {'decoder_tokens': np.full((n, 1), 3), 'slots': np.zeros((n, 1), int)}  # noqa: E731
  text = lambda *t: {'tokens': np.array([t]), 'mask': np.ones((1, len(t)), bool)} | start(1)  # noqa: E731
  batch = {'tokens': np.array([[3, 4, 5], [6, 5, 8]]), 'mask': np.ones((2, 3), bool)} | start(2)

  def adapted(spelling):
    method = methods.parse(spelling)
    theta, state = method.init(KEY, on.forward, on.params, methods.Calib(batch, 2))
    return jax.jit(methods.adapt(method, on.forward, theta, state))

  plain, both = adapted(head), adapted(f'chain({head}, calibrated(((9, 4), (5,))))')
  p = lambda b: np.asarray(jax.nn.softmax(plain(on.params, b)['logits']))  # noqa: E731
  want = p(batch) / ((p(text(9, 4)) + p(text(5))) / 2)
  np.testing.assert_allclose(np.exp(both(on.params, batch)['logits']), want, rtol=1e-4)
  other = batch | {'decoder_tokens': np.full((2, 1), 0)}  # The start matters.
  assert np.abs(np.exp(both(on.params, other)['logits']) - want).max() > 1e-3


def test_misuse_is_refused():
  with pytest.raises(FewshotError, match=r'token ids of one input or more: \(\(7, 9\), \(9,\)\)'):
    methods.calibrated(())
  with pytest.raises(FewshotError, match='takes token ids, as the tokenizer gives them'):
    methods.calibrated((('N/A',),))
  with pytest.raises(FewshotError, match='as many mask tokens, and one at least; 7 is there 1, 0'):
    methods.calibrated(((7, 4), (4,)), mask=7)
  on, image = laws.fixture('gpt2-tiny'), laws.fixture('vit-tiny')
  start = lambda m, on: m.init(KEY, on.model.forward, on.model.params, on.calib)  # noqa: E731
  with pytest.raises(FewshotError, match='there is no token 99999; the model has'):
    start(methods.calibrated(((99999,),)), on)
  with pytest.raises(FewshotError, match=r'needs tokens, and there are image.*; chain it behind'):
    start(methods.calibrated(((7,),)), image)
  headless = decoders.tiny('gpt2')
  with pytest.raises(FewshotError, match=r'needs logits, and there are features.*; chain it'):
    methods.calibrated(((7,),)).init(
      KEY, headless.forward, headless.params, methods.Calib(headless.batch, 2)
    )
