"""CLIP and SigLIP, by Transformers; CLIP with a ResNet, by the modules of PyTorch."""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

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


def pictures(colours: tuple, generator: torch.Generator, size: int = 12) -> tuple[Tensor, Tensor]:
  """Images [3, S, S, 3] in 0..1, and as these models take them."""
  image = torch.rand(3, size, size, 3, generator=generator)
  mean, std = map(torch.tensor, colours)
  return image, ((image - mean) / std).permute(0, 3, 1, 2)


def sites(model: nn.Module) -> dict[str, nn.Module]:
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
  padded = nn.functional.pad(ids, (0, 16 - ids.shape[1]), value=1)
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


class Bottleneck(nn.Module):
  """A block of CLIP's ResNet, with the names of the original release."""

  def __init__(self, width: int, inner: int, stride: int) -> None:
    super().__init__()
    self.conv1, self.bn1 = nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner)
    self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
    self.conv3, self.bn3 = nn.Conv2d(inner, 4 * inner, 1, bias=False), nn.BatchNorm2d(4 * inner)
    self.pool, self.downsample = nn.AvgPool2d(stride), None
    if stride > 1 or width != 4 * inner:
      self.downsample = nn.Sequential(
        nn.Conv2d(width, 4 * inner, 1, bias=False), nn.BatchNorm2d(4 * inner)
      )

  def forward(self, x: Tensor) -> Tensor:
    y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
    y = self.bn3(self.conv3(self.pool(y)))
    return (y + (self.downsample(self.pool(x)) if self.downsample else x)).relu()


class AttentionPool(nn.Module):
  """Attention of the mean over all positions."""

  def __init__(self, positions: int, dim: int, heads: int, project: int) -> None:
    super().__init__()
    self.positional_embedding = nn.Parameter(torch.zeros(positions + 1, dim))
    self.q_proj, self.k_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
    self.v_proj, self.c_proj = nn.Linear(dim, dim), nn.Linear(dim, project)
    self.heads = heads

  def forward(self, x: Tensor) -> Tensor:
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
    split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
    q, k, v = split(self.q_proj(x[:, :1])), split(self.k_proj(x)), split(self.v_proj(x))
    y = nn.functional.scaled_dot_product_attention(q, k, v)
    return self.c_proj(y.transpose(1, 2).flatten(1))


class ModifiedResNet(nn.Module):
  """The image tower: two stages, of two blocks and one."""

  def __init__(self, width: int, size: int, heads: int, project: int) -> None:
    super().__init__()
    half = width // 2
    self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False)
    self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
    self.conv3 = nn.Conv2d(half, width, 3, padding=1, bias=False)
    self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(w) for w in (half, half, width))
    self.layer1 = nn.Sequential(Bottleneck(width, width, 1), Bottleneck(4 * width, width, 1))
    self.layer2 = nn.Sequential(Bottleneck(4 * width, 2 * width, 2))
    self.attnpool = AttentionPool((size // 8) ** 2, 8 * width, heads, project)

  def forward(self, x: Tensor) -> Tensor:
    for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
      x = norm(conv(x)).relu()
    return self.attnpool(self.layer2(self.layer1(nn.functional.avg_pool2d(x, 2))))


class Residual(nn.Module):
  """A block of the text tower."""

  def __init__(self, dim: int, heads: int) -> None:
    super().__init__()
    self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
    self.ln_1, self.ln_2, self.mlp = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.Sequential()
    self.mlp.add_module('c_fc', nn.Linear(dim, 4 * dim))
    self.mlp.add_module('c_proj', nn.Linear(4 * dim, dim))

  def forward(self, x: Tensor) -> Tensor:
    causal = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
    y = self.ln_1(x)
    x = x + self.attn(y, y, y, need_weights=False, attn_mask=causal)[0]
    y = self.mlp.c_fc(self.ln_2(x))
    return x + self.mlp.c_proj(y * torch.sigmoid(1.702 * y))


class ResNetClip(nn.Module):
  """Both towers."""

  def __init__(self, dim: int, project: int) -> None:
    super().__init__()
    self.visual = ModifiedResNet(4, 24, 4, project)
    self.transformer = nn.Sequential()
    self.transformer.add_module('resblocks', nn.Sequential(Residual(dim, 2), Residual(dim, 2)))
    self.token_embedding, self.ln_final = nn.Embedding(100, dim), nn.LayerNorm(dim)
    self.positional_embedding = nn.Parameter(torch.zeros(16, dim))
    self.text_projection = nn.Parameter(torch.zeros(dim, project))
    self.logit_scale = nn.Parameter(torch.zeros(()))

  def forward(self, ids: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
    x = self.ln_final(self.transformer(x))[torch.arange(len(ids)), ids.argmax(1)]
    return self.visual(pixels), x @ self.text_projection


def clip_resnet(folder: Path) -> None:
  """Writes a random tiny CLIP with a ResNet, whose norms have statistics of their own."""
  generator = torch.Generator().manual_seed(33)
  model = ResNetClip(dim=16, project=12)
  randomise(model, generator, 0.4)
  for name, value in model.named_buffers():
    if 'running' in name:
      value.copy_(torch.rand(value.shape, generator=generator) + 0.5 * ('var' in name))
  model.eval()
  folder.mkdir(parents=True, exist_ok=True)
  save_file(model.state_dict(), folder / 'model.safetensors')
  vision = {'image_size': 24, 'layers': [2, 1], 'width': 4, 'head_width': 8}
  text = {'context_length': 16, 'vocab_size': 100, 'width': 16, 'heads': 2, 'layers': 2}
  config = {'model_type': 'clip_resnet', 'embed_dim': 12, 'quick_gelu': True}
  config |= {'vision_cfg': vision, 'text_cfg': text}
  (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
  ids, mask = ragged(EOS, 0, generator)
  ids[torch.arange(4), mask.sum(1) - 1] = EOS
  image, pixels = pictures(CLIP_COLOURS, generator, 24)
  stages = {f'image/stage_{i}': getattr(model.visual, f'layer{i + 1}') for i in (0, 1)}
  found = recorded(stages | {'image/pool': model.visual.attnpool, 'text/encoder': model.ln_final})
  x, y = model(ids, pixels)
  maps = {k: v.permute(0, 2, 3, 1) if v.ndim == 4 else v for k, v in found.items()}
  unit = nn.functional.normalize
  outputs = {'features': x, 'image_features': unit(x), 'text_features': unit(y)}
  outputs['hidden'] = maps['image/stage_1']
  outputs['logits'] = model.logit_scale.exp() * unit(x) @ unit(y).T
  kernel = model.visual.layer2[0].conv2.weight
  save(
    folder,
    {'tokens': ids, 'mask': mask, 'image': image},
    outputs,
    maps,
    ('image/stage_1/block_0/conv_1/kernel', kernel, lambda g: g.permute(2, 3, 1, 0)),
  )


def write(root: Path) -> None:
  """Writes the fixtures of this file."""
  clip(root / 'clip-tiny', EOS, 'quick_gelu', 30)
  clip(root / 'clip-legacy-tiny', 2, 'gelu', 31)
  siglip(root / 'siglip-tiny')
  clip_resnet(root / 'clip-resnet-tiny')
