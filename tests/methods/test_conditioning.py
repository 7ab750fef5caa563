"""Label conditioning against what a second pass was given, worked out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import fits, methods, models, objectives
from fewshot.errors import FewshotError
from tests.parity import errors

MASK, T, V = 4, 40, 20
WORDS = ((7,), (9, 12))
LABELS = np.array([0, 1] * 8)
TOKENS = np.random.default_rng(0).integers(13, V, (16, T)).astype(np.int32)
LENGTHS = np.random.default_rng(1).integers(20, T + 1, 16)
SLOTS = np.tile(np.array([[3, 5]], np.int32), (16, 1))
TOKENS[:, [3, 5]] = MASK
BATCH = {
  'tokens': TOKENS, 'mask': np.arange(T) < LENGTHS[:, None], 'slots': SLOTS, 'labels': LABELS,
}  # fmt: skip
TABLE = np.random.default_rng(2).standard_normal((T, V)).astype(np.float32)


def reader(seen):
  """A masked model whose logits at a place are a row of TABLE; it writes down what it reads."""

  def forward(params, batch, key=None):
    seen.append(batch)
    return {'token_logits': params[batch['slots']], 'mask': batch['mask']}

  return forward


def conditioned(rate=0.5):
  """The outputs, the two batches that were read, and the penalty at weight 3."""
  seen, method = [], methods.label_conditioning(WORDS, mask=MASK, weight=3.0, rate=rate)
  forward = reader(seen)
  theta, state = method.init(jax.random.key(0), forward, TABLE, methods.Calib(BATCH, 2))
  seen.clear()
  outputs = methods.adapt(method, forward, theta, state)(TABLE, BATCH, jax.random.key(1))
  penalty = lambda b: method.penalty(forward, theta, state, TABLE, b, outputs, jax.random.key(1))  # noqa: E731
  return outputs, [jax.tree.map(np.asarray, b) for b in seen], penalty


def test_a_label_is_filled_in_and_tokens_of_the_text_are_masked():
  _, (first, second), _ = conditioned()
  np.testing.assert_array_equal(first['tokens'], TOKENS)
  words = second['tokens'][:, [3, 5]].tolist()
  assert {tuple(w) for w in words} == {(7, MASK), (9, 12)}  # The shorter word leaves a mask.
  changed = (second['tokens'] != TOKENS) & ~np.isin(np.arange(T), [3, 5])
  assert (second['tokens'][changed] == MASK).all() and not (changed & ~BATCH['mask']).any()
  counts = changed.sum(1)
  assert counts.min() >= 1 and counts.max() <= np.floor(0.5 * LENGTHS.max()) - 1
  assert len(set(counts.tolist())) > 3  # Of a random share.


def test_the_loss_is_that_of_the_masked_tokens():
  """-log p of the token that was there under the right label, -log(1 - p) under a wrong one."""
  outputs, (_, second), penalty = conditioned()
  p = np.exp(TABLE) / np.exp(TABLE).sum(-1, keepdims=True)
  want = []
  for b in range(16):
    right = (second['tokens'][b, 3] == 7) == (LABELS[b] == 0)
    places = [t for t in range(T) if t not in (3, 5) and second['tokens'][b, t] != TOKENS[b, t]]
    there = np.array([p[t, TOKENS[b, t]] for t in places])
    want.append(np.mean(-np.log(there if right else 1 - there)))
  np.testing.assert_allclose(outputs['conditioning'], want, rtol=1e-4)
  np.testing.assert_allclose(penalty(BATCH), 3 * np.mean(want), rtol=1e-4)
  weights = np.arange(16.0)
  weighted = 3 * np.average(want, weights=weights)
  np.testing.assert_allclose(penalty(BATCH | {'weights': weights}), weighted, rtol=1e-4)


def test_short_texts_lose_one_token():
  _, (_, second), _ = conditioned(rate=0.01)
  assert second['slots'].shape == (16, 1)
  changed = (second['tokens'] != TOKENS) & ~np.isin(np.arange(T), [3, 5])
  assert changed.sum(1).tolist() == [1] * 16


def test_without_a_key_it_is_the_head_alone():
  seen, method = [], methods.label_conditioning(WORDS, mask=MASK)
  theta, state = method.init(jax.random.key(0), reader([]), TABLE, methods.Calib(BATCH, 2))
  outputs = methods.adapt(method, reader(seen), theta, state)(TABLE, BATCH)
  head = methods.likelihood(WORDS).wrap(reader([]), theta, state)(TABLE, BATCH)
  np.testing.assert_array_equal(outputs['logits'], head['logits'])
  assert len(seen) == 1 and 'conditioning' not in outputs
  rest = theta, state, TABLE, BATCH, outputs, jax.random.key(0)
  assert float(method.penalty(reader([]), *rest)) == 0


def test_it_trains_an_adapted_model():
  """The penalty's gradient reaches what is trained, in one step of a fit."""
  model = models.load(str(errors.FIXTURES / 'bert-mlm-tiny'))
  batch = {k: x[:4] for k, x in BATCH.items()}
  method = methods.chain(methods.bitfit(), methods.label_conditioning(WORDS, mask=MASK))
  theta, state = method.init(
    jax.random.key(0), model.forward, model.params, methods.Calib(batch, 2)
  )
  loss = fits.Loss(model.forward, method, model.params, objectives.decoupled())

  def parts(theta, key):
    value, outputs = loss(theta, state, batch, key)
    return value, objectives.decoupled().mean(outputs, batch)

  run = jax.jit(jax.value_and_grad(parts, has_aux=True))
  (value, own), gradient = run(theta, jax.random.key(3))
  assert float(value) > float(own) + 0.1
  assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient)) > 1e-3


@pytest.mark.parametrize(
  'wrong', [{'mask': -1}, {'mask': 4, 'rate': 0.0}, {'mask': 4, 'weight': -1.0}]
)
def test_arguments_that_make_no_sense_are_refused(wrong):
  with pytest.raises(FewshotError, match='takes the id of a token, a weight of at least 0'):
    methods.label_conditioning(WORDS, **wrong)


def test_a_decoder_is_refused():
  model = models.load(str(errors.FIXTURES / 'gpt2-tiny'))
  batch = {k: BATCH[k] for k in ('tokens', 'mask', 'labels')}
  batch = {k: x[..., :20] if x.ndim == 2 else x for k, x in batch.items()}
  method = methods.label_conditioning(WORDS, mask=MASK)
  with pytest.raises(FewshotError, match='take a masked language model'):
    method.init(jax.random.key(0), model.forward, model.params, methods.Calib(batch, 2))
