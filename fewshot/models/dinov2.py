"""DINOv2 (Oquab et al. 2024, arXiv:2304.07193), also with registers (Darcet et al. 2024,
arXiv:2309.16588): a ViT whose blocks have LayerScale and, the largest, a SwiGLU MLP.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fewshot.models import images, vit
from fewshot.models.layers import ACTIVATIONS
from fewshot.models.vit import Config, example, forward, init
from fewshot.models.weights.names import Names, Part, per_block

__all__ = [
  'PREFIXES',
  'UNUSED',
  'Config',
  'config_from_hf',
  'example',
  'forward',
  'init',
  'names',
  'names_original',
]


def config_from_hf(hf: Mapping[str, Any]) -> Config:
  """Reads the `config.json` of DINOv2; what `vit` does not compute is refused."""
  images.refuse(hf, {'hidden_act': ['gelu', *ACTIVATIONS]})
  gated, width = hf.get('use_swiglu_ffn', False), int(hf['hidden_size'] * hf.get('mlp_ratio', 4))
  return Config(
    dim=hf['hidden_size'],
    depth=hf['num_hidden_layers'],
    heads=hf['num_attention_heads'],
    width=(int(width * 2 / 3) + 7) // 8 * 8 if gated else width,
    image_size=hf['image_size'],
    patch=hf['patch_size'],
    registers=hf.get('num_register_tokens', 4) if 'registers' in hf['model_type'] else 0,
    layer_scale=True,
    gated=gated,
    qkv_bias=hf.get('qkv_bias', True),
    activation='silu' if gated else hf.get('hidden_act', 'gelu'),
    eps=hf.get('layer_norm_eps', 1e-6),
    **images.colours(hf, images.IMAGENET),
  )


def names(config: Config) -> Names:
  """Our module -> Hugging Face's name, after a leading 'dinov2.' or 'dinov2_with_registers.'."""
  block = 'encoder.layer.{i}'
  return {
    **vit.names(config),
    'inputs/registers': 'embeddings.register_tokens',
    **per_block(
      {
        'encoder/block_{i}/ln1': f'{block}.norm1',
        'encoder/block_{i}/ln2': f'{block}.norm2',
        'encoder/block_{i}/ls1/scale': f'{block}.layer_scale1.lambda1',
        'encoder/block_{i}/ls2/scale': f'{block}.layer_scale2.lambda1',
        **_mlp(config, f'{block}.mlp', 'weights_in', 'weights_out'),
      },
      config.depth,
    ),
  }


def names_original(config: Config) -> Names:
  """Our module -> the name in the files of the paper's authors."""
  return {
    **vit.names_timm(config),
    'inputs/registers': 'register_tokens',
    **per_block(
      {
        'encoder/block_{i}/ls1/scale': 'blocks.{i}.ls1.gamma',
        'encoder/block_{i}/ls2/scale': 'blocks.{i}.ls2.gamma',
        **_mlp(config, 'blocks.{i}.mlp', 'w12', 'w3'),
      },
      config.depth,
    ),
  }


def _mlp(config: Config, stored: str, fused: str, down: str) -> dict[str, str | Part]:
  """The names of an MLP; a SwiGLU's gate and up projections are stored as one."""
  ours = 'encoder/block_{i}/mlp'
  if not config.gated:
    return {f'{ours}/up': f'{stored}.fc1', f'{ours}/down': f'{stored}.fc2'}
  return {
    f'{ours}/gate': Part(f'{stored}.{fused}', lambda x: np.split(x, 2)[0]),
    f'{ours}/up': Part(f'{stored}.{fused}', lambda x: np.split(x, 2)[1]),
    f'{ours}/down': f'{stored}.{down}',
  }


PREFIXES: tuple[str, ...] = ('dinov2.', 'dinov2_with_registers.')
UNUSED: tuple[str, ...] = (
  r'(embeddings\.)?mask_token',  # Stands for hidden patches in pretraining only.
  r'classifier\..*',  # Over the class token and the mean patch together; features are the former.
)
