"""predict, logits and merged of an adapted model."""

import json

import jax
import numpy as np
import pytest
import tokenizers

from fewshot import checkpoint, methods
from fewshot.adapted import Adapted
from fewshot.errors import FewshotError
from fewshot.tasks import prompts
from fewshot.tasks.prompts import cloze

TEXTS = [f'w{i} w{2 * i} w{i + 5}' for i in range(1, 8)]


@pytest.fixture(scope='module')
def adapted(tiny, perturb) -> Adapted:
  vocab = {'[UNK]': 0, **{f'w{i}': i for i in range(1, 50)}}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token='[UNK]'))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  method = methods.parse('chain(lora(rank=2), linear())')
  start = method.init(jax.random.key(0), tiny.forward, tiny.params, tiny.calib)
  model = tiny.model._replace(tokenizer=tokenizer)
  return Adapted(model, method, *perturb(start), ('a', 'b', 'c'), max_length=8)


@pytest.fixture(scope='module')
def logits(adapted) -> np.ndarray:
  return adapted.logits(TEXTS)


def test_logits_are_the_adapted_forward(adapted, logits, tiny):
  tokens = np.array([adapted.model.tokenizer.encode(t).ids for t in TEXTS], np.int32)
  batch = {'tokens': tokens, 'mask': tokens > 0}
  forward = methods.adapt(adapted.method, tiny.forward, adapted.theta, adapted.state)
  np.testing.assert_allclose(logits, forward(tiny.params, batch)['logits'], atol=1e-5)
  assert adapted.predict(TEXTS) == [adapted.classes[i] for i in logits.argmax(1)]
  np.testing.assert_allclose(adapted.logits(batch), logits, atol=1e-5)  # Encoded by hand.


def test_texts_of_two_fields_are_pairs(adapted, tiny):
  tokenizer = tokenizers.Tokenizer.from_str(adapted.model.tokenizer.to_str())
  tokenizer.post_processor = tokenizers.processors.BertProcessing(('w48', 48), ('w49', 49))
  pairs = adapted._replace(model=adapted.model._replace(tokenizer=tokenizer))
  got = pairs.logits([('w1 w2', 'w3'), ('w1', 'w2 w3')])
  tokens = np.array([[49, 1, 2, 48, 3, 48], [49, 1, 48, 2, 3, 48]])
  types = np.array([[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]])
  batch = {'tokens': tokens, 'mask': tokens > 0, 'types': types}
  np.testing.assert_allclose(got, adapted.logits(batch), atol=1e-5)
  assert np.abs(got - adapted.logits(batch | {'types': 0 * types})).max() > 1e-3
  with pytest.raises(FewshotError, match='predict takes texts, but there is a tuple'):
    pairs.predict(['w1', ('w1', 3)])


@pytest.mark.parametrize('batch', [1, 3, 7, 100])
def test_the_batch_size_changes_nothing(adapted, logits, batch):
  np.testing.assert_allclose(adapted.logits(TEXTS, batch=batch), logits, atol=1e-5)


def test_merged_equals_predict(adapted, logits, tiny):
  merged = adapted.merged()
  batch, _ = adapted._batch(TEXTS)
  np.testing.assert_allclose(tiny.forward(merged, batch)['logits'], logits, atol=1e-4)
  plain = adapted._replace(
    method=methods.chain(), theta=(), state=(), model=adapted.model._replace(params=merged)
  )
  assert plain.predict(TEXTS) == adapted.predict(TEXTS)


def test_what_cannot_be_merged(adapted, tiny):
  method = methods.nearest_mean()
  theta, state = method.init(jax.random.key(0), tiny.forward, tiny.params, tiny.calib)
  with pytest.raises(FewshotError, match=r'nearest_mean\(\) cannot be merged into the weights'):
    adapted._replace(method=method, theta=theta, state=state).merged()


def test_long_texts_are_cut(adapted):
  long, cut = ' '.join(['w4'] * 30), ' '.join(['w4'] * 8)
  np.testing.assert_allclose(adapted.logits([long]), adapted.logits([cut]), atol=1e-6)


def test_nothing_in_nothing_out(adapted):
  assert adapted.predict([]) == []
  assert adapted.logits([]).shape == (0, 3)


def test_refused(adapted, tiny):
  with pytest.raises(FewshotError, match=r'a list of texts, not one text; write predict\(\[text'):
    adapted.predict('w1 w2')
  with pytest.raises(FewshotError, match='tiny has no tokenizer; predict takes arrays'):
    adapted._replace(model=tiny.model).predict(['w1'])
  with pytest.raises(FewshotError, match='reads tokens and mask, and the batch has x'):
    adapted.predict(np.ones((2, 3)))
  with pytest.raises(FewshotError, match='takes texts, but there is a int'):
    adapted.predict(['w1', 3])
  with pytest.raises(FewshotError, match='arrays of equal length'):
    adapted.predict({'tokens': np.ones((2, 3), int), 'mask': np.ones((1, 3), bool)})
  with pytest.raises(FewshotError, match='arrays of equal length'):
    adapted.predict({})


def test_a_checkpoint_keeps_the_texts_that_calibrate_it(adapted, tmp_path):
  """As many as a domain's long texts are: 600 of 8 tokens."""
  rows = tuple(tuple(range(1 + i % 30, 9 + i % 30)) for i in range(600))
  method = methods.chain(adapted.method, methods.calibrated(rows))
  state = (*adapted.state, {}) if isinstance(adapted.state, tuple) else adapted.state
  known = adapted._replace(method=method, theta=(*adapted.theta, {}), state=state)
  checkpoint.save(known, tmp_path / 'saved')
  again = checkpoint.load(tmp_path / 'saved', adapted.model)
  np.testing.assert_array_equal(again.logits(TEXTS), known.logits(TEXTS))
  assert np.abs(again.logits(TEXTS) - jax.nn.log_softmax(adapted.logits(TEXTS))).max() > 1e-3


def test_texts_are_shown_by_the_prompt_in_each_template_also_after_a_checkpoint(adapted, tmp_path):
  shown = cloze(('w7 {text}', '{text} w8 w9'))
  wording = prompts.wording(shown, adapted.model, ('text',), adapted.classes)
  prompted = adapted._replace(wording=wording)
  both = [adapted.logits([t.format(text=x) for x in TEXTS]) for t in shown.templates]
  np.testing.assert_allclose(prompted.logits(TEXTS), np.mean(both, 0), atol=1e-5)
  checkpoint.save(prompted, tmp_path / 'saved')
  again = checkpoint.load(tmp_path / 'saved', adapted.model)
  assert again.wording == wording
  np.testing.assert_array_equal(again.logits(TEXTS), prompted.logits(TEXTS))
  about = json.loads((tmp_path / 'saved' / 'adapted.json').read_text())
  (tmp_path / 'saved' / 'adapted.json').write_text(json.dumps(about | {'fields': 'text'}))
  with pytest.raises(FewshotError, match='no list of texts under fields'):
    checkpoint.load(tmp_path / 'saved', adapted.model)
