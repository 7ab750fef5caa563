"""BERT (Devlin et al. 2019, arXiv:1810.04805) and the parts of all encoders made like it.

MiniLM (Wang et al. 2020, arXiv:2002.10957) is one as it stands; RoBERTa, DistilBERT, ALBERT and
MPNet are this module with another shape, another stack of blocks or other names.  Post-norm blocks,
learned positions, mean pooling over the real tokens, and maybe a masked-language-model head.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fewshot.errors import FewshotError
from fewshot.models.layers import ACTIVATIONS, Core, Mlp, classify, drop, mean_pool
from fewshot.models.weights.names import Names, per_block

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a BERT-like encoder; lengths in tokens."""

  vocab: int
  dim: int
  depth: int
  heads: int
  width: int  # Of the MLP.
  positions: int
  types: int  # Of segments; 0 where the model does not tell them apart.
  embedding: int | None = None  # The width of token vectors that `inputs/project` maps to dim.
  eps: float = 1e-12
  activation: str = 'gelu'
  pooling: str = 'mean'  # One of `POOLINGS`.
  lm: bool = False  # Whether there is a masked-language-model head.
  dropout: float = 0.0

  def __post_init__(self) -> None:
    if self.pooling not in POOLINGS:
      raise FewshotError(f'pooling {self.pooling!r} is not known; known: {", ".join(POOLINGS)}')


POOLINGS: dict[str, Callable[[Array, Array], Array]] = {
  'mean': mean_pool,  # Over the real tokens.
  'cls': lambda x, mask: x[:, 0],  # The hidden state of the first token.
}


class Attention(nn.Module):
  """Multi-head self-attention over the positions where mask [B, T] holds; bias as in `Core`."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array, *bias: Array) -> Array:
    c = self.config
    split = lambda y: y.reshape(*y.shape[:-1], c.heads, c.dim // c.heads)  # noqa: E731
    q, k, v = (split(nn.Dense(c.dim, name=n)(x)) for n in ('query', 'key', 'value'))
    y = Core(name='core')(q, k, v, mask, *bias)
    return nn.Dense(c.dim, name='out')(y.reshape(x.shape))


class Block(nn.Module):
  """x = ln1(x + attn(x)); x = ln2(x + mlp(x))."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array, *bias: Array) -> Array:
    c = self.config
    y = Attention(c, name='attn')(x, mask, *bias)
    x = nn.LayerNorm(c.eps, name='ln1')(x + drop(self, c.dropout, y))
    y = Mlp(c.width, c.activation, name='mlp')(x)
    return nn.LayerNorm(c.eps, name='ln2')(x + drop(self, c.dropout, y))


class Encoder(nn.Module):
  """The stack of blocks: x [B, T, D], mask [B, T] -> [B, T, D]."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array) -> Array:
    for i in range(self.config.depth):
      x = Block(self.config, name=f'block_{i}')(x, mask)
    return x


class Inputs(nn.Module):
  """Adds positions and segment types to embedded tokens; soft prompts attach before it."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array, positions: Array, *types: Array) -> tuple[Array, Array]:
    c, d = self.config, x.shape[-1]
    if x.shape[1] > c.positions:
      raise FewshotError(
        f'an input of {x.shape[1]} tokens (prompts counted) is longer than the {c.positions} '
        'positions of this model; cut the texts (max_length), or take a lower length of prompts'
      )
    x = x + nn.Embed(c.positions, d, name='positions')(positions)
    if c.types:
      x = x + nn.Embed(c.types, d, name='types')(*types)
    x = drop(self, c.dropout, nn.LayerNorm(c.eps, name='ln')(x))
    return nn.Dense(c.dim, name='project')(x) if c.embedding else x, mask


class LMHead(nn.Module):
  """The masked-language-model head: ln(act(x W + b)) E^T + bias, E the table of `embed`.

  x [..., D] -> [..., V]; `attend` is the product with E^T, [..., E] -> [..., V].
  """

  config: Config

  @nn.compact
  def __call__(self, x: Array, attend: Callable[[Array], Array]) -> Array:
    c = self.config
    x = ACTIVATIONS[c.activation](nn.Dense(c.embedding or c.dim, name='dense')(x))
    x = attend(nn.LayerNorm(c.eps, name='ln')(x))
    return x + self.param('bias', nn.initializers.zeros, (c.vocab,)).astype(x.dtype)


class Bert(nn.Module):
  """tokens [B, T], mask [B, T], maybe types [B, T] and slots [B, M] -> a dict of outputs.

  features [B, D], hidden [B, T, D]; logits of the features where params have a `head`, as a merged
  classifier does; with `config.lm` token_logits [B, T, V], or [B, M, V] at the slots if given.
  """

  config: Config
  stack: type[nn.Module] = Encoder  # Of the config; called with (x [B, T, D], mask).

  @nn.compact
  def __call__(
    self, tokens: Array, mask: Array, types: Array | None = None, slots: Array | None = None
  ) -> dict[str, Array]:
    c = self.config
    embed = nn.Embed(c.vocab, c.embedding or c.dim, name='embed')
    extra = [jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)]
    if c.types:
      extra.append(jnp.zeros_like(tokens) if types is None else types)
    x = self.stack(c, name='encoder')(*Inputs(c, name='inputs')(embed(tokens), mask, *extra))
    features = POOLINGS[c.pooling](x, mask)
    out = {'features': features, 'hidden': x, 'mask': mask} | classify(self, features)
    if c.lm:
      x = x if slots is None else jnp.take_along_axis(x, slots[..., None], 1)
      out['token_logits'] = LMHead(c, name='lm_head')(x, embed.attend)
    return out


def forward(config: Config, stack: type[nn.Module] = Encoder) -> Callable[..., dict[str, Array]]:
  """The pure function (params, batch, key=None) -> outputs, see `Bert`.

  batch has tokens and mask, and maybe types (where the model has none they say nothing) and slots.

  >>> tiny = Config(vocab=9, dim=8, depth=1, heads=2, width=16, positions=4, types=1, lm=True)
  >>> batch = {'tokens': jnp.ones((2, 3), int), 'mask': jnp.ones((2, 3), bool)}
  >>> params = init(tiny, jax.random.key(0))
  >>> forward(tiny)(params, batch)['features'].shape
  (2, 8)
  >>> forward(tiny)(params, batch | {'slots': jnp.array([[1], [2]])})['token_logits'].shape
  (2, 1, 9)
  """
  module = Bert(config, stack)

  def apply(params: Any, batch: dict[str, Array], key: Array | None = None) -> dict[str, Array]:
    if 'tokens' not in batch or 'mask' not in batch:
      raise FewshotError(
        f'this model reads tokens and mask, and the batch has {", ".join(batch) or "nothing"}; '
        'give it texts, or a dict of both arrays'
      )
    rngs = None if key is None else {'dropout': key}
    more = batch.get('types'), batch.get('slots')
    return module.apply({'params': params}, batch['tokens'], batch['mask'], *more, rngs=rngs)  # type: ignore[return-value]

  return apply


def init(config: Config, key: Array, stack: type[nn.Module] = Encoder) -> Any:
  """Random params of a model of this shape."""
  batch = example(config)
  return Bert(config, stack).init(key, batch['tokens'], batch['mask'])['params']


def example(config: Config) -> dict[str, Array]:
  """A batch of one."""
  del config
  return {'tokens': jnp.zeros((1, 2), int), 'mask': jnp.ones((1, 2), bool)}


def config_from_hf(hf: Mapping[str, Any]) -> Config:
  """Reads a Hugging Face `config.json`; what this file does not compute is refused."""
  if hf.get('position_embedding_type', 'absolute') != 'absolute':
    raise FewshotError(f'position_embedding_type {hf["position_embedding_type"]!r}; only absolute')
  if hf.get('is_decoder') or hf.get('add_cross_attention'):
    raise FewshotError('is_decoder or add_cross_attention is true; only encoders are computed')
  if hf['hidden_size'] % hf['num_attention_heads']:
    raise FewshotError(
      f'hidden_size {hf["hidden_size"]} does not divide into {hf["num_attention_heads"]} heads'
    )
  act = hf.get('hidden_act', 'gelu')
  if act not in ACTIVATIONS:
    raise FewshotError(f'hidden_act {act!r} is not known; known: {", ".join(ACTIVATIONS)}')
  return Config(
    vocab=hf['vocab_size'],
    dim=hf['hidden_size'],
    depth=hf['num_hidden_layers'],
    heads=hf['num_attention_heads'],
    width=hf['intermediate_size'],
    positions=hf['max_position_embeddings'],
    types=hf['type_vocab_size'],
    eps=hf.get('layer_norm_eps', 1e-12),
    activation=act,
    lm=_has_lm(hf),
  )


def _has_lm(hf: Mapping[str, Any]) -> bool:
  """Whether the checkpoint is of a model with a masked-language-model head."""
  named = hf.get('architectures') or ()
  lm = any(name.endswith(('ForMaskedLM', 'ForPreTraining')) for name in named)
  if lm and not hf.get('tie_word_embeddings', True):
    raise FewshotError('tie_word_embeddings is false; only a head that reads `embed` is computed')
  return lm


def names(config: Config) -> Names:
  """Our module -> Hugging Face's name, after a leading 'bert.' or the like."""
  block, stored = 'encoder/block_{i}', 'encoder.layer.{i}'
  return per_block(
    {
      'embed': 'embeddings.word_embeddings',
      'inputs/positions': 'embeddings.position_embeddings',
      'inputs/types': 'embeddings.token_type_embeddings',
      'inputs/ln': 'embeddings.LayerNorm',
      f'{block}/attn/query': f'{stored}.attention.self.query',
      f'{block}/attn/key': f'{stored}.attention.self.key',
      f'{block}/attn/value': f'{stored}.attention.self.value',
      f'{block}/attn/out': f'{stored}.attention.output.dense',
      f'{block}/ln1': f'{stored}.attention.output.LayerNorm',
      f'{block}/mlp/up': f'{stored}.intermediate.dense',
      f'{block}/mlp/down': f'{stored}.output.dense',
      f'{block}/ln2': f'{stored}.output.LayerNorm',
      'lm_head/dense': 'cls.predictions.transform.dense',
      'lm_head/ln': 'cls.predictions.transform.LayerNorm',
      'lm_head/bias': 'cls.predictions.bias',
    },
    config.depth,
  )


PREFIXES: tuple[str, ...] = ('bert.',)
# Tensors of a checkpoint that the outputs do not depend on.
UNUSED: tuple[str, ...] = (
  r'pooler\..*',  # The tanh layer over [CLS].
  r'embeddings\.(position_ids|token_type_ids)',  # Constants that old checkpoints store.
  # Heads of another task; of the masked-language-model head the tied matrix, and all of it where
  # the config has none.
  r'(cls|lm_head|classifier|qa_outputs)\..*',
)
