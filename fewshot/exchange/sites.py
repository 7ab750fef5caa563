"""Where on a model a method acts: shapes, and patterns that name modules."""

import collections
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

import jax
from flax import linen as nn

from fewshot.checkpoint import example_of
from fewshot.methods import paths
from fewshot.methods.activations import path_of
from fewshot.methods.base import Method
from fewshot.methods.spelling import Made
from fewshot.models.base import Model


def arguments(method: Method) -> dict[str, Any]:
  """The arguments that a method was made with, defaults included."""
  made = cast(Made, method.made)
  bound = inspect.signature(made.fn).bind(*made.args, **dict(made.named))
  bound.apply_defaults()
  return dict(bound.arguments)


def repeated(model: Model) -> set[str]:
  """The modules that are called more than once in a forward pass, as layers that share weights."""
  calls: collections.Counter[str] = collections.Counter()

  def count(next_fn: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    path = path_of(context)
    calls[path] += context.method_name == '__call__'
    return next_fn(*args, **kwargs)

  with nn.intercept_methods(count):
    jax.eval_shape(lambda p, b: model.forward(p, b), model.params, example_of(model))
  return {path for path, n in calls.items() if n > 1}


def kernel(leaves: Mapping[str, Any], site: str) -> tuple[int, ...]:
  """The shape of a module's kernel; () where it has none."""
  return leaves[f'{site}/kernel'].shape if f'{site}/kernel' in leaves else ()


def everywhere(model: Model) -> list[str]:
  """Our modules with params, and the cores of attention."""
  own = {p.rpartition('/')[0] for p in paths.flatten(model.params)}
  cores = {f'{p.removesuffix("query")}core' for p in own if p.endswith('attn/query')}
  return sorted(own | cores)


def pattern(chosen: Iterable[str], known: Iterable[str], leaf: str = '') -> str:
  """The shortest pattern of the chosen modules, or of their leaf, and of no other known one.

  >>> pattern(['a/q', 'b/q', 'b/v'], ['a/q', 'a/k', 'b/q', 'b/v'])
  '.*/(q|v)'
  """
  chosen = sorted(chosen)
  for depth in (1, 2):
    ends = sorted({'/'.join(p.split('/')[-depth:]) for p in chosen})
    text = '.*/' + (f'({"|".join(ends)})' if len(ends) > 1 else ''.join(ends))
    if {p for p in known if re.fullmatch(text, p)} == set(chosen):
      return text + leaf
  return '|'.join(re.escape(p + leaf) for p in chosen) or '(?!)'  # Nothing matches the latter.
