"""Shortcuts: the outputs of the long way, for less."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot import fits, methods, shortcuts, sweep
from fewshot.models import albert, bert, gpt2, llama, mpnet
from fewshot.shortcuts import Shortcut

SMALL = {'vocab': 50, 'dim': 32, 'depth': 3, 'heads': 4, 'width': 64, 'positions': 64}
LENGTHS = np.array([3, 9, 2, 5, 4, 2, 8])
MODELS = {
  'bert': (bert, bert.Config(**SMALL, types=2)),
  'albert': (albert, albert.Config(**SMALL, types=2, embedding=16)),
  'mpnet': (mpnet, bert.Config(**SMALL, types=0)),
  'gpt2': (gpt2, gpt2.Config(**SMALL)),
  'llama': (llama, llama.Config(**SMALL, groups=2, head_dim=8)),
}


def batch_of(lengths: np.ndarray, width: int) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  mask = np.arange(width) < lengths[:, None]
  tokens = np.where(mask, rng.integers(1, 50, mask.shape), 0).astype(np.int32)
  return {'tokens': tokens, 'mask': mask, 'labels': (np.arange(len(lengths)) % 3).astype(np.int32)}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=9))
def test_a_layout_holds_every_text_once_and_in_one_piece(lengths):
  """Both spellings of first fit agree, packing keeps every token, unpacking undoes it."""
  mask = np.arange(12) < np.array(lengths)[:, None]
  rows = shortcuts.rows_needed(np.array(lengths), 12)
  assert -(-sum(lengths) // 12) <= rows <= len(lengths)
  layout = shortcuts.layout(jnp.asarray(mask), rows)
  assert int((layout.text < len(lengths)).sum()) == sum(lengths)
  x = jnp.arange(mask.size, dtype=jnp.float32).reshape(mask.shape) + 1
  back = layout.unpack(layout.pack(x))
  np.testing.assert_array_equal(np.where(mask, back, 0), np.where(mask, x, 0))


def test_a_text_without_room_is_nan_and_not_some_other_text():
  mask = jnp.ones((3, 4), bool)
  layout = shortcuts.layout(mask, 2)
  back = layout.unpack(layout.pack(jnp.ones((3, 4))))
  assert np.isnan(back).all(1).tolist() == [False, False, True]


@pytest.mark.parametrize('name', MODELS)
def test_a_packed_forward_is_the_forward(name):
  family, config = MODELS[name]
  params, batch = family.init(config, jax.random.key(0)), batch_of(LENGTHS, 9)
  rows = shortcuts.rows_needed(LENGTHS, 9)
  assert rows == 4
  want = family.forward(config)(params, batch)
  got = shortcuts.shorten(family.forward(config), Shortcut(rows))(params, batch)
  np.testing.assert_allclose(got['features'], want['features'], atol=1e-5)
  mask = batch['mask'][..., None]
  np.testing.assert_allclose(got['hidden'] * mask, want['hidden'] * mask, atol=1e-5)


def test_texts_that_were_not_planned_are_not_packed(tiny):
  """A method may send other texts through the same forward, as calibration does."""
  planned = {k: v[:4] for k, v in tiny.batch.items()}
  short = shortcuts.shorten(tiny.forward, Shortcut(1, shape=planned['mask'].shape))
  want = tiny.forward(tiny.params, tiny.batch)['logits']
  np.testing.assert_allclose(short(tiny.params, tiny.batch)['logits'], want, atol=1e-5)
  assert not np.isfinite(short(tiny.params, planned)['logits']).all()  # One row is too few.


@pytest.mark.parametrize('spelling', ['lora(rank=2)', 'adapter(width=4)', 'prefix(length=3)'])
def test_packing_and_resuming_keep_gradients(tiny, spelling):
  """Of a method in the last block, with and without the shortcuts."""
  where = {'lora(rank=2)': r"lora(rank=2, where='encoder/block_1/attn/(query|value)')"}
  method = methods.parse(f'chain({where.get(spelling, spelling)}, linear())')
  batch = batch_of(LENGTHS, 9)
  calib = methods.Calib(batch, 3)
  theta, state = method.init(jax.random.key(0), tiny.forward, tiny.params, calib)
  theta = jax.tree.map(lambda x: x + 0.1, theta)
  seen: dict = {}
  shortcuts.outputs_of(tiny.forward, seen)(tiny.params, batch)
  resumed = batch | {shortcuts.PREFIX: seen['encoder/block_0']}
  ways = [(tiny.forward, batch), (shortcuts.shorten(tiny.forward, Shortcut(4)), batch)]
  if spelling in where:
    ways += [
      (shortcuts.shorten(tiny.forward, Shortcut(rows, 'encoder/block_0')), resumed)
      for rows in (0, 4)
    ]

  def loss(theta, forward, batch):
    z = methods.adapt(method, forward, theta, state)(tiny.params, batch)['logits']
    return (z**2).sum()

  first, *rest = [jax.grad(loss)(theta, *way) for way in ways]
  for other in rest:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4), other, first)


@pytest.fixture(scope='module')
def short_texts(tiny):
  """Two splits whose texts are mostly short."""
  lengths = np.stack(
    [np.array([3, 9, 2, 5, 4, 2, 3, 2, 4]), np.array([2, 2, 10, 3, 4, 3, 2, 6, 2])]
  )
  train = [batch_of(x, 10) for x in lengths]
  return tiny.encoded._replace(train={k: np.stack([b[k] for b in train]) for k in train[0]})


def options(packing: str, prefix: str) -> sweep.Options:
  return sweep.Options(packing=packing, prefix=prefix)


CASES = {
  # Method: whether texts are packed, the block that is resumed behind.
  'lora(rank=2)': (True, ''),
  "lora(rank=2, where='encoder/block_1/.*(query|value)')": (True, 'encoder/block_0'),
  'bitfit()': (True, ''),
  "tune('encoder/block_1/mlp/.*')": (True, 'encoder/block_0'),
  'ia3()': (True, ''),
  'soft_prompt(length=2)': (True, ''),
  'prefix(length=2)': (True, ''),
  'context_tuning(shots=2, length=20)': (False, ''),  # In training each text sees another context.
  'linear()': (True, 'encoder/block_1'),
}
LONG = ('bitfit()', "tune('encoder/block_1/mlp/.*')", 'ia3()', 'prefix(length=2)')


@pytest.mark.parametrize(
  'spelling',
  [pytest.param(s, marks=pytest.mark.long if s in LONG else ()) for s in CASES],
)
def test_a_sweep_is_the_same_by_shortcuts(tiny, short_texts, spelling):
  packs, resumes = CASES[spelling]
  method = methods.parse(spelling if spelling == 'linear()' else f'chain({spelling}, linear())')
  fit = fits.sgd(steps=4, lr=0.02, batch=6)
  by = lambda o: list(sweep.sweep(tiny.model, short_texts, method, fit, classes=3, options=o))  # noqa: E731
  long, short = by(options('off', 'off')), by(options('on', 'on'))
  notes = short[0].engine
  assert notes['packing'].startswith('no: ') != packs, notes
  assert notes['prefix'].startswith(resumes) if resumes else notes['prefix'].startswith('no: ')
  assert long[0].engine['packing'] == long[0].engine['prefix'] == 'off'
  for a, b in zip(short, long, strict=True):
    np.testing.assert_allclose(a.logits, b.logits, atol=1e-4)
    np.testing.assert_allclose(a.curve, b.curve, atol=1e-5)


def test_a_method_that_reads_places_of_the_row_is_not_packed(tiny, short_texts):
  """ReFT acts on the first and last tokens of a row, which packing moves."""
  method = methods.parse('chain(loreft(rank=2, first=1), linear())')
  fit = fits.sgd(steps=2, lr=0.02, batch=6)
  (first, *_) = sweep.sweep(
    tiny.model, short_texts, method, fit, classes=3, options=options('on', 'off')
  )
  assert first.engine['packing'].startswith('no: tried, and')


def test_short_training_takes_no_shortcut_unless_told(tiny):
  fit = fits.sgd(steps=2, batch=4)
  (first, *_) = sweep.sweep(tiny.model, tiny.encoded, methods.linear(), fit, classes=3)
  assert first.engine['packing'] == first.engine['prefix'] == 'no: the training is too short'


def test_dropout_below_the_adapted_block_forbids_resuming(tiny):
  forward = bert.forward(bert.Config(**{**SMALL, 'depth': 2}, types=2, dropout=0.1))
  fit = fits.sgd(steps=2, batch=4)
  model = tiny.model._replace(forward=forward)
  (first, *_) = sweep.sweep(
    model, tiny.encoded, methods.linear(), fit, classes=3, options=options('off', 'on')
  )
  assert 'dropout' in first.engine['prefix']


def test_remat_in_a_sweep_changes_no_result(tiny, short_texts):
  method, fit = methods.parse('chain(lora(rank=2), linear())'), fits.sgd(steps=3, lr=0.02, batch=6)
  by = lambda o: list(sweep.sweep(tiny.model, short_texts, method, fit, classes=3, options=o))  # noqa: E731
  plain, thrifty = by(sweep.Options()), by(sweep.Options(remat='nothing', packing='on'))
  assert thrifty[0].engine['remat'] == 'nothing'
  for a, b in zip(plain, thrifty, strict=True):
    np.testing.assert_allclose(a.curve, b.curve, atol=1e-5)
    np.testing.assert_allclose(a.logits, b.logits, atol=1e-4)
