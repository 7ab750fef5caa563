"""PyTorch's .pth, .pt and .bin files, without PyTorch and without unpickling them.

Such a file holds a pickle, a program that may name any function, beside the raw numbers.  Nothing
is run here: `pickletools.genops` decodes the program into its operations, and the small machine
below understands those that build dicts, lists, tuples and numbers.  A function stays a name.  Of
the calls, it knows three, which it answers itself with a plain dict or a record of where a tensor
lies; any other is an error.  This is what PyTorch calls `weights_only`, and narrower.
"""

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fewshot.errors import FewshotError, brief
from fewshot.models.weights.files import broken, members, read_array, regular
from fewshot.models.weights.names import Tensor

Extent = tuple[int, int]  # The first byte and the number of bytes.
PROGRAM = 16 << 20  # Bytes of pickles at most.
OPERATIONS = 1 << 18  # Of a pickle: those of a tensor are thirty.
ARGUMENTS = 16
RANK = 32
MAGIC = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # Begins the format from before PyTorch 1.6.
DTYPES: dict[str, Any] = {
  'torch.DoubleStorage': np.float64,
  'torch.FloatStorage': np.float32,
  'torch.HalfStorage': np.float16,
  'torch.BFloat16Storage': jnp.bfloat16,
  'torch.LongStorage': np.int64,
  'torch.IntStorage': np.int32,
  'torch.ShortStorage': np.int16,
  'torch.CharStorage': np.int8,
  'torch.ByteStorage': np.uint8,
  'torch.BoolStorage': np.bool_,
}


class Name(str):
  """A function or class that the pickle names, as text."""


class Storage(NamedTuple):
  """A run of numbers in the file, by its key."""

  dtype: np.dtype
  key: str


class Stored(NamedTuple):
  """A tensor as a view of a storage; offset and strides in elements."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def tensors(path: Path) -> dict[str, Tensor]:
  """The tensors of a state dict, or of the 'state_dict' or 'model' of a checkpoint.

  Raises:
    FewshotError: the file is broken, calls what no state dict calls, or is no dict of tensors.
  """
  regular(path)
  try:
    with open(path, 'rb') as file:
      found, extents = _zipped(file) if zipfile.is_zipfile(file) else _legacy(file)
    found = _state_dict(found)
    parallel = all(name.startswith('module.') for name in found)  # Of DataParallel.
    plain = {n.removeprefix('module.') if parallel else n: x for n, x in found.items()}
    return {name: _tensor(path, x, extents[x.storage.key]) for name, x in plain.items()}
  except FewshotError as e:
    raise FewshotError(f'{path.parent.name}/{path.name}: {e}') from None
  except Exception as e:  # Whatever damaged bytes lead to.
    raise broken(path, f'{type(e).__name__}: {e}'[:80]) from None


def _state_dict(found: Any) -> dict[str, Stored]:
  """The dict of tensors in what was saved."""
  inner = [found[k] for k in ('state_dict', 'model') if isinstance(found, dict) and k in found]
  for each in (*inner, found):
    if isinstance(each, dict) and all(
      isinstance(k, str) and isinstance(x, Stored) for k, x in each.items()
    ):
      return each
  there = f'; it has {brief([str(k) for k in found])}' if isinstance(found, dict) else ''
  raise FewshotError(f'holds no dict of tensors; save model.state_dict(){there}')


def _tensor(path: Path, x: Stored, extent: Extent) -> Tensor:
  dtype, (start, size) = x.storage.dtype, extent
  size = min(size, path.stat().st_size - start)  # Whatever the archive says of itself.
  span = 0
  if math.prod(x.shape):
    span = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.strides, strict=True))
  # Of views that repeat numbers, small files could hold large ones.
  if max(x.offset + span, math.prod(x.shape)) * dtype.itemsize > size:
    raise ValueError('a tensor reaches beyond its storage')

  def read() -> np.ndarray:
    flat = read_array(path, start + x.offset * dtype.itemsize, (span,), dtype)
    steps = [
      step * dtype.itemsize if n > 1 else 0 for n, step in zip(x.shape, x.strides, strict=True)
    ]
    return np.lib.stride_tricks.as_strided(flat, x.shape, steps)

  return Tensor(x.shape, read)


def _zipped(file: IO[bytes]) -> tuple[Any, dict[str, Extent]]:
  """The pickled object, and where each storage lies in the file.

  The names in the archive only look storages up; nothing is unpacked.
  """
  with members(file) as archive:
    infos = {info.filename: info for info in archive.infolist()}
    pickled = next((n for n in infos if n.endswith('data.pkl')), None)
    if pickled is None:
      raise FewshotError('a zip, but no PyTorch file: it holds no data.pkl')
    root = pickled.removesuffix('data.pkl')
    for name, info in infos.items():
      read = name.startswith((pickled, f'{root}byteorder', f'{root}data/'))
      if read and info.compress_type != zipfile.ZIP_STORED:
        raise FewshotError(f'{name} is compressed, which PyTorch never does')
    if infos[pickled].file_size > PROGRAM:
      raise FewshotError(f'{pickled} has more than {PROGRAM} bytes; save only model.state_dict()')
    if f'{root}byteorder' in infos:
      with archive.open(f'{root}byteorder') as order:
        if order.read(16) != b'little':
          raise FewshotError('big-endian files are not read; save it on a little-endian machine')
    with archive.open(pickled) as program:
      found = interpret(_head(program))
  extents = {}
  for name, info in infos.items():
    if name.startswith(f'{root}data/'):
      file.seek(info.header_offset + 26)
      names, extra = struct.unpack('<HH', file.read(4))  # Of the entry's own header.
      start = info.header_offset + 30 + names + extra
      extents[name.removeprefix(f'{root}data/')] = (start, info.file_size)
  return found, extents


def _head(file: IO[bytes]) -> IO[bytes]:
  """The beginning of a file, where its pickles are."""
  return io.BytesIO(file.read(PROGRAM))


def _legacy(file: IO[bytes]) -> tuple[Any, dict[str, Extent]]:
  """The same of the format before PyTorch 1.6: pickles, then the storages one by one."""
  file.seek(0)
  if file.read(len(MAGIC)) != MAGIC:
    raise FewshotError('neither a zip nor the old PyTorch format; convert it to safetensors')
  storages: dict[str, Storage] = {}
  head = _head(file)
  version, _, found, keys = (interpret(head, storages) for _ in range(4))
  if version != 1001:
    raise FewshotError('another version of the old PyTorch format; convert it to safetensors')
  file.seek(len(MAGIC) + head.tell())
  extents = {}
  for key in map(_key, keys):
    (count,) = struct.unpack('<q', file.read(8))
    size = count * storages[key].dtype.itemsize
    extents[key] = (file.tell(), size)
    file.seek(size, 1)
  return found, extents


def interpret(file: IO[bytes], storages: dict[str, Storage] | None = None) -> Any:
  """What one pickle builds, of dicts, lists, tuples, numbers, text and `Stored` tensors.

  The storages that it refers to are put into `storages` by key.

  >>> import io, pickle
  >>> interpret(io.BytesIO(pickle.dumps({'a': [1, 2.5], 'b': (None, True)})))
  {'a': [1, 2.5], 'b': (None, True)}
  >>> interpret(io.BytesIO(pickle.dumps(print)))
  'builtins.print'
  """
  machine = _Machine({} if storages is None else storages)
  for i, (op, arg, _) in enumerate(pickletools.genops(file)):
    if op.name == 'STOP':
      break
    if i >= OPERATIONS:
      raise FewshotError(f'the pickle has more than {OPERATIONS:,} operations; save it in parts')
    machine.step(op.name, arg)
  return machine.stack.pop()


class _Machine:
  """The stack, the marked stacks below it, and the memo."""

  def __init__(self, storages: dict[str, Storage]) -> None:
    self.storages = storages
    self.stack: list[Any] = []
    self.marked: list[list[Any]] = []
    self.memo: dict[int, Any] = {}

  def step(self, name: str, arg: Any) -> None:
    stack = self.stack
    if name in PUSHES:
      stack.append(PUSHES[name](arg))
    elif name in CHANGES:
      CHANGES[name](stack)
    elif name in ('BINPUT', 'LONG_BINPUT', 'PUT'):
      self.memo[arg] = stack[-1]
    elif name == 'MEMOIZE':
      self.memo[len(self.memo)] = stack[-1]
    elif name in ('BINGET', 'LONG_BINGET', 'GET'):
      stack.append(self.memo[arg])
    elif name == 'BINPERSID':
      stack.append(_storage(*stack.pop()[:3]))  # Then its device, its length, and views of old.
      self.storages[stack[-1].key] = stack[-1]
    elif name == 'MARK':
      self.marked.append(stack)
      self.stack = []
    elif name in SINCE_MARK:
      self.stack = self.marked.pop()
      SINCE_MARK[name](self.stack, stack)
    elif name not in ('PROTO', 'FRAME'):
      raise FewshotError(f'the pickle uses {name}, which no state dict does; it is not run')


def _last(n: int) -> Callable[[list[Any]], None]:
  """Puts the last n of the stack into one tuple."""

  def fold(stack: list[Any]) -> None:
    stack[-n:] = [tuple(stack[-n:])]

  return fold


def _storage(kind: Any, dtype: Any, key: Any) -> Storage:
  if kind != 'storage' or not isinstance(dtype, Name) or dtype not in DTYPES:
    raise FewshotError(f'the pickle refers to a {_shown(dtype)}; known: {", ".join(DTYPES)}')
  if not isinstance(key, str):
    raise FewshotError(f'the pickle calls a storage by a {_shown(key)}, not by text')
  return Storage(np.dtype(DTYPES[dtype]), key)


def _shown(x: Any) -> str:
  """An object for an error: its text may be endless, and to make it may end the process."""
  return x[:60] if isinstance(x, str) else type(x).__name__


def _key(x: Any) -> Any:
  """A key of a dict: to hash a tuple of tuples of ... may end the process."""
  if not isinstance(x, str | int | float | None):
    raise FewshotError(f'the pickle has a {_shown(x)} as a key, which no state dict has')
  return x


def _call(stack: list[Any]) -> None:
  args, function = stack.pop(), stack.pop()
  if not isinstance(function, Name) or function not in CALLS:
    raise FewshotError(f'the pickle calls {_shown(function)}, which no state dict does; not run')
  if type(args) is not tuple or len(args) > ARGUMENTS:
    raise FewshotError(f'the pickle calls {function} with a {type(args).__name__} of arguments')
  stack.append(CALLS[function](*args))


def _set_items(target: list[Any], items: list[Any]) -> None:
  target[-1].update(zip(map(_key, items[::2]), items[1::2], strict=True))


def _set_item(stack: list[Any]) -> None:
  value, key = stack.pop(), stack.pop()
  stack[-1][_key(key)] = value


def _ordered(pairs: list[Any] | None = None) -> dict[Any, Any]:
  """An OrderedDict; pairs are moved, since copies of one list could fill the memory."""
  if pairs is None:
    return {}
  made = {_key(key): value for key, value in pairs}
  pairs.clear()
  return made


def _name(stack: list[Any]) -> None:
  name, module = stack.pop(), stack.pop()
  if type(name) is not str or type(module) is not str or len(module) + len(name) > 200:
    raise FewshotError(f'the pickle names a function by {_shown(module)} and {_shown(name)}')
  stack.append(Name(f'{module}.{name}'))


def _rebuilt(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Stored:
  sizes = (offset, *shape[: RANK + 1], *strides[: RANK + 1])
  whole = all(type(n) is int and 0 <= n < 1 << 63 for n in sizes)
  if not isinstance(storage, Storage) or not whole or not len(shape) == len(strides) <= RANK:
    raise ValueError('a tensor of no shape')
  if math.prod(n or 1 for n in shape) >= 1 << 59:  # Though it be empty.
    raise ValueError('a tensor that no memory holds')
  return Stored(storage, offset, tuple(shape), tuple(strides))


CALLS: dict[str, Callable[..., Any]] = {
  'torch._utils._rebuild_tensor_v2': _rebuilt,
  'torch._utils._rebuild_parameter': lambda data, *rest: data,
  'collections.OrderedDict': _ordered,
}
PUSHES: dict[str, Callable[[Any], Any]] = {
  **dict.fromkeys(
    (
      *('BINUNICODE', 'SHORT_BINUNICODE', 'SHORT_BINSTRING', 'BINSTRING', 'UNICODE', 'STRING'),
      *('BININT', 'BININT1', 'BININT2', 'LONG1', 'INT', 'LONG', 'BINFLOAT', 'FLOAT'),
    ),
    lambda arg: arg,
  ),
  'GLOBAL': lambda arg: Name('.'.join(arg.split(' '))),
  'NONE': lambda arg: None,
  'NEWTRUE': lambda arg: True,
  'NEWFALSE': lambda arg: False,
  'EMPTY_DICT': lambda arg: {},
  'EMPTY_LIST': lambda arg: [],
  'EMPTY_TUPLE': lambda arg: (),
}
CHANGES: dict[str, Callable[[list[Any]], Any]] = {
  'TUPLE1': _last(1),
  'TUPLE2': _last(2),
  'TUPLE3': _last(3),
  'REDUCE': _call,
  'SETITEM': _set_item,
  'APPEND': lambda stack: stack[-2].append(stack.pop()),
  'BUILD': lambda stack: stack.pop(),  # Attributes such as _metadata; no state is set.
  'POP': lambda stack: stack.pop(),
  'STACK_GLOBAL': _name,
}
SINCE_MARK: dict[str, Callable[[list[Any], list[Any]], Any]] = {
  'TUPLE': lambda stack, items: stack.append(tuple(items)),
  'SETITEMS': _set_items,
  'APPENDS': lambda stack, items: stack[-1].extend(items),
}
