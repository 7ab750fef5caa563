"""Sharded weights: where they lie, and that eight devices compute what one does."""

import json
import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fewshot import models, sharding
from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.models import shapes
from tests.laws.test_families import one_of_each
from tests.parity import errors

EIGHT = AbstractMesh((8,), ('fsdp',))
BOTH = AbstractMesh((4, 2), ('fsdp', 'tensor'))
LORA = 'lora(rank=2)'
# The others take the default: they have blocks with queries and values.
METHODS = {'albert-mlm-tiny': f'as_weights({LORA})', 'resnet-tiny': 'conv_lora(rank=2)'}
COMPUTED = ('tiny', 'tiny-gpt2', 'tiny-llama', 'tiny-vit', 't5-tiny', 'clip-tiny', *METHODS)
SCRIPT = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from fewshot import methods, objectives, sharding
from fewshot.models import shapes
from jax.sharding import NamedSharding
from tests.laws import laws

jax.config.update('jax_disable_most_optimizations', True)
rng = np.random.default_rng(0)

def model_and_batch(name):
  if name not in shapes.SHAPES:
    on = laws.fixture(name)
    return on.model, {k: v[:2].repeat(4, 0) for k, v in on.batch.items()}, on.classes
  model, labels = shapes.random(name), np.arange(8) % 3
  if model.tokenizer is None:
    x = model.example['image']
    return model, {'image': rng.random((8, *x.shape[1:]), np.float32), 'labels': labels}, 3
  tokens = rng.integers(5, 260, (8, 12)).astype(np.int32)
  return model, {'tokens': tokens, 'mask': np.arange(12) < rng.integers(3, 13, (8, 1)),
                 'labels': labels}, 3

def seen(name, spelling):
  model, batch, classes = model_and_batch(name)
  method, objective = methods.parse(spelling), objectives.classification()
  calib = methods.Calib(batch, classes, objective.loss)
  theta, state = method.init(jax.random.key(1), model.forward, model.params, calib)
  noisy = lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32)
  theta = jax.tree.map(noisy, theta)

  def value(forward, theta, params):
    outputs = methods.adapt(method, forward, theta, state)(params, batch)
    return objective.mean(outputs, batch), outputs['features']

  def computed(forward, params):
    program = jax.jit(jax.value_and_grad(lambda t, p: value(forward, t, p), has_aux=True))
    (loss, features), gradient = program(theta, params)
    return jax.tree.map(np.asarray, (loss, features, gradient))

  want, gaps, held = computed(model.forward, model.params), [], []
  for axes, split in (({'fsdp': 8}, False), ({'fsdp': 4, 'tensor': 2}, True)):
    mesh = sharding.mesh(axes=axes)
    specs = sharding.specs(model.params, mesh, smallest=64)
    put = lambda x, s: jax.device_put(x, NamedSharding(mesh, s))
    params = jax.tree.map(put, model.params, specs)
    held.append(sum(x.addressable_shards[3].data.nbytes for x in jax.tree.leaves(params)))
    forward = sharding.split_batch(model.forward, mesh) if split else model.forward
    scale = lambda x: max(1.0, np.abs(x).max())
    gap = lambda a, b: np.abs(a - b).max() / scale(b)
    found = jax.tree.map(gap, computed(forward, params), want)
    gaps.append(max(map(float, jax.tree.leaves(found))))
  moved = max(np.abs(x).max() for x in jax.tree.leaves(want[2]))
  whole = sum(x.nbytes for x in jax.tree.leaves(model.params))
  return {'gaps': gaps, 'moved': float(moved), 'shrinks': [whole / h for h in held]}

assert jax.device_count() == 8
for name, spelling in json.loads(sys.argv[1]).items():
  print(json.dumps([name, seen(name, spelling)]), flush=True)
"""


@pytest.fixture(scope='module')
def computed():
  """What each model gave on eight devices and on one: largest gaps, and bytes a device."""
  head = lambda name: f'chain({METHODS.get(name, LORA)}, linear())'  # noqa: E731
  flags = '--xla_force_host_platform_device_count=8'
  done = subprocess.run(
    [sys.executable, '-c', SCRIPT, json.dumps({name: head(name) for name in COMPUTED})],
    env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.getcwd()},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.long
@pytest.mark.parametrize('name', COMPUTED)
def test_eight_devices_give_what_one_does(computed, name):
  found = computed[name]
  assert len(found['gaps']) == 2 and max(found['gaps']) < 1e-5
  assert found['moved'] > 1e-3  # Or equality would say little.


@pytest.mark.long
@pytest.mark.parametrize('name', [n for n in COMPUTED if n in shapes.SHAPES])
def test_a_device_holds_an_eighth(computed, name):
  alone, beside_tensor = computed[name]['shrinks']
  assert alone > 7  # Each device has all of the smallest leaves.
  assert beside_tensor > 5  # And a quarter of what 'tensor' does not split.


@pytest.mark.parametrize('mesh', [EIGHT, BOTH])
@pytest.mark.parametrize('name', one_of_each())
def test_every_family_has_specs_that_divide_its_leaves(name, mesh):
  params = models.load(str(errors.FIXTURES / name)).params
  found = sharding.specs(params, mesh, smallest=64)
  assert jax.tree.structure(found, is_leaf=lambda x: isinstance(x, P)) == jax.tree.structure(params)
  local = lambda x, s: math.prod(NamedSharding(mesh, s).shard_shape(x.shape))  # noqa: E731
  sizes = jax.tree.map(lambda x, s: (x.size, local(x, s)), params, found)
  pairs = list(paths.flatten(sizes).values())
  assert sum(pairs[1::2]) < 0.75 * sum(pairs[::2])  # Odd sizes of fixtures do not all divide.


def test_large_models_fall_eightfold():
  params = shapes.abstract('llama-7b').params
  for mesh in (EIGHT, BOTH):
    found = sharding.specs(params, mesh)
    local = jax.tree.map(
      lambda x, s, m=mesh: math.prod(NamedSharding(m, s).shard_shape(x.shape)), params, found
    )
    whole = sum(x.size for x in jax.tree.leaves(params))
    assert 7.99 < whole / sum(jax.tree.leaves(local)) <= 8


@pytest.mark.parametrize(
  'path, shape, want',
  [
    ('encoder/block_0/attn/query/kernel', (64, 64), (None, 'tensor')),
    ('encoder/block_0/cross/value/kernel', (64, 32), (None, 'tensor')),
    ('encoder/block_0/mlp/gate/kernel', (64, 256), (None, 'tensor')),
    ('encoder/block_0/attn/out/kernel', (64, 64), ('tensor', None)),
    ('encoder/block_0/mlp/down/kernel', (256, 64), ('tensor', None)),
    ('embed/embedding', (1000, 64), ('tensor', None)),
    ('lm_head/kernel', (64, 1000), (None, 'tensor')),
    ('inputs/positions/embedding', (512, 64), ()),
    ('encoder/block_0/attn/query/bias', (64,), ()),
    ('stage_0/out/kernel', (2, 2, 64, 64), ()),
    ('embed/embedding', (1001, 64), ()),  # Two do not divide it.
  ],
)
def test_the_tensor_axis(path, shape, want):
  found = sharding.spec(path, shape, AbstractMesh((2,), ('tensor',)), smallest=1)
  assert tuple(x for x in found if x) == tuple(x for x in want if x)
  assert not want or tuple(found) == want


@pytest.mark.parametrize(
  'shape, want',
  [
    ((64, 256), (None, 'fsdp')),
    ((256, 64), ('fsdp', None)),
    ((64, 64), ('fsdp', None)),
    ((252, 64), (None, 'fsdp')),  # The largest that divides.
    ((3, 3, 64, 128), (None, None, None, 'fsdp')),
    ((7, 9), ()),
    ((), ()),
  ],
)
def test_the_fsdp_axis_takes_the_largest_that_divides(shape, want):
  found = tuple(sharding.spec('any/kernel', shape, EIGHT, smallest=1))
  assert [x for x in found if x] == [x for x in want if x] and (not want or found == want)


def test_small_leaves_lie_on_every_device():
  assert sharding.spec('a/kernel', (255, 256), EIGHT) == P()
  assert sharding.spec('a/kernel', (256, 256), EIGHT) != P()


def test_own_rules_come_first_and_decide_alone():
  params = shapes.abstract('tiny').params
  rules = [('embed/embedding', P(None, 'fsdp')), (r'.*/(query|key)/kernel', P())]
  found = paths.flatten(sharding.specs(params, EIGHT, rules, smallest=64))
  assert found['embed/embedding'] == P(None, 'fsdp')
  assert found['encoder/block_1/attn/query/kernel'] == P()
  assert found['encoder/block_1/attn/value/kernel'] != P()


@pytest.mark.parametrize(
  'rule, message',
  [
    (('encoder/blok_0/.*', P()), 'matches none of the 42 parameters'),
    (('embed/embedding', P('tensor')), "names the axis 'tensor'; the mesh has fsdp"),
    (('inputs/types/embedding', P('fsdp')), 'in 8, which does not divide 2'),
    (('inputs/ln/scale', P(None, 'fsdp')), r'has 2 axes, and inputs/ln/scale is \[64\]'),
  ],
)
def test_rules_are_checked(rule, message):
  with pytest.raises(FewshotError, match=message):
    sharding.specs(shapes.abstract('tiny').params, EIGHT, [rule])


def test_meshes_are_checked():
  assert dict(sharding.mesh().shape) == {'fsdp': jax.device_count()}
  with pytest.raises(FewshotError, match="fsdp and tensor, and 'data' is neither"):
    sharding.mesh(axes={'data': 1})
  with pytest.raises(FewshotError, match='a mesh of 2 fsdp x 3 tensor is not of the 1 devices'):
    sharding.mesh(jax.devices()[:1], {'fsdp': 2, 'tensor': 3})


def test_place_loads_leaf_by_leaf():
  mesh = sharding.mesh(jax.devices()[:1])
  model = models.load(str(errors.FIXTURES / 'bert-tiny'), place=sharding.place(mesh))
  assert all(x.sharding.mesh == mesh for x in jax.tree.leaves(model.params))
  random = shapes.random('tiny', place=sharding.place(mesh))
  assert all(x.sharding.mesh == mesh for x in jax.tree.leaves(random.params))
  assert random.hashes == shapes.random('tiny').hashes


def test_a_batch_that_does_not_divide_is_left_whole():
  forward = lambda params, batch, key=None: {'y': batch['x'] * params}  # noqa: E731
  split = sharding.split_batch(forward, sharding.mesh(jax.devices()[:1]))
  x = np.arange(6.0).reshape(3, 2)
  assert np.array_equal(jax.jit(split)(2.0, {'x': x, 'n': np.float32(1)})['y'], 2 * x)
