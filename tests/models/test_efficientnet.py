"""EfficientNet-Lite0: its size, and its own config.json."""

import jax
import pytest

from fewshot.methods import paths
from fewshot.models import efficientnet
from fewshot.models.mobilenet import Shape


def test_the_published_number_of_parameters():
  init = lambda: efficientnet.init(efficientnet.LITE0, jax.random.key(0))  # noqa: E731
  leaves = paths.flatten(jax.eval_shape(init))
  trained = sum(x.size for p, x in leaves.items() if not p.endswith(('/mean', '/var')))
  assert trained == 4_652_008


def test_a_config_is_lite0_where_it_is_silent():
  assert efficientnet.config_from_hf({}) == efficientnet.LITE0
  config = efficientnet.config_from_hf({'stem': 8, 'stages': [[2, 12, 2, 6, 5]], 'classes': 3})
  assert (config.stem, config.stages, config.classes) == (8, (Shape(2, 12, 2, 6, 5),), 3)
  assert config.last == 1280 and config.same


def test_bytes_are_centred_at_127():
  mean, std = efficientnet.LITE0.mean[0], efficientnet.LITE0.std[0]
  assert [(x / 255 - mean) / std for x in (127, 255)] == pytest.approx([0, 1])


def test_every_block_has_its_names():
  table = efficientnet.names(efficientnet.LITE0)
  assert table['stage_6/block_0/conv_2'] == '_blocks.15._project_conv'
  assert table['stage_2/block_1/norm_1'] == '_blocks.4._bn1'
