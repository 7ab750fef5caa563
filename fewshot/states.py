"""States: where a training can be taken up again, by orbax: the last few and the best, verified."""

import hashlib
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fewshot import stopping
from fewshot.errors import FewshotError


class States:
  """The states of one training in a folder, each written whole or not at all, in the background.

  Beside the last `keep` that with the highest score stays, where scores are given.  A state's
  hash is kept with it, so that one that was cut or altered is found and the one before it used.

  Args:
    about: what the training is, as JSON; the states of another are refused.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   states = States(folder, {'lr': 0.1})
  ...   states.save(3, {'theta': jax.numpy.ones(2)})
  ...   states.close()
  ...   step, carry = States(folder, {'lr': 0.1}).restore({'theta': jax.numpy.zeros(2)})
  >>> step, carry['theta'].tolist()
  (3, [1.0, 1.0])
  """

  def __init__(self, folder: str | Path, about: Mapping[str, Any], keep: int = 2) -> None:
    import orbax.checkpoint as ocp  # Takes a second to import.
    from orbax.checkpoint import checkpoint_managers as managers

    logging.getLogger('absl').setLevel(logging.ERROR)  # It tells of every file.
    best = managers.BestN(
      get_metric_fn=lambda m: m['score'], n=1, keep_checkpoints_without_metrics=False
    )
    kept = managers.AnyPreservationPolicy([managers.LatestN(n=keep), best])
    self._args, self._about, self._name = ocp.args, dict(about), Path(folder).name
    self._manager = ocp.CheckpointManager(
      Path(folder).absolute(),
      options=ocp.CheckpointManagerOptions(preservation_policy=kept, cleanup_tmp_directories=True),
    )

  def save(self, step: int, carry: Any, score: float | None = None) -> None:
    """Keeps the carry after `step` steps; returns when it is copied, not when it is written."""
    leaves = {f'{i:05}': _on_host(x) for i, x in enumerate(jax.tree.leaves(carry))}
    about = {'of': self._about, 'of_sha256': _digest_of(self._about), 'sha256': _digest(leaves)}
    both = self._args.Composite(
      carry=self._args.StandardSave(leaves), about=self._args.JsonSave(about)
    )
    with stopping.uninterrupted():  # Else its threads would find each other gone.
      self._manager.save(step, args=both, metrics=None if score is None else {'score': score})

  def restore(self, like: Any) -> tuple[int, Any] | None:
    """The last whole state with its step, as numpy arrays in the tree of `like`; None without one.

    Raises:
      FewshotError: the folder is another training's, or every state in it is damaged.
    """
    damaged = []
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        found = step, self._of_step(step, like)
      except FewshotError:
        raise
      except Exception as e:  # Whatever orbax meets in a damaged folder.
        reason = ' '.join(str(e).split())[:100]
        warnings.warn(f'the checkpoint of step {step} is damaged ({reason})', stacklevel=4)
        damaged.append(step)
        continue
      for later in damaged:  # Else orbax would not write these steps again.
        self._manager.delete(later)
      return found
    if damaged:
      raise FewshotError(f'every checkpoint of {self._name} is damaged; delete it to train anew')
    return None

  def _of_step(self, step: int, like: Any) -> Any:
    read = self._args.Composite(about=self._args.JsonRestore())
    about = self._manager.restore(step, args=read)['about']
    if _digest_of(about['of']) != about['of_sha256']:
      raise ValueError('what it belongs to is not what was saved')
    for k, value in self._about.items():
      if k in about['of'] and about['of'][k] != value:
        raise FewshotError(
          f'the folder holds a training with {k} {about["of"][k]!r}, and this one has {value!r}; '
          'give another folder'
        )
    shapes, tree = jax.tree.flatten(like)
    blank = {f'{i:05}': np.zeros(_data(x).shape, _data(x).dtype) for i, x in enumerate(shapes)}
    both = self._args.Composite(carry=self._args.StandardRestore(blank))
    leaves = self._manager.restore(step, args=both)['carry']
    if _digest(leaves) != about['sha256']:
      raise ValueError('its content is not what was saved')
    return jax.tree.unflatten(
      tree, [_like(leaves[k], x) for k, x in zip(blank, shapes, strict=True)]
    )

  def close(self) -> None:
    """Waits for what is still being written."""
    with stopping.uninterrupted():
      self._manager.close()


def _is_key(x: Any) -> bool:
  return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _data(x: Any) -> Any:
  """The shape of what is stored: of random keys, their numbers."""
  return jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x


def _on_host(x: Any) -> np.ndarray:
  """A copy, which the next step cannot donate away while it is written."""
  return np.array(jax.random.key_data(x) if _is_key(x) else x, copy=True)


def _like(x: Any, shape: Any) -> Any:
  return jax.random.wrap_key_data(x) if _is_key(shape) else np.asarray(x)


def _digest(leaves: Mapping[str, Any]) -> str:
  """16 hex digits of the SHA-256 of names, types, shapes and contents."""
  digest = hashlib.sha256()
  for name, x in sorted(leaves.items()):
    array = np.ascontiguousarray(x)
    digest.update(f'{name} {array.dtype} {array.shape}'.encode())
    digest.update(array.view(np.uint8).data if array.size else b'')
  return digest.hexdigest()[:16]


def _digest_of(about: Mapping[str, Any]) -> str:
  """The same of what a training is."""
  return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
