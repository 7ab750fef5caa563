"""Classifiers that are stored with an adapter (`modules_to_save`), and `linear()`."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from fewshot import methods
from fewshot.errors import FewshotError
from fewshot.exchange.modules import ROOT, Modules
from fewshot.methods.base import Method
from fewshot.models.base import Model


def read(
  tensors: Mapping[str, np.ndarray], model: Model, table: Modules
) -> tuple[tuple[Method, Any, Any] | None, dict[str, np.ndarray]]:
  """(method, theta, state) of a stored classifier or None, and the other tensors."""
  name = _name(table)
  if name is None or f'{ROOT}{name}.weight' not in tensors:
    return None, dict(tensors)
  rest = {k: x for k, x in tensors.items() if not k.startswith(f'{ROOT}{name}.')}
  kernel = jnp.asarray(tensors[f'{ROOT}{name}.weight'].T, jnp.float32)
  bias = tensors.get(f'{ROOT}{name}.bias', np.zeros(kernel.shape[1]))
  head = {'kernel': kernel, 'bias': jnp.asarray(bias, jnp.float32)}
  return (methods.linear(classes=kernel.shape[1]), {'head': head}, {}), rest


def write(theta: Any, model: Model, table: Modules) -> tuple[str, dict[str, np.ndarray]]:
  """What Transformers calls the classifier of this backbone, and its tensors."""
  name = _name(table)
  if name is None:
    raise FewshotError(
      f'linear() has no place in the classes of Transformers for {model.name}, whose classifiers '
      'read other features; write the adapter without its head'
    )
  head = {k: np.asarray(v) for k, v in theta['head'].items()}
  found = {f'{ROOT}{name}.weight': np.ascontiguousarray(head['kernel'].T)}
  if name != 'score':
    return name, found | {f'{ROOT}{name}.bias': head['bias']}
  if head['bias'].any():
    raise FewshotError(f'the classifier of {model.name} has no bias in Transformers; ours has one')
  return name, found


def _name(table: Modules) -> str | None:
  """A classifier that reads our features: of images, and of the last token of a decoder."""
  if 'head' in table.theirs:
    return table.theirs['head']
  return 'score' if 'lm_head' in table.theirs and 'decoder/ln' not in table.theirs else None


def tied(model: Model, table: Modules) -> bool:
  """Whether the output matrix is the table of tokens, so that PEFT stores rows of it twice."""
  return 'lm_head' in table.theirs and 'lm_head' not in model.params
