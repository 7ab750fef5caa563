"""Checkpoints: theta and state as safetensors, and a JSON that says what they belong to.

The frozen base is not stored; its hash is, so that theta never meets other weights unnoticed.
Resumable training state is another thing, and will be orbax's.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from fewshot import __version__, methods, models
from fewshot.adapted import Adapted
from fewshot.errors import FewshotError, brief
from fewshot.methods import paths, spelling
from fewshot.models.weights.hf import of_file, read_json
from fewshot.models.weights.names import Tensor
from fewshot.objectives import classification
from fewshot.tasks import prompts

TENSORS, ABOUT = 'theta.safetensors', 'adapted.json'
KINDS: dict[str, type] = {
  'model': str,
  'method': str,
  'dtype': str,
  'hashes': dict,
  'classes': list,
  'max_length': int,
}


def save(adapted: Adapted, folder: str | Path) -> Path:
  """Writes an adapted model to a folder that appears only when it is complete."""
  folder = Path(folder)
  if len(methods.spell(adapted.method)) > spelling.MAX_LENGTH:
    raise FewshotError(
      f'the spelling of this method is longer than the {spelling.MAX_LENGTH:,} characters that are '
      'read again; choose sites by shorter patterns'
    )
  leaves = paths.flatten({'theta': adapted.theta, 'state': adapted.state})
  about = {
    'method': methods.spell(adapted.method),
    'model': adapted.model.name,
    'dtype': _dtype(adapted.model),
    'hashes': {**_hashes(adapted.model), 'split': adapted.split},
    'classes': list(adapted.classes),
    'max_length': adapted.max_length,
    **_shown(adapted),
    'versions': {'fewshot': __version__, 'jax': jax.__version__},
  }

  def fill(tmp: Path) -> None:
    safetensors.numpy.save_file({k: np.asarray(v) for k, v in leaves.items()}, tmp / TENSORS)
    (tmp / ABOUT).write_text(json.dumps(about, indent=1) + '\n')

  return publish(folder, fill, {TENSORS, ABOUT}, 'checkpoint')


def publish(folder: Path, fill: Callable[[Path], None], own: set[str], what: str) -> Path:
  """Makes a folder that appears only when `fill` has written all of it.

  What is there is overwritten only if it holds nothing but files of the names `own`, and goes only
  when the new one stands.
  """
  tmp = None
  try:
    if folder.exists() and (not folder.is_dir() or {p.name for p in folder.iterdir()} - own):
      raise FewshotError(f'{folder} exists and is no {what}; give another folder')
    folder.parent.mkdir(parents=True, exist_ok=True)
    tmp = Path(tempfile.mkdtemp(prefix=f'.{folder.name}-', dir=folder.parent))
    fill(tmp)
    _put(tmp, folder)
  except (OSError, safetensors.SafetensorError) as e:
    reason = getattr(e, 'strerror', None) or e
    raise FewshotError(f'cannot save to {folder}: {reason}; give a writable folder') from None
  finally:
    if tmp is not None and tmp.exists():
      shutil.rmtree(tmp, ignore_errors=True)
  return folder


def _put(tmp: Path, folder: Path) -> None:
  """Moves `tmp` to `folder`; what was there comes back if that fails."""
  if not folder.exists():
    os.replace(tmp, folder)
    return
  old = tmp.with_name(f'{tmp.name}-old')
  os.replace(folder, old)
  try:
    os.replace(tmp, folder)
  except BaseException:
    os.replace(old, folder)
    raise
  shutil.rmtree(old, ignore_errors=True)


def load(
  folder: str | Path,
  model: models.Model | None = None,
  method: methods.Method | None = None,
) -> Adapted:
  """Reads an adapted model back; a base and a method of your own are passed as they are.

  Raises:
    FewshotError: no checkpoint there, a damaged one, or other base weights than it was made on.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise FewshotError(f'there is no checkpoint folder {folder}')
  about = _read_about(folder)
  name, hashes, classes = about['model'], about['hashes'], tuple(about['classes'])
  try:
    tensors = of_file(folder / TENSORS)
  except FewshotError as e:
    raise FewshotError(f'{folder / TENSORS} is missing or damaged ({e}); save it again') from None
  model = model or models.load(name, dtype=about['dtype'])
  known = _hashes(model)
  for what in known | {k: '' for k in hashes if k == 'quantized'}:
    here = known.get(what)
    if here != hashes.get(what):
      raise FewshotError(
        f'{folder} was made on {name} with {what} {hashes.get(what)}, but {model.name} has {here}; '
        'load the base it belongs to'
      )
  if method is not None and methods.spell(method) != about['method']:
    raise FewshotError(
      f'{folder} holds {about["method"]}, and the method given is {methods.spell(method)}'
    )
  method = method or methods.parse(about['method'])
  theta, state = _restore(folder, method, model, len(classes), tensors)
  split = hashes.get('split', '')
  wording = _wording(folder, about, model)
  return Adapted(model, method, theta, state, classes, about['max_length'], split, wording)


def _shown(adapted: Adapted) -> dict[str, Any]:
  """The prompt, and the fields that its templates show."""
  made = adapted.wording
  return {'prompt': methods.spell(made.prompt), 'fields': list(made.fields)} if made else {}


def _wording(folder: Path, about: dict[str, Any], model: models.Model) -> prompts.Wording | None:
  if not about.get('prompt'):
    return None
  fields = about.get('fields')
  if not isinstance(fields, list) or not all(isinstance(f, str) for f in fields):
    raise FewshotError(f'{folder / ABOUT} holds no list of texts under fields; save it again')
  return prompts.wording(prompts.parse(about['prompt']), model, fields, about['classes'])


def _read_about(folder: Path) -> dict[str, Any]:
  """The JSON, every entry of the type that `save` wrote."""
  about = read_json(folder / ABOUT)
  for key, kind in KINDS.items():
    if key not in about:
      raise FewshotError(f'{folder / ABOUT} lacks {key!r}; save it again')
    if not isinstance(about[key], kind) or not _sound(key, about[key]):
      raise FewshotError(f'{folder / ABOUT} holds no {kind.__name__} under {key!r}; save it again')
  return about


def _sound(key: str, value: Any) -> bool:
  """Whether an entry of its type is one that `save` writes."""
  if key == 'classes':
    return all(isinstance(x, str) for x in value)
  return key != 'max_length' or (value is not True and value >= 1)


def _restore(
  folder: Path, method: Any, model: models.Model, classes: int, tensors: dict[str, Tensor]
) -> tuple[Any, Any]:
  """The tensors in the structure that the method's init has."""
  shapes = starting_shapes(method, model, classes)
  like = {'theta': shapes[0], 'state': shapes[1]}
  wanted = {p: x.shape for p, x in paths.flatten(like).items()}
  odd = [p for p in wanted if p not in tensors or tensors[p].shape != wanted[p]]
  odd += [p for p in tensors if p not in wanted]
  if odd:
    raise FewshotError(f'{folder} does not fit {methods.spell(method)} at {brief(odd)}')
  tree = paths.replace(like, {p: jax.numpy.asarray(x.read()) for p, x in tensors.items()})
  return tree['theta'], tree['state']


def starting_shapes(method: methods.Method, model: models.Model, classes: int) -> tuple[Any, Any]:
  """The shapes of (theta, state) of a method on a model, by the model's example batch."""
  batch = example_of(model)
  rows = len(next(iter(batch.values())))
  labelled = batch | {'labels': np.zeros(rows, np.int32)}  # Some methods start from a gradient.
  calib = methods.Calib(labelled, classes, classification().loss)
  return methods.shapes(method, model.forward, model.params, calib)


def example_of(model: models.Model) -> dict[str, Any]:
  """A batch of one."""
  if model.example is not None:
    return model.example
  if model.tokenizer is None:
    raise FewshotError(f'{model.name} needs an example batch to restore from: Model(example=...)')
  ones = np.ones((1, 2), np.int32)
  return {'tokens': ones, 'mask': ones > 0}


def _dtype(model: models.Model) -> str:
  """That of the frozen weights, by which a base loaded again is cast."""
  if 'quantized' in model.hashes:
    return 'int8'
  leaves = [np.asarray(x).dtype for x in jax.tree.leaves(model.params)]
  return str(next((d for d in leaves if jax.numpy.issubdtype(d, np.inexact)), 'float32'))


def _hashes(model: models.Model) -> dict[str, str]:
  return dict(model.hashes) or {'weights': models.hash_params(model.params)}
