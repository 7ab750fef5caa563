"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT without segment types, half as deep."""

from collections.abc import Mapping
from typing import Any

from fewshot.models import bert
from fewshot.models.bert import Config
from fewshot.models.weights.names import Names, per_block

init, forward, example = bert.init, bert.forward, bert.example

# BERT's key of config.json -> DistilBERT's.
KEYS = {
  'hidden_size': 'dim',
  'num_hidden_layers': 'n_layers',
  'num_attention_heads': 'n_heads',
  'intermediate_size': 'hidden_dim',
}


def config_from_hf(hf: Mapping[str, Any]) -> Config:
  """Reads a Hugging Face `config.json`; what this file does not compute is refused."""
  renamed = {ours: hf[theirs] for ours, theirs in KEYS.items()}
  fixed = {'type_vocab_size': 0, 'layer_norm_eps': 1e-12}
  return bert.config_from_hf({**hf, **renamed, **fixed, 'hidden_act': hf.get('activation', 'gelu')})


def names(config: Config) -> Names:
  """Our module -> Hugging Face's name, after a leading 'distilbert.'."""
  block, stored = 'encoder/block_{i}', 'transformer.layer.{i}'
  return per_block(
    {
      'embed': 'embeddings.word_embeddings',
      'inputs/positions': 'embeddings.position_embeddings',  # Sines, where they began so, too.
      'inputs/ln': 'embeddings.LayerNorm',
      f'{block}/attn/query': f'{stored}.attention.q_lin',
      f'{block}/attn/key': f'{stored}.attention.k_lin',
      f'{block}/attn/value': f'{stored}.attention.v_lin',
      f'{block}/attn/out': f'{stored}.attention.out_lin',
      f'{block}/ln1': f'{stored}.sa_layer_norm',
      f'{block}/mlp/up': f'{stored}.ffn.lin1',
      f'{block}/mlp/down': f'{stored}.ffn.lin2',
      f'{block}/ln2': f'{stored}.output_layer_norm',
      'lm_head/dense': 'vocab_transform',
      'lm_head/ln': 'vocab_layer_norm',
      'lm_head/bias': 'vocab_projector.bias',
    },
    config.depth,
  )


PREFIXES: tuple[str, ...] = ('distilbert.',)
# Tensors of a checkpoint that the outputs do not depend on.
UNUSED: tuple[str, ...] = (
  r'embeddings\.position_ids',  # A constant that old checkpoints store.
  r'(pre_classifier|classifier|qa_outputs)\..*',  # Heads of another task.
  # Of the masked-language-model head the tied matrix, and all of it where the config has none.
  r'vocab_(transform|layer_norm|projector)\..*',
)
