"""ViT and DINOv2: tokens, configs that are refused, and other names for the same weights."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fewshot import models
from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.models import dinov2, images, vit
from fewshot.models.weights.names import Tensor, assemble
from tests.parity.errors import FIXTURES

TINY = vit.Config(dim=16, depth=2, heads=4, width=24, image_size=16, patch=8)
HF = {
  'model_type': 'vit',
  'hidden_size': 32,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'intermediate_size': 64,
  'image_size': 24,
  'patch_size': 8,
}


def test_patches_are_cut_row_by_row_as_a_convolution_does():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((2, 16, 16, 3)), jnp.float32)
  module = images.Patches(16, 8)
  params = module.init(jax.random.key(0), x)['params']
  want = jax.lax.conv_general_dilated(
    x, params['kernel'], (8, 8), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  got = module.apply({'params': params}, x)
  np.testing.assert_allclose(got, want.reshape(2, 4, 16), atol=1e-5)


def test_tokens_stand_before_the_patches():
  config = dataclasses.replace(TINY, distilled=True, registers=3)
  params = vit.Inputs(config).init(jax.random.key(0), jnp.ones((1, 4, 16)), jnp.ones((1, 4), bool))
  x, mask = vit.Inputs(config).apply(params, jnp.ones((2, 4, 16)), jnp.ones((2, 4), bool))
  p = params['params']
  first = [p['cls'] + p['positions'][0], *p['registers'], p['distillation'] + p['positions'][1]]
  np.testing.assert_array_equal(x[1, :5], jnp.stack(first))
  np.testing.assert_array_equal(x[1, 5:], 1 + p['positions'][2:])
  assert mask.shape == (2, 9) and mask.all()


@pytest.mark.parametrize('shape', [(1, 24, 16, 3), (1, 8, 8, 3)])
def test_images_of_another_size(shape):
  params = vit.init(TINY, jax.random.key(0))
  match = rf'{shape[1]} x {shape[2]} pixels.*made for 16 x 16; resize'
  with pytest.raises(FewshotError, match=match):
    vit.forward(TINY)(params, {'image': np.ones(shape, np.float32)})


@pytest.mark.parametrize(
  'changes, match',
  [
    ({'hidden_act': 'swish'}, "hidden_act 'swish', and only 'gelu' or"),
    ({'num_attention_heads': 5}, 'a dim of 32 does not divide into 5 heads'),
    ({'image_size': 20}, '20 pixels do not divide into patches of 8'),
  ],
)
def test_configs_that_are_not_computed(changes, match):
  with pytest.raises(FewshotError, match=match):
    vit.config_from_hf(HF | changes)
  with pytest.raises(FewshotError, match=match):
    dinov2.config_from_hf(HF | {'model_type': 'dinov2'} | changes)


def test_what_a_config_says_is_read():
  assert not vit.config_from_hf(HF | {'qkv_bias': False}).qkv_bias
  config = vit.config_from_hf(HF)
  assert (config.eps, config.mean, config.classes) == (1e-12, (0.5,) * 3, 0)
  deit = vit.config_from_hf(HF | {'model_type': 'deit', 'image_mean': [0.1, 0.2, 0.3]})
  assert (deit.distilled, deit.mean, deit.std) == (True, (0.1, 0.2, 0.3), (0.229, 0.224, 0.225))
  hf = HF | {'model_type': 'dinov2_with_registers', 'use_swiglu_ffn': True}
  large = dinov2.config_from_hf(hf)
  assert (large.registers, large.width, large.activation) == (4, 88, 'silu')
  assert dinov2.config_from_hf(HF | {'model_type': 'dinov2'}).registers == 0


def test_a_vit_without_biases_of_query_key_and_value():
  config = dataclasses.replace(TINY, qkv_bias=False)
  params = vit.init(config, jax.random.key(0))
  attention = params['encoder']['block_0']['attn']
  assert 'bias' not in attention['query'] and 'bias' in attention['out']


def test_a_pooler_and_a_teachers_classifiers_are_not_features():
  raw = json.loads((FIXTURES / 'deit-tiny' / 'config.json').read_text())
  raw['architectures'] = ['DeiTForImageClassificationWithTeacher']
  tensors = load_file(FIXTURES / 'deit-tiny' / 'model.safetensors')
  config = vit.config_from_hf(raw)
  stored = {k: v for k, v in tensors.items() if not k.startswith('classifier')}
  stored |= {f'{k}_classifier.weight': np.ones((5, 32)) for k in ('cls', 'distillation')}
  stored |= {'deit.pooler.dense.weight': np.ones((32, 32))}
  params = read(stored, vit, config, vit.names(config))
  want = models.load(str(FIXTURES / 'deit-tiny')).params
  assert 'head' not in params
  np.testing.assert_array_equal(params['inputs']['cls'], want['inputs']['cls'])


def read(stored, family, config, names):
  """Params from arrays by name."""
  return assemble(
    {k: Tensor(v.shape, lambda v=v: v) for k, v in stored.items()},
    jax.eval_shape(lambda: family.init(config, jax.random.key(0))),
    names,
    where='here',
    prefixes=family.PREFIXES,
    unused=family.UNUSED,
  )


RENAMED = (  # Of Hugging Face to timm and the authors of DINOv2.
  ('embeddings.patch_embeddings.projection', 'patch_embed.proj'),
  ('embeddings.position_embeddings', 'pos_embed'),
  ('embeddings.distillation_token', 'dist_token'),
  ('embeddings.', ''),
  ('encoder.layer.', 'blocks.'),
  ('attention.output.dense', 'attn.proj'),
  ('attention.attention', 'attn'),
  ('layernorm_before', 'norm1'),
  ('layernorm_after', 'norm2'),
  ('intermediate.dense', 'mlp.fc1'),
  ('output.dense', 'mlp.fc2'),
  ('layernorm.', 'norm.'),
  ('layer_scale1.lambda1', 'ls1.gamma'),
  ('layer_scale2.lambda1', 'ls2.gamma'),
  ('weights_in', 'w12'),
  ('weights_out', 'w3'),
  ('classifier', 'head'),
)


def renamed(fixture: str) -> dict[str, np.ndarray]:
  """A fixture's tensors by the names of timm, query, key and value in one."""
  stored = {}
  for name, x in load_file(FIXTURES / fixture / 'model.safetensors').items():
    name = name.removeprefix('vit.').removeprefix('deit.')
    for old, new in RENAMED:
      name = name.replace(old, new)
    stored[name] = x
  for name in [n for n in stored if '.attn.query.' in n]:
    parts = [stored.pop(name.replace('query', p)) for p in ('query', 'key', 'value')]
    stored[name.replace('query', 'qkv')] = np.concatenate(parts)
  return stored


@pytest.mark.parametrize('fixture', ['vit-tiny', 'deit-tiny'])
def test_the_names_of_timm(fixture):
  config = vit.config_from_hf(json.loads((FIXTURES / fixture / 'config.json').read_text()))
  stored = renamed(fixture)
  assert {'cls_token', 'blocks.1.attn.qkv.bias', 'norm.weight', 'head.bias'} <= stored.keys()
  assert_equal(read(stored, vit, config, vit.names_timm(config)), fixture)


@pytest.mark.parametrize('fixture', ['dinov2-tiny', 'dinov2-registers-tiny'])
def test_the_names_of_dinov2s_authors(fixture):
  config = dinov2.config_from_hf(json.loads((FIXTURES / fixture / 'config.json').read_text()))
  stored = renamed(fixture)
  assert {'mask_token', 'blocks.1.attn.qkv.weight', 'blocks.0.ls2.gamma'} <= stored.keys()
  assert_equal(read(stored, dinov2, config, dinov2.names_original(config)), fixture)


def assert_equal(params, fixture: str) -> None:
  want = paths.flatten(models.load(str(FIXTURES / fixture)).params)
  got = paths.flatten(params)
  assert got.keys() == want.keys()
  for path, x in want.items():
    np.testing.assert_array_equal(got[path], x, path)
