"""CLIP (with a ResNet too) and SigLIP: sites, where texts end, what padding may not change."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fewshot import methods
from fewshot.errors import FewshotError
from fewshot.models import clip, clip_resnet, siglip
from fewshot.models.dual import Tower

TEXT = Tower(dim=12, depth=2, heads=3, width=16)
IMAGE = Tower(dim=16, depth=2, heads=4, width=24)
SHAPE = {'vocab': 30, 'positions': 8, 'image_size': 8, 'patch': 4}
EOS = 29


class Family(NamedTuple):
  """A tiny model of one family, a batch of 3 images and 4 texts."""

  module: Any
  config: Any
  params: Any
  batch: dict[str, Any]
  forward: Any

  def run(self, **batch: Any) -> dict[str, Any]:
    return self.forward(self.params, batch or self.batch)


def random_params(module: Any, config: Any) -> Any:
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: module.init(config, jax.random.key(0)))
  draw = lambda x: (0.3 * rng.standard_normal(x.shape) + (x.ndim == 1)).astype(np.float32)  # noqa: E731
  return jax.tree.map(draw, shapes)


@pytest.fixture(scope='module', params=['clip', 'siglip', 'clip_resnet'])
def family(request) -> Family:
  module, config = {
    'clip': (clip, clip.Config(TEXT, IMAGE, **SHAPE, project=10, eos=EOS)),
    'siglip': (siglip, siglip.Config(TEXT, IMAGE, **SHAPE)),
    'clip_resnet': (
      clip_resnet,
      clip_resnet.Config(
        TEXT, 30, 8, project=10, width=4, depths=(1, 1), head_dim=8, image_size=8, eos=EOS
      ),
    ),
  }[request.param]
  rng = np.random.default_rng(1)
  mask = np.arange(6) < np.array([[6], [2], [4], [3]])
  tokens = np.where(mask, rng.integers(2, EOS, mask.shape), 0).astype(np.int32)
  tokens[np.arange(4), mask.sum(1) - 1] = EOS
  image = rng.random((3, 8, 8, 3)).astype(np.float32)
  batch = {'image': image, 'tokens': tokens, 'mask': mask}
  params = random_params(module, config)
  return Family(module, config, params, batch, jax.jit(module.forward(config)))


def test_every_name_of_the_contract_is_called_once(family):
  seen = []

  def record(next_fn, args, kwargs, context):
    if context.method_name == '__call__':
      seen.append('/'.join(context.module.path))
    return next_fn(*args, **kwargs)

  with nn.intercept_methods(record):
    family.module.forward(family.config)(family.params, family.batch)
  attention = {f'attn/{s}' for s in ('query', 'key', 'value', 'core', 'out')} | {'attn'}
  block = attention | {'mlp', 'mlp/up', 'mlp/down', 'ln1', 'ln2'}
  want = {'text', 'text/embed', 'text/inputs', 'text/inputs/positions', 'text/encoder', 'image'}
  towers = ['text', 'image']
  if family.module is clip_resnet:
    towers = ['text']
    want |= {'text/project', 'image/stem', 'image/pool', *(f'image/pool/{s}' for s in attention)}
    want |= {f'image/stem/{s}_{i}' for s in ('conv', 'norm') for i in range(3)}
    for stage in ('image/stage_0', 'image/stage_1'):
      parts = {f'{s}_{i}' for s in ('conv', 'norm') for i in range(3)}
      parts |= {'shortcut', 'shortcut/conv_0', 'shortcut/norm_0'}
      want |= {stage, f'{stage}/block_0', *(f'{stage}/block_0/{s}' for s in parts)}
  elif family.module is clip:
    want |= {'text/project', 'image/project', 'image/inputs/ln', 'image/ln'}
  else:
    pool = attention | {'ln', 'mlp', 'mlp/up', 'mlp/down'}
    want |= {'text/head', 'image/encoder/ln', 'image/pool', *(f'image/pool/{s}' for s in pool)}
  for tower in towers:
    blocks = {f'{tower}/encoder/block_{i}' for i in range(2)}
    want |= {f'{tower}/{s}' for s in ('embed', 'inputs', 'encoder')}
    want |= blocks | {f'{b}/{s}' for b in blocks for s in block} | {'text/encoder/ln'}
  assert sorted(s for s in seen if s) == sorted(want)


def test_similarities_are_scaled_cosines(family):
  out, p = family.run(), family.params
  d = out['features'].shape[1]
  assert out['image_features'].shape == (3, d) and out['text_features'].shape == (4, d)
  for name in ('image_features', 'text_features'):
    np.testing.assert_allclose(np.linalg.norm(out[name], axis=-1), 1, atol=1e-5)
  want = np.exp(p['scale']) * (out['image_features'] @ out['text_features'].T) + p.get('bias', 0)
  assert out['logits'].shape == (3, 4)
  np.testing.assert_allclose(out['logits'], want, atol=1e-4)


def test_one_tower_alone_gives_what_it_gives_beside_the_other(family):
  both, batch = family.run(), family.batch
  image = family.run(image=batch['image'])
  assert image.keys() == {'features', 'hidden', 'image_features'}
  np.testing.assert_allclose(image['image_features'], both['image_features'], atol=1e-5)
  np.testing.assert_allclose(image['features'], both['features'], atol=1e-5)
  text = family.run(tokens=batch['tokens'], mask=batch['mask'])
  assert text.keys() == {'features', 'hidden', 'text_features', 'mask'}
  assert text['hidden'].shape == (4, 6, 12)
  np.testing.assert_allclose(text['text_features'], both['text_features'], atol=1e-5)


def test_a_head_wins_over_similarities(family):
  d = family.run()['features'].shape[1]
  head = {'kernel': np.ones((d, 5), np.float32), 'bias': np.arange(5, dtype=np.float32)}
  out = family.forward(family.params | {'head': head}, family.batch)
  want = np.asarray(out['features']) @ head['kernel'] + head['bias']
  np.testing.assert_allclose(out['logits'], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('more', [0, 2])
def test_padding_changes_nothing(family, more):
  """Neither how much there is, nor what stands there: even where the model reads padding."""
  mask = np.pad(family.batch['mask'], ((0, 0), (0, more)))
  noise = np.random.default_rng(2).integers(0, 30, mask.shape)
  tokens = np.where(mask, np.pad(family.batch['tokens'], ((0, 0), (0, more))), noise)
  got = family.run(tokens=tokens.astype(np.int32), mask=mask)['features']
  want = family.run(tokens=family.batch['tokens'], mask=family.batch['mask'])['features']
  assert np.abs(got - want).max() <= 1e-5


def test_bytes_are_the_same_picture_as_fractions(family):
  image = np.random.default_rng(3).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
  a, b = (family.run(image=x)['features'] for x in (image, (image / 255).astype(np.float32)))
  np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32', 'float64'])
def test_other_dtypes_stay_what_they_are(family, dtype):
  """No silent promotion, forwards and backwards."""
  names = ('features', 'hidden', 'image_features', 'text_features', 'logits')
  # Flax's own LayerNorm promotes to float32 at least, which strictness refuses for other dtypes.
  promotion = 'strict' if dtype == 'float32' else 'standard'
  with jax.enable_x64(dtype == 'float64'), jax.numpy_dtype_promotion(promotion):
    cast = jax.tree.map(lambda x: jnp.asarray(x, dtype), family.params)

    def loss(params):
      out = family.module.forward(family.config)(params, family.batch)
      return out['logits'].sum(), out

    gradient, out = jax.jit(jax.grad(loss, has_aux=True))(cast)
    assert {str(out[k].dtype) for k in names} == {dtype}
    assert {str(g.dtype) for g in jax.tree.leaves(gradient)} == {dtype}
    assert all(np.isfinite(np.asarray(out[k], np.float64)).all() for k in names)


def test_dropout_follows_the_key(family):
  forward = jax.jit(family.module.forward(dataclasses.replace(family.config, dropout=0.3)))
  run = lambda key: np.asarray(forward(family.params, family.batch, key)['logits'])  # noqa: E731
  a = run(jax.random.key(0))
  np.testing.assert_array_equal(a, run(jax.random.key(0)))
  assert np.abs(a - run(jax.random.key(1))).max() > 1e-2
  np.testing.assert_allclose(run(None), family.run()['logits'], atol=1e-4)


def test_lora_reaches_the_transformers(family):
  forward = family.module.forward(family.config)
  method = methods.lora(where=r'(image|text)/encoder/.*/query', rank=2)
  calib = methods.Calib(family.batch, 2, None)
  theta, state = method.init(jax.random.key(0), forward, family.params, calib)
  assert len(theta) == (2 if family.module is clip_resnet else 4)
  adapted = methods.adapt(method, forward, theta, state)
  assert adapted(family.params, family.batch)['logits'].shape == (3, 4)


@pytest.mark.parametrize(
  'lacking, message',
  [
    ('image tokens', 'reads image, or tokens and mask, and the batch has mask; give it images'),
    ('mask', 'reads image, or tokens and mask, and the batch has image, tokens'),
  ],
)
def test_a_batch_that_lacks_something(family, lacking, message):
  batch = {k: v for k, v in family.batch.items() if k not in lacking.split()}
  with pytest.raises(FewshotError, match=message):
    family.run(**batch)


def test_inputs_that_do_not_fit(family):
  with pytest.raises(FewshotError, match=r'images are 12 x 12 pixels.*made for 8 x 8; resize'):
    family.run(image=np.zeros((1, 12, 12, 3), np.uint8))
  ones = np.ones((1, 9), np.int32)
  with pytest.raises(FewshotError, match=r'9 tokens.*longer than the 8 positions'):
    family.run(tokens=ones, mask=ones > 0)


def test_where_a_text_ends():
  tokens = jnp.array([[5, 9, 4, 9], [5, 4, 4, 9], [9, 5, 4, 4]])
  mask = jnp.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]], bool)
  assert clip.end_of(tokens, mask, 9).tolist() == [1, 2, 0]  # The second was cut.
  assert clip.end_of(tokens, mask, clip.LEGACY_EOS).tolist() == [1, 0, 0]  # The highest.


def test_a_text_without_configs_is_the_usual_one():
  config = clip.config_from_hf({'projection_dim': 768, 'text_config': {}, 'vision_config': {}})
  assert config.text == Tower(512, 12, 8, 2048) and config.image == Tower(768, 12, 12, 3072)
  assert (config.vocab, config.positions, config.eos, config.project) == (49408, 77, 49407, 768)
  old = {'text_config': {'hidden_size': 512}, 'text_config_dict': {'hidden_size': 768}}
  assert clip.config_from_hf(old).text.dim == 768
  config = siglip.config_from_hf({'text_config': {}, 'vision_config': {'image_size': 384}})
  assert config.text == config.image == Tower(768, 12, 12, 3072, 'gelu_pytorch_tanh', 1e-6)
  assert (config.vocab, config.positions, config.image_size, config.pad) == (32000, 64, 384, 1)


RN50 = {
  'embed_dim': 1024,
  'vision_cfg': {'image_size': 224, 'layers': [3, 4, 6, 3], 'width': 64, 'patch_size': None},
  'text_cfg': {'context_length': 77, 'vocab_size': 49408, 'width': 512, 'heads': 8, 'layers': 12},
}


def test_a_config_in_the_words_of_openclip():
  config = clip_resnet.config_from_hf(RN50)
  text = Tower(512, 12, 8, 2048, 'gelu')
  assert config == clip_resnet.Config(text, vocab=49408, positions=77, project=1024)
  assert config.reduction == 32
  assert clip_resnet.config_from_hf(RN50 | {'quick_gelu': True}).text.activation == 'quick_gelu'


@pytest.mark.parametrize(
  'module, hf, message',
  [
    (clip, {'vision_config': {'num_channels': 1}}, 'num_channels 1'),
    (clip, {'text_config': {'hidden_act': 'swish'}}, "hidden_act 'swish' is not known"),
    (clip, {'text_config': {'num_attention_heads': 7}}, '512 does not divide into 7 heads'),
    (siglip, {'vision_config': {'vision_use_head': False}}, 'vision_use_head False'),
    (siglip, {'text_config': {'projection_size': 9}}, 'texts have 9 features and images 768'),
    (clip_resnet, {**RN50, 'vision_cfg': {'layers': 12}}, 'layers 12, not blocks of each stage'),
    (
      clip_resnet,
      {**RN50, 'vision_cfg': {**RN50['vision_cfg'], 'image_size': 100}},
      'images of 100 pixels do not divide by 32',
    ),
  ],
)
def test_configs_that_are_refused(module, hf, message):
  with pytest.raises(FewshotError, match=message):
    module.config_from_hf(hf)
