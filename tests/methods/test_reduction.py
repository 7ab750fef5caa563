"""Fusing tokens: which patches stay, what the others become, and TR-PTS as a whole."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import methods, objectives, papers
from fewshot.errors import FewshotError
from fewshot.methods import paths, scoring
from fewshot.models import vit

KEY = jax.random.key(0)
CONFIG = vit.Config(dim=8, depth=2, heads=2, width=8, image_size=16, patch=4)
FORWARD, PARAMS = vit.forward(CONFIG), vit.init(CONFIG, KEY)
IMAGES = np.random.default_rng(0).normal(size=(6, 16, 16, 3)).astype(np.float32)
CALIB = methods.Calib(
  {'image': IMAGES, 'labels': np.arange(6) % 3}, 3, objectives.classification().loss
)


def run(spelling: str, forward: Any = FORWARD, params: Any = PARAMS) -> Any:
  method = methods.parse(spelling)
  theta, state = method.init(KEY, forward, params, CALIB)
  return jax.jit(methods.adapt(method, forward, theta, state))(params, CALIB.batch)


def test_patches_that_the_class_token_does_not_look_at_become_one():
  config = vit.Config(dim=8, depth=1, heads=2, width=8, image_size=16, patch=4)
  params = jax.tree.map(lambda w: 1.5 * w, vit.init(config, KEY))
  params['encoder']['ln']['scale'] = jnp.ones(8)
  forward, seen = vit.forward(config), {}

  def spy(t: Any, f: Any, q: Any, k: Any, *rest: Any) -> Any:
    seen.update(q=np.asarray(q), k=np.asarray(k))
    return f(q, k, *rest)

  core = 'encoder/block_0/attn/core'
  methods.in_activations(core, dict, spy).wrap(forward, {core: {}}, {})(params, CALIB.batch)
  block = methods.activations.outputs(forward, params, CALIB.batch, 'encoder/block_0')
  y = np.asarray(block['encoder/block_0'])
  want = []
  for i in range(6):
    weights = []
    for h in range(2):
      z = np.exp(seen['k'][i, :, h] @ seen['q'][i, 0, h] / math.sqrt(4))
      weights.append(z / z.sum())
    a = np.mean(weights, 0)[1:]
    best = set(np.argsort(-a)[: math.ceil(0.3 * 16)])
    rest = [n for n in range(16) if n not in best]
    fused = sum(a[n] * y[i, 1 + n] for n in rest) / a[rest].sum()
    want.append(np.stack([y[i, 0], *(y[i, 1 + n] for n in sorted(best)), fused]))
  got = run('fuse_tokens(keep=0.3, blocks=(0,))', forward, params)['hidden']
  x = np.stack(want)
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.eps)
  ln = params['encoder']['ln']
  np.testing.assert_allclose(got, x * ln['scale'] + ln['bias'], atol=1e-4)


def test_tokens_grow_fewer_from_block_to_block():
  assert run('fuse_tokens(keep=0.5, blocks=(0, 1))')['hidden'].shape[1] == 7
  assert run('fuse_tokens(keep=1.0, blocks=(1,))')['hidden'].shape[1] == 17


@pytest.mark.parametrize(
  ('spelling', 'match'),
  [
    ('fuse_tokens(keep=0.0)', 'above 0 and at most 1'),
    ('fuse_tokens(blocks=())', 'numbers blocks'),
    ('fuse_tokens(blocks=(1, 12))', 'there is no block 12, the model has 2'),
  ],
)
def test_mistakes_are_named(spelling, match):
  with pytest.raises(FewshotError, match=match):
    run(spelling)


def test_tr_pts_gives_more_inputs_a_unit_where_they_matter_and_fuses_tokens():
  hosted = papers.read(papers.FILE.read_text())['tr-pts']['hosted_by']
  fewer = 'fuse_tokens(blocks=(0, 1))'  # Of two blocks.
  small = hosted.replace('fuse_tokens()', fewer).replace('0.005', '0.05')
  method = methods.parse(small).plan(FORWARD, PARAMS, CALIB)
  theta, state = jax.jit(lambda p: method.init(KEY, FORWARD, p, CALIB))(PARAMS)
  information = scoring.fisher().fn
  found = jax.jit(lambda p: information(KEY, FORWARD, p, CALIB))(PARAMS)
  kernels = {p: np.asarray(f) for p, f in found.items() if p.endswith('/kernel')}
  flat = np.concatenate([f.ravel() for f in kernels.values()])
  least = np.sort(flat)[-math.ceil(0.05 * flat.size)]
  inputs = {}
  for p, f in kernels.items():
    inputs[p] = math.ceil((f >= least).sum() / f.shape[-1])
    assert theta[1].get(p, {'value': np.zeros(0)})['value'].size == inputs[p] * f.shape[-1]
  assert max(inputs.values()) > 1 > min(inputs.values())
  start = methods.adapt(method, FORWARD, theta, state)(PARAMS, CALIB.batch)
  assert start['hidden'].shape[1] < 17 and start['logits'].shape == (6, 3)
  # Chosen on the function of fewer tokens, each unit its best inputs.
  fused = methods.adapt(methods.parse(fewer), FORWARD, {}, {})
  lighter = jax.jit(lambda p: information(KEY, fused, p, CALIB))(PARAMS)
  for p, t in state[1].items():
    mask = np.zeros(kernels[p].size, bool)
    mask[np.asarray(t['index'])] = True
    f, on = np.asarray(lighter[p]), mask.reshape(kernels[p].shape)
    f, on = f.reshape(-1, f.shape[-1]), on.reshape(-1, on.shape[-1])
    assert (on.sum(0) == inputs[p]).all()
    kept = np.sort(np.where(on, f, 0), 0)[-inputs[p] :]
    np.testing.assert_allclose(kept, np.sort(f, 0)[-inputs[p] :], rtol=1e-3)
  assert paths.flatten(theta).keys() <= {f'1/{p}/value' for p in kernels} | {
    '2/head/kernel', '2/head/bias',
  }  # fmt: skip
