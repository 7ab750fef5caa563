"""What DistilBERT's config.json says, in words of its own."""

import json

import pytest

from fewshot import models
from fewshot.errors import FewshotError
from fewshot.models import distilbert
from tests.parity.errors import FIXTURES, read

FOLDER = FIXTURES / 'distilbert-mlm-tiny'
CONFIG = json.loads((FOLDER / 'config.json').read_text())


def test_its_keys_are_read():
  hf = CONFIG | {'dim': 24, 'n_layers': 5, 'n_heads': 3, 'hidden_dim': 7, 'activation': 'relu'}
  config = distilbert.config_from_hf(hf)
  shape = (config.dim, config.depth, config.heads, config.width, config.activation)
  assert shape == (24, 5, 3, 7, 'relu')
  assert (config.types, config.eps, config.lm) == (0, 1e-12, True)


@pytest.mark.parametrize('key', ['dim', 'n_layers', 'n_heads', 'hidden_dim', 'vocab_size'])
def test_a_missing_key_is_named_as_it_is_spelled_there(tmp_path, key):
  (tmp_path / 'config.json').write_text(json.dumps({k: v for k, v in CONFIG.items() if k != key}))
  with pytest.raises(FewshotError, match=f"config.json lacks '{key}'"):
    models.load(str(tmp_path))


def test_an_activation_that_is_not_computed():
  with pytest.raises(FewshotError, match="hidden_act 'mish' is not known; known: gelu"):
    distilbert.config_from_hf(CONFIG | {'activation': 'mish'})


def test_types_say_nothing():
  model, batch = models.load(str(FOLDER)), read('distilbert-mlm-tiny').batch
  want = model.forward(model.params, batch)['features']
  ones = batch | {'types': batch['tokens'] * 0 + 1}
  assert (model.forward(model.params, ones)['features'] == want).all()
