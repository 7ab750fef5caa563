"""GPT-2, Llama, Mistral, Qwen2 and Gemma 3, by Transformers."""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from tests.parity.peers.common import ragged, randomise, save

NEW, BEAMS = 8, 3
TINY = {
  'vocab_size': 100,
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'max_position_embeddings': 40,
  'attn_implementation': 'eager',
  'pad_token_id': 0,
  'bos_token_id': None,
  'eos_token_id': None,
}
GROUPED = {**TINY, 'num_key_value_heads': 2}
LLAMA3 = {
  'rope_type': 'llama3',
  'rope_theta': 100.0,
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 64,  # One wave stays, one slows down, two lie between.
}
GEMMA = {
  'full_attention': {'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 1000.0},
  'sliding_attention': {'rope_type': 'default', 'rope_theta': 100.0},
}


def recorded(model: Any) -> dict[str, Tensor]:
  """Fills in what each module with a site returns, once the model runs."""
  found: dict[str, Tensor] = {}
  inner = model.transformer if hasattr(model, 'transformer') else model.model
  modules = {'inputs': inner.drop if hasattr(inner, 'drop') else inner.embed_tokens}
  modules['encoder'] = inner.ln_f if hasattr(inner, 'ln_f') else inner.norm
  for i, block in enumerate(inner.h if hasattr(inner, 'h') else inner.layers):
    modules[f'encoder/block_{i}'] = block
    modules[f'encoder/block_{i}/attn'] = block.attn if hasattr(block, 'attn') else block.self_attn
    modules[f'encoder/block_{i}/mlp'] = block.mlp

  def hook(path: str) -> Any:
    return lambda module, args, out: found.update({path: out[0] if isinstance(out, tuple) else out})

  for path, module in modules.items():
    module.register_forward_hook(hook(path))
  return found


def continued(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
  """The greedy continuation [B, NEW] of each row, by itself and without a cache."""
  rows = []
  for row, real in zip(ids, mask, strict=True):
    sequence = row[real]
    for _ in range(NEW):
      logits = model(input_ids=sequence[None], use_cache=False).logits[0, -1]
      first, second = logits.topk(2).values
      assert first - second > 2e-3, 'a near tie: choose another seed'
      sequence = torch.cat([sequence, logits.argmax()[None]])
    rows.append(sequence[-NEW:])
  assert len(torch.stack(rows).unique()) > NEW, 'it says the same over and over: another seed'
  return torch.stack(rows)


def beams(folder: Path, model: Any, ids: Tensor, mask: Tensor, eos: int) -> None:
  """Writes the best of `BEAMS` beams of each row: tokens, lengths, and the sum of log p."""
  tokens, lengths, scores = torch.zeros(len(ids), NEW, dtype=torch.long), [], []
  for i, (row, real) in enumerate(zip(ids, mask, strict=True)):
    out = model.generate(
      row[real][None],
      max_new_tokens=NEW,
      num_beams=BEAMS,
      do_sample=False,
      eos_token_id=eos,
      pad_token_id=0,
      return_dict_in_generate=True,
      output_scores=True,
    )
    found = out.sequences[0, int(real.sum()) :]
    tokens[i, : len(found)] = found
    lengths.append(len(found))
    scores.append(float(out.sequences_scores[0]) * len(found))
  found = {'tokens': tokens, 'lengths': torch.tensor(lengths), 'scores': torch.tensor(scores)}
  save_file(found, folder / 'beams.safetensors', metadata={'eos': str(eos), 'beams': str(BEAMS)})
  (folder / 'beams.safetensors').chmod(0o644)


def causal(folder: Path, model: Any, seed: int, eos: int | None = None) -> None:
  """Writes a random tiny model, its outputs, one gradient, and what it generates."""
  generator = torch.Generator().manual_seed(seed)
  randomise(model, generator)
  if isinstance(model, transformers.Gemma3ForCausalLM):
    model.model.embed_tokens.weight.data /= 4  # Else it would repeat what it read last.
    for name, value in model.named_parameters():
      value.data -= float('norm' in name)  # Gains are stored less one.
  model.eval().save_pretrained(folder)
  (folder / 'generation_config.json').unlink()  # Nothing reads it.
  ids, mask = ragged(TINY['vocab_size'], 0, generator)
  with torch.no_grad():
    generated = continued(model, ids, mask)
    if eos is not None:
      beams(folder, model, ids, mask, eos)
  sites = recorded(model)
  out = model(input_ids=ids, attention_mask=mask.long())
  hidden = sites['encoder']
  if isinstance(model, transformers.GPT2LMHeadModel):
    query, turn = model.transformer.h[0].attn.c_attn.weight, lambda g: g[:, : g.shape[0]]
  else:
    query, turn = model.model.layers[0].self_attn.q_proj.weight, lambda g: g.T
  save(
    folder,
    {'tokens': ids, 'mask': mask},
    {
      'features': hidden[torch.arange(len(ids)), mask.sum(1) - 1],
      'hidden': hidden,
      'token_logits': out.logits,
    },
    sites,
    ('encoder/block_0/attn/query/kernel', query, turn),
    loss_of='token_logits',
    generated=torch.cat([ids, generated], 1),
  )


def write(root: Path) -> None:
  """Writes the fixtures of this file."""
  t = transformers
  gpt2 = {k: v for k, v in TINY.items() if k != 'intermediate_size'}
  causal(root / 'gpt2-tiny', t.GPT2LMHeadModel(t.GPT2Config(**gpt2)), 49, eos=14)
  llama = t.LlamaConfig(**GROUPED, head_dim=12, rope_parameters={'rope_theta': 500.0})
  causal(root / 'llama-tiny', t.LlamaForCausalLM(llama), 31)
  stretched = t.LlamaConfig(
    **{**GROUPED, 'max_position_embeddings': 128},
    rope_parameters=LLAMA3,
    attention_bias=True,
    mlp_bias=True,
    tie_word_embeddings=True,
  )
  causal(root / 'llama3-tiny', t.LlamaForCausalLM(stretched), 32)
  causal(root / 'qwen2-tiny', t.Qwen2ForCausalLM(t.Qwen2Config(**GROUPED)), 33)
  mistral = t.MistralConfig(**GROUPED, sliding_window=5)
  causal(root / 'mistral-tiny', t.MistralForCausalLM(mistral), 34)
  gemma = t.Gemma3TextConfig(
    **GROUPED,
    head_dim=12,
    query_pre_attn_scalar=9,
    sliding_window=4,
    layer_types=['sliding_attention', 'full_attention'],
    rope_parameters=GEMMA,
  )
  causal(root / 'gemma3-tiny', t.Gemma3ForCausalLM(gemma), 35)
