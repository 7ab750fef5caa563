"""Adapters as HF PEFT trains, saves and runs them, on the tiny models of the other groups.

Each case of `CASES` on each of its models is a folder of tests/exchange/fixtures: the adapter after
one step of AdamW as `save_pretrained` writes it, and `expected.safetensors` with

    in/<name>, out/<name>   a batch and PEFT's output, by our names

whose header says the base, the case, and how far PEFT is from us on an adapter that we started, set
off at random and wrote (`exported`).
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import peft
import torch
import transformers
from peft.tuners.boft import layer as boft_layer
from safetensors.torch import save_file
from torch import Tensor

from fewshot import exchange, methods, models
from tests.parity.peers.common import ragged
from tests.parity.peers.vision import HALF, IMAGENET, normalised

BASES = Path(__file__).parents[1] / 'fixtures'
FIXTURES = Path(__file__).parents[2] / 'exchange' / 'fixtures'
MODELS: dict[str, tuple[Any, str | None]] = {  # The class, and PEFT's name of the task.
  'bert': (transformers.BertModel, 'FEATURE_EXTRACTION'),
  'gpt2': (transformers.GPT2LMHeadModel, 'CAUSAL_LM'),
  'llama': (transformers.LlamaForCausalLM, 'CAUSAL_LM'),
  'mistral': (transformers.MistralForCausalLM, 'CAUSAL_LM'),
  'vit': (transformers.ViTModel, 'FEATURE_EXTRACTION'),
  'classifier': (transformers.ViTForImageClassification, None),
  'albert-mlm': (transformers.AlbertModel, 'FEATURE_EXTRACTION'),
  'deit': (transformers.DeiTModel, 'FEATURE_EXTRACTION'),
  'dinov2': (transformers.Dinov2Model, 'FEATURE_EXTRACTION'),
  'dinov2-registers': (transformers.Dinov2WithRegistersModel, 'FEATURE_EXTRACTION'),
  'distilbert-mlm': (transformers.DistilBertModel, 'FEATURE_EXTRACTION'),
  'gemma3': (transformers.Gemma3ForCausalLM, 'CAUSAL_LM'),
  'mpnet-mlm': (transformers.MPNetModel, 'FEATURE_EXTRACTION'),
  'qwen2': (transformers.Qwen2ForCausalLM, 'CAUSAL_LM'),
  'roberta': (transformers.RobertaModel, 'FEATURE_EXTRACTION'),
  't5': (transformers.T5ForConditionalGeneration, 'SEQ_2_SEQ_LM'),
}
IMAGES = ('classifier', 'deit', 'dinov2', 'dinov2-registers', 'vit')
MAPS = {  # Two maps of attention, by model.
  'bert': ['query', 'value'],
  'gpt2': ['c_attn'],
  'llama': ['q_proj', 'v_proj'],
  'vit': ['q_proj', 'v_proj'],
  'classifier': ['q_proj', 'v_proj'],
  'albert-mlm': ['query', 'ffn'],
  'deit': ['q_proj', 'mlp.fc2'],
  'dinov2': ['q_proj', 'mlp.fc2'],
  'dinov2-registers': ['q_proj', 'gate_proj', 'down_proj'],
  'distilbert-mlm': ['q_lin', 'ffn.lin2'],
  'gemma3': ['q_proj', 'down_proj'],
  'mistral': ['q_proj', 'down_proj'],
  'mpnet-mlm': ['attn.q', 'output.dense'],
  'qwen2': ['q_proj', 'down_proj'],
  'roberta': ['query', 'output.dense'],
  't5': ['q', 'v', 'wo'],
}
WIDE = {'bert': 'output.dense', 'gpt2': 'mlp.c_proj', 'llama': 'down_proj', 'vit': 'fc2'}
KEYS = MAPS | {'bert': ['key'], 'llama': ['k_proj'], 'vit': ['k_proj']}
NORMS = {
  'bert': ['LayerNorm'],
  'gpt2': ['ln_1', 'ln_2', 'ln_f'],
  'llama': ['input_layernorm', 'post_attention_layernorm', 'norm'],
  'vit': ['layernorm_before', 'layernorm_after', 'layernorm'],
}
WORDS = {'bert': ['word_embeddings'], 'gpt2': ['wte'], 'llama': ['embed_tokens']}
PROMPTED = 'bert gemma3 gpt2 llama mistral mpnet-mlm qwen2 roberta'
FREQUENCIES = {'n_frequency': 20, 'random_loc_seed': 777}
BANK = {'r': 2, 'num_vectors': 6, 'vector_length': 8}


class Case(NamedTuple):
  """A config of PEFT, for some models; arguments and target modules may depend on the model."""

  config: Any
  arguments: dict[str, Any]
  models: str = 'bert llama vit'
  targets: dict[str, Any] | None = MAPS


CASES: dict[str, Case] = {
  'lora': Case(peft.LoraConfig, {'r': 2, 'lora_alpha': 3}, 'bert gpt2 llama vit'),
  'lora-names': Case(
    peft.LoraConfig,
    {'r': 2},
    'albert-mlm deit dinov2 dinov2-registers distilbert-mlm gemma3 mistral mpnet-mlm qwen2 '
    'roberta t5',
  ),
  'lora-all': Case(peft.LoraConfig, {'r': 2, 'target_modules': 'all-linear'}, 'gpt2 llama', None),
  'rslora': Case(peft.LoraConfig, {'r': 3, 'use_rslora': True}, 'bert llama'),
  'dora': Case(peft.LoraConfig, {'r': 2, 'use_dora': True}, 'bert gpt2 llama vit'),
  'lora-patterns': Case(
    peft.LoraConfig,
    {'r': 2, 'rank_pattern': {'layer.0.attention.self.query': 3}, 'alpha_pattern': {'value': 5}},
    'bert',
  ),
  'lora-head': Case(peft.LoraConfig, {'r': 2, 'modules_to_save': ['classifier']}, 'classifier'),
  'adalora': Case(peft.AdaLoraConfig, {'init_r': 3, 'target_r': 2, 'total_step': 10}),
  'adalora-pruned': Case(
    peft.AdaLoraConfig, {'init_r': 3, 'target_r': 2, 'total_step': 10}, 'bert'
  ),
  'ia3': Case(peft.IA3Config, {}, 'bert gpt2 llama vit', KEYS),
  'ln-tuning': Case(peft.LNTuningConfig, {}, 'bert gpt2 llama vit', NORMS),
  'prompt-tuning': Case(peft.PromptTuningConfig, {'num_virtual_tokens': 3}, PROMPTED, None),
  'p-tuning': Case(
    peft.PromptEncoderConfig,
    {'num_virtual_tokens': 3, 'encoder_hidden_size': 8},
    'bert gpt2 llama',
    None,
  ),
  'prefix': Case(
    peft.PrefixTuningConfig, {'num_virtual_tokens': 3}, 'bert gpt2 llama qwen2 roberta', None
  ),
  'prefix-mlp': Case(
    peft.PrefixTuningConfig,
    {'num_virtual_tokens': 3, 'prefix_projection': True, 'encoder_hidden_size': 8},
    'gpt2',
    None,
  ),
  'vera': Case(peft.VeraConfig, {'r': 4}),
  'loha': Case(peft.LoHaConfig, {'r': 2, 'alpha': 3}),
  'lokr': Case(peft.LoKrConfig, {'r': 2, 'alpha': 3}),
  'lokr-both': Case(
    peft.LoKrConfig, {'r': 1, 'decompose_both': True, 'decompose_factor': 8}, 'bert llama'
  ),
  'oft': Case(peft.OFTConfig, {'oft_block_size': 4}),
  'oft-exact': Case(peft.OFTConfig, {'oft_block_size': 8, 'use_cayley_neumann': False}, 'bert'),
  'boft': Case(peft.BOFTConfig, {'boft_block_size': 4, 'boft_n_butterfly_factor': 2}),
  'hra': Case(peft.HRAConfig, {'r': 2}),
  'fourierft': Case(peft.FourierFTConfig, FREQUENCIES),
  'vblora': Case(peft.VBLoRAConfig, BANK),
  'c3a': Case(peft.C3AConfig, {'block_size': 8}),
  'shira': Case(peft.ShiraConfig, {'r': 2, 'random_seed': 3}),
  'randlora': Case(peft.RandLoraConfig, {'r': 8}),
  'miss': Case(peft.MissConfig, {'r': 8}),
  'road-1': Case(peft.RoadConfig, {'variant': 'road_1', 'group_size': 8}),
  'road-2': Case(peft.RoadConfig, {'variant': 'road_2', 'group_size': 8}, 'bert'),
  'road-4': Case(peft.RoadConfig, {'variant': 'road_4', 'group_size': 8}, 'bert'),
  'tokens': Case(peft.TrainableTokensConfig, {'token_indices': [9, 7]}, 'bert gpt2 llama', WORDS),
  'adaption-prompt': Case(
    peft.AdaptionPromptConfig, {'adapter_len': 3, 'adapter_layers': 1}, 'mistral', None
  ),
}


def write(root: Path) -> None:
  """Writes the fixtures of this file."""
  del root
  for name, case in CASES.items():
    for model in case.models.split():
      one(FIXTURES / f'{name}-{model}', case, model)


def one(folder: Path, case: Case, name: str) -> None:
  """An adapter after a step, what it computes, and how it takes one of ours."""
  torch.manual_seed(0)
  net = peft.get_peft_model(_base(name), _config(case, name))
  batch = _batch(name)
  weights = torch.randn(_output(net, name, batch).shape)
  _step(net, name, batch, weights)
  if folder.name.startswith('adalora-pruned'):
    _pruned(net)
  shutil.rmtree(folder, ignore_errors=True)
  net.save_pretrained(folder)
  (folder / 'README.md').unlink(missing_ok=True)
  if folder.name == 'lora-bert':  # As versions before 0.6 saved it.
    torch.save(peft.get_peft_model_state_dict(net), folder / 'adapter_model.bin')
  config = json.loads((folder / 'adapter_config.json').read_text())
  config |= {'base_model_name_or_path': f'{_kind(name)}-tiny'}  # Not where it lay.
  if isinstance(config.get('target_modules'), list):
    config['target_modules'].sort()
  (folder / 'adapter_config.json').write_text(json.dumps(config, indent=1, sort_keys=True) + '\n')
  with torch.no_grad():
    out = _output(net.eval(), name, batch)
    plain = _output(_base(name).eval(), name, batch)
  assert out.shape == plain.shape
  assert (out - plain).abs().max() > 1e-3, f'{folder.name} does nothing'
  header = {'base': f'{_kind(name)}-tiny', 'exported': str(exported(folder, name, batch))}
  header['made_by'] = f'torch {torch.__version__.split("+")[0]}, peft {peft.__version__}'
  arrays = {f'in/{k}': v for k, v in batch.items()} | {f'out/{_named(name)}': out}
  save_file({k: v.contiguous() for k, v in arrays.items()}, folder / 'expected.safetensors', header)
  for path in folder.iterdir():
    path.chmod(0o644)


def exported(folder: Path, name: str, batch: dict[str, Tensor]) -> float:
  """How far PEFT is from us on an adapter of ours: begun here, set off at random, written."""
  read = exchange.read(folder, models.load(str(BASES / f'{_kind(name)}-tiny')))
  model = read.model
  ours = {
    k: v.numpy().astype(np.int32) if v.dtype == torch.long else v.numpy() for k, v in batch.items()
  }
  calib = methods.Calib(ours, len(read.classes))
  theta, state = read.method.init(jax.random.key(1), model.forward, model.params, calib)
  rng = np.random.default_rng(0)
  off = lambda x: np.asarray(x + 0.1 * rng.standard_normal(x.shape), np.float32)  # noqa: E731
  state = read.state if 'fourierft' in methods.spell(read.method) else state
  adapted = read._replace(theta=jax.tree.map(off, theta), state=state)
  want = methods.adapt(read.method, model.forward, adapted.theta, adapted.state)(model.params, ours)
  with tempfile.TemporaryDirectory() as tmp:
    written = exchange.write(adapted, Path(tmp) / 'adapter', _task(name))
    net = peft.PeftModel.from_pretrained(_base(name), written).eval()
  with torch.no_grad():
    got = _output(net, name, batch)
  difference = (got.numpy() - np.asarray(want[_named(name)]))[_real(batch, got)]
  return float(np.abs(difference).max())


class _Blocks:
  """What PEFT's CUDA kernel for BOFT computes: [m, n, b, b] as m block diagonal matrices."""

  @staticmethod
  def apply(x: Tensor) -> Tensor:
    return torch.stack([torch.block_diag(*blocks) for blocks in x])


boft_layer.FastBlockDiag, boft_layer.get_fbd_cuda = _Blocks, lambda: True


def _pruned(net: Any) -> None:
  """As AdaLoRA leaves the second of three triples: without it, which the config says."""
  config = net.peft_config['default']
  config.rank_pattern = {}
  for path, module in net.base_model.model.named_modules():
    if hasattr(module, 'lora_E'):
      module.lora_E['default'].data[1] = 0
      config.rank_pattern[f'{path}.lora_E'] = [True, False, True]


def _config(case: Case, name: str) -> Any:
  given = dict(case.arguments)
  if case.targets:
    given['target_modules'] = case.targets[name]
  if case.config is peft.IA3Config:
    given |= {
      'target_modules': [*case.targets[name], WIDE[name]],
      'feedforward_modules': [WIDE[name]],
    }
  return case.config(task_type=_task(name), **given)


def _kind(name: str) -> str:
  return 'vit' if name == 'classifier' else name


def _task(name: str) -> str | None:
  return MODELS[name][1]


def _named(name: str) -> str:
  if name == 'classifier':
    return 'logits'
  return 'hidden' if MODELS[name][1] == 'FEATURE_EXTRACTION' else 'token_logits'


def _base(name: str) -> Any:
  pooled = name in ('albert-mlm', 'bert', 'deit', 'mpnet-mlm', 'roberta', 'vit')
  more = {'add_pooling_layer': False} if pooled else {}
  folder = BASES / f'{_kind(name)}-tiny'
  return MODELS[name][0].from_pretrained(folder, attn_implementation='eager', **more)


def _batch(name: str) -> dict[str, Tensor]:
  generator = torch.Generator().manual_seed(5)
  if name in IMAGES:
    return {'image': torch.rand(2, 24, 24, 3, generator=generator)}
  ids, mask = ragged(100, 1 if name in ('mpnet-mlm', 'roberta') else 0, generator)
  ids[:2, 1] = torch.tensor([9, 7])  # What the case of tokens trains.
  batch = {'tokens': ids[:2, :8], 'mask': mask[:2, :8]}
  return batch | {'decoder_tokens': ids[2:, :6]} if name == 't5' else batch


def _output(net: Any, name: str, batch: dict[str, Tensor]) -> Tensor:
  """The output at the batch's own tokens, behind those of a prompt."""
  if 'image' in batch:
    out = net(pixel_values=normalised(batch['image'], HALF if _kind(name) == 'vit' else IMAGENET))
  else:
    more = {'decoder_input_ids': batch['decoder_tokens']} if name == 't5' else {}
    out = net(input_ids=batch['tokens'], attention_mask=batch['mask'].long(), **more)
  if name == 'classifier':
    return out.logits
  x = out.last_hidden_state if _named(name) == 'hidden' else out.logits
  return x if 'image' in batch else x[:, -batch['tokens'].shape[1] :]


def _real(batch: dict[str, Tensor], x: Tensor) -> Any:
  mask = batch.get('mask')
  return (
    mask.numpy() if mask is not None and mask.shape == x.shape[:2] else np.ones(x.shape[:1], bool)
  )


def _step(net: Any, name: str, batch: dict[str, Tensor], weights: Tensor) -> None:
  """One step of AdamW, large enough that nothing stays as it began."""
  tx = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.05)
  (_output(net.train(), name, batch) * weights)[_real(batch, weights)].sum().backward()
  tx.step()
