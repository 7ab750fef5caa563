"""Image backbones: by Transformers, or where it has none by the few lines of PyTorch below."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tests.parity.peers.common import randomise, save

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)
BYTES = ((127 / 255,) * 3, (128 / 255,) * 3)
TINY = {
  'hidden_size': 32,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'image_size': 24,
  'patch_size': 8,
}
CLASSES = 5
HWIO = (2, 3, 1, 0)
Model = Callable[[Tensor], Mapping[str, Tensor]]


def norm(width: int, eps: float = 1e-5) -> nn.BatchNorm2d:
  return nn.BatchNorm2d(width, eps)


class Conv4(nn.Module):
  """Snell et al. 2017: blocks of convolution, batch norm, relu and pooling; all is a feature."""

  def __init__(self, width: int, depth: int) -> None:
    super().__init__()
    widths = [3, *[width] * depth]
    self.encoder = nn.ModuleList(
      nn.Sequential(nn.Conv2d(a, b, 3, padding=1), norm(b), nn.ReLU(), nn.MaxPool2d(2))
      for a, b in itertools.pairwise(widths)
    )

  def forward(self, x: Tensor) -> dict[str, Tensor]:
    for block in self.encoder:
      x = block(x)
    return {'features': x.permute(0, 2, 3, 1).flatten(1), 'hidden': x}


class Block12(nn.Module):
  """Lee et al. 2019: three convolutions, a projected shortcut, pooling."""

  def __init__(self, a: int, b: int) -> None:
    super().__init__()
    self.conv1, self.bn1 = nn.Conv2d(a, b, 3, padding=1, bias=False), norm(b)
    self.conv2, self.bn2 = nn.Conv2d(b, b, 3, padding=1, bias=False), norm(b)
    self.conv3, self.bn3 = nn.Conv2d(b, b, 3, padding=1, bias=False), norm(b)
    self.downsample = nn.Sequential(nn.Conv2d(a, b, 1, bias=False), norm(b))

  def forward(self, x: Tensor) -> Tensor:
    y = F.leaky_relu(self.bn1(self.conv1(x)), 0.1)
    y = F.leaky_relu(self.bn2(self.conv2(y)), 0.1)
    y = self.bn3(self.conv3(y)) + self.downsample(x)
    return F.max_pool2d(F.leaky_relu(y, 0.1), 2)


class ResNet12(nn.Module):
  """A block for each width, then the mean over space."""

  def __init__(self, widths: Sequence[int]) -> None:
    super().__init__()
    for i, (a, b) in enumerate(itertools.pairwise([3, *widths]), 1):
      self.add_module(f'layer{i}', nn.Sequential(Block12(a, b)))

  def forward(self, x: Tensor) -> dict[str, Tensor]:
    for layer in self.children():
      x = layer(x)
    return {'features': x.mean((2, 3)), 'hidden': x}


class Same(nn.Conv2d):
  """A convolution padded as TensorFlow's 'SAME': more at the bottom and the right."""

  def forward(self, x: Tensor) -> Tensor:
    (k, _), (s, _) = self.kernel_size, self.stride
    extra = [max((-(-n // s) - 1) * s + k - n, 0) for n in x.shape[-2:]]
    (top, bottom), (left, right) = ((n // 2, n - n // 2) for n in extra)
    return super().forward(F.pad(x, (left, right, top, bottom)))


class LiteBlock(nn.Module):
  """An inverted residual without squeeze-and-excitation; names as in EfficientNet-PyTorch."""

  def __init__(self, a: int, b: int, expand: int, kernel: int, stride: int) -> None:
    super().__init__()
    inner = a * expand
    if expand != 1:
      self._expand_conv, self._bn0 = Same(a, inner, 1, bias=False), norm(inner, 1e-3)
    self._depthwise_conv = Same(inner, inner, kernel, stride, groups=inner, bias=False)
    self._bn1 = norm(inner, 1e-3)
    self._project_conv, self._bn2 = Same(inner, b, 1, bias=False), norm(b, 1e-3)
    self.residual = stride == 1 and a == b

  def forward(self, x: Tensor) -> Tensor:
    y = F.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, '_bn0') else x
    y = F.relu6(self._bn1(self._depthwise_conv(y)))
    y = self._bn2(self._project_conv(y))
    return x + y if self.residual else y


class EfficientNetLite(nn.Module):
  """Stages (depth, width, stride, expand, kernel) between a stem and a last convolution."""

  def __init__(self, stem: int, stages: Sequence[Sequence[int]], last: int, classes: int) -> None:
    super().__init__()
    self._conv_stem, self._bn0 = Same(3, stem, 3, 2, bias=False), norm(stem, 1e-3)
    blocks, a = [], stem
    for depth, b, stride, expand, kernel in stages:
      for j in range(depth):
        blocks.append(LiteBlock(a, b, expand, kernel, 1 if j else stride))
        a = b
    self._blocks = nn.ModuleList(blocks)
    self._conv_head, self._bn1 = Same(a, last, 1, bias=False), norm(last, 1e-3)
    self._fc = nn.Linear(last, classes)

  def forward(self, x: Tensor) -> dict[str, Tensor]:
    x = F.relu6(self._bn0(self._conv_stem(x)))
    for block in self._blocks:
      x = block(x)
    x = F.relu6(self._bn1(self._conv_head(x)))
    features = x.mean((2, 3))
    return {'features': features, 'hidden': x, 'logits': self._fc(features)}


def draw(model: nn.Module, seed: int) -> torch.Generator:
  """Random weights that keep the size of activations, and running statistics as after training."""
  generator = torch.Generator().manual_seed(seed)
  randomise(model, generator)
  noise = lambda like: torch.randn(like.shape, generator=generator)  # noqa: E731
  for module in model.modules():
    if isinstance(module, nn.Conv2d):
      module.weight.data = noise(module.weight) * (1.5 / module.weight[0].numel()) ** 0.5
    if isinstance(module, nn.BatchNorm2d):
      module.weight.data = 1 + 0.2 * noise(module.weight)
      module.running_mean = 0.5 * noise(module.bias)
      module.running_var = 0.5 + noise(module.bias).abs()
  return generator


def record(
  folder: Path,
  model: nn.Module,
  call: Model,
  sites: Mapping[str, nn.Module],
  gradient: tuple[str, Tensor],
  size: tuple[int, int] = (24, 24),
  colours: tuple[Sequence[float], Sequence[float]] = IMAGENET,
) -> None:
  """Writes what `call` and the modules at our `sites` give, and the gradient of one kernel.

  Feature maps are turned to ours, channels last.
  """
  generator = torch.Generator().manual_seed(3)
  image = torch.rand((3, *size, 3), generator=generator)
  turn = lambda x: x.permute(0, 2, 3, 1) if x.ndim == 4 else x  # noqa: E731
  seen: dict[str, Tensor] = {}
  for path, module in sites.items():
    module.register_forward_hook(
      lambda _m, _i, out, path=path: seen.update({path: out[0] if isinstance(out, tuple) else out})
    )
  model.eval()
  out = call(normalised(image, colours))
  path, parameter = gradient
  last_first = lambda g: g.permute(HWIO) if g.ndim == 4 else g.T  # noqa: E731
  save(
    folder,
    {'image': image},
    {k: turn(v) for k, v in out.items()},
    {k: turn(v) for k, v in seen.items()},
    (path, parameter, last_first),
  )


def normalised(image: Tensor, colours: tuple[Sequence[float], Sequence[float]]) -> Tensor:
  """Images [B, H, W, C] from 0 to 1 as PyTorch's models take them."""
  mean, std = (torch.tensor(c) for c in colours)
  return ((image - mean) / std).permute(0, 3, 1, 2)


def transformer(folder: Path, model: Any, seed: int, **more: Any) -> None:
  """Writes a ViT-like model of Transformers; `more` goes to `record`."""
  draw(model, seed)
  model.save_pretrained(folder)
  base = model.base_model
  layers = base.layers if hasattr(base, 'layers') else base.encoder.layer

  def call(x: Tensor) -> dict[str, Tensor]:
    out = {'hidden': (hidden := base(x).last_hidden_state), 'features': hidden[:, 0]}
    return out | ({} if base is model else {'logits': model(x).logits})

  sites = {'inputs': base.embeddings, **{f'encoder/block_{i}': m for i, m in enumerate(layers)}}
  weight = layers[0].attention.q_proj.weight
  record(folder, model, call, sites, ('encoder/block_0/attn/query/kernel', weight), **more)


def vit(root: Path) -> None:
  """ViT, DeiT and DINOv2, with registers and a SwiGLU MLP."""
  tiny = TINY | {'num_labels': CLASSES, 'attn_implementation': 'eager'}
  made = transformers.ViTConfig(**tiny, intermediate_size=64)
  transformer(root / 'vit-tiny', transformers.ViTForImageClassification(made), 0, colours=HALF)
  made = transformers.DeiTConfig(**tiny, intermediate_size=64, hidden_act='gelu_new')
  transformer(root / 'deit-tiny', transformers.DeiTForImageClassification(made), 1)
  made = transformers.Dinov2Config(**tiny, mlp_ratio=2)
  transformer(root / 'dinov2-tiny', transformers.Dinov2Model(made), 2)
  made = transformers.Dinov2WithRegistersConfig(**tiny, use_swiglu_ffn=True, num_register_tokens=3)
  model = transformers.Dinov2WithRegistersModel(made)
  transformer(root / 'dinov2-registers-tiny', model, 3)


def pooled(model: Any) -> Model:
  """The outputs of a convolutional classifier of Transformers."""

  def call(x: Tensor) -> dict[str, Tensor]:
    out = model.base_model(x)
    features = out.pooler_output.flatten(1)
    return {'features': features, 'hidden': out.last_hidden_state, 'logits': model(x).logits}

  return call


def resnet(folder: Path, layer_type: str, seed: int) -> None:
  """A ResNet of two stages."""
  config = transformers.ResNetConfig(
    embedding_size=8,
    hidden_sizes=[16, 24],
    depths=[1, 2],
    layer_type=layer_type,
    num_labels=CLASSES,
  )
  model = transformers.ResNetForImageClassification(config)
  draw(model, seed)
  model.save_pretrained(folder)
  base = model.resnet
  sites = {'stem': base.embedder} | {
    f'stage_{i}/block_{j}': block
    for i, stage in enumerate(base.encoder.stages)
    for j, block in enumerate(stage.layers)
  }
  weight = base.encoder.stages[0].layers[0].layer[0].convolution.weight
  gradient = ('stage_0/block_0/conv_0/kernel', weight)
  record(folder, model, pooled(model), sites, gradient, size=(34, 27))


def mobilenet(folder: Path, tf_padding: bool, seed: int) -> None:
  """A thin MobileNetV2."""
  config = transformers.MobileNetV2Config(
    depth_multiplier=0.2,
    depth_divisible_by=4,
    min_depth=4,
    expand_ratio=2,
    finegrained_output=False,
    tf_padding=tf_padding,
    num_labels=CLASSES,
  )
  model = transformers.MobileNetV2ForImageClassification(config)
  draw(model, seed)
  model.save_pretrained(folder)
  layers, depths = model.mobilenet_v2.layer, (2, 3, 4, 3, 3, 1)
  sites = {'stage_0': model.mobilenet_v2.conv_stem} | {
    f'stage_{i}/block_{j}': layers[n]
    for n, (i, j) in enumerate((i, j) for i, d in enumerate(depths, 1) for j in range(d))
  }
  gradient = ('stage_5/block_0/conv_1/kernel', layers[12].conv_3x3.convolution.weight)
  record(folder, model, pooled(model), sites, gradient, (35, 30), HALF)


def own(folder: Path, model: nn.Module, config: dict[str, Any], seed: int, **more: Any) -> None:
  """Writes a model of this file as a folder of the model_type that we gave it."""
  draw(model, seed)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
  save_file(model.state_dict(), folder / 'model.safetensors')
  record(folder, model, model, **more)


def conv4(folder: Path) -> None:
  """Conv4, and what one forward pass in train mode gives and does to the running statistics."""
  model = Conv4(8, 2)
  first = model.encoder[0][0].weight
  own(
    folder,
    model,
    {'model_type': 'conv4', 'width': 8, 'depth': 2, 'image_size': 12},
    seed=8,
    sites={f'stage_{i}/block_0': m for i, m in enumerate(model.encoder)},
    gradient=('stage_0/block_0/conv_0/kernel', first),
    size=(13, 12),
  )
  image = torch.rand((4, 8, 8, 3), generator=torch.Generator().manual_seed(4))
  out = {'features': model.train()(normalised(image, IMAGENET))['features'].detach()}
  for i, block in enumerate(model.encoder):
    out[f'state/stage_{i}/block_0/norm_0/mean'] = block[1].running_mean
    out[f'state/stage_{i}/block_0/norm_0/var'] = block[1].running_var
  save_file({'image': image, **out}, folder / 'train.safetensors')
  (folder / 'train.safetensors').chmod(0o644)


def resnet12(folder: Path) -> None:
  """ResNet-12 of three blocks."""
  model = ResNet12([8, 12, 16])
  sites = {f'stage_{i}/block_0': m[0] for i, m in enumerate(model.children())}
  gradient = ('stage_0/block_0/conv_1/kernel', model.layer1[0].conv2.weight)
  config = {'model_type': 'resnet12', 'widths': [8, 12, 16], 'image_size': 16}
  own(folder, model, config, seed=9, sites=sites, gradient=gradient, size=(17, 16))


def efficientnet(folder: Path) -> None:
  """EfficientNet-Lite of three stages."""
  stages = [[1, 8, 1, 1, 3], [2, 12, 2, 6, 5], [1, 16, 2, 4, 3]]
  model = EfficientNetLite(8, stages, 24, CLASSES)
  sites = {
    f'stage_{i}/block_{j}': model._blocks[n]
    for n, (i, j) in enumerate([(0, 0), (1, 0), (1, 1), (2, 0)])
  }
  gradient = ('stage_1/block_0/conv_1/kernel', model._blocks[1]._depthwise_conv.weight)
  sizes = {'stem': 8, 'stages': stages, 'last': 24, 'classes': CLASSES, 'image_size': 24}
  config = {'model_type': 'efficientnet-lite'} | sizes
  own(folder, model, config, seed=10, sites=sites, gradient=gradient, size=(25, 24), colours=BYTES)


def write(root: Path) -> None:
  """Writes the fixtures of this file."""
  vit(root)
  resnet(root / 'resnet-tiny', 'basic', seed=4)
  resnet(root / 'resnet-bottleneck-tiny', 'bottleneck', seed=5)
  mobilenet(root / 'mobilenet-v2-tiny', tf_padding=False, seed=6)
  mobilenet(root / 'mobilenet-v2-same-tiny', tf_padding=True, seed=7)
  conv4(root / 'conv4-tiny')
  resnet12(root / 'resnet12-tiny')
  efficientnet(root / 'efficientnet-lite-tiny')
