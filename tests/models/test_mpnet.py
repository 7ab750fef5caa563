"""MPNet: a bias for each distance, shared by all blocks."""

import json

import jax
import numpy as np
import pytest
from flax import linen as nn

from fewshot import models
from fewshot.errors import FewshotError
from fewshot.models import mpnet
from tests.parity.errors import FIXTURES, read

FOLDER = FIXTURES / 'mpnet-mlm-tiny'
CONFIG = json.loads((FOLDER / 'config.json').read_text())


@pytest.fixture(scope='module')
def model() -> models.Model:
  return models.load(str(FOLDER))


@pytest.fixture(scope='module')
def batch() -> dict[str, np.ndarray]:
  return {k: v[:, :20] for k, v in read('mpnet-mlm-tiny').batch.items()}


def test_all_blocks_are_given_one_bias(model, batch):
  seen = []

  def record(next_fn, args, kwargs, context):
    if context.module.path[-1:] == ('core',):
      seen.append(args[4])
    return next_fn(*args, **kwargs)

  with nn.intercept_methods(record):
    model.forward(model.params, batch)
  first, second = seen
  assert first is second and first.shape == (1, 4, 20, 20)
  # Two to the right: the third of the upper half.
  table = np.asarray(model.params['encoder']['bias']['embedding'])
  np.testing.assert_array_equal(first[0, :, 3, 5], table[16 + 2])


def test_the_bias_changes_what_is_computed(model, batch):
  none = jax.tree.map(lambda x: x, model.params)
  none['encoder']['bias'] = jax.tree.map(np.zeros_like, none['encoder']['bias'])
  want = model.forward(model.params, batch)['features']
  assert np.abs(model.forward(none, batch)['features'] - want).max() > 1e-2


def test_positions_start_after_the_padding_whatever_the_config_calls_it():
  for pad in (0, 1, 5):
    assert mpnet.config_from_hf(CONFIG | {'pad_token_id': pad}).positions == 148


def test_another_number_of_buckets_is_refused():
  with pytest.raises(FewshotError, match='relative_attention_num_buckets 64; only 32'):
    mpnet.config_from_hf(CONFIG | {'relative_attention_num_buckets': 64})
