"""An adapted model: a backbone, what was trained beside it, and the classes it tells apart."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fewshot.errors import FewshotError
from fewshot.methods.base import Method, adapt, merge
from fewshot.models.base import Model
from fewshot.objectives import logits
from fewshot.tasks import prompts
from fewshot.tasks.encode import tokenize
from fewshot.tasks.prompts import Wording


class Adapted(NamedTuple):
  """A model with its method, theta and state; `checkpoint.save` writes it, `predict` uses it."""

  model: Model
  method: Method
  theta: Any
  state: Any
  classes: tuple[str, ...]
  max_length: int = 64
  split: str = ''  # The hash of the split it was trained on.
  wording: Wording | None = None  # How it is shown texts.

  def predict(self, inputs: Sequence[str] | Any, batch: int = 64) -> list[str]:
    """The class of each text (or tuple of a text's fields), or of each row of an array or a dict
    of arrays.
    """
    return [self.classes[i] for i in self.logits(inputs, batch).argmax(-1)]

  def logits(self, inputs: Sequence[str] | Any, batch: int = 64) -> np.ndarray:
    """The logits [N, C] of texts or arrays, in batches of one shape."""
    rows, views = self._batch(inputs)
    n = len(next(iter(rows.values())))
    if not n:
      return np.zeros((0, len(self.classes)))
    size, forward, out = min(batch, n), self._jitted(), []
    for start in range(0, n, size):
      index = np.minimum(np.arange(start, start + size), n - 1)
      part = {k: jnp.asarray(v[index]) for k, v in rows.items()}
      out.append(np.asarray(forward(self.model.params, self.theta, self.state, part)))
    return np.concatenate(out)[:n].reshape(-1, views, len(self.classes)).mean(1)

  def merged(self) -> Any:
    """Params of a plain model that computes the same; refused where there are none."""
    return merge(self.method, self.theta, self.state, self.model.params)

  def _batch(self, inputs: Any) -> tuple[dict[str, np.ndarray], int]:
    """The rows of a batch, and how many an input makes."""
    if isinstance(inputs, str):
      raise FewshotError('predict takes a list of texts, not one text; write predict([text])')
    if isinstance(inputs, dict):
      arrays = {k: np.asarray(v) for k, v in inputs.items()}
      if len({len(v) for v in arrays.values()}) != 1:
        raise FewshotError(f'predict takes arrays of equal length, not {list(arrays)}')
      return arrays, 1
    texts = list(inputs)
    if texts and (isinstance(texts[0], str) or _are_fields(texts[0])):
      if self.model.tokenizer is None:
        raise FewshotError(f'{self.model.name} has no tokenizer; predict takes arrays')
      odd = [t for t in texts if not isinstance(t, str) and not _are_fields(t)]
      if odd:
        raise FewshotError(f'predict takes texts, but there is a {type(odd[0]).__name__}')
      if self.wording is not None:
        filled = prompts.fill(self.wording, self.model.tokenizer, texts, self.max_length)
        return filled.rows, self.wording.views
      return tokenize(self.model.tokenizer, texts, self.max_length)[0], 1
    return {'x': np.asarray(inputs)}, 1

  def _jitted(self) -> Any:
    return _jitted(self.model.forward, self.method)


def _are_fields(value: Any) -> bool:
  return isinstance(value, tuple) and bool(value) and all(isinstance(v, str) for v in value)


@functools.lru_cache(maxsize=8)
def _jitted(forward: Any, method: Method) -> Any:
  return jax.jit(lambda p, t, s, b: logits(adapt(method, forward, t, s)(p, b)))
