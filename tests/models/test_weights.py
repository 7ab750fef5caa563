"""Loading Hugging Face folders: what may vary, and the one line that each defect gets."""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from fewshot import models
from fewshot.errors import FewshotError
from fewshot.models.weights import hf

FIXTURE = Path(__file__).parents[1] / 'parity' / 'fixtures' / 'bert-tiny'
QUERY = 'encoder.layer.0.attention.self.query.weight'


@pytest.fixture
def folder(tmp_path) -> Path:
  """A copy of the tiny BERT to damage."""
  folder = tmp_path / 'tiny'
  folder.mkdir()
  for name in ('config.json', 'model.safetensors'):
    shutil.copy(FIXTURE / name, folder)
  return folder


def weights(folder: Path) -> dict[str, np.ndarray]:
  return load_file(folder / 'model.safetensors')


def rewrite(folder: Path, tensors: dict[str, np.ndarray]) -> None:
  save_file(tensors, folder / 'model.safetensors')


def configure(folder: Path, **changes: object) -> None:
  config = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(config | changes))


def assert_equals_fixture(folder: Path) -> None:
  want, got = models.load(str(FIXTURE)), models.load(str(folder))
  assert got.hashes == want.hashes
  jax.tree.map(np.testing.assert_array_equal, got.params, want.params)


def assert_refused(folder: Path, *words: str) -> None:
  """One line that holds all these words."""
  with pytest.raises(FewshotError) as e:
    models.load(str(folder))
  assert '\n' not in str(e.value)
  for word in words:
    assert word in str(e.value), (word, str(e.value))


def test_kernels_are_transposed_and_embeddings_are_not(folder):
  params, raw = models.load(str(folder)).params, weights(folder)
  np.testing.assert_array_equal(
    params['encoder']['block_0']['attn']['query']['kernel'], raw[QUERY].T
  )
  words = raw['embeddings.word_embeddings.weight']
  np.testing.assert_array_equal(params['embed']['embedding'], words)


def test_a_sharded_folder_loads_equal(folder):
  tensors = weights(folder)
  (folder / 'model.safetensors').unlink()
  names = sorted(tensors)
  for i, part in enumerate((names[:9], names[9:]), 1):
    save_file({n: tensors[n] for n in part}, folder / f'model-0000{i}-of-00002.safetensors')
  assert_equals_fixture(folder)
  (folder / 'model-00002-of-00002.safetensors').unlink()
  assert_refused(folder, 'tiny/', 'missing', 'key.bias', 'left over nothing')


def shard(folder: Path, **changes: object) -> None:
  """Two shards with their index."""
  tensors = weights(folder)
  (folder / 'model.safetensors').unlink()
  files = {n: f'model-0000{1 + i % 2}-of-00002.safetensors' for i, n in enumerate(sorted(tensors))}
  for file in set(files.values()):
    save_file({n: tensors[n] for n in tensors if files[n] == file}, folder / file)
  index = {'metadata': {}, 'weight_map': files | changes}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))


def test_the_index_of_shards_says_which_files_count(folder):
  shard(folder)
  save_file({'stray': np.zeros(3, np.float32)}, folder / 'model-old.safetensors')
  assert_equals_fixture(folder)


def test_a_shard_of_the_index_that_is_missing_is_named(folder):
  shard(folder)
  (folder / 'model-00002-of-00002.safetensors').unlink()
  assert_refused(folder, 'tiny/ lacks model-00002-of-00002.safetensors', 'index.json names')


@pytest.mark.parametrize('name', ['../model.safetensors', '/etc/passwd', 3, '..', '.', ''])
def test_an_index_cannot_point_elsewhere(folder, name):
  shard(folder, stray=name)
  assert_refused(folder, 'model.safetensors.index.json in tiny/ has no weight_map of file names')


@pytest.mark.parametrize('name', ['a' * 5000, 'a\0b', '\ud800'])
def test_an_index_of_names_that_no_file_has(folder, name):
  shard(folder, stray=name)
  assert_refused(folder, 'tiny/ lacks ')


def test_a_tensor_in_two_files(folder):
  save_file({QUERY: np.zeros((32, 32), np.float32)}, folder / 'model-2.safetensors')
  assert_refused(folder, f'tiny/ holds {QUERY} in more than one file')


def test_a_tensor_with_a_prefix_and_without(folder):
  rewrite(folder, weights(folder) | {f'bert.{QUERY}': np.zeros((32, 32), np.float32)})
  assert_refused(folder, f'tiny/ holds {QUERY} both with a prefix and without')


def test_whole_numbers_without_a_scale(folder):
  rewrite(folder, weights(folder) | {QUERY: np.zeros((32, 32), np.int8)})
  assert_refused(folder, 'attn/query/kernel is stored as int8 without a scale')


@pytest.mark.parametrize('scale, dtype', [(np.nan, np.int8), (1.0, np.float32)])
def test_scales_that_are_none(folder, scale, dtype):
  stored = {QUERY: np.zeros((32, 32), dtype), f'{QUERY}_zero_point': np.array(0)}
  rewrite(folder, weights(folder) | stored | {f'{QUERY}_scale': np.array(scale, np.float32)})
  assert_refused(folder, QUERY, 'whole numbers and a finite scale')


@pytest.mark.parametrize('shape', [(1, 1, 32, 32), (2, 32, 32), (), (32,)])
def test_tensors_of_other_ranks(folder, shape):
  rewrite(folder, weights(folder) | {QUERY: np.zeros(shape, np.float32)})
  assert_refused(folder, 'attn/query/kernel is ', 'do not belong together')


def test_a_part_of_a_tensor_that_has_no_such_part(tmp_path):
  folder = shutil.copytree(FIXTURE.parent / 'gpt2-tiny', tmp_path / 'tiny')
  name = next(n for n in weights(folder) if n.endswith('h.0.attn.c_attn.weight'))
  rewrite(folder, weights(folder) | {name: np.zeros((32, 95), np.float32)})
  assert_refused(folder, 'kernel cannot be made of', '(32, 95) in the weights')


def test_names_in_files_stay_in_the_line(folder):
  rewrite(folder, weights(folder) | {'x\ny\x1b[2J' + 'z' * 5000: np.zeros(1, np.float32)})
  assert_refused(folder, r'left over x\ny\x1b[2Jzzz')


@pytest.mark.parametrize('kind', ['folder', 'pipe', 'device'])
@pytest.mark.parametrize('name', ['config.json', 'model.safetensors', 'tokenizer.json'])
def test_what_is_no_file_is_not_opened(folder, name, kind):
  (folder / name).unlink(missing_ok=True)
  if kind == 'folder':
    (folder / name).mkdir()
  elif kind == 'pipe':
    os.mkfifo(folder / name)
  else:
    (folder / name).symlink_to('/dev/zero')
  assert_refused(folder, f'tiny/{name} is no file but a folder, pipe or device')


@pytest.mark.parametrize('name', ['x.gguf', 'model.bin', 'pytorch_model.bin'])
def test_other_formats_that_are_no_files(folder, name):
  (folder / 'model.safetensors').unlink()
  if name != 'pytorch_model.bin':
    (folder / 'config.json').unlink()
  os.mkfifo(folder / name)
  assert_refused(folder, f'tiny/{name} is no file but a folder, pipe or device')


def test_json_of_absurd_size(folder, monkeypatch):
  monkeypatch.setattr(hf, 'JSON', 100)
  assert_refused(folder, 'tiny/config.json has ', 'a file of its kind has at most 100')


@pytest.mark.parametrize('name', ['a' * 5000, 'a\0b', 'a\nb'])
def test_names_that_no_folder_has(name):
  with pytest.raises(FewshotError, match='there is no model') as e:
    models.load(name)
  assert '\n' not in str(e.value)


def test_a_name_that_is_no_text():
  with pytest.raises(FewshotError, match='name=5 is no text'):
    models.load(5)


def quantized(x: np.ndarray, name: str) -> dict[str, np.ndarray]:
  low, high = float(x.min()), float(x.max())
  scale = np.float32((high - low) / 255)
  zero = np.int32(round(-128 - low / scale))
  q = np.clip(np.round(x / scale) + zero, -128, 127).astype(np.int8)
  return {name: q, f'{name}_scale': np.array(scale), f'{name}_zero_point': np.array(zero)}


def test_eight_bits_with_scale_and_zero_point(folder):
  stored = {}
  for name, x in weights(folder).items():
    stored |= quantized(x, name)
  rewrite(folder, stored)
  got, want = models.load(str(folder)).params, models.load(str(FIXTURE)).params
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    step = (y.max() - y.min()) / 255
    assert x.dtype == np.float32 and np.abs(x - y).max() <= step
  q, scale, zero = (stored[f'{QUERY}{end}'] for end in ('', '_scale', '_zero_point'))
  exact = (q.astype(np.float64) - int(zero)) * float(scale)
  np.testing.assert_allclose(
    got['encoder']['block_0']['attn']['query']['kernel'], exact.T, rtol=1e-6
  )


def test_scales_for_each_row_are_refused(folder):
  tensors = weights(folder)
  stored = quantized(tensors[QUERY], QUERY)
  stored[f'{QUERY}_scale'] = np.ones(32, np.float32)
  rewrite(folder, tensors | stored)
  assert_refused(folder, f'{QUERY}_scale', 'only one scale and zero point a tensor')


def test_a_dtype_that_is_not_known_is_named(folder):
  import ml_dtypes

  rewrite(folder, weights(folder) | {QUERY: np.zeros((32, 32), ml_dtypes.float8_e4m3fn)})
  assert_refused(folder, 'tiny/model.safetensors', QUERY, 'F8_E4M3')


def test_the_prefix_of_a_task_model_and_its_head_are_known(folder):
  prefixed = {f'bert.{k}': v for k, v in weights(folder).items()}
  rewrite(folder, prefixed | {'cls.predictions.bias': np.zeros(3, np.float32)})
  assert_equals_fixture(folder)


def test_the_old_names_of_layer_norm_are_known(folder):
  rename = lambda n: n.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(  # noqa: E731
    'LayerNorm.bias', 'LayerNorm.beta'
  )
  old = {rename(k): v for k, v in weights(folder).items()}
  assert sum('gamma' in k for k in old) == 5
  rewrite(folder, old)
  assert_equals_fixture(folder)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, np.float16])
def test_weights_are_cast_as_they_are_read(folder, dtype):
  want = models.load(str(folder)).params
  got = models.load(str(folder), dtype=dtype).params
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_array_equal(x, np.asarray(y).astype(dtype))


def test_weights_stored_in_bfloat16_are_read(folder):
  rewrite(folder, {k: v.astype(jnp.bfloat16) for k, v in weights(folder).items()})
  assert {x.dtype for x in jax.tree.leaves(models.load(str(folder)).params)} == {
    np.dtype(jnp.bfloat16)
  }
  wide = models.load(str(folder), dtype=np.float32).params
  assert {x.dtype for x in jax.tree.leaves(wide)} == {np.dtype(np.float32)}


@pytest.mark.parametrize('keep', [0, 4, 100, -10])
def test_truncated_weights(folder, keep):
  file = folder / 'model.safetensors'
  file.write_bytes(file.read_bytes()[:keep])
  assert_refused(folder, 'tiny/model.safetensors', 'corrupted or truncated', 'fetch it again')


def test_garbage_for_weights(folder):
  (folder / 'model.safetensors').write_bytes(np.random.default_rng(0).bytes(4096))
  assert_refused(folder, 'tiny/model.safetensors', 'corrupted or truncated')


def test_no_weights_at_all(folder):
  (folder / 'model.safetensors').unlink()
  assert_refused(folder, 'tiny/', 'no model*.safetensors, pytorch_model*.bin')


def test_missing_and_left_over_tensors_are_both_listed(folder):
  tensors = weights(folder)
  tensors['encoder.layer.7.mystery.weight'] = tensors.pop(QUERY)
  rewrite(folder, tensors)
  assert_refused(folder, 'tiny/', f'missing {QUERY}', 'left over encoder.layer.7.mystery.weight')


def test_weights_of_another_size_than_the_config_says(folder):
  configure(folder, intermediate_size=48)
  assert_refused(folder, 'mlp/down', '(64, 32)', '(48, 32)', 'config')


def test_config_json_missing(folder):
  (folder / 'config.json').unlink()
  assert_refused(folder, 'config.json is missing from tiny/')


@pytest.mark.parametrize('text', ['{"model_type": "be', '', '\xff', '[' * 100_000])
def test_config_json_broken(folder, text):
  (folder / 'config.json').write_bytes(text.encode('latin-1'))
  assert_refused(folder, 'config.json in tiny/ is not readable JSON')


def test_config_json_that_is_no_object(folder):
  (folder / 'config.json').write_text('[]')
  assert_refused(folder, 'config.json in tiny/ holds no JSON object')


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'model_type': 'bertt'}, ("model_type 'bertt'", "did you mean 'bert'?")),
    ({'model_type': 'whisper'}, ("model_type 'whisper'", 'known: albert, bert')),
    ({'model_type': None}, ('model_type None',)),
    ({'hidden_act': 'swish'}, ("hidden_act 'swish'", 'gelu')),
    ({'position_embedding_type': 'relative_key'}, ("'relative_key'", 'absolute')),
    ({'num_attention_heads': 5}, ('hidden_size 32', '5 heads')),
    ({'hidden_size': 'big'}, ('tiny', 'config.json')),
  ],
)
def test_a_config_that_this_family_does_not_compute(folder, changes, words):
  configure(folder, **changes)
  assert_refused(folder, *words)


def test_a_config_that_lacks_a_key(folder):
  config = json.loads((folder / 'config.json').read_text())
  del config['vocab_size']
  (folder / 'config.json').write_text(json.dumps(config))
  assert_refused(folder, "tiny: config.json lacks 'vocab_size'")


def tokenizer(words: int) -> tokenizers.Tokenizer:
  vocab = {'[UNK]': 0, **{f'w{i}': i for i in range(1, words)}}
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token='[UNK]'))
  made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  return made


def test_a_tokenizer_is_read_without_its_padding_and_truncation(folder):
  stored = tokenizer(100)
  stored.enable_padding(length=12)
  stored.enable_truncation(2)
  stored.save(str(folder / 'tokenizer.json'))
  model = models.load(str(folder))
  assert model.tokenizer.encode('w1 w2 w3').ids == [1, 2, 3]
  assert set(model.hashes) == {'weights', 'tokenizer'}


def test_a_tokenizer_with_more_tokens_than_embedding_rows(folder):
  tokenizer(101).save(str(folder / 'tokenizer.json'))
  assert_refused(folder, '101 tokens', '100 rows', 'do not belong together')


def test_added_tokens_count_too(folder):
  stored = tokenizer(100)
  stored.add_special_tokens(['[NEW]'])
  stored.save(str(folder / 'tokenizer.json'))
  assert_refused(folder, '101 tokens', '100 rows')


def test_a_tokenizer_that_is_not_readable(folder):
  (folder / 'tokenizer.json').write_text('{"version": 1')
  assert_refused(folder, 'tiny: tokenizer.json is not readable')


def test_no_model_of_that_name():
  with pytest.raises(FewshotError, match=r"there is no model 'minilm'.*did you mean 'minilm-l6'"):
    models.load('minilm')
  with pytest.raises(FewshotError, match="there is no model ''"):
    models.load('')


def test_the_name_of_a_folder_is_its_own_however_it_is_given(folder, monkeypatch):
  monkeypatch.chdir(folder)
  assert models.load('.').name == 'tiny'


@pytest.mark.parametrize('rate', [-0.1, 1.0])
def test_a_dropout_that_is_no_probability(rate):
  with pytest.raises(FewshotError, match='a probability below 1'):
    models.load(str(FIXTURE), dropout=rate)
