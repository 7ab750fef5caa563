"""PyTorch's files without PyTorch: every dtype and stride, and no pickle that gets to run."""

import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from fewshot import models
from fewshot.errors import FewshotError
from fewshot.models.weights import torch_file

FIXTURES = Path(__file__).parents[1] / 'parity' / 'fixtures'
FILES = FIXTURES / 'torch-files'


@pytest.mark.parametrize('name', ['zip.pth', 'legacy.pth', 'checkpoint.pt'])
def test_every_dtype_and_stride_equals_what_pytorch_stored(name):
  want, got = load_file(FILES / 'expected.safetensors'), torch_file.tensors(FILES / name)
  assert got.keys() == want.keys()
  for key, tensor in got.items():
    x = tensor.read()
    assert tensor.shape == x.shape and x.dtype == want[key].dtype, key
    np.testing.assert_array_equal(x, want[key], key)
  assert {x.dtype for x in want.values()} >= {np.dtype(jnp.bfloat16), np.dtype('float16')}


def test_only_what_is_read_is_read(monkeypatch):
  opened = []
  monkeypatch.setattr(
    torch_file, 'read_array', lambda *args: opened.append(args) or np.zeros(args[2], args[3])
  )
  tensors = torch_file.tensors(FILES / 'zip.pth')
  assert not opened
  tensors['sliced'].read()
  assert [args[2] for args in opened] == [(11,)]  # Of 24: from the second row to the fourth.


def test_a_folder_with_a_pytorch_model_is_loaded(tmp_path):
  """The same state dict as a .bin that is written here, entry by entry, like PyTorch's."""
  shutil.copy(FIXTURES / 'bert-tiny' / 'config.json', tmp_path)
  state = load_file(FIXTURES / 'bert-tiny' / 'model.safetensors')
  write_zip(tmp_path / 'pytorch_model.bin', state)
  want = models.load(str(FIXTURES / 'bert-tiny'))
  assert models.load(str(tmp_path)).hashes == want.hashes


class FloatStorage:
  """Stands for torch.FloatStorage in the pickles below."""


class Rebuild:
  """Pickled as the call torch._utils._rebuild_tensor_v2(storage, *view, False, {})."""

  def __init__(self, key: object, x: np.ndarray, view: tuple | None = None) -> None:
    self.key, self.x = key, x
    self.view = view or (0, x.shape, tuple(s // 4 for s in x.strides))  # Offset, shape, strides.


class TorchPickler(pickle._Pickler):
  """Writes names of PyTorch's without having it."""

  def persistent_id(self, obj):
    if isinstance(obj, tuple) and obj[:1] == ('storage',):
      return obj
    return None

  def save(self, obj, *args, **kwargs):
    if obj is FloatStorage:
      self.write(b'ctorch\nFloatStorage\n')
    elif isinstance(obj, Rebuild):
      self.write(b'ctorch._utils\n_rebuild_tensor_v2\n')
      storage = ('storage', FloatStorage, obj.key, 'cpu', obj.x.size)
      self.save((storage, *obj.view, False, {}))
      self.write(b'R')
    else:
      super().save(obj, *args, **kwargs)


def write_zip(path: Path, state: dict[str, np.ndarray], outer: str = '') -> None:
  program = io.BytesIO()
  keyed = {name: Rebuild(str(i), x) for i, (name, x) in enumerate(state.items())}
  TorchPickler(program, 2).dump({outer: keyed, 'epoch': 3} if outer else keyed)
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', program.getvalue())
    for i, x in enumerate(state.values()):
      archive.writestr(f'archive/data/{i}', x.tobytes())


def write_view(path: Path, view: tuple | None, key: object = '0') -> Path:
  """One storage of four numbers, and a view of it."""
  program, x = io.BytesIO(), np.arange(4, dtype=np.float32)
  TorchPickler(program, 2).dump({'a': Rebuild(key, x, view)})
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', program.getvalue())
    archive.writestr('archive/data/0', x.tobytes())
  return path


def write_pickled(path: Path, program: bytes) -> Path:
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', program)
  return path


class Evil:
  """Unpickled, it would run a command."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize(
  'function, args, named',
  [
    (os.system, ('touch {}',), r'(posix|nt)\.system'),
    (eval, ("open({!r}, 'w')",), r'builtins\.eval|__builtin__\.eval'),
    (getattr, (os, 'system'), r'getattr|which no state dict'),
  ],
)
def test_a_pickle_that_calls_is_refused_and_not_run(tmp_path, protocol, function, args, named):
  mark = tmp_path / 'ran'
  if function is getattr:
    evil = Evil(getattr, 'x', 'upper')
  else:
    evil = Evil(function, args[0].format(str(mark)))
  program = pickle.dumps({'weight': evil}, protocol)
  path = write_pickled(tmp_path / 'evil.pth', program)
  with pytest.raises(FewshotError, match=f'({named}|uses [A-Z_]+), which no state dict does') as e:
    torch_file.tensors(path)
  assert not mark.exists() and '\n' not in str(e.value)


def test_a_name_that_is_only_text_is_not_a_function(tmp_path):
  """The text 'collections.OrderedDict' where a function belongs."""
  program = b'\x80\x02X\x17\x00\x00\x00collections.OrderedDict)R.'
  with pytest.raises(FewshotError, match=r'calls collections.OrderedDict, which no state dict'):
    torch_file.tensors(write_pickled(tmp_path / 'x.pth', program))


@pytest.mark.parametrize(
  'op', [b'\x80\x02cos\nsystem\nX\x01\x00\x00\x00x\x85\x81.', b'(ios\nsystem\n.']
)
def test_other_ways_to_call_are_refused(tmp_path, op):
  with pytest.raises(FewshotError, match=r'the pickle uses (NEWOBJ|INST), which no'):
    torch_file.tensors(write_pickled(tmp_path / 'x.pth', op))


def test_a_whole_module_is_refused():
  with pytest.raises(FewshotError, match=r'module.pt: the pickle .* which no state dict does'):
    torch_file.tensors(FILES / 'module.pt')


def test_names_in_the_archive_write_nowhere(tmp_path):
  path = write_pickled(tmp_path / 'x.pth', pickle.dumps({}, 2))
  with zipfile.ZipFile(path, 'a') as archive:
    archive.writestr('archive/data/../../../escaped', b'x')
    archive.writestr('/escaped', b'x')
  assert torch_file.tensors(path) == {}
  assert [p.name for p in tmp_path.iterdir()] == ['x.pth'] and not Path('/escaped').exists()


@pytest.mark.parametrize(
  'content, said',
  [
    (b'', 'neither a zip nor the old PyTorch format; convert it to safetensors'),
    (b'\x89HDF\r\n\x1a\n' * 9, 'neither a zip nor the old PyTorch format'),
  ],
)
def test_no_pytorch_file_at_all(tmp_path, content, said):
  (tmp_path / 'x.bin').write_bytes(content)
  with pytest.raises(FewshotError, match=said):
    torch_file.tensors(tmp_path / 'x.bin')


def test_other_zips_and_other_objects(tmp_path):
  with zipfile.ZipFile(tmp_path / 'x.pth', 'w') as archive:
    archive.writestr('readme', b'x')
  with pytest.raises(FewshotError, match=r'it holds no data.pkl'):
    torch_file.tensors(tmp_path / 'x.pth')
  path = write_pickled(tmp_path / 'y.pth', pickle.dumps({'a': 1}, 2))
  with pytest.raises(FewshotError, match=r'no dict of tensors; save model.state_dict\(\)'):
    torch_file.tensors(path)


def test_a_tensor_beyond_its_storage(tmp_path):
  x = np.zeros((2, 3), np.float32)
  write_zip(tmp_path / 'x.pth', {'a': np.lib.stride_tricks.as_strided(x, (3, 3))})
  with zipfile.ZipFile(tmp_path / 'x.pth') as archive:
    program = archive.read('archive/data.pkl')
  path = write_pickled(tmp_path / 'y.pth', program)
  with zipfile.ZipFile(path, 'a') as archive:
    archive.writestr('archive/data/0', x.tobytes())
  with pytest.raises(FewshotError, match='beyond its storage'):
    torch_file.tensors(path)


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(['zip.pth', 'legacy.pth']), data=st.data())
def test_damage_gives_an_error_or_other_numbers_and_nothing_else(tmp_path_factory, name, data):
  raw = bytearray((FILES / name).read_bytes())
  if data.draw(st.booleans()):
    raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
  for _ in range(data.draw(st.integers(1, 4))):
    if raw:
      raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
  path = tmp_path_factory.mktemp('damaged') / name
  path.write_bytes(raw)
  try:
    for tensor in torch_file.tensors(path).values():
      tensor.read()
  except FewshotError as e:
    assert name in str(e)


@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('outer', ['state_dict', 'model'])
def test_a_checkpoint_of_a_training_run(tmp_path, prefix, outer):
  """Its state dict is under a name, beside other things; DataParallel puts its own before all."""
  write_zip(tmp_path / 'x.pth', {f'{prefix}w': np.ones(2, np.float32)}, outer)
  found = torch_file.tensors(tmp_path / 'x.pth')
  assert list(found) == ['w'] and found['w'].read().tolist() == [1.0, 1.0]


DEEP = b')' + b'\x85' * 200_000  # (((...),),): to hash it, or to print it, ends the process.


@pytest.mark.parametrize(
  'program, said',
  [
    (b'}' + DEEP + b'Ns.', 'has a tuple as a key'),
    (b'}(' + DEEP + b'Nu.', 'has a tuple as a key'),
    (b'ccollections\nOrderedDict\n](' + DEEP + b'N\x86e\x85R.', 'has a tuple as a key'),
    (b'(X\x07\0\0\0storage' + DEEP + b'K\x02tQ.', 'refers to a tuple'),
    (b'(X\x07\0\0\0storagectorch\nFloatStorage\n' + DEEP + b'tQ.', 'a storage by a tuple'),
    (DEEP + b')R.', 'calls tuple, which no state dict does'),
    (DEEP + b'K\x01\x93.', 'names a function by tuple and int'),
    (b'X\x01\0\0\0aq\0' + b'h\0h\0\x93q\0' * 40 + b'.', 'names a function by a.a'),
    (b'X\x02\0\0\0a\nX\x01\0\0\0b\x93)R.', r'calls a\\n.b, which'),
  ],
)
def test_objects_of_any_depth_are_neither_hashed_nor_shown(tmp_path, program, said):
  with pytest.raises(FewshotError, match=said) as e:
    torch_file.tensors(write_pickled(tmp_path / 'x.pth', b'\x80\x04' + program))
  assert '\n' not in str(e.value) and len(str(e.value)) < 700


def test_pairs_make_an_ordered_dict(tmp_path):
  """As Python 2 wrote it."""
  program = b'\x80\x02ccollections\nOrderedDict\n](X\x01\0\0\0aK\x01\x86e\x85R.'
  assert torch_file.interpret(io.BytesIO(program)) == {'a': 1}


@pytest.mark.parametrize('entry', ['data.pkl', 'byteorder', 'data/0'])
def test_compressed_entries_are_not_unpacked(tmp_path, entry):
  with zipfile.ZipFile(tmp_path / 'x.pth', 'w') as archive:
    if entry != 'data.pkl':
      archive.writestr('archive/data.pkl', b'\x80\x02}.')
    archive.writestr(f'archive/{entry}', bytes(1 << 20), zipfile.ZIP_DEFLATED)
  with pytest.raises(FewshotError, match=f'archive/{entry} is compressed, which PyTorch never'):
    torch_file.tensors(tmp_path / 'x.pth')


def test_a_pickle_of_too_many_bytes(tmp_path, monkeypatch):
  monkeypatch.setattr(torch_file, 'PROGRAM', 100)
  with pytest.raises(FewshotError, match=r'data.pkl has more than 100 bytes; save only'):
    torch_file.tensors(write_pickled(tmp_path / 'x.pth', b'\x80\x02' + b']' * 100 + b'.'))


def test_a_view_of_a_storage(tmp_path):
  x = torch_file.tensors(write_view(tmp_path / 'x.pth', (1, (3, 1), (1, 1 << 62))))['a'].read()
  assert x.tolist() == [[1.0], [2.0], [3.0]]


@pytest.mark.parametrize(
  'view, said',
  [
    ((0, (3,), (-1,)), 'a tensor of no shape'),
    ((-1, (2,), (1,)), 'a tensor of no shape'),
    ((0, (2.0,), (1,)), 'a tensor of no shape'),
    ((True, (2,), (1,)), 'a tensor of no shape'),
    ((1 << 70, (2,), (1,)), 'a tensor of no shape'),
    ((0, (2, 2), (1,)), 'a tensor of no shape'),
    ((0, (1,) * 33, (1,) * 33), 'a tensor of no shape'),
    ((0, 'ab', 'ab'), 'a tensor of no shape'),
    ((0, (0, 1 << 62), (1, 1)), 'that no memory holds'),
    ((3, (2,), (1,)), 'beyond its storage'),
    ((0, (1 << 40,), (0,)), 'beyond its storage'),  # One number, repeated.
    ((0, (1 << 62, 1 << 62), (0, 0)), 'that no memory holds'),
    ((0, (3, 3), (1, 0)), 'beyond its storage'),
  ],
)
def test_views_that_are_none(tmp_path, view, said):
  with pytest.raises(FewshotError, match=said):
    torch_file.tensors(write_view(tmp_path / 'x.pth', view))


@pytest.mark.parametrize('count', [-4, 1 << 30])
def test_a_storage_ends_with_the_file(tmp_path, count):
  program = io.BytesIO()
  TorchPickler(program, 2).dump({'a': Rebuild('0', np.zeros(4, np.float32), (0, (1 << 20,), (1,)))})
  head = torch_file.MAGIC + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + program.getvalue()
  tail = pickle.dumps(['0'], 2) + count.to_bytes(8, 'little', signed=True) + bytes(16)
  (tmp_path / 'x.pth').write_bytes(head + tail)
  with pytest.raises(FewshotError, match='beyond its storage'):
    torch_file.tensors(tmp_path / 'x.pth')
