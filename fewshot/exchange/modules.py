"""What PEFT calls the modules of a backbone.

A tensor of an adapter is called `base_model.model.` + the path of the module in Transformers + what
the method calls it.  The path has the prefix of the model's class ('bert.', 'model.') where that
class has a head, and none where it is the bare encoder.
"""

import re
from collections.abc import Collection
from typing import NamedTuple

from fewshot.models.base import Model
from fewshot.models.weights.names import Part

ROOT, SHARED = 'base_model.model.', 'base_model.'
# Transformers 5 renamed modules that checkpoints and adapters of Transformers 4 still have.  By one
# name that tells the family: a stem, and pairs (old name, new name) of which the first that matches
# counts; the last group is the last part of our own path.
LAYER = r'encoder\.layer\.(\d+)\.'
ATTENTION = (
  (rf'{LAYER}attention\.attention\.(q|k|v)\w+', r'{}\1.attention.\2_proj'),
  (rf'{LAYER}attention\.output\.dense', r'{}\1.attention.o_proj'),
)
RENAMED: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
  'encoder.layer.0.layernorm_before': (
    'layers.',
    (
      *ATTENTION,
      (rf'{LAYER}intermediate\.dense', r'{}\1.mlp.fc1'),
      (rf'{LAYER}output\.dense', r'{}\1.mlp.fc2'),
      (rf'{LAYER}(layernorm_\w+)', r'{}\1.\2'),
    ),
  ),
  'encoder.layer.0.norm1': (
    'encoder.layer.',
    (*ATTENTION, (rf'{LAYER}mlp\.weights_(in|out)', r'{}\1.mlp.\3_proj')),
  ),
}


class Modules(NamedTuple):
  """Both ways between our module paths and PEFT's, which here have no prefix."""

  ours: dict[str, tuple[str, ...]]  # PEFT's -> ours: several where theirs is a fused projection.
  theirs: dict[str, str]  # Ours -> PEFT's.
  turned: frozenset[str]  # Ours whose stored weights are [in, out]: Transformers' Conv1D.
  prefixes: tuple[str, ...]

  def find(self, path: str) -> tuple[str, ...]:
    """Our modules of a path, with or without the class's prefix; () where there is none."""
    for prefix in ('', *self.prefixes):
      if path.startswith(prefix) and path.removeprefix(prefix) in self.ours:
        return self.ours[path.removeprefix(prefix)]
    return ()

  def path(self, module: str, prefixed: bool) -> str:
    """PEFT's path of one of our modules."""
    outside = re.match(r'(lm_)?head(/|$)', module)
    prefix = self.prefixes[0] if prefixed and self.prefixes and not outside else ''
    return prefix + self.theirs[module]


def modules(model: Model) -> Modules:
  """The table of a model; empty where it was not loaded from a family."""
  stored = {k: v.name if isinstance(v, Part) else v for k, v in model.modules.items()}
  now = {k: _renamed(k, v, stored.values()) for k, v in stored.items()}
  for table in (stored, now):  # PEFT puts adaption prompts at the attention itself.
    table |= {
      f'{k.removesuffix("query")}core': v.removesuffix('.q_proj')
      for k, v in table.items()
      if k.endswith('/attn/query') and v.endswith('.self_attn.q_proj')
    }
  ours: dict[str, tuple[str, ...]] = {}
  for table in (stored, now) if now != stored else (stored,):
    found: dict[str, tuple[str, ...]] = {}
    for k, v in table.items():
      found[v] = (*found.get(v, ()), k)
    ours = found | ours
  turned = frozenset(k for k, v in model.modules.items() if isinstance(v, Part))
  return Modules(ours, now, turned, model.prefixes)


def _renamed(ours: str, name: str, known: Collection[str]) -> str:
  """The name in Transformers 5."""
  for sign, (stem, rules) in RENAMED.items():
    for old, new in rules if sign in known else ():
      if found := re.fullmatch(rf'{old}:(\w+)', f'{name}:{ours.rpartition("/")[2]}'):
        return found.expand(new.format(stem))
  return name
