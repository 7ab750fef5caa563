"""The vocabulary of methods; each name here is a word of the spelling."""

from collections.abc import Callable

from fewshot.methods import (
  adapters,
  calibration,
  comparing,
  conditioning,
  context,
  conv,
  deep_prompts,
  deltas,
  heads,
  kronecker,
  label_heads,
  likelihoods,
  lora_more,
  lora_shared,
  lora_variants,
  lowrank,
  masks,
  moving,
  moving_layers,
  orthogonal,
  prefixes,
  prompts,
  reduction,
  representation,
  scaling,
  scoring,
  side,
  spectral,
  spelling,
  structured,
  subspace,
  telling,
  weights,
  zeroshot,
)
from fewshot.methods.activations import Site, in_activations, inputs, sites
from fewshot.methods.adapters import *
from fewshot.methods.base import Calib, Forward, Method, adapt, as_weights, chain, merge, method
from fewshot.methods.calibration import *
from fewshot.methods.choices import Top
from fewshot.methods.chosen import Chosen, jaccard, overlap, saved
from fewshot.methods.comparing import *
from fewshot.methods.conditioning import *
from fewshot.methods.context import *
from fewshot.methods.conv import *
from fewshot.methods.deep_prompts import *
from fewshot.methods.deltas import *
from fewshot.methods.heads import *
from fewshot.methods.kronecker import *
from fewshot.methods.label_heads import *
from fewshot.methods.likelihoods import *
from fewshot.methods.lora_more import *
from fewshot.methods.lora_shared import *
from fewshot.methods.lora_variants import *
from fewshot.methods.lowrank import *
from fewshot.methods.masks import *
from fewshot.methods.moving import *
from fewshot.methods.moving_layers import *
from fewshot.methods.orthogonal import *
from fewshot.methods.partition import combine, count, mask, partition, shapes, table
from fewshot.methods.paths import Selection, at
from fewshot.methods.prefixes import *
from fewshot.methods.prompts import *
from fewshot.methods.reduction import *
from fewshot.methods.representation import *
from fewshot.methods.scaling import *
from fewshot.methods.scoring import SCORES, Score
from fewshot.methods.selecting import top
from fewshot.methods.side import *
from fewshot.methods.spectral import *
from fewshot.methods.spelling import remake, spell
from fewshot.methods.structured import *
from fewshot.methods.subspace import *
from fewshot.methods.telling import *
from fewshot.methods.weights import *
from fewshot.methods.weights import in_weights
from fewshot.methods.zeroshot import *
from fewshot.methods.zeroshot import templated

# Where the methods of a file act; they are the names in its __all__.
FILES = {
  weights: 'weight',
  masks: 'weight',
  lowrank: 'activation',
  lora_variants: 'activation',
  lora_more: 'activation',
  lora_shared: 'activation',
  kronecker: 'weight',
  spectral: 'weight',
  orthogonal: 'activation',
  scaling: 'activation',
  deltas: 'weight',
  moving: 'weight',
  moving_layers: 'weight',
  structured: 'weight',
  subspace: 'weight',
  conv: 'weight',
  adapters: 'activation',
  side: 'activation',
  representation: 'activation',
  reduction: 'activation',
  prompts: 'input',
  prefixes: 'activation',
  context: 'activation',
  deep_prompts: 'input',
  heads: 'head',
  label_heads: 'head',
  comparing: 'head',
  likelihoods: 'head',
  calibration: 'head',
  zeroshot: 'head',
  telling: 'head',
  conditioning: 'head',
}
METHODS: tuple[Callable[..., Method], ...] = (
  *(getattr(file, name) for file in FILES for name in file.__all__),
  as_weights,
)
PLACE = {name: place for file, place in FILES.items() for name in file.__all__}
PLACE['as_weights'] = 'weight'
# What HF PEFT calls them; `exchange` reads and writes these.
PEFT = {
  'adalora': 'ADALORA',
  'boft': 'BOFT',
  'c3a': 'C3A',
  'dora': 'LORA',
  'fourierft': 'FOURIERFT',
  'hra': 'HRA',
  'ia3': 'IA3',
  'layernorm': 'LN_TUNING',
  'llama_adapter': 'ADAPTION_PROMPT',
  'loha': 'LOHA',
  'lokr': 'LOKR',
  'lora': 'LORA',
  'lora_plus': 'LORA',
  'lora_pro': 'LORA',
  'miss': 'MISS',
  'oft': 'OFT',
  'p_tuning': 'P_TUNING',
  'prefix': 'PREFIX_TUNING',
  'randlora': 'RANDLORA',
  'road': 'ROAD',
  'scaled_prompt': 'PROMPT_TUNING',
  'shira': 'SHIRA',
  'soft_prompt': 'PROMPT_TUNING',
  'tokens': 'TRAINABLE_TOKENS',
  'vblora': 'VBLORA',
  'vera': 'VERA',
}
VOCABULARY: dict[str, Callable] = {
  f.__name__: f for f in (*METHODS, chain, at, top, saved)
} | SCORES


def parse(text: str) -> Method:
  """The method that `text` spells.

  >>> spell(parse("chain(lora(rank=4), linear())"))
  'chain(lora(rank=4), linear())'
  """
  made = spelling.parse(text, VOCABULARY)
  if not isinstance(made, Method):
    raise spelling.FewshotError(f'{text!r} spells no method; write for example lora(rank=8)')
  return made
