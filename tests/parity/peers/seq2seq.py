"""T5 with and without gates, by Transformers."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.parity.peers.common import mean_pool, ragged, randomise, save

TINY = {
  'vocab_size': 100,
  'd_model': 32,
  'd_kv': 6,  # Not dim / heads.
  'd_ff': 24,
  'num_layers': 2,
  'num_decoder_layers': 3,
  'num_heads': 4,
  'relative_attention_num_buckets': 8,
  'relative_attention_max_distance': 10,  # So that distances of these texts fall into all buckets.
  'decoder_start_token_id': 0,
  'attn_implementation': 'eager',
}
NEW, TARGETS = 6, (4, 9, 1, 6)  # Tokens to generate, and lengths of what the decoder is given.
QUERY = 'decoder.block.1.layer.1.EncDecAttention.q.weight'


def recorded(modules: dict[str, torch.nn.Module]) -> dict[str, Tensor]:
  """Fills in what each module returns, by our path, once the model runs."""
  found: dict[str, Tensor] = {}

  def hook(path: str) -> Any:
    return lambda module, args, out: found.update({path: out[0] if isinstance(out, tuple) else out})

  for path, module in modules.items():
    module.register_forward_hook(hook(path))
  return found


def stack(name: str, blocks: torch.nn.Module) -> dict[str, torch.nn.Module]:
  """The modules of an encoder or decoder that have a site, by our path."""
  sites = {name: blocks.final_layer_norm}
  for i, block in enumerate(blocks.block):
    sites |= {f'{name}/block_{i}': block, f'{name}/block_{i}/attn': block.layer[0].SelfAttention}
    sites[f'{name}/block_{i}/mlp'] = block.layer[-1].DenseReluDense
    if len(block.layer) == 3:
      sites[f'{name}/block_{i}/cross'] = block.layer[1].EncDecAttention
  return sites


def t5(folder: Path, config: transformers.T5Config, seed: int, tied: bool) -> None:
  """Writes a random tiny model, its outputs, one gradient, and what it decodes row by row."""
  generator = torch.Generator().manual_seed(seed)
  model = transformers.T5ForConditionalGeneration(config)
  if not tied:  # Transformers ties the matrices of a new model whatever the config.
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
  randomise(model, generator, 0.2 if tied else 0.1)  # Untied, they are not scaled down either.
  model.eval().save_pretrained(folder)
  (folder / 'generation_config.json').unlink()  # Nothing reads it.
  ids, mask = ragged(100, 0, generator)
  target = torch.randint(2, 100, (4, max(TARGETS)), generator=generator)
  target_mask = torch.arange(max(TARGETS)) < torch.tensor(TARGETS)[:, None]
  target = torch.where(target_mask, target, 0)
  target[:, 0] = 0  # The token that outputs start with.
  generated = torch.full((4, NEW), -1)
  for i, (length, given) in enumerate(zip(mask.sum(1), TARGETS, strict=True)):
    decoded = model.generate(
      ids[i : i + 1, :length],
      decoder_input_ids=target[i : i + 1, :given],
      max_new_tokens=NEW,
      use_cache=False,
      do_sample=False,
      eos_token_id=None,
    )
    generated[i] = decoded[0, given:]
  sites = recorded(stack('encoder', model.encoder) | stack('decoder', model.decoder))
  out = model(
    input_ids=ids,
    attention_mask=mask.long(),
    decoder_input_ids=target,
    decoder_attention_mask=target_mask.long(),
  )
  hidden = out.encoder_last_hidden_state
  save(
    folder,
    {'tokens': ids, 'mask': mask, 'decoder_tokens': target, 'decoder_mask': target_mask},
    {
      'features': mean_pool(hidden, mask),
      'hidden': hidden,
      'decoder_hidden': sites['decoder'],
      'token_logits': out.logits,
    },
    sites,
    ('decoder/block_1/cross/query/kernel', model.get_parameter(QUERY), lambda g: g.T),
    loss_of='token_logits',
    generated=torch.cat([target, generated], 1),
  )


def write(root: Path) -> None:
  """Writes the fixtures of this file."""
  t5(root / 't5-tiny', transformers.T5Config(**TINY), 20, tied=True)
  gated = transformers.T5Config(**TINY, feed_forward_proj='gated-gelu', tie_word_embeddings=False)
  t5(root / 't5-v11-tiny', gated, 21, tied=False)
