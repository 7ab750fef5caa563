"""The vocabulary of methods; each name here is a word of the spelling."""

from collections.abc import Callable

from fewshot.methods import spelling
from fewshot.methods.activations import Site, adapter, ia3, in_activations, sites
from fewshot.methods.base import Calib, Forward, Method, adapt, as_weights, chain, merge, method
from fewshot.methods.heads import linear, nearest_mean
from fewshot.methods.lowrank import lora
from fewshot.methods.partition import combine, count, mask, partition, shapes, table
from fewshot.methods.paths import Selection, at
from fewshot.methods.prompts import soft_prompt
from fewshot.methods.spelling import remake, spell
from fewshot.methods.weights import bitfit, full, in_weights, layernorm, linear_probe, tune

METHODS = (
  full, tune, linear_probe, bitfit, layernorm, lora, ia3, adapter, soft_prompt,
  linear, nearest_mean, as_weights,
)  # fmt: skip
# Where the methods of a file act, and what HF PEFT calls them.
PLACES = {
  'weights': 'weight',
  'base': 'weight',
  'activations': 'activation',
  'lowrank': 'activation',
  'prompts': 'input',
  'heads': 'head',
}
PEFT = {'layernorm': 'LN_TUNING', 'lora': 'LORA', 'ia3': 'IA3', 'soft_prompt': 'PROMPT_TUNING'}
VOCABULARY: dict[str, Callable] = {f.__name__: f for f in (*METHODS, chain, at)}


def parse(text: str) -> Method:
  """The method that `text` spells.

  >>> spell(parse("chain(lora(rank=4), linear())"))
  'chain(lora(rank=4), linear())'
  """
  made = spelling.parse(text, VOCABULARY)
  if not isinstance(made, Method):
    raise spelling.FewshotError(f'{text!r} spells no method; write for example lora(rank=8)')
  return made


__all__ = [
  'METHODS', 'PEFT', 'PLACES', 'VOCABULARY', 'Calib', 'Forward', 'Method', 'Selection', 'Site',
  'adapt', 'adapter', 'as_weights', 'at', 'bitfit', 'chain', 'combine', 'count', 'full', 'ia3',
  'in_activations', 'in_weights', 'layernorm', 'linear', 'linear_probe', 'lora', 'mask',
  'merge', 'method', 'nearest_mean', 'parse', 'partition', 'remake', 'shapes', 'sites',
  'soft_prompt', 'spell', 'table', 'tune',
]  # fmt: skip
