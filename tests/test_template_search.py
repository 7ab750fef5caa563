"""Templates that T5 writes: the beam against every short filling, scored without a cache."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers import models as kinds

from fewshot import models, tasks
from fewshot.errors import FewshotError
from fewshot.models import t5
from fewshot.programs import template_search

SPECIAL = ['<pad>', '</s>', '<unk>', '<extra_id_0>', '<extra_id_1>', '<extra_id_2>']
WORDS = ['a', 'film', 'bad', '.', '...']
X, Y, END, STOP = 3, 4, 5, 1  # The blanks, and what also ends the second.
SAID = range(6, 10)  # All words but the dots in a row.
LONGEST = 5


def t5_like() -> Tokenizer:
  tok = Tokenizer(kinds.WordLevel({t: i for i, t in enumerate(SPECIAL + WORDS)}, '<unk>'))
  tok.add_special_tokens(SPECIAL)
  tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  tok.post_processor = processors.TemplateProcessing('$A </s>', special_tokens=[('</s>', STOP)])
  return tok


@pytest.fixture(scope='module')
def model() -> models.Model:
  """A tiny T5 whose logits differ: its embeddings, and so its output, are of unit size."""
  c = t5.Config(vocab=11, dim=8, depth=1, decoder_depth=1, heads=2, head_dim=4, width=16)
  rng = np.random.default_rng(0)
  draw = lambda x: rng.standard_normal(x.shape).astype(np.float32)  # noqa: E731
  params = jax.tree.map(draw, jax.eval_shape(lambda: t5.init(c, jax.random.key(0))))
  return models.Model('t5', t5.forward(c), params, t5_like(), example=t5.example(c))


def task(fields: int = 1) -> tasks.Task:
  texts = ['a film', 'bad a film', 'film film', 'film .']
  inputs = texts if fields == 1 else [(t, 'a bad') for t in texts]
  named = ('text',) if fields == 1 else ('premise', 'hypothesis')
  return tasks.make('toy', inputs, ['bad', 'film'] * 2, test=[3], fields=named)


def split() -> tasks.Split:
  return tasks.splits.Split(0, 2, np.arange(3), np.arange(0), np.array([10**6]), 'train', 'test')


def every(model: models.Model, shown: list[list[int]]) -> dict[tuple[str, str], float]:
  """The sum over examples of log p of each filling of at most LONGEST tokens, by its pieces."""
  pieces = [t for n in range(3) for t in itertools.product(SAID, repeat=n)]
  fillings = [
    (X, *a, Y, *b, end)
    for a, b, end in itertools.product(pieces, pieces, (END, STOP))
    if len(a) + len(b) + 3 <= LONGEST and (9, 9) not in (a, b)  # No dot behind a dot.
  ]
  tokens = np.zeros((len(fillings), LONGEST), np.int32)
  for row, f in zip(tokens, fillings, strict=True):
    row[: len(f)] = f
  logp = np.zeros((len(fillings), LONGEST, 11))
  for ids in shown:
    one = {
      'tokens': jnp.array([ids] * len(tokens)),
      'mask': jnp.ones((len(tokens), len(ids)), bool),
    }
    begun = np.concatenate([np.zeros((len(tokens), 1), np.int32), tokens[:, :-1]], 1)
    z = jax.jit(model.forward)(model.params, one | {'decoder_tokens': begun})['token_logits']
    logp += np.asarray(jax.nn.log_softmax(z))
  found: dict[tuple[str, str], float] = {}
  for i, f in enumerate(fillings):
    score = sum(logp[i, j, f[j]] for j in range(1, len(f)))
    a, b = (' '.join(WORDS[t - 6] for t in p) for p in (f[1 : f.index(Y)], f[f.index(Y) + 1 : -1]))
    found[a, b] = max(score, found.get((a, b), -np.inf))
  return found


def test_a_wide_beam_finds_what_all_short_fillings_say(model):
  rows = [('a film', 'bad'), ('bad a film', 'film'), ('film film', 'bad')]
  of = {w: i for i, w in enumerate(SPECIAL + WORDS)}
  ids = lambda text: [of[w] for w in text.split()] + [STOP]  # noqa: E731
  space = lambda piece: f' {piece}' if piece else ''  # noqa: E731
  found = template_search.write_templates(
    model, task(), split(), 'bad|worse, film', beams=600, top=600, longest=LONGEST
  )
  layouts = (
    ('{} <extra_id_0> {} <extra_id_1>', lambda a, b: f'{{text}}{space(a)} {{mask}}{space(b)}'),
    ('<extra_id_0> {1} <extra_id_1> {0}', lambda a, b: f'{space(a)} {{mask}}{space(b)} {{text}}'),
  )
  want = []
  for reads, template in layouts:
    scores = every(model, [ids(reads.format(*row)) for row in rows])
    best = sorted(scores.items(), key=lambda s: -s[1])
    want += [(template(*pieces).lstrip(), score) for pieces, score in best]
  assert len(found) == len(want) == 2 * (1 + 8 + 3 * 16 - 2)
  np.testing.assert_allclose([t.score for t in found], [s for _, s in want], rtol=1e-4)
  assert [t.template for t in found[:20]] == [t for t, _ in want[:20]]
  narrow = template_search.write_templates(
    model, task(), split(), 'bad, film', beams=100, top=4, longest=LONGEST
  )
  scores = dict(found)
  assert 2 <= len(narrow) <= 4 and {t.template for t in narrow} <= set(scores)
  np.testing.assert_allclose([t.score for t in narrow], [scores[t.template] for t in narrow], 1e-4)


def test_between_two_texts_there_is_one_layout_and_progress_is_told(model):
  seen = []
  found = template_search.write_templates(
    model, task(2), split(), 'bad, film', beams=100, top=2, longest=5,
    progress=lambda *p: seen.append(p),
  )  # fmt: skip
  assert 0 < len(found) <= 2 and seen[-1] == ('generate', 1.0)
  for t in found:
    assert t.template.startswith('{premise} ') and t.template.endswith(' {hypothesis}')
    assert t.template.count('{mask}') == 1


def test_a_mistake_is_one_line(model, tiny):
  one = task()
  write = template_search.write_templates
  with pytest.raises(FewshotError, match='words for 3 classes, and the task has 2'):
    write(model, one, split(), 'bad, film, fair')
  with pytest.raises(FewshotError, match='tiny fills no blanks'):
    write(tiny.model._replace(tokenizer=t5_like()), one, split(), 'bad, film')
  with pytest.raises(
    FewshotError, match='none of the 1 likeliest beginnings ended within 2 tokens'
  ):
    write(model, one, split(), 'bad, film', beams=1, longest=2)
  plain = Tokenizer(kinds.WordLevel({'a': 0, '<unk>': 1}, '<unk>'))
  with pytest.raises(FewshotError, match='has <extra_id_0>, <extra_id_1>'):
    write(model._replace(tokenizer=plain), one, split(), 'bad, film')
