"""GGUF files: every packing, metadata, and a whole Llama against its Hugging Face form."""

from pathlib import Path

import gguf as library
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from fewshot import models
from fewshot.errors import FewshotError
from fewshot.models.weights import gguf

FIXTURES = Path(__file__).parents[1] / 'parity' / 'fixtures'


def write(path: Path, tensors: dict[str, np.ndarray], kinds=None, meta=(), arch='llama') -> Path:
  writer = library.GGUFWriter(path, arch)
  for key, value in dict(meta).items():
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    add |= {str: writer.add_string, list: writer.add_array}
    add[type(value)](key, value)
  for name, x in tensors.items():
    writer.add_tensor(name, x, raw_dtype=(kinds or {}).get(name))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def packed(kind: Kind, rows: int, rng: np.random.Generator) -> np.ndarray:
  """Rows of two blocks each: packed numbers where the library packs, else any bytes."""
  block, width = GGML_QUANT_SIZES[kind]
  try:
    return quantize(rng.standard_normal((rows, 2 * block)).astype(np.float32), kind)
  except NotImplementedError:
    scales = rng.standard_normal((rows, width)).astype(np.float16)
    return scales.view(np.uint8).reshape(rows, 2 * width)


@pytest.mark.parametrize(
  'kind', ['Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q8_0', 'Q2_K', 'Q3_K', 'Q4_K', 'Q5_K', 'Q6_K', 'IQ4_NL']
)
@pytest.mark.parametrize('chunk', [1 << 22, 600])
def test_packed_tensors_are_unpacked_in_pieces(tmp_path, monkeypatch, kind, chunk):
  monkeypatch.setattr(gguf, 'CHUNK', chunk)
  kind = Kind[kind]
  raw = packed(kind, 7, np.random.default_rng(0))
  path = write(tmp_path / 'x.gguf', {'before': np.ones(3, np.float32), 'x': raw}, {'x': kind})
  tensor = gguf.read(path)[1]['x']
  got = tensor.read()
  assert got.dtype == np.float32 and got.shape == tensor.shape == (7, 2 * GGML_QUANT_SIZES[kind][0])
  np.testing.assert_array_equal(got, dequantize(raw, kind))
  assert np.nanmax(np.abs(got)) > 0.1


@pytest.mark.parametrize('kind', ['F16', 'F32', 'F64', 'BF16'])
def test_plain_tensors_keep_their_dtype(tmp_path, kind):
  import ml_dtypes

  x = np.arange(6.0).reshape(2, 3) / 4
  x = x.astype({'F16': 'f2', 'F32': 'f4', 'F64': 'f8', 'BF16': ml_dtypes.bfloat16}[kind])
  stored = x.view(np.uint8) if kind == 'BF16' else x
  got = gguf.read(write(tmp_path / 'x.gguf', {'x': stored}, {'x': Kind[kind]}))[1]['x'].read()
  assert got.dtype == x.dtype
  np.testing.assert_array_equal(got, x)


def test_a_packing_that_is_not_known_is_named(tmp_path):
  path = write(tmp_path / 'x.gguf', {'x': np.zeros((1, 292), np.uint8)}, {'x': Kind.Q8_K})
  with pytest.raises(FewshotError, match=r'x.gguf: x is packed as Q8_K, which is not read'):
    gguf.read(path)


def test_metadata_of_every_type(tmp_path):
  meta = {'a': True, 'b': 7, 'c': 0.5, 'd': 'tëxt', 'e': [1, 2], 'f': ['x', 'y'], 'g': [0.5]}
  path = write(tmp_path / 'x.gguf', {'x': np.ones(1, np.float32)}, meta=meta)
  found, _ = gguf.read(path)
  assert found == meta | {'general.architecture': 'llama'}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damage_gives_an_error_or_other_numbers_and_nothing_else(tmp_path_factory, data):
  folder = tmp_path_factory.mktemp('damaged')
  path = write(folder / 'x.gguf', {'x': np.ones((2, 3), np.float32)}, meta={'k': ['a', 'b']})
  raw = bytearray(path.read_bytes())
  raw = raw[: data.draw(st.integers(0, len(raw)))]
  if raw:
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(0, 255))
  path.write_bytes(raw)
  try:
    for tensor in gguf.read(path)[1].values():
      tensor.read()
  except FewshotError as e:
    assert 'x.gguf' in str(e)


@pytest.mark.parametrize('keep', [0, 3, 20, 60, -40])
def test_a_truncated_file(tmp_path, keep):
  path = write(tmp_path / 'x.gguf', {'x': np.ones((8, 8), np.float32)}, meta={'k': 'v' * 20})
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(FewshotError, match=r'x.gguf is corrupted or truncated'):
    gguf.read(path)


def llama(path: Path, **changes) -> Path:
  """The tiny Llama as llama.cpp stores it: other names, and query and key rows in its order."""
  stored = load_file(FIXTURES / 'llama-tiny' / 'model.safetensors')
  names = {
    'embed_tokens': 'token_embd', 'norm': 'output_norm', 'input_layernorm': 'attn_norm',
    'q_proj': 'attn_q', 'k_proj': 'attn_k', 'v_proj': 'attn_v', 'o_proj': 'attn_output',
    'post_attention_layernorm': 'ffn_norm', 'gate_proj': 'ffn_gate', 'up_proj': 'ffn_up',
    'down_proj': 'ffn_down', 'lm_head': 'output',
  }  # fmt: skip
  tensors = {}
  for name, x in stored.items():
    parts = name.removeprefix('model.').split('.')
    block = f'blk.{parts[1]}.' if parts[0] == 'layers' else ''
    if parts[-2] in ('q_proj', 'k_proj'):
      heads = {'q_proj': 4, 'k_proj': 2}[parts[-2]]
      x = x.reshape(heads, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
    tensors[f'{block}{names[parts[-2]]}.weight'] = x
  meta = {
    'llama.block_count': 2, 'llama.context_length': 40, 'llama.embedding_length': 32,
    'llama.feed_forward_length': 48, 'llama.attention.head_count': 4,
    'llama.attention.head_count_kv': 2, 'llama.attention.key_length': 12,
    'llama.rope.freq_base': 500.0, 'llama.attention.layer_norm_rms_epsilon': 1e-6,
    'tokenizer.ggml.model': 'gpt2', 'tokenizer.ggml.pre': 'smollm',
    'tokenizer.ggml.tokens': [chr(33 + i) for i in range(90)] + [f'<{i}>' for i in range(10)],
    'tokenizer.ggml.merges': ['a b'],
  }  # fmt: skip
  meta['tokenizer.ggml.tokens'][80] = 'ab'
  return write(path, tensors, meta=meta | changes)


@pytest.mark.parametrize('by', ['file', 'folder'])
def test_a_llama_equals_its_hugging_face_form(tmp_path, by):
  path = llama(tmp_path / 'tiny.gguf')
  got, want = models.load(str(path if by == 'file' else tmp_path)), FIXTURES / 'llama-tiny'
  want = models.load(str(want))
  batch = {'tokens': np.arange(10)[None] * 7, 'mask': np.ones((1, 10), bool)}
  x, y = (m.forward(m.params, batch)['token_logits'] for m in (got, want))
  assert np.abs(x - y).max() < 1e-4 and np.abs(y).max() > 1
  assert got.tokenizer.encode('cab').tokens == ['c', 'ab']
  assert set(got.hashes) == {'weights', 'tokenizer'} and got.positions == 40
  assert got.name == (tmp_path.name if by == 'folder' else 'tiny')


@pytest.mark.parametrize('step', [0, 32.0, 'x', [32]])
def test_alignments_that_are_none(tmp_path, step):
  path = write(tmp_path / 'x.gguf', {'x': np.ones(1, np.float32)}, meta={'general.alignment': step})
  with pytest.raises(FewshotError, match=r'its general\.alignment is no number of bytes'):
    gguf.read(path)


def test_two_tensors_of_one_name(tmp_path):
  path = write(tmp_path / 'x.gguf', {n: np.ones(1, np.float32) for n in ('name_a', 'name_b')})
  path.write_bytes(path.read_bytes().replace(b'name_b', b'name_a'))
  with pytest.raises(FewshotError, match='it has two tensors of one name'):
    gguf.read(path)


def test_an_architecture_that_is_no_text(tmp_path):
  path = write(
    tmp_path / 'x.gguf', {'x': np.ones(1, np.float32)}, meta={'general.architecture': [1]}
  )
  with pytest.raises(FewshotError, match=r'x.gguf is of architecture \[1\]; known: gemma3'):
    models.load(str(path))


def test_a_folder_with_two_files(tmp_path):
  for name in 'ab':
    write(tmp_path / f'{name}.gguf', {'x': np.ones(1, np.float32)})
  with pytest.raises(FewshotError, match=r'holds 2 .gguf files; give the path of one'):
    models.load(str(tmp_path))


def test_architectures_that_are_not_known(tmp_path):
  path = write(tmp_path / 'x.gguf', {'x': np.ones(1, np.float32)}, arch='mamba')
  with pytest.raises(FewshotError, match=r"of architecture 'mamba'; did you mean 'llama'"):
    models.load(str(path))


def test_metadata_that_lacks_a_key(tmp_path):
  path = write(tmp_path / 'x.gguf', {'x': np.ones(1, np.float32)})
  with pytest.raises(FewshotError, match=r"x.gguf: the metadata lacks 'llama"):
    models.load(str(path))


def test_other_files_are_no_models(tmp_path):
  (tmp_path / 'x.onnx').write_bytes(b'')
  with pytest.raises(FewshotError, match=r'x.onnx is a file, and only a .gguf file is a model'):
    models.load(str(tmp_path / 'x.onnx'))
