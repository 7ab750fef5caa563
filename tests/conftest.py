"""What tests share: a tiny BERT on which no leaf is trivially zero, a batch, splits, a cache.

Random numbers come from numpy, which compiles nothing; inputs are never constant, since LayerNorm
makes zero of what is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from fewshot import assets, methods, models, objectives
from fewshot.models import bert
from fewshot.tasks.encode import Bucket, Encoded
from fewshot.tasks.splits import Split

# Compiled programs survive between test runs and are shared by the workers of one run.
jax.config.update('jax_compilation_cache_dir', str(assets.cache_dir() / 'xla'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)

CONFIG = bert.Config(vocab=50, dim=32, depth=2, heads=4, width=64, positions=64, types=2)
CLASSES = 3


class Tiny(NamedTuple):
  """A tiny model and what it is fed."""

  config: bert.Config
  forward: Callable[..., dict[str, Any]]
  params: Any  # With a random `head`.
  batch: dict[str, Any]
  calib: methods.Calib
  model: models.Model
  encoded: Encoded  # Two splits of 9 train and 10 test examples.


@pytest.fixture(scope='session')
def tiny() -> Tiny:
  """The tiny BERT; numpy arrays, so that a bitwise comparison before and after is cheap."""
  forward, params = bert.forward(CONFIG), random_params(CONFIG)
  batch = random_batch((6, 7), np.random.default_rng(1))
  calib = methods.Calib(batch, CLASSES, objectives.classification().loss)
  model = models.Model('tiny', forward, params, positions=CONFIG.positions)
  return Tiny(CONFIG, forward, params, batch, calib, model, random_splits())


@pytest.fixture(scope='session')
def perturb() -> Callable[..., Any]:
  """A tree with noise added to every float leaf, dtypes kept: theta as after some training."""

  def perturbed(tree: Any, seed: int = 5, scale: float = 0.2) -> Any:
    rng = np.random.default_rng(seed)
    noisy = lambda x: (np.asarray(x) + scale * rng.standard_normal(x.shape)).astype(x.dtype)  # noqa: E731
    return jax.tree.map(lambda x: noisy(x) if np.issubdtype(x.dtype, np.floating) else x, tree)

  return perturbed


def random_params(config: bert.Config) -> Any:
  """Kernels of about unit gain, biases and gains off their usual 0 and 1, and a head."""
  shapes = dict(jax.eval_shape(lambda: bert.init(config, jax.random.key(0))))
  shapes['head'] = {
    'kernel': jax.ShapeDtypeStruct((config.dim, CLASSES), np.float32),
    'bias': jax.ShapeDtypeStruct((CLASSES,), np.float32),
  }
  rng = np.random.default_rng(0)

  def draw(path: Any, leaf: Any) -> np.ndarray:
    name = path[-1].key
    scale = 0.2 if name in ('bias', 'scale') else leaf.shape[0] ** -0.5
    x = scale * rng.standard_normal(leaf.shape) + (name == 'scale')
    return x.astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def random_batch(shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, Any]:
  """tokens and mask of `shape` [..., B, T], of mixed lengths, and labels [..., B]."""
  lengths = rng.integers(2, shape[-1] + 1, shape[:-1])
  mask = np.arange(shape[-1]) < lengths[..., None]
  tokens = np.where(mask, rng.integers(1, CONFIG.vocab, shape), 0).astype(np.int32)
  labels = np.broadcast_to(np.arange(shape[-2]) % CLASSES, shape[:-1]).astype(np.int32)
  return {'tokens': tokens, 'mask': mask, 'labels': labels}


def random_splits() -> Encoded:
  """Two splits of 9 train examples with one test set of 10 in two buckets."""
  rng = np.random.default_rng(2)
  train = random_batch((2, 9, 7), rng)
  short, long = random_batch((1, 4, 4), rng), random_batch((2, 4, 7), rng)
  buckets = (
    Bucket(short, np.array([3, 0, 7, 9])),
    Bucket(long, np.array([1, 2, 4, 5, 6, 8, -1, -1])),  # The last two are padding.
  )
  rows = np.concatenate([b.rows for b in buckets])
  flat = np.concatenate([b.batches['labels'].reshape(-1) for b in buckets])
  labels = flat[np.argsort(np.where(rows < 0, 99, rows))][:10]
  row = lambda n: np.arange(n)  # noqa: E731
  splits = tuple(Split(s, 3, row(9), row(0), row(10), f'split{s}', 'test') for s in (0, 1))
  return Encoded(train, None, buckets, labels, splits)
