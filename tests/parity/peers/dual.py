"""CLIP and SigLIP, by Transformers."""

from pathlib import Path

import torch
import transformers
from torch import Tensor

from tests.parity.peers.common import ragged, randomise, save
from tests.parity.peers.seq2seq import recorded

SHAPE = {
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'attn_implementation': 'eager',
}
VISION = SHAPE | {'image_size': 12, 'patch_size': 4}
TEXT = SHAPE | {'hidden_size': 24, 'vocab_size': 100, 'max_position_embeddings': 16}
EOS = 99
CLIP_COLOURS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SIGLIP_COLOURS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
QUERY = 'vision_model.encoder.layers.1.self_attn.q_proj.weight'


def pictures(colours: tuple, generator: torch.Generator) -> tuple[Tensor, Tensor]:
  """Images [3, 12, 12, 3] in 0..1, and as these models take them."""
  image = torch.rand(3, 12, 12, 3, generator=generator)
  mean, std = map(torch.tensor, colours)
  return image, ((image - mean) / std).permute(0, 3, 1, 2)


def sites(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
  """The modules of both towers that have a site, by our path."""
  found = {'text/encoder': model.text_model.final_layer_norm}
  for name, tower in (('text', model.text_model), ('image', model.vision_model)):
    for i, block in enumerate(tower.encoder.layers):
      found |= {f'{name}/encoder/block_{i}': block, f'{name}/encoder/block_{i}/mlp': block.mlp}
      found[f'{name}/encoder/block_{i}/attn'] = block.self_attn
  return found


def features(out: transformers.utils.ModelOutput) -> dict[str, Tensor]:
  """The outputs of ours that both models have."""
  return {
    'features': out.vision_model_output.pooler_output,
    'hidden': out.vision_model_output.last_hidden_state,
    'image_features': out.image_embeds,
    'text_features': out.text_embeds,
    'logits': out.logits_per_image,
  }


def clip(folder: Path, eos: int, act: str, seed: int) -> None:
  """Writes a random tiny CLIP; texts end with the highest token, and padding follows."""
  generator = torch.Generator().manual_seed(seed)
  config = transformers.CLIPConfig(
    text_config=TEXT | {'eos_token_id': eos, 'hidden_act': act},
    vision_config=VISION | {'hidden_act': act},
    projection_dim=20,
    attn_implementation='eager',
  )
  model = transformers.CLIPModel(config)
  randomise(model, generator)
  model.eval().save_pretrained(folder)
  ids, mask = ragged(EOS, 0, generator)
  ids[torch.arange(4), mask.sum(1) - 1] = EOS
  image, pixels = pictures(CLIP_COLOURS, generator)
  vision, text = model.vision_model, model.text_model
  found = recorded(
    sites(model) | {'image/inputs': vision.pre_layrnorm, 'text/inputs': text.embeddings}
  )
  out = model(input_ids=ids, attention_mask=mask.long(), pixel_values=pixels)
  save(
    folder,
    {'tokens': ids, 'mask': mask, 'image': image},
    features(out),
    found,
    ('image/encoder/block_1/attn/query/kernel', model.get_parameter(QUERY), lambda g: g.T),
    loss_of='logits',
  )


def siglip(folder: Path) -> None:
  """Writes a random tiny SigLIP, which reads texts padded to all its positions, without a mask."""
  generator = torch.Generator().manual_seed(32)
  config = transformers.SiglipConfig(
    text_config=TEXT | {'projection_size': 32, 'pad_token_id': 1},
    vision_config=VISION,
    attn_implementation='eager',
  )
  model = transformers.SiglipModel(config)
  randomise(model, generator)
  model.eval().save_pretrained(folder)
  ids, mask = ragged(100, 1, generator)
  image, pixels = pictures(SIGLIP_COLOURS, generator)
  vision, text = model.vision_model, model.text_model
  found = recorded(
    sites(model)
    | {'image/inputs': vision.embeddings, 'image/encoder': vision.post_layernorm}
    | {'image/pool': vision.head, 'image/pool/attn': vision.head.attention}
    | {'text/inputs': text.embeddings, 'text/head': text.head}
  )
  padded = torch.nn.functional.pad(ids, (0, 16 - ids.shape[1]), value=1)
  out = model(input_ids=padded, pixel_values=pixels)
  query = 'vision_model.head.attention.in_proj_weight'
  save(
    folder,
    {'tokens': ids, 'mask': mask, 'image': image},
    features(out),
    found,
    ('image/pool/attn/query/kernel', model.get_parameter(query), lambda g: g[:32].T),
    loss_of='logits',
  )


def write(root: Path) -> None:
  """Writes the fixtures of this file."""
  clip(root / 'clip-tiny', EOS, 'quick_gelu', 30)
  clip(root / 'clip-legacy-tiny', 2, 'gelu', 31)
  siglip(root / 'siglip-tiny')
