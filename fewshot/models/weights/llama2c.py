"""The model.bin of llama2.c, version 0: a header and float32 arrays in one order."""

import functools
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fewshot.errors import FewshotError
from fewshot.models.weights.files import broken, read_array, regular
from fewshot.models.weights.names import Tensor

HEADER = struct.Struct('<7i')  # dim, width, depth, heads, groups, vocab, positions
FLOAT = np.dtype('<f4')


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
  """The shape in the words of a Llama's config.json, and the tensors under the names of one.

  Raises `FewshotError` where the header and the size of the file do not agree.
  """
  with open(regular(path), 'rb') as file:
    head = file.read(HEADER.size)
  if len(head) < HEADER.size:
    raise broken(path, 'no header')
  dim, width, depth, heads, groups, vocab, positions = HEADER.unpack(head)
  tied, vocab = vocab > 0, abs(vocab)  # A negative vocabulary says that an output matrix follows.
  least = min(dim, width, depth, heads, groups, vocab, positions)
  if least < 1 or depth > 1000 or dim % (2 * heads) or heads % groups:  # Pairs are rotated.
    raise FewshotError(
      f'{path.parent.name}/{path.name} is no model.bin of llama2.c in its version 0'
    )
  config = {
    'model_type': 'llama',
    'hidden_size': dim,
    'intermediate_size': width,
    'num_hidden_layers': depth,
    'num_attention_heads': heads,
    'num_key_value_heads': groups,
    'vocab_size': vocab,
    'max_position_embeddings': positions,
    'rms_norm_eps': 1e-5,
    'tie_word_embeddings': tied,
  }
  found, offset = {}, HEADER.size
  for name, shape, change in _layout(config):
    found[name] = Tensor(shape, functools.partial(_read, path, offset, shape, change))
    offset += math.prod(shape) * FLOAT.itemsize
  if path.stat().st_size != offset:
    raise broken(path, f'{path.stat().st_size} bytes where the header asks for {offset}')
  return config, {name: tensor for name, tensor in found.items() if name}


Layout = Iterator[tuple[str, tuple[int, ...], Callable[[np.ndarray], np.ndarray]]]


def _layout(config: dict[str, Any]) -> Layout:
  """Name, shape and change of each array in the order of the file; '' names what is not read."""
  depth, dim, width = (config[k] for k in ('num_hidden_layers', 'hidden_size', 'intermediate_size'))
  heads, groups = config['num_attention_heads'], config['num_key_value_heads']
  keys = dim // heads * groups
  stacks: list[tuple[str, tuple[int, ...], Callable[[np.ndarray], np.ndarray]]] = [
    ('input_layernorm', (dim,), _same),
    ('self_attn.q_proj', (dim, dim), functools.partial(_halves, heads)),
    ('self_attn.k_proj', (keys, dim), functools.partial(_halves, groups)),
    ('self_attn.v_proj', (keys, dim), _same),
    ('self_attn.o_proj', (dim, dim), _same),
    ('post_attention_layernorm', (dim,), _same),
    ('mlp.gate_proj', (width, dim), _same),
    ('mlp.down_proj', (dim, width), _same),
    ('mlp.up_proj', (width, dim), _same),
  ]
  yield 'embed_tokens.weight', (config['vocab_size'], dim), _same
  for name, shape, change in stacks:
    for i in range(depth):
      yield f'layers.{i}.{name}.weight', shape, change
  yield 'norm.weight', (dim,), _same
  yield '', (config['max_position_embeddings'], dim // heads), _same  # Cosines and sines.
  if not config['tie_word_embeddings']:
    yield 'lm_head.weight', (config['vocab_size'], dim), _same


def _read(
  path: Path, offset: int, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
  return change(read_array(path, offset, shape, FLOAT))


def _same(x: np.ndarray) -> np.ndarray:
  return x


def _halves(heads: int, x: np.ndarray) -> np.ndarray:
  """Rows of each head from (x_0, y_0, x_1, y_1, ...) to (x_0, x_1, ..., y_0, y_1, ...).

  The file rotates neighbours, config.json's Llama the two halves of a head.
  """
  return x.reshape(heads, -1, 2, x.shape[-1]).swapaxes(1, 2).reshape(x.shape)
