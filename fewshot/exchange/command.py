"""`fewshot adapters`: between adapters of HF PEFT and checkpoints."""

from pathlib import Path
from typing import Any

import jax

from fewshot import checkpoint, methods, models
from fewshot.errors import FewshotError
from fewshot.exchange.reading import CONFIG, read
from fewshot.exchange.writing import write
from fewshot.models.weights.hf import read_json


def run(
  action: str, folder: str, out: str, model: str | None, task: str | None, without_head: bool
) -> dict[str, Any]:
  """Imports an adapter to a checkpoint, or exports one; what was written, as a row.

  Raises:
    FewshotError: an import without the base, and whatever `read`, `write` and checkpoints refuse.
  """
  base = models.load(model) if model else None
  if action == 'import':
    if base is None or task:
      raise FewshotError('import takes --model, the base of the adapter, and no --task')
    adapted = read(folder, base, without_head)
    adapter, written = Path(folder), checkpoint.save(adapted, out)
  else:
    if without_head:
      raise FewshotError('--without-head is of import; export the checkpoint of a chain without it')
    adapted = checkpoint.load(folder, base)
    adapter = written = write(adapted, out, task)
  return {
    'peft_type': read_json(adapter / CONFIG)['peft_type'],
    'method': methods.spell(adapted.method),
    'model': adapted.model.name,
    'parameters': sum(x.size for x in jax.tree.leaves(adapted.theta)),
    'written': str(written),
  }
