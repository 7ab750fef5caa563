"""Loading pretrained models: by name, or from a folder or file of weights."""

import dataclasses
import hashlib
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import tokenizers

from fewshot import assets
from fewshot.errors import FewshotError, nearest
from fewshot.models import bert
from fewshot.models.base import Family, Model, hash_params
from fewshot.models.weights import hf
from fewshot.models.weights.names import Place, assemble

MODELS = {'minilm-l6': 'bert'}  # Name -> family; the weights are the asset of that name.
FAMILIES: dict[str, Family] = {'bert': bert, 'roberta': bert}  # By model_type of config.json.


def load(name: str, dtype: Any = None, dropout: float = 0.0, place: Place | None = None) -> Model:
  """A pretrained model by name (`fewshot models`) or from a Hugging Face folder.

  Args:
    name: a key of `MODELS`, or a folder with config.json and model*.safetensors.
    dtype: the weights are cast to it as they are read; None keeps what is stored.
    dropout: active only while training, when the forward gets a key.
    place: (path, shape) -> the sharding or device of each leaf; None puts all on the default one.

  Raises:
    FewshotError: there is no such model, or its weights and config do not fit a family.
  """
  if not 0 <= dropout < 1:
    raise FewshotError(f'dropout={dropout} is a probability below 1')
  if name in MODELS:
    return _from_folder(name, assets.get(name), dtype, dropout, place)
  folder = Path(os.path.expanduser(name))
  if name and folder.is_dir():
    return _from_folder(folder.resolve().name, folder, dtype, dropout, place)
  raise FewshotError(
    f'there is no model {name!r}, nor a folder of that name; {nearest(name, MODELS)}'
  )


def rows() -> list[dict[str, Any]]:
  """What `fewshot models` prints: name, family, parameters, licence, sources."""
  sources = {row['name']: row['sources'] for row in assets.rows()}
  return [
    {
      'name': name,
      'family': family,
      'params': 22_565_376,
      'licence': assets.ASSETS[name].licence,
      'sources': sources[name],
    }
    for name, family in MODELS.items()
  ]


def _from_folder(name: str, folder: Path, dtype: Any, dropout: float, place: Place | None) -> Model:
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
  with ExitStack() as stack:
    params = assemble(
      hf.tensors(folder, stack),
      jax.eval_shape(lambda: family.init(config, jax.random.key(0))),
      family.names(config),
      where=f'{folder.name}/',
      prefixes=family.PREFIXES,
      unused=family.UNUSED,
      dtype=dtype,
      place=place,
    )
  return finish(name, family, config, params, folder)


def finish(name: str, family: Family, config: Any, params: Any, folder: Path) -> Model:
  """The model of these params, with the folder's tokenizer where it has one."""
  hashes = {'weights': hash_params(params)}
  vocab = getattr(config, 'vocab', None)
  tokenizer = _tokenizer(name, folder, vocab, hashes) if vocab else None
  positions = getattr(config, 'positions', None)
  example = family.example(config)
  return Model(name, family.forward(config), params, tokenizer, hashes, positions, example)


def _tokenizer(name: str, folder: Path, vocab: int, hashes: dict[str, str]) -> Any:
  """The folder's tokenizer, or None; one with more tokens than embedding rows is refused."""
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
