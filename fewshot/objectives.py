"""Objectives: (outputs, batch) -> per-example loss and predictions; pure, and spelled as fits are.

An objective is made once for the same arguments: what JAX traced with its functions is found again.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fewshot.errors import FewshotError
from fewshot.methods import spelling
from fewshot.methods.heads import hidden_of, unit
from fewshot.methods.heads import logits_of as logits
from fewshot.methods.spelling import Made, spelled

Array = jax.Array
# Typed, since hinge(2) and hinge(2.0) are spelled differently.
once = functools.lru_cache(maxsize=None, typed=True)


class Objective(NamedTuple):
  """What is minimised and how an example is scored.

  loss:  (outputs, batch) -> [B], the per-example loss
  score: (outputs, batch) -> [B], the per-example score that a mean is reported of
  """

  loss: Callable[[dict[str, Any], dict[str, Any]], Array]
  score: Callable[[dict[str, Any], dict[str, Any]], Array]
  made: Made | None = None

  def mean(self, outputs: dict[str, Any], batch: dict[str, Any]) -> Array:
    """The mean loss, weighted by `batch['weights']` where there are any."""
    return _mean(self.loss(outputs, batch), batch)

  def mean_score(self, outputs: dict[str, Any], batch: dict[str, Any]) -> Array:
    """The mean score, weighted alike; of an example in several views, that of its mean logits."""
    return _mean(self.score(_of_items(outputs, batch), batch), batch)


@once
@spelled
def classification(smoothing: float = 0.0) -> Objective:
  """Cross-entropy of `outputs['logits']` [B, C] with `batch['labels']` [B]; scored by accuracy.

      loss = -sum_c q_c log softmax(z)_c,   q = (1 - s) onehot(y) + s / C

  >>> import jax.numpy as jnp
  >>> o = classification()
  >>> outputs, batch = {'logits': jnp.zeros((1, 4))}, {'labels': jnp.array([2])}
  >>> round(float(o.mean(outputs, batch)), 4)
  1.3863
  """

  def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Array:
    z = logits(outputs).astype(jnp.float32)
    if not smoothing:
      return optax.softmax_cross_entropy_with_integer_labels(z, batch['labels'])
    q = optax.smooth_labels(jax.nn.one_hot(batch['labels'], z.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(z, q)

  return Objective(loss, accuracy)


@once
@spelled
def hinge(margin: float = 1.0) -> Objective:
  """The multi-class hinge loss of PERFECT (Karimi Mahabadi et al. 2022, arXiv:2204.01172).

      loss = 1/M sum_m 1/C sum_(c != y) max(0, margin - z_my + z_mc)

  z are `outputs['slot_logits']` [B, M, C], one row for each slot, where a head gives them
  (`label_embeddings`), else `outputs['logits']` [B, C] with M = 1; scored by accuracy.

  >>> outputs, batch = {'logits': jnp.array([[2.0, 1.5, 0.0]])}, {'labels': jnp.array([0])}
  >>> round(float(hinge().mean(outputs, batch)), 4)
  0.1667
  """

  def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Array:
    z = outputs['slot_logits'] if 'slot_logits' in outputs else logits(outputs)[:, None]
    z = z.astype(jnp.float32)
    right = jnp.take_along_axis(z, batch['labels'][:, None, None], -1)
    wrong = 1 - jax.nn.one_hot(batch['labels'], z.shape[-1])[:, None]
    return (wrong * jax.nn.relu(margin - right + z)).mean((1, 2))

  return Objective(loss, accuracy)


@once
@spelled
def t_few(unlikelihood: float = 1.0, choice: float = 1.0) -> Objective:
  """The loss of T-Few (Liu et al. 2022, arXiv:2205.05638), on top of the head `likelihood`.

      L_LM = -1/A_y sum_m log p_ym                            the right word is likely
      L_UL = -mean_(c != y, m) log(1 - p_cm + 0.01)           tokens of wrong words are not
      L_LN = -log softmax(b)_y,   b_c = 1/A_c sum_m log p_cm  and of all words the right one is best

      loss = L_LM + unlikelihood L_UL + choice L_LN

  p_cm is the probability of token m of the word of class c, which has A_c tokens; 0.01 is of the
  authors' code.  Scored by accuracy.

  >>> outputs = {'word_logprobs': jnp.log(jnp.full((1, 2, 1), 0.5)), 'word_mask': jnp.ones((2, 1))}
  >>> round(float(t_few().mean(outputs, {'labels': jnp.array([0])})), 4)
  2.0596
  """

  def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Array:
    logp, real, right = _words('t_few', outputs, batch)
    scores = (logp * real).sum(-1) / real.sum(-1)
    y = batch['labels'][:, None]
    likely = -jnp.take_along_axis(scores, y, 1)[:, 0]
    wrong = (1 - right)[..., None] * real
    unlikely = (wrong * _unlikely(logp, 1e-2)).sum((1, 2)) / wrong.sum((1, 2))
    best = -jnp.take_along_axis(jax.nn.log_softmax(scores), y, 1)[:, 0]
    return likely + unlikelihood * unlikely + choice * best

  return Objective(loss, accuracy)


@once
@spelled
def decoupled() -> Objective:
  """The decoupled label loss of ADAPET (Tam et al. 2021, arXiv:2103.11955), on `likelihood`.

      loss = -mean_m log p_ym - sum_(c != y) mean_m log(1 - p_cm)

  p_cm, the probability of token m of the word of class c, is over the vocabulary, not over the
  classes: what is no label word gets less of it, too.  Scored by accuracy.

  >>> outputs = {'word_logprobs': jnp.log(jnp.full((1, 2, 1), 0.5)), 'word_mask': jnp.ones((2, 1))}
  >>> round(float(decoupled().mean(outputs, {'labels': jnp.array([0])})), 4)
  1.3863
  """

  def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Array:
    logp, real, right = _words('decoupled', outputs, batch)
    each = jnp.where(right[..., None] > 0, -logp, _unlikely(logp, 1e-6))
    return ((each * real).sum(-1) / real.sum(-1)).sum(-1)

  return Objective(loss, accuracy)


@once
@spelled
def supervised_contrastive(weight: float = 1.0, temperature: float = 0.1) -> Objective:
  """Cross-entropy and a contrast of the batch's examples (Khosla et al. 2020, arXiv:2004.11362).

      loss_i = -log softmax(z_i)_(y_i) - weight mean_(p: y_p = y_i) log q_ip
      q_ia = exp(f_i . f_a / t) / sum_(b != i) exp(f_i . f_b / t),   |f| = 1

  f is the hidden state at the slots (their mean) where the batch has them, else the features; an
  example alone in its class has no contrast.  An example of weight w in `batch['weights']` counts w
  times for the others.  This is the loss of LM-CPPF (Abaskohi et al. 2023, arXiv:2305.18169) and
  ConsPrompt (Weng et al. 2022, arXiv:2211.04118), whose further views of an example are rows of the
  batch.  Scored by accuracy.

  >>> outputs = {'logits': jnp.zeros((2, 2)), 'features': jnp.eye(2)}
  >>> loss = supervised_contrastive().loss(outputs, {'labels': jnp.arange(2)})
  >>> [round(float(x), 4) for x in loss]
  [0.6931, 0.6931]
  """
  if isinstance(temperature, (int, float)) and temperature <= 0:
    raise FewshotError(f'supervised_contrastive(temperature={temperature}) is not above 0')
  entropy = classification().loss

  def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Array:
    f = unit(_represented(outputs, batch).astype(jnp.float32))
    n, y = len(f), batch['labels']
    counts = jnp.asarray(batch.get('weights', jnp.ones(n)), jnp.float32) * (1 - jnp.eye(n))
    s = f @ f.T / temperature
    others = jnp.where(counts > 0, jnp.log(jnp.maximum(counts, 1e-30)), -1e30)
    logq = s - jax.nn.logsumexp(s + others, -1, keepdims=True)
    alike = counts * (y[:, None] == y)
    contrast = -jnp.where(alike > 0, alike * logq, 0).sum(-1) / jnp.maximum(alike.sum(-1), 1e-30)
    return entropy(outputs, batch) + weight * contrast

  return Objective(loss, accuracy)


@once
@spelled
def distillation(temperature: float = 1.0) -> Objective:
  """Cross-entropy with soft labels (Hinton et al. 2015, arXiv:1503.02531).

      loss = -t^2 sum_c q_c log softmax(z / t)_c

  q are `batch['targets']` [B, C], probabilities that a teacher's logits gave at the same
  temperature t; t^2 keeps the size of the gradient.  Scored by accuracy.

  >>> outputs, batch = {'logits': jnp.zeros((1, 2))}, {'targets': jnp.array([[0.9, 0.1]])}
  >>> round(float(distillation(2.0).mean(outputs, batch)), 4)
  2.7726
  """
  if isinstance(temperature, (int, float)) and temperature <= 0:
    raise FewshotError(f'distillation(temperature={temperature}) is not above 0')

  def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Array:
    if 'targets' not in batch:
      raise FewshotError('distillation() reads soft labels, and the batch has no targets [B, C]')
    z = logits(outputs).astype(jnp.float32)
    return temperature**2 * optax.softmax_cross_entropy(z / temperature, batch['targets'])

  return Objective(loss, accuracy)


VOCABULARY: dict[str, Callable[..., Objective]] = {
  f.__name__: f
  for f in (classification, hinge, t_few, decoupled, supervised_contrastive, distillation)
}


def parse(text: str) -> Objective:
  """The objective that `text` spells.

  >>> from fewshot.methods import spell
  >>> spell(parse('hinge(margin=2)'))
  'hinge(margin=2)'
  """
  made = spelling.parse(text, VOCABULARY, 'training objective')
  if not isinstance(made, Objective):
    raise FewshotError(f'{text!r} spells no objective; write for example classification()')
  return made


def accuracy(outputs: dict[str, Any], batch: dict[str, Any]) -> Array:
  """1 where the class of the largest logit is the example's, else 0: [B]."""
  return (logits(outputs).argmax(-1) == batch['labels']).astype(jnp.float32)


def _of_items(outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
  """The outputs, where each row has the mean logits of its example's rows, as test items do."""
  if 'example' not in batch or 'logits' not in outputs:
    return outputs
  of, z = jnp.asarray(batch['example']), outputs['logits'].astype(jnp.float32)
  first = (of[:, None] == of).argmax(-1)  # The first row of the same example.
  summed = jax.ops.segment_sum(z, first, len(z))
  return outputs | {'logits': (summed / jnp.bincount(first, length=len(z))[:, None])[first]}


def _mean(values: Array, batch: dict[str, Any]) -> Array:
  if 'weights' not in batch:
    return values.mean()
  w = batch['weights'].astype(values.dtype)
  return (values * w).sum() / jnp.maximum(w.sum(), 1e-12)


def _words(name: str, outputs: dict[str, Any], batch: dict[str, Any]) -> tuple[Array, Array, Array]:
  """log p [B, C, A] of the words' tokens, which of them are real [C, A], who is right [B, C]."""
  if 'word_logprobs' not in outputs:
    raise FewshotError(
      f"{name} reads outputs['word_logprobs'], which this forward lacks; it has "
      f'{", ".join(outputs)}; take the head likelihood(words)'
    )
  logp = outputs['word_logprobs'].astype(jnp.float32)
  right = jax.nn.one_hot(batch['labels'], logp.shape[1])
  return logp, outputs['word_mask'].astype(jnp.float32), right


def _unlikely(logp: Array, slack: float) -> Array:
  """-log(1 - p + slack); the slack bounds its gradient where p is 1."""
  return -jnp.log(1 - jnp.exp(logp) + slack)


def _represented(outputs: dict[str, Any], batch: dict[str, Any]) -> Array:
  """What a contrast compares [B, D]: the hidden states at the slots, or the features."""
  if 'slots' in batch and 'hidden' in outputs:
    return jnp.take_along_axis(hidden_of(outputs), batch['slots'][..., None], 1).mean(1)
  return outputs['features']
