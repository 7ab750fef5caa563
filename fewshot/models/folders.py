"""What a Hugging Face folder holds beside config.json: its tensors, and how they are used."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewshot.errors import FewshotError, brief
from fewshot.models.weights import hf, torch_file
from fewshot.models.weights.names import Names, Tensor


def normalisation(folder: Path) -> dict[str, Any]:
  """How pixels are normalised, where preprocessor_config.json says so."""
  file = folder / 'preprocessor_config.json'
  raw = hf.read_json(file) if file.exists() else {}
  factor = raw.get('rescale_factor')
  if factor and not (isinstance(factor, float) and math.isclose(factor, 1 / 255)):
    raise FewshotError(
      f'{folder.name}: preprocessor_config.json has rescale_factor {factor!r}, and '
      'only 1/255 is computed'
    )
  if raw.get('do_normalize') is False and 'image_mean' in raw:
    return {'image_mean': [0.0] * 3, 'image_std': [1.0] * 3}
  return {k: raw[k] for k in ('image_mean', 'image_std') if raw.get(k)}


def as_stored(config: Any, names: Names, folder: Path, stored: Mapping[str, Tensor]) -> Any:
  """What the folder of a sentence encoder says beside config.json.

  Its `architectures` still name the language model that it was made from, whose head is not stored;
  how features are pooled stands in 1_Pooling.
  """
  head = names.get('lm_head/bias')
  if getattr(config, 'lm', False) and not any(n.endswith(str(head)) for n in stored):
    config = dataclasses.replace(config, lm=False)
  if hasattr(config, 'pooling') and (folder / '1_Pooling' / 'config.json').exists():
    raw = hf.read_json(folder / '1_Pooling' / 'config.json')
    mode = '+'.join(k for k, v in raw.items() if k.startswith('pooling_mode_') and v)
    known = {'pooling_mode_mean_tokens': 'mean', 'pooling_mode_cls_token': 'cls'}
    config = dataclasses.replace(config, pooling=known.get(mode, mode))
  return config


def tensors(folder: Path) -> dict[str, Tensor]:
  """The tensors of a folder: its safetensors, else what PyTorch saved."""
  if hf.files(folder):
    return hf.tensors(folder)
  files = sorted(folder.glob('pytorch_model*.bin'))
  files = files or sorted(f for f in folder.glob('*.pt*') if f.suffix in ('.pt', '.pth'))[:2]
  if not files or (len(files) > 1 and files[0].suffix != '.bin'):
    raise FewshotError(
      f'{folder.name}/ holds no model*.safetensors, pytorch_model*.bin, or single .pth or .pt file'
    )
  found: dict[str, Tensor] = {}
  for file in files:
    part = torch_file.tensors(file)
    if twice := found.keys() & part.keys():
      raise FewshotError(f'{folder.name}/ holds {brief(sorted(twice))} in more than one file')
    found |= part
  return found
