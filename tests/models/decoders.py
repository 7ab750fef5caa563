"""Tiny causal models that the tests share: no leaf trivially zero, every row of another length."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from fewshot.models import gemma, gpt2, llama

SHAPE: dict[str, Any] = {
  'vocab': 50,
  'dim': 16,
  'depth': 2,
  'heads': 4,
  'width': 24,
  'positions': 24,
}
GROUPS: dict[str, Any] = {**SHAPE, 'groups': 2, 'head_dim': 6}
FAMILIES: dict[str, Any] = {
  'gpt2': (gpt2, gpt2.Config(**SHAPE)),
  'llama': (llama, llama.Config(**GROUPS, window=5, qkv_bias=True)),
  'gemma': (gemma, gemma.Config(**GROUPS, local=(True, False), window=4, scale=0.4)),
}


class Decoder(NamedTuple):
  """A tiny model and a batch of rows of 6, 3 and 1 tokens."""

  name: str
  family: Any
  config: Any
  params: Any
  batch: dict[str, Any]

  @property
  def forward(self) -> Any:
    return self.family.forward(self.config)


@functools.cache
def tiny(name: str) -> Decoder:
  """The tiny model of a family."""
  family, config = FAMILIES[name]
  rng = np.random.default_rng(3)
  mask = np.arange(6) < np.array([6, 3, 1])[:, None]
  tokens = np.where(mask, rng.integers(1, config.vocab, (3, 6)), 0).astype(np.int32)
  return Decoder(name, family, config, params(family, config), {'tokens': tokens, 'mask': mask})


def params(family: Any, config: Any) -> Any:
  """Kernels of about unit gain, and gains and biases off their usual 1 and 0."""
  rng = np.random.default_rng(0)

  def draw(path: Any, leaf: Any) -> np.ndarray:
    scale = 0.2 if path[-1].key in ('bias', 'scale') else leaf.shape[0] ** -0.5
    scale = 0.5 if path[-1].key == 'embedding' else scale
    x = scale * rng.standard_normal(leaf.shape) + (path[-1].key == 'scale')
    return x.astype(np.float32)

  shapes = jax.eval_shape(lambda: family.init(config, jax.random.key(0)))
  return jax.tree_util.tree_map_with_path(draw, shapes)


def greedy(forward: Any, params: Any, batch: dict[str, Any], new: int) -> np.ndarray:
  """[B, new] by the whole text at every step, without a cache; each row's tokens stay in front."""
  lengths = batch['mask'].sum(1)
  tokens = np.pad(batch['tokens'], ((0, 0), (0, new)))
  run = jax.jit(lambda b: forward(params, b)['token_logits'])
  rows = np.arange(len(tokens))
  for i in range(new):
    mask = np.arange(tokens.shape[1]) < (lengths + i)[:, None]
    logits = np.asarray(run({'tokens': tokens, 'mask': mask}))[rows, lengths + i - 1]
    ordered = np.sort(logits, -1)
    assert (ordered[:, -1] - ordered[:, -2]).min() > 1e-4  # Or either token could be right.
    tokens[rows, lengths + i] = logits.argmax(-1)
  return np.stack([t[n : n + new] for t, n in zip(tokens, lengths, strict=True)])
