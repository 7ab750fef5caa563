"""Classes by their names: an image goes to the text that a second tower finds most like it."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from fewshot.errors import FewshotError
from fewshot.methods.base import (
  Batch,
  Calib,
  Forward,
  Method,
  Outputs,
  Params,
  State,
  Theta,
  method,
)
from fewshot.methods.heads import count_classes, shapes_of

__all__ = ['class_texts']
Array = jax.Array


@method
def class_texts(tokens: tuple[tuple[int, ...], ...]) -> Method:
  """CLIP's zero-shot classifier (Radford et al. 2021, arXiv:2103.00020): a text names each class.

      logits_c = exp(scale) cos(image, text_c) + bias

  `tokens` are a text's ids for each class, as `templated` gives them; the text tower runs in every
  pass, so that it may train as well.  A `head` of params is left aside.  Nothing trains here.

  >>> from fewshot.methods import spell
  >>> spell(class_texts(((0, 5, 2), (0, 7, 8, 2))))
  'class_texts(((0, 5, 2), (0, 7, 8, 2)))'
  """
  if len(tokens) < 2 or not all(isinstance(t, tuple) and t for t in tokens):
    raise FewshotError(f'class_texts({tokens}) takes token ids of two classes or more')
  if any(type(i) is not int or i < 0 for t in tokens for i in t):
    raise FewshotError(f'class_texts({tokens}) takes token ids, as the tokenizer gives them')
  lengths = np.array([len(t) for t in tokens])
  mask = np.arange(lengths.max()) < lengths[:, None]
  rows = np.zeros(mask.shape, np.int32)
  rows[mask] = [i for t in tokens for i in t]

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    def adapted(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
      bare = {k: v for k, v in params.items() if k != 'head'}
      return forward(bare, batch | {'tokens': rows, 'mask': mask}, key)

    return adapted

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    del key
    images = {k: v for k, v in calib.batch.items() if k not in ('tokens', 'mask')}
    named = wrap(forward, {}, {}) if 'image' in images else forward
    found = shapes_of(named, params, calib._replace(batch=images)) if 'image' in images else {}
    if not {'image_features', 'text_features'} <= found.keys():
      raise FewshotError('class_texts() takes images, and a model with a tower of texts beside')
    count_classes(len(tokens), calib)
    return {}, {}

  return Method(init, wrap=wrap)


def templated(
  tokenizer: Any, names: Iterable[str], template: str = 'a photo of a {}.'
) -> tuple[tuple[int, ...], ...]:
  """The token ids of the template with the name of each class in it, for `class_texts`.

  >>> class Letters:
  ...   encode = lambda self, text: type('Encoding', (), {'ids': [ord(c) - 96 for c in text]})
  >>> templated(Letters(), ['a', 'bc'], '{}d')
  ((1, 4), (2, 3, 4))
  """
  if '{}' not in template:
    raise FewshotError(f'the template {template!r} has no place for a name; put {{}} there')
  texts = (template.replace('{}', name) for name in names)
  return tuple(tuple(int(i) for i in tokenizer.encode(text).ids) for text in texts)
