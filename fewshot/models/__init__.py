"""Backbones: real weights by name or folder, and any function of your own."""

from fewshot.models.base import Model, from_function, from_linen, from_nnx, hash_params
from fewshot.models.pretrained import FAMILIES, MODELS, load, rows

__all__ = [
  'FAMILIES',
  'MODELS',
  'Model',
  'from_function',
  'from_linen',
  'from_nnx',
  'hash_params',
  'load',
  'rows',
]
