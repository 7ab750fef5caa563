"""Prompt learning: PEFT stores one matrix, `prompt_embeddings` [length, ...], whatever made it.

Of prompt tuning and P-tuning these are the vectors before the tokens; of prefix tuning the keys and
values of all layers side by side, key and value of the first, of the second, ...
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fewshot import methods
from fewshot.checkpoint import example_of, starting_shapes
from fewshot.errors import FewshotError, brief
from fewshot.exchange.sites import arguments
from fewshot.methods.activations import path_of
from fewshot.methods.base import Method, adapt
from fewshot.models.base import Model

TENSOR = 'prompt_embeddings'
FREE = (  # Fields that the tensor says as well, or that matter to training or to the start alone.
  'num_virtual_tokens', 'token_dim', 'num_transformer_submodules', 'num_attention_heads',
  'num_layers', 'prompt_tuning_init', 'prompt_tuning_init_text', 'tokenizer_name_or_path',
  'tokenizer_kwargs', 'encoder_reparameterization_type', 'encoder_hidden_size',
  'encoder_num_layers', 'encoder_dropout', 'prefix_projection', 'init_weights',
)  # fmt: skip


def read(
  config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], model: Model
) -> tuple[Method, Any, Any]:
  """(method, theta, state): `prefix`, or `soft_prompt` for what a network made as well."""
  if tensors.keys() != {TENSOR}:
    raise FewshotError(f'{config["peft_type"]} stores {TENSOR} alone, not {brief(list(tensors))}')
  _check_text(model, config.get('num_transformer_submodules'))
  x = tensors[TENSOR]
  if config['peft_type'] != 'PREFIX_TUNING':
    method = methods.soft_prompt(length=len(x))
    theta, state = starting_shapes(method, model, 0)
    _check(model, x, theta['inputs']['prompt'].shape)
    made = {'prompt': jnp.asarray(x, jnp.float32) / _gain(model)}
    return method, theta | {'inputs': made}, state
  method = methods.prefix(length=len(x))
  theta, state = starting_shapes(method, model, 0)
  cores = [path for path, t in theta.items() if t]
  n, groups, width = theta[cores[0]]['keys'].shape
  _check(model, x, (n, 2 * len(cores) * groups * width))
  each = jnp.asarray(x, jnp.float32).reshape(n, len(cores), 2, groups, width)
  own = {p: {'keys': each[:, i, 0], 'values': each[:, i, 1]} for i, p in enumerate(cores)}
  return method, theta | own, state


def write(
  peft: str, method: Method, theta: Any, state: Any, model: Model
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Fields of the config and the tensor: what the adapted model reads, however it is made."""
  _check_text(model)
  seen = _seen(model, lambda forward: adapt(method, forward, theta, state))
  length = arguments(method)['length']
  fields: dict[str, Any] = {'num_virtual_tokens': length, 'num_transformer_submodules': 1}
  if peft != 'PREFIX_TUNING':
    x = seen['inputs'][0][0, :length] * _gain(model)
    return fields | {'token_dim': x.shape[-1]}, {TENSOR: np.asarray(x, np.float32)}
  cores = [path for path in seen if path.endswith('/attn/core')]
  if not all(theta.get(path) for path in cores):
    raise FewshotError('PEFT has a prefix in every layer, and this one is in some; see where=')
  each = [jnp.stack([x[0, :length] for x in seen[path][1:3]], 1) for path in cores]
  x = jnp.stack(each, 1)  # [length, layers, 2, G, D]
  groups, width = x.shape[-2:]
  fields |= {'num_layers': len(cores), 'num_attention_heads': groups, 'token_dim': groups * width}
  fields |= {'encoder_hidden_size': groups * width, 'prefix_projection': False}
  return fields, {TENSOR: np.asarray(x.reshape(length, -1), np.float32)}


def _seen(model: Model, wrap: Callable[[Any], Any] = lambda forward: forward) -> dict[str, Any]:
  """What the modules of the wrapped forward are called with, in the order of the calls."""
  seen: dict[str, Any] = {}

  def record(next_fn: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    if context.method_name == '__call__' and context.module.scope is not None:
      seen.setdefault(path_of(context), args)
    return next_fn(*args, **kwargs)

  def forward(params: Any, batch: Any, key: Any = None) -> Any:
    with nn.intercept_methods(record):  # Innermost, so that it sees what a method hands on.
      return model.forward(params, batch, key)

  wrap(forward)(model.params, example_of(model))
  return seen


def _gain(model: Model) -> float:
  """What `inputs` multiplies tokens by and nothing else (Gemma): their table does it in PEFT."""
  seen = _seen(model)
  x, y = (np.asarray(seen[path][0], np.float64) for path in ('inputs', 'encoder'))
  gain = float((x * y).sum() / max((x * x).sum(), 1e-12))
  return gain if np.allclose(y, gain * x, rtol=1e-2, atol=1e-4) else 1.0


def _check_text(model: Model, stacks: int | None = None) -> None:
  """Prompts are exchanged for one stack that reads tokens."""
  tokens = 'embedding' in model.params.get('embed', {})
  if not tokens or 'decoder' in model.params or stacks not in (None, 1):
    raise FewshotError(
      'a prompt is exchanged for a text encoder or a decoder, not for both together or for images'
    )


def _check(model: Model, x: np.ndarray, shape: tuple[int, ...]) -> None:
  if x.shape != shape:
    raise FewshotError(
      f'{TENSOR} is {list(x.shape)} in the adapter, and {list(shape)} for {model.name}; they '
      'do not belong together'
    )
