"""Continued pre-training on a task's texts, in its template and with words for their classes."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fewshot.errors import FewshotError
from fewshot.fits.base import Fit
from fewshot.fits.sgd import sgd
from fewshot.methods.base import Batch, Forward, Method, Outputs, Params, merge
from fewshot.methods.heads import shapes_of
from fewshot.methods.spelling import spelled
from fewshot.methods.weights import full
from fewshot.models.base import Model
from fewshot.objectives import Objective
from fewshot.programs.prompting import about, check_mergeable, fitted, joined, words_of
from fewshot.programs.steps import Written, new, remember, rewind, train
from fewshot.stages import Carried, Program, Setting, Stage, program
from fewshot.tasks import prompts, templates

__all__ = ['continued', 'label', 'pcp']
Array = jax.Array
SGD, FULL = sgd(), full()
LM = Objective(
  lambda outputs, batch: outputs['lm_loss'], lambda outputs, batch: -outputs['lm_loss']
)


@spelled
def pcp(
  method: Method = FULL, fit: Fit = SGD, pretrain: Fit = SGD, masking: float = 0.15
) -> Program:
  """PCP, prompt-based continued pre-training (Shi & Lipani 2023, arXiv:2305.01711).

      1. `method` trains on the prompts by `fit`, and says which class the unlabelled texts are
      2. from the start again: the language model goes on training on all texts in the template,
         each with the word of its class in the slot
      3. `method` trains on the prompts by `fit`, from there

  `continued` says what the second minimises.  The labelled texts keep their labels there, where the
  authors' code predicts theirs too.

  >>> [s.name for s in pcp().stages]
  ['remember', 'train', 'label', 'rewind', 'continued', 'train']
  """
  tuned = train(method, fit)
  again = continued(pretrain, masking=masking)
  return program(remember('start'), tuned, label(), rewind('start'), again, tuned)


@spelled
def label(data: str = 'unlabelled', into: str = 'soft') -> Stage:
  """Writes the logits [U, C] that `params` give for the test items of some data."""

  def run(s: Setting, carried: Carried, seed: int) -> Written:
    del seed
    z = s.logits(carried['params'], data).astype(np.float32)
    return {into: z}, {'labels': np.bincount(z.argmax(-1), minlength=s.classes).tolist()}

  return Stage(run, ('params',), (new(into),), (data,))


@spelled
def continued(
  fit: Fit, method: Method = FULL, masking: float = 0.15, data: str = 'task',
  unlabelled: str = 'unlabelled', soft: str = 'soft',
) -> Stage:  # fmt: skip
  """Language modelling on labelled and unlabelled texts, with the words of their classes in place.

      loss_i = mean over the masked m of -log p(token_m | the rest)        masked language models
      loss_i = mean over t of -log p(token_t | token_1 .. token_(t-1))     causal models

  The unlabelled have the likeliest class of the entry `soft`.  Each step masks a share `masking` of
  every text's tokens anew, special tokens apart: 8 of 10 become the mask, one a random token, one
  stays (Devlin et al. 2019, arXiv:1810.04805).
  """
  check_mergeable('continued', method)
  if not 0 < masking < 1:
    raise FewshotError(f'continued(masking={masking}) is a share of the tokens, within (0, 1)')

  def run(s: Setting, carried: Carried, seed: int) -> Written:
    model, task, pool = s.model._replace(params=carried['params']), s.of(data), s.of(unlabelled)
    reads, z = _reads(model, s.calib(data)), pool.train
    y = np.asarray(carried[soft]).argmax(-1).repeat(pool.views)
    known = {k: np.asarray(x[0]) for k, x in task.train.items()}
    more = {k: np.asarray(x[0]) for k, x in z.items()} | {'labels': y.astype(np.int32)}
    if 'answer' not in known or known['answer'].shape[-1] != 1:
      raise FewshotError('continued() writes label words of one token; give the prompt such words')
    rows = written(joined(known, more), words_of(known)[:, 0], model.tokenizer, reads)
    forward = _modelling(model, reads, masking, s.classes)
    options = s.options._replace(packing='off', prefix='off')  # What is masked differs by step.
    (result,) = fitted(
      s._replace(options=options), model._replace(forward=forward),
      {k: x[None] for k, x in rows.items()}, None, method, fit, seed, task.splits[0], LM, False,
    )  # fmt: skip
    params = merge(result.method, result.theta, result.state, model.params)
    return {'params': params}, about(result) | {'texts': len(y) + len(known['labels'])}

  return Stage(run, ('params', soft), ('params',), (data, unlabelled))


def written(rows: Batch, words: np.ndarray, tokenizer: Any, reads: str) -> Batch:
  """Rows with the word of their label where the slots are, and which tokens are to stay as is.

  For a causal model the word is behind the text, one place more.
  """
  tokens, mask, slots = (np.array(rows[k]) for k in ('tokens', 'mask', 'slots'))
  if reads == 'left':
    pad = lambda x: np.pad(x, ((0, 0), (0, 1)))  # noqa: E731
    tokens, mask, slots = pad(tokens), pad(mask), slots + 1
    np.put_along_axis(mask, slots, True, 1)
  np.put_along_axis(tokens, slots, words[rows['labels']][:, None], 1)
  special = [i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special]
  fixed = ~mask | np.isin(tokens, special)
  return {'tokens': tokens, 'mask': mask, 'fixed': fixed, 'labels': rows['labels']}


def masked(forward: Forward, mask_id: int, vocab: int, share: float, classes: int) -> Forward:
  """The forward of masked language modelling: outputs['lm_loss'] [B], on tokens drawn by the key.

  The batch has tokens, mask, and `fixed` [B, T] where nothing is masked.  A text has at least one
  token masked, where it has one that may be.
  """

  def apply(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
    where, what, which = jax.random.split(jax.random.key(0) if key is None else key, 3)
    tokens, fixed = jnp.asarray(batch['tokens'], jnp.int32), batch['fixed']
    most, free = math.ceil(share * tokens.shape[1]), (~fixed).sum(-1, keepdims=True)
    order = jnp.where(fixed, 2.0, jax.random.uniform(where, tokens.shape))
    slots = jnp.argsort(order, -1)[:, :most].astype(jnp.int32)
    counted = jnp.arange(most) < jnp.minimum(jnp.maximum(jnp.round(share * free), 1), free)
    right = jnp.take_along_axis(tokens, slots, 1)
    u = jax.random.uniform(what, slots.shape)
    other = jax.random.randint(which, slots.shape, 0, vocab)
    shown = jnp.where(counted & (u < 0.8), mask_id, jnp.where(counted & (u < 0.9), other, right))
    shown = tokens.at[jnp.arange(len(tokens))[:, None], slots].set(shown)
    z = forward(params, {'tokens': shown, 'mask': batch['mask'], 'slots': slots}, key)
    return _lm(z['token_logits'], right, counted, classes)

  return apply


def causal(forward: Forward, classes: int) -> Forward:
  """The forward of causal language modelling: outputs['lm_loss'] [B]."""

  def apply(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
    tokens, mask = batch['tokens'], batch['mask']
    z = forward(params, {'tokens': tokens, 'mask': mask}, key)['token_logits']
    return _lm(z[:, :-1], tokens[:, 1:], mask[:, 1:], classes)

  return apply


def _lm(z: Array, right: Array, counted: Array, classes: int) -> Outputs:
  """The mean loss [B] of the tokens that count; the logits are of no class and all 0."""
  nll = optax.softmax_cross_entropy_with_integer_labels(z.astype(jnp.float32), right)
  loss = (nll * counted).sum(-1) / jnp.maximum(counted.sum(-1), 1)
  return {'lm_loss': loss, 'logits': jnp.zeros((len(z), classes))}


def _modelling(model: Model, reads: str, share: float, classes: int) -> Forward:
  if reads == 'left':
    return causal(model.forward, classes)
  mask = templates.mask_id(model.tokenizer)
  return masked(model.forward, mask, model.tokenizer.get_vocab_size(), share, classes)


def _reads(model: Model, calib: Any) -> str:
  """What predicts words in the model; one that predicts none is refused."""
  outputs = shapes_of(model.forward, model.params, calib)
  reads = prompts.reading(model)[0]
  if 'token_logits' not in outputs or reads == 'decoder':
    raise FewshotError(
      f'continued pre-training needs a masked or causal language model, and {model.name} gives '
      f'{", ".join(outputs)}; take a model with a language-model head'
    )
  return reads
