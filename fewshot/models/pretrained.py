"""Loading pretrained models: by name, or from a folder or file of weights."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tokenizers import Tokenizer

from fewshot import assets
from fewshot.errors import FewshotError, nearest
from fewshot.models import (
  albert,
  bert,
  clip,
  clip_resnet,
  configs,
  conv4,
  dinov2,
  distilbert,
  efficientnet,
  folders,
  gemma,
  gpt2,
  images,
  llama,
  mlp,
  mobilenet,
  mpnet,
  resnet,
  resnet12,
  roberta,
  shapes,
  siglip,
  t5,
  vit,
)
from fewshot.models import tokenizers as tokens
from fewshot.models.base import Family, Model, hash_params, of_family
from fewshot.models.configs import reading
from fewshot.models.weights import gguf, hf, llama2c
from fewshot.models.weights.names import Names, Place, Tensor, assemble


class Named(NamedTuple):
  """A model of the table; its files are the asset of its name."""

  family: str  # A key of `FAMILIES`.
  params: int  # Running means and variances not counted.
  config: Mapping[str, Any] = {}  # What its config.json lacks, or all of it.
  names: str = 'names'  # The family's function that names its tensors.


class Source(NamedTuple):
  """A checkpoint before any tensor is read."""

  family: Any
  config: Any
  tensors: Mapping[str, Tensor]
  names: Names
  tokenizer: tuple[Tokenizer, str] | None  # With its hash.


VIT_B16 = {
  'model_type': 'vit',
  'architectures': ['ViTForImageClassification'],
  'num_labels': 1000,
  'hidden_size': 768,
  'num_hidden_layers': 12,
  'num_attention_heads': 12,
  'intermediate_size': 3072,
  'image_size': 224,
  'patch_size': 16,
}
MOBILENET_V2 = {
  'model_type': 'mobilenet_v2',
  'architectures': ['MobileNetV2ForImageClassification'],
  'num_labels': 1000,
  'tf_padding': False,
  'layer_norm_eps': 1e-5,
  'image_mean': images.IMAGENET[0],
  'image_std': images.IMAGENET[1],
}
MODELS: dict[str, Named] = {
  'minilm-l6': Named('bert', 22_565_376),
  'mpnet-base': Named('mpnet', 108_894_336),
  'albert-tiny-zh': Named('albert', 4_044_312),
  'splade-tiny': Named('bert', 4_416_698),
  'smollm2-135m': Named('llama', 134_515_008),
  'gemma3-270m': Named('gemma3_text', 268_098_176),
  'tinystories-15m': Named('llama', 15_191_712),
  'vit-b16': Named('vit', 86_567_656, VIT_B16),
  'efficientnet-lite0': Named('efficientnet-lite', 4_652_008, {'model_type': 'efficientnet-lite'}),
  'mobilenet-v2': Named('mobilenet_v2', 3_504_872, MOBILENET_V2, 'names_torchvision'),
  'bert-base-uncased': Named('bert', 109_514_298),
  'roberta-base': Named('roberta', 124_695_897),
  'roberta-large': Named('roberta', 355_410_009),
  't5-base': Named('t5', 222_903_552),
  'flan-t5-base': Named('t5', 247_577_856),
  'gpt2': Named('gpt2', 124_439_808),
  'clip-vit-base-patch16': Named('clip', 149_620_737),
  'vit-base-patch16-224': Named('vit', 86_567_656),
  'dinov2-small': Named('dinov2', 22_056_192),
}
FAMILIES: dict[str, Family] = {  # By model_type of config.json.
  'albert': albert,
  'bert': bert,
  'clip': clip,
  'clip_resnet': clip_resnet,
  'conv4': conv4,
  'deit': vit,
  'dinov2': dinov2,
  'dinov2_with_registers': dinov2,
  'distilbert': distilbert,
  'efficientnet-lite': efficientnet,
  'gemma3_text': gemma,
  'gpt2': gpt2,
  'llama': llama,
  'mistral': llama,
  'mlp': mlp,
  'mobilenet_v2': mobilenet,
  'mpnet': mpnet,
  'qwen2': llama,
  'resnet': resnet,
  'resnet12': resnet12,
  'roberta': roberta,
  'siglip': siglip,
  't5': t5,
  'vit': vit,
  'xlm-roberta': roberta,
}
# What a checkpoint of these was trained for is another function than ours of the same features.
OTHER_HEADS = r'For(SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice)$'
GGUF = {'gemma3': 'gemma3_text', 'llama': 'llama', 'qwen2': 'qwen2'}  # Architecture -> family.


def load(name: str, dtype: Any = None, dropout: float = 0.0, place: Place | None = None) -> Model:
  """A pretrained model by name (`fewshot models`), or from a folder or file.

  Args:
    name: a key of `MODELS`; a folder with config.json and weights (model*.safetensors,
      pytorch_model*.bin or one .pth or .pt), with a .gguf file, or with llama2.c's model.bin and
      tokenizer.bin; a .gguf file; or 'shape:NAME', a known shape with random weights.
    dtype: the weights are cast to it as they are read; None keeps what is stored, and for packed
      weights is float32.  'int8' quantises the kernels of blocks, see `quantized.quantize`.
    dropout: active only while training, when the forward gets a key.
    place: (path, shape) -> the sharding or device of each leaf; None puts all on the default one.

  Raises:
    FewshotError: there is no such model, or its weights and config do not fit a family.
  """
  if not 0 <= dropout < 1:
    raise FewshotError(f'dropout={dropout} is a probability below 1')
  if isinstance(dtype, str) and dtype == 'int8':
    from fewshot.quantized import quantize  # It takes models itself.

    return quantize(load(name, 'float32', dropout, place))
  _check_dtype(dtype)
  if not isinstance(name, str):
    raise FewshotError(f'name={name!r} is no text; give the name of a model or a path as str')
  if name.startswith(shapes.PREFIX):
    return shapes.random(name, dtype=dtype or jax.numpy.float32, dropout=dropout, place=place)
  path, named = Path(os.path.expanduser(name)), MODELS.get(name)
  if named:
    assets.tell_licence(name)
    path = assets.get(name)
  elif not name or not os.path.exists(path):
    hint = nearest(name.rpartition('/')[2].lower(), MODELS)
    raise FewshotError(f'there is no model {name!r}, nor a file or folder of that name; {hint}')
  path = path.resolve()
  called = name if named else path.stem if path.is_file() else path.name
  source = _open(path, named)
  config = dataclasses.replace(source.config, dropout=dropout)
  return _finish(called, source._replace(config=config), path.name, dtype, place)


def rows() -> list[dict[str, Any]]:
  """What `fewshot models` prints: name, family, parameters, licence, sources."""
  sources = {row['name']: row['sources'] for row in assets.rows()}
  return [
    {
      'name': name,
      'family': named.family,
      'params': named.params,
      'licence': assets.ASSETS[name].licence,
      'sources': sources[name],
    }
    for name, named in MODELS.items()
  ]


def _check_dtype(dtype: Any) -> None:
  """Weights are kept in floating numbers."""
  try:
    known = dtype is None or jax.numpy.issubdtype(jax.numpy.dtype(dtype), jax.numpy.floating)
  except TypeError:
    known = False
  if not known:
    raise FewshotError(
      f'dtype={dtype!r} is no floating type; give float32, bfloat16, float16, int8 or None'
    )


def _open(path: Path, named: Named | None) -> Source:
  """Finds out what lies there."""
  if path.is_file():
    if path.suffix != '.gguf':
      raise FewshotError(
        f'{path.name} is a file, and only a .gguf file is a model by itself; put it in a folder '
        'with its config.json and load the folder'
      )
    return _of_gguf(path)
  if not (path / 'config.json').exists() and not (named and named.config):
    packed = sorted(path.glob('*.gguf'))
    if len(packed) > 1:
      raise FewshotError(f'{path.name}/ holds {len(packed)} .gguf files; give the path of one')
    if packed:
      return _of_gguf(packed[0])
    if (path / 'model.bin').exists():
      return _of_llama2c(path)
  return _of_folder(path, named)


def _of_gguf(path: Path) -> Source:
  meta, tensors = gguf.read(path)
  kind = meta.get('general.architecture', '')
  if not isinstance(kind, str) or kind not in GGUF:
    raise FewshotError(f'{path.name} is of architecture {kind!r}; {nearest(str(kind), GGUF)}')
  family: Any = FAMILIES[GGUF[kind]]
  where = f'{path.name}: the metadata'
  with reading(where):
    configs.check_depth(meta, where)
    config = family.config_from_gguf(meta, tensors)
    configs.check(config, where)
    names = family.gguf_names(config)
  made = tokens.from_gguf(meta, path.name)
  return Source(family, config, tensors, names, (made, tokens.hash_of(made)))


def _of_llama2c(folder: Path) -> Source:
  raw, tensors = llama2c.read(folder / 'model.bin')
  family = FAMILIES['llama']
  config = family.config_from_hf(raw)
  configs.check(config, f'{folder.name}: model.bin')
  made = tokens.from_llama2c(folder / 'tokenizer.bin')
  return Source(family, config, tensors, family.names(config), (made, tokens.hash_of(made)))


def _of_folder(folder: Path, named: Named | None) -> Source:
  extra = named.config if named else {}
  stored = hf.read_json(folder / 'config.json') if 'model_type' not in extra else {}
  raw = {**folders.normalisation(folder), **stored, **extra}
  kind = raw.get('model_type')
  family = FAMILIES.get(str(kind))
  if family is None:
    raise FewshotError(
      f'{folder.name}: config.json says model_type {kind!r}; {nearest(str(kind), FAMILIES)}'
    )
  names: Callable[[Any], Names] = getattr(family, named.names if named else 'names')
  where = f'{folder.name}: config.json'
  with reading(where):
    configs.check_depth(raw, where)
    config = family.config_from_hf(raw)
    configs.check(config, where)
    for left in (a for a in raw.get('architectures') or () if re.search(OTHER_HEADS, a)):
      if 'image_size' not in raw:  # Image models read theirs.
        assets.notice(f'{folder.name}: the head of {left} is not read, only its encoder')
  tokenizer = tokens.read(folder, str(kind)) if hasattr(config, 'vocab') else None
  tensors = folders.tensors(folder)
  config = folders.as_stored(config, names(config), folder, tensors)
  return Source(family, config, tensors, names(config), tokenizer)


def _finish(name: str, source: Source, where: str, dtype: Any, place: Place | None) -> Model:
  """Reads the weights; a tokenizer with more tokens than embedding rows is refused."""
  family, config = source.family, source.config
  tokenizer, tokenizer_hash = source.tokenizer or (None, '')
  if tokenizer:
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    if size > config.vocab:
      raise FewshotError(
        f'{name}: the tokenizer has {size} tokens but the embedding table {config.vocab} rows; '
        'tokenizer and weights do not belong together'
      )
  with reading(f'{name}: its config'):
    like = jax.eval_shape(lambda: family.init(config, jax.random.key(0)))
  params = assemble(
    source.tensors,
    like,
    source.names,
    where=f'{where}/',
    prefixes=family.PREFIXES,
    unused=family.UNUSED,
    dtype=dtype,
    place=place,
  )
  hashes = {'weights': hash_params(params)} | ({'tokenizer': tokenizer_hash} if tokenizer else {})
  return of_family(name, family, config, params, tokenizer, hashes)
