"""What fewshot itself writes, and others changed."""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.robustness.hostile.case import (
  FIXTURES,
  GIB,
  Case,
  Cases,
  file,
  laid_out,
  load,
  safetensors,
)

SLOW = r'([a-z_0-9]+/?)+!'  # Exponential in the length of a path.
QUERY = 'base_model.model.encoder.layer.0.attention.self.query'


@functools.cache
def base() -> Any:
  """The tiny BERT that all of them belong to."""
  return load(FIXTURES / 'bert-tiny')


def checkpoints() -> Cases:
  """The folders of `checkpoint.save`."""
  found: dict[str, tuple[dict[str, Any], str]] = {
    'exponential time': ({'method': f"chain(linear(), tune('{SLOW}'))"}, 'repeats what repeats'),
    'a call': ({'method': '__import__("os").system("x")'}, 'neither a literal nor a call'),
    'another kind': ({'method': 'magnitude()'}, 'spells no method'),
    'classes of lists': ({'classes': [[1], {}]}, "under 'classes'"),
    'a length below 0': ({'max_length': -5}, "under 'max_length'"),
    'a length of true': ({'max_length': True}, "under 'max_length'"),
    'a prompt of numbers': ({'prompt': 7, 'fields': ['text']}, 'spells no prompt'),
  }
  cases = {name: Case(_saved(changes), _restored, said) for name, (changes, said) in found.items()}
  return cases | {'theta of 30 GB': Case(_saved({}, 30 * GIB), _restored, 'does not fit linear')}


def _saved(changes: dict[str, Any], size: int = 0) -> Callable[[Path], None]:
  def make(folder: Path) -> None:
    import jax

    from fewshot import checkpoint, methods
    from fewshot.adapted import Adapted

    method = methods.parse('linear()')
    shapes = checkpoint.starting_shapes(method, base(), 2)
    theta, state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    checkpoint.save(Adapted(base(), method, theta, state, ('a', 'b')), folder / 'c')
    about = json.loads((folder / 'c' / 'adapted.json').read_text()) | changes
    (folder / 'c' / 'adapted.json').write_text(json.dumps(about))
    if size:
      safetensors(folder / 'c' / 'theta.safetensors', *laid_out({'x': [size // 4]}))

  return make


def _restored(folder: Path) -> Any:
  from fewshot import checkpoint

  return checkpoint.load(folder / 'c', base())


def adapters() -> Cases:
  """The folders of PEFT's `save_pretrained`."""
  small = {f'{QUERY}.lora_A.weight': [2, 32], f'{QUERY}.lora_B.weight': [32, 2]}
  big = {f'{QUERY}.lora_A.weight': [8 * GIB]}
  found: dict[str, tuple[dict[str, list[int]], dict[str, Any], str]] = {
    'exponential time': (small, {'rank_pattern': {r'([\w.]+)+!': 3}}, 'repeats what repeats'),
    'a rank of 10^9': (small, {'r': 10**9}, 'lora|LORA'),
    'a rank of 2^80': (small, {'r': 2**80}, 'lora|LORA'),
    'tensors of 32 GB': (big, {}, 'adapter_model.safetensors'),
  }
  return {
    name: Case(_adapter(shapes, changes), _adapted, said)
    for name, (shapes, changes, said) in found.items()
  }


def _adapter(shapes: dict[str, list[int]], changes: dict[str, Any]) -> Callable[[Path], None]:
  def make(folder: Path) -> None:
    config = {'peft_type': 'LORA', 'r': 2, 'lora_alpha': 4, 'target_modules': ['query']} | changes
    (folder / 'adapter_config.json').write_text(json.dumps(config))
    safetensors(folder / 'adapter_model.safetensors', *laid_out(shapes))

  return make


def _adapted(folder: Path) -> Any:
  from fewshot.exchange import read

  return read(folder, base())


def records() -> Cases:
  """A records.jsonl that a table is made of."""
  found: dict[str, tuple[Callable[[], bytes], int, str]] = {
    '10 GiB': (lambda: b'{', 10 * GIB, 'line 1'),
    'deep': (lambda: b'[' * 1_000_000 + b'\n', 0, 'line 1: not valid JSON'),
  }
  return {
    name: Case(file('records.jsonl', content, size), _table, said)
    for name, (content, size, said) in found.items()
  }


def _table(folder: Path) -> Any:
  from fewshot import records

  return records.read(folder)


def choices() -> Cases:
  """What `Chosen.save` wrote, as spellings name it."""
  pipe = Case(
    lambda f: os.mkfifo(f / 'x.safetensors'), _choice, 'x.safetensors is missing or damaged'
  )
  large = Case(
    lambda f: safetensors(f / 'x.safetensors', *laid_out({'x': [8 * GIB]})),
    _choice, 'x.safetensors is no saved choice',
  )  # fmt: skip
  return {'a pipe': pipe, '32 GB': large}


def _choice(folder: Path) -> Any:
  from fewshot import methods

  return methods.parse(f'tune(saved({str(folder / "x.safetensors")!r}))')
