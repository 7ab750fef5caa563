"""Hugging Face folders: config.json and safetensors, one file or several."""

import functools
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import safetensors

from fewshot.errors import FewshotError
from fewshot.models.weights.names import Tensor


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


def tensors(folder: Path, stack: ExitStack) -> dict[str, Tensor]:
  """The tensors of a folder's model*.safetensors; the files stay mapped until the stack closes.

  Raises `FewshotError` where there is none, or one is broken.
  """
  files = sorted(folder.glob('model*.safetensors'))  # Adapters and the like stay aside.
  if not files:
    raise FewshotError(f'{folder.name}/ holds no model*.safetensors; convert the weights first')
  found = {}
  for file in files:
    try:
      opened = stack.enter_context(safetensors.safe_open(file, framework='numpy'))
    except (safetensors.SafetensorError, OSError) as e:
      raise FewshotError(
        f'{folder.name}/{file.name} is corrupted or truncated ({e}); remove it and fetch it again '
        'with `fewshot assets get`'
      ) from None
    for name in opened.keys():  # noqa: SIM118
      shape = tuple(opened.get_slice(name).get_shape())
      found[name] = Tensor(shape, functools.partial(opened.get_tensor, name))
  return found
