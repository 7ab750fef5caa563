"""Hugging Face folders: config.json, safetensors (sharded too), and a family's table of names."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from fewshot.errors import FewshotError, brief


def read_json(path: Path) -> dict[str, Any]:
  """A JSON object from a file; a missing or broken one is named."""
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise FewshotError(f'{path.name} is missing from {path.parent.name}/') from None
  except (ValueError, RecursionError, OSError) as e:
    raise FewshotError(f'{path.name} in {path.parent.name}/ is not readable JSON: {e}') from None
  if not isinstance(value, dict):
    raise FewshotError(f'{path.name} in {path.parent.name}/ holds no JSON object')
  return value


def expand(names: Mapping[str, str], depth: int) -> Iterator[tuple[str, str]]:
  """The table with {i} filled in, and each module's leaves spelled out in both styles."""
  for ours, theirs in names.items():
    for i in range(depth if '{i}' in ours else 1):
      path, name = ours.format(i=i), theirs.format(i=i)
      if path.endswith('/embedding'):
        yield path, name
      else:
        gain = 'scale' if re.search(r'(^|/)ln\d*$', path) else 'kernel'
        yield f'{path}/{gain}', f'{name}.weight'
        yield f'{path}/bias', f'{name}.bias'


def load(
  folder: Path,
  names: Mapping[str, str],
  depth: int,
  prefixes: Sequence[str] = (),
  unused: Sequence[str] = (),
  dtype: Any = None,
) -> dict[str, Any]:
  """The nested params of a folder's safetensors; every tensor is matched or an error lists it.

  Tensors are memory-mapped and converted one by one.  `dtype` casts each as it is read.
  """
  with ExitStack() as stack:
    where = dict(_open(folder, stack))
    plain = {_strip(name, prefixes): name for name in where}
    table = dict(expand(names, depth))
    old = {n: re.sub('weight$', 'gamma', re.sub('bias$', 'beta', n)) for n in table.values()}
    table = {p: old[n] if old[n] in plain else n for p, n in table.items()}
    missing = [n for n in table.values() if n not in plain]
    left = [n for n in set(plain) - set(table.values()) if not _matches(n, unused)]
    if missing or left:
      raise FewshotError(
        f'the weights in {folder.name}/ do not fit this family: missing '
        f'{brief(sorted(missing)) or "nothing"}; left over {brief(sorted(left)) or "nothing"}'
      )
    params: dict[str, Any] = {}
    for path, name in table.items():
      tensor = where[plain[name]].get_tensor(plain[name])
      _put(params, path, _convert(path, tensor, dtype))
  return params


def _open(folder: Path, stack: ExitStack) -> Iterator[tuple[str, Any]]:
  """(tensor name, open file) over the folder's safetensors; a broken file is named."""
  files = sorted(folder.glob('model*.safetensors'))  # Adapters and the like stay aside.
  if not files:
    raise FewshotError(f'{folder.name}/ holds no model*.safetensors; convert the weights first')
  for file in files:
    try:
      opened = stack.enter_context(safetensors.safe_open(file, framework='numpy'))
    except (safetensors.SafetensorError, OSError) as e:
      raise FewshotError(
        f'{folder.name}/{file.name} is corrupted or truncated ({e}); remove it and fetch it again '
        'with `fewshot assets get`'
      ) from None
    for name in opened.keys():  # noqa: SIM118
      yield name, opened


def _convert(path: str, tensor: np.ndarray, dtype: Any) -> np.ndarray:
  tensor = tensor.T if path.endswith('/kernel') else tensor
  return np.ascontiguousarray(tensor, dtype=dtype)


def _strip(name: str, prefixes: Sequence[str]) -> str:
  return next((name[len(p) :] for p in prefixes if name.startswith(p)), name)


def _matches(name: str, patterns: Sequence[str]) -> bool:
  return any(re.fullmatch(p, name) for p in patterns)


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
  *parents, leaf = path.split('/')
  for p in parents:
    tree = tree.setdefault(p, {})
  tree[leaf] = value
