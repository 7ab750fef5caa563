"""How a reference model becomes a fixture: random weights, its outputs, one loss, one gradient.

A fixture is a folder as `save_pretrained` writes it, and `expected.safetensors` with

    in/<name>      the batch, by our names
    out/<name>     an output of our forward
    site/<path>    what the module at one of our paths returns (its first array)
    loss, loss_weights, gradient   sum(out * loss_weights) of the output `loss_of`, its gradient
                   by our leaf `gradient_of`; both names stand in the header
    generated      [B, T + new]: in/tokens (of an encoder-decoder in/decoder_tokens) and, in the
                   last `new` columns, how greedy decoding continues each row, padding left out
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

LENGTHS = (12, 7, 1, 10)


def randomise(model: torch.nn.Module, generator: torch.Generator, scale: float = 0.2) -> None:
  """Draws every weight, so that no bias is zero and no norm is the identity."""
  for name, value in model.named_parameters():
    norm = 'norm' in name.lower() or 'ln_' in name or 'bn' in name
    start = 1.0 if norm and name.endswith('weight') else 0.0
    value.data = start + scale * torch.randn(value.shape, generator=generator)


def ragged(vocab: int, pad: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
  """Token ids and mask with one row for each of `LENGTHS`; no token within a row is padding."""
  ids = torch.randint(5, vocab, (len(LENGTHS), max(LENGTHS)), generator=generator)
  mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
  return torch.where(mask, ids, pad), mask


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
  """The mean over the tokens that are not padding; hidden: [b, t, d], mask: [b, t]."""
  weights = mask[..., None].to(hidden.dtype)
  return (hidden * weights).sum(1) / weights.sum(1)


def save(
  folder: Path,
  batch: Mapping[str, Tensor],
  outputs: Mapping[str, Tensor],
  sites: Mapping[str, Tensor] | None = None,
  gradient: tuple[str, Tensor, Callable[[Tensor], Tensor]] | None = None,
  loss_of: str = 'features',
  generated: Tensor | None = None,
) -> None:
  """Writes `expected.safetensors`, with the versions that made it in its header.

  `gradient` is (the path of our leaf, the reference's parameter, its layout turned to ours); the
  loss is of the output `loss_of`.
  """
  arrays = {f'in/{k}': v for k, v in batch.items()} | {f'out/{k}': v for k, v in outputs.items()}
  arrays |= {f'site/{k}': v for k, v in (sites or {}).items()}
  header = {'made_by': f'torch {torch.__version__.split("+")[0]}'}
  header['made_by'] += f', transformers {transformers.__version__}'
  if gradient:
    path, parameter, turn = gradient
    generator = torch.Generator().manual_seed(11)
    weights = torch.randn(outputs[loss_of].shape, generator=generator)
    if weights.ndim == 3 and 'mask' in batch and batch['mask'].shape == weights.shape[:2]:
      weights = weights * batch['mask'][..., None]  # Padded positions are nobody's output.
    loss = (outputs[loss_of] * weights).sum()
    (grad,) = torch.autograd.grad(loss, [parameter])
    arrays |= {'loss': loss, 'loss_weights': weights, 'gradient': turn(grad)}
    header |= {'loss_of': loss_of, 'gradient_of': path}
  if generated is not None:
    arrays['generated'] = generated
  arrays = {k: v.detach().contiguous().clone() for k, v in arrays.items()}
  folder.mkdir(parents=True, exist_ok=True)
  save_file(arrays, folder / 'expected.safetensors', metadata=header)
  for path in folder.glob('*.safetensors'):
    path.chmod(0o644)
