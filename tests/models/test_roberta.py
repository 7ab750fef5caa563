"""What RoBERTa's config.json says beside BERT's."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from fewshot import models
from fewshot.errors import FewshotError
from fewshot.models import roberta
from tests.parity.errors import FIXTURES

FOLDER = FIXTURES / 'roberta-mlm-tiny'
CONFIG = json.loads((FOLDER / 'config.json').read_text())


@pytest.mark.parametrize('pad', [0, 1, 3])
def test_positions_start_after_the_id_of_padding(pad):
  assert roberta.config_from_hf(CONFIG | {'pad_token_id': pad}).positions == 40 - pad - 1


def test_the_first_rows_of_the_position_table_are_never_read():
  table = load_file(FOLDER / 'model.safetensors')['roberta.embeddings.position_embeddings.weight']
  got = models.load(str(FOLDER)).params['inputs']['positions']['embedding']
  np.testing.assert_array_equal(got, table[2:])


def test_xlm_roberta_is_the_same_network():
  assert models.FAMILIES['xlm-roberta'] is models.FAMILIES['roberta'] is roberta


def test_a_head_with_another_activation_than_the_blocks():
  with pytest.raises(FewshotError, match="hidden_act 'relu' beside a head of gelu; only gelu"):
    roberta.config_from_hf(CONFIG | {'hidden_act': 'relu'})
  bare = CONFIG | {'hidden_act': 'relu', 'architectures': ['RobertaModel']}
  assert roberta.config_from_hf(bare).activation == 'relu'
