"""Backbones: real weights by name or folder, and any function of your own."""

import os
from pathlib import Path
from typing import Any

from fewshot import assets
from fewshot.errors import FewshotError, nearest
from fewshot.models import bert
from fewshot.models.base import Model, from_function, from_linen, from_nnx, hash_params
from fewshot.models.weights import hf

MODELS = {'minilm-l6': 'bert'}  # Name -> family; the weights are the asset of that name.
FAMILIES = {'bert': bert, 'roberta': bert}  # By model_type of config.json.


def load(name: str, dtype: Any = None, dropout: float = 0.0) -> Model:
  """A pretrained model by name (`fewshot models`) or from a Hugging Face folder.

  `dtype` casts the weights as they are read; `dropout` is active only while training.
  """
  if name in MODELS:
    return _from_folder(name, assets.get(name), dtype, dropout)
  folder = Path(os.path.expanduser(name))
  if name and folder.is_dir():
    return _from_folder(folder.resolve().name, folder, dtype, dropout)
  raise FewshotError(
    f'there is no model {name!r}, nor a folder of that name; {nearest(name, MODELS)}'
  )


def rows() -> list[dict[str, Any]]:
  """What `fewshot models` prints: name, family, parameters, licence, sources."""
  table = []
  for name, family in MODELS.items():
    asset = assets.ASSETS[name]
    sources = next(r['sources'] for r in assets.rows() if r['name'] == name)
    table.append(
      {
        'name': name,
        'family': family,
        'params': 22_565_376,
        'licence': asset.licence,
        'sources': sources,
      }
    )
  return table


def _from_folder(name: str, folder: Path, dtype: Any, dropout: float) -> Model:
  import dataclasses

  import jax

  if not 0 <= dropout < 1:
    raise FewshotError(f'dropout={dropout} is a probability below 1')
  raw = hf.read_json(folder / 'config.json')
  family = FAMILIES.get(raw.get('model_type', ''))
  if family is None:
    raise FewshotError(
      f'{name}: config.json says model_type {raw.get("model_type")!r}; '
      f'{nearest(str(raw.get("model_type")), FAMILIES)}'
    )
  try:
    config = dataclasses.replace(family.config_from_hf(raw), dropout=dropout)
  except KeyError as e:
    raise FewshotError(f'{name}: config.json lacks {e.args[0]!r}') from None
  except TypeError as e:
    raise FewshotError(f'{name}: config.json holds a value of another type: {e}') from None
  params = hf.load(folder, family.NAMES, config.depth, family.PREFIXES, family.UNUSED, dtype)
  skip = family.skipped_positions(raw)
  table = params['inputs']['positions']
  table['embedding'] = table['embedding'][skip:]
  _check_shapes(name, family, config, params)
  hashes = {'weights': hash_params(params)}
  tokenizer = _tokenizer(name, folder, config.vocab, hashes)
  params = jax.tree.map(jax.numpy.asarray, params)
  return Model(name, family.forward(config), params, tokenizer, hashes, config.positions)


def _check_shapes(name: str, family: Any, config: Any, params: Any) -> None:
  """Weights of another size than config.json says are refused by name."""
  import jax

  like = jax.eval_shape(lambda: family.init(config, jax.random.key(0)))
  found = zip(jax.tree_util.tree_leaves_with_path(like), jax.tree.leaves(params), strict=True)
  for (path, want), got in found:
    if want.shape != got.shape:
      raise FewshotError(
        f'{name}: {jax.tree_util.keystr(path, simple=True, separator="/")} is {got.shape} in the '
        f'weights but {want.shape} by config.json; they do not belong together'
      )


def _tokenizer(name: str, folder: Path, vocab: int, hashes: dict[str, str]) -> Any:
  """The folder's tokenizer, or None; one with more tokens than embedding rows is refused."""
  import hashlib

  import tokenizers

  file = folder / 'tokenizer.json'
  if not file.exists():
    return None
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
  except Exception as e:
    raise FewshotError(f'{name}: tokenizer.json is not readable: {e}') from None
  size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
  if size > vocab:
    raise FewshotError(
      f'{name}: the tokenizer has {size} tokens but the embedding table {vocab} rows; '
      'tokenizer.json and the weights do not belong together'
    )
  tokenizer.no_padding()
  tokenizer.no_truncation()
  hashes['tokenizer'] = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
  return tokenizer


__all__ = [
  'MODELS',
  'Model',
  'from_function',
  'from_linen',
  'from_nnx',
  'hash_params',
  'load',
  'rows',
]
