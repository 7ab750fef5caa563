"""Ensembles of prompts that label texts, and the classifier that learns from their labels."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fewshot import sweep as sweeps
from fewshot.errors import FewshotError, counts
from fewshot.fits.base import Fit
from fewshot.fits.sgd import sgd
from fewshot.methods.base import Batch, Calib, Forward, Method, Outputs, Params, adapt, merge
from fewshot.methods.heads import check_word, logits_of, shapes_of
from fewshot.methods.partition import count, shapes
from fewshot.methods.spelling import spell, spelled
from fewshot.methods.weights import full
from fewshot.models.base import Model
from fewshot.objectives import Objective, distillation
from fewshot.programs.steps import Written, headed, new
from fewshot.stages import Carried, Program, Setting, Stage, program
from fewshot.sweep import Result
from fewshot.tasks.encode import PER_TOKEN, Bucket, Encoded
from fewshot.tasks.splits import Split

__all__ = ['distill', 'ensemble', 'ipet', 'pet']
SGD, FULL = sgd(), full()
ROWS = 64  # Of a forward pass that only scores.


@spelled
def pet(
  method: Method = FULL, fit: Fit = SGD, classifier: Method = FULL, classifier_fit: Fit = SGD,
  temperature: float = 2.0, weighting: str = 'accuracy',
) -> Program:  # fmt: skip
  """PET (Schick & Schutze 2021, arXiv:2001.07676): one model a template, and what they agree on.

      z(x) = sum_v w_v z_v(x) / sum_v w_v,   q = softmax(z / t)

  Each template of the prompt trains a model of its own, from the same weights; together they give
  unlabelled texts soft labels q, and `classifier` with a fresh `linear()` learns these on the texts
  as they stand.  That classifier is what is tested.  `ensemble` says what `weighting` is.  The
  paper trains three models a template, here there is one; the language-modelling loss beside is
  left out, as in the authors' code by default.

  >>> [s.name for s in pet(temperature=2).stages]
  ['ensemble', 'distill']
  """
  return program(
    ensemble(method, fit, weighting=weighting), distill(classifier, classifier_fit, temperature)
  )


@spelled
def ipet(
  method: Method = FULL, fit: Fit = SGD, classifier: Method = FULL, classifier_fit: Fit = SGD,
  temperature: float = 2.0, generations: int = 3, factor: float = 5.0, share: float = 0.25,
  weighting: str = 'accuracy',
) -> Program:  # fmt: skip
  """iPET (Schick & Schutze 2021, arXiv:2001.07676): generations of `pet` on ever more examples.

  The models of each generation but the first start from the weights again and train on N factor^g
  examples: the N that have labels, and such as a random `share` of the other models labelled.
  `ensemble` says how those are drawn; the last generation labels for the classifier.

  >>> [s.name for s in ipet(generations=2).stages]
  ['ensemble', 'distill']
  """
  models = ensemble(method, fit, generations, factor, share, weighting)
  return program(models, distill(classifier, classifier_fit, temperature))


@spelled
def ensemble(
  method: Method, fit: Fit, generations: int = 1, factor: float = 5.0, share: float = 0.25,
  weighting: str = 'accuracy', data: str = 'task', unlabelled: str = 'unlabelled',
  into: str = 'soft',
) -> Stage:  # fmt: skip
  """Trains a model a template and writes their mean logits [U, C] for the unlabelled examples.

  weighting='accuracy' weighs a model by the accuracy that its template has on the train examples
  before any training, as the authors' code does; 'uniform' does not.

  Of several generations, generation g trains on factor^g times the labelled examples, of each class
  as many times: those more are labelled by a random `share` of the other models (at least one), and
  drawn without replacement by the probability of their class.  Where a class has too few they
  repeat; where it has none the likeliest are taken.
  """
  counts(generations=generations)
  check_word('ensemble', 'weighting', weighting, ('accuracy', 'uniform'))
  if factor <= 1 or not 0 < share <= 1:
    raise FewshotError(f'ensemble(factor={factor}, share={share}): above 1, and within (0, 1]')

  def run(s: Setting, carried: Carried, seed: int) -> Written:
    model, task = s.model._replace(params=carried['params']), s.of(data)
    labelled, pool = by_view(task, task.train), by_view(s.of(unlabelled), s.of(unlabelled).train)
    dev = None if task.dev is None else by_view(task, task.dev)
    if generations > 1 and task.views < 2:
      raise FewshotError('ipet() has each model taught by others; give the prompt more templates')
    weights = np.ones(task.views)
    if weighting == 'accuracy':
      weights = _accuracies(s._replace(model=model), labelled)
    rng, train, sizes = np.random.default_rng(seed), labelled, [labelled['labels'].shape[1]]
    predicted = functools.partial(_predicted, s, model, dev, pool, method, fit, seed)
    z, trained = predicted(train, task.splits[0])
    for g in range(1, generations):
      train = grown(labelled, pool, z, weights, share, factor**g - 1, rng)
      z, _ = predicted(train, task.splits[0])
      sizes.append(train['labels'].shape[1])
    notes = {'trained': trained, 'weights': weights.tolist(), 'sizes': sizes}
    return {into: averaged(z, weights)}, notes

  return Stage(run, ('params',), (new(into),), (data, unlabelled))


@spelled
def distill(
  classifier: Method, fit: Fit, temperature: float = 2.0, data: str = 'plain_unlabelled',
  soft: str = 'soft', tested: str = 'plain',
) -> Stage:  # fmt: skip
  """Trains a classifier on the labels of an entry of logits z [U, C], softened by a temperature.

      q = softmax(z / t),   loss = -t^2 sum_c q_c log softmax(f / t)_c

  From then on the test items of `tested` are scored.
  """
  check_mergeable('distill', classifier)
  objective = distillation(temperature)

  def run(s: Setting, carried: Carried, seed: int) -> Written:
    model, texts = s.model._replace(params=carried['params']), s.of(data)
    q = softened(carried[soft], temperature)
    if len(q) != texts.train['labels'].shape[1]:
      raise FewshotError(f'{soft!r} has labels of {len(q)} examples, and {data!r} holds others')
    train = texts.train | {'targets': q[None], 'labels': q.argmax(-1).astype(np.int32)[None]}
    (result,) = fitted(s, model, train, None, classifier, fit, seed, texts.splits[0], objective)
    params = merge(result.method, result.theta, result.state, model.params)
    return {'params': params}, about(result)

  return Stage(run, ('params', soft), ('params',), (data,), tested)


def worded(forward: Callable[..., Outputs], head: Method, params: Params, calib: Calib) -> Forward:
  """The forward that reads label words at the slots, and of a text without slots is as it was.

  `calib` has rows with slots; a head with parameters of its own is refused.
  """
  theta, state = shapes(head, forward, params, calib)
  if jax.tree.leaves((theta, state)):
    raise FewshotError(f'{spell(head)} has arrays of its own; programs read words as tokens')
  reading = adapt(head, forward, theta, state)

  def apply(params: Params, batch: Batch, key: jax.Array | None = None) -> Outputs:
    return (reading if 'slots' in batch else forward)(params, batch, key)

  return apply


def softened(z: Any, temperature: float = 1.0) -> np.ndarray:
  """softmax(z / t) of logits [U, C]."""
  return np.asarray(jax.nn.softmax(jnp.asarray(z, jnp.float32) / temperature))


def averaged(z: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """The weighted mean [U, C] of logits [V, U, C]; of weights that are all 0, the plain mean."""
  weights = weights if weights.any() else np.ones(len(z))
  return np.average(z, 0, weights).astype(np.float32)


def grown(
  labelled: Batch, pool: Batch, z: np.ndarray, weights: np.ndarray, share: float, times: float,
  rng: np.random.Generator,
) -> Batch:  # fmt: skip
  """Train sets [V, N (1 + times), ...] of each view: the labelled, and what others label."""
  views, classes = len(z), z.shape[-1]
  many = [int(n * times) for n in np.bincount(labelled['labels'][0], minlength=classes)]
  sets = []
  for v in range(views):
    others = np.delete(np.arange(views), v)
    size = max(1, round(share * len(others)))
    taught = rng.choice(others, size, replace=False)
    p = softened(averaged(z[taught], weights[taught]))
    rows, y = drawn(p, many, rng)
    given = {k: x[v] for k, x in labelled.items()}
    more = relabelled({k: x[v][rows] for k, x in pool.items()}, y, given)
    sets.append(joined(given, more))
  return {k: np.stack([one[k] for one in sets]) for k in sets[0]}


def drawn(
  p: np.ndarray, many: list[int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Which examples, and their labels: of each class c, many[c] by their probability p [U, C]."""
  best, rows = p.argmax(-1), []
  for c, n in enumerate(many):
    if not n:
      continue
    mine = np.flatnonzero(best == c)
    if not len(mine):
      mine = np.argsort(-p[:, c], kind='stable')[:n]
    mine = np.tile(mine, max(1, math.ceil(n / len(mine))))
    q = np.maximum(p[mine, c].astype(np.float64), 1e-12)
    rows.append(rng.choice(mine, n, replace=False, p=q / q.sum()))
  return np.concatenate([*rows, np.zeros(0, int)]).astype(int), np.repeat(
    np.arange(len(many)), many
  ).astype(np.int32)


def by_view(data: Encoded, batch: Batch) -> Batch:
  """The rows [1, N * V, ...] of one split as those of each view [V, N, ...]."""
  split = lambda x: x[0].reshape(-1, data.views, *x.shape[2:]).swapaxes(0, 1)  # noqa: E731
  return {k: split(np.asarray(x)) for k, x in batch.items()}


def relabelled(rows: Batch, labels: np.ndarray, labelled: Batch) -> Batch:
  """Rows with other labels; with the answer that the labelled rows have for each of them."""
  rows = {k: x for k, x in rows.items() if k != 'answer'} | {'labels': labels}
  if 'answer' in labelled:
    rows['answer'] = words_of(labelled)[labels]
  return rows


def words_of(labelled: Batch) -> np.ndarray:
  """The tokens [C, A] of each class's word, as the labelled rows [N, ...] show them."""
  labels, first = np.unique(labelled['labels'], return_index=True)
  words = np.full((labels.max() + 1, labelled['answer'].shape[-1]), -1, np.int32)
  words[labels] = labelled['answer'][first]
  return words


def joined(*parts: Batch) -> Batch:
  """Rows [N, ...] below each other, tokens padded to one width; entries that one lacks fall out."""
  shared = [k for k in parts[0] if all(k in p for p in parts)]
  width = max(p['tokens'].shape[-1] for p in parts) if 'tokens' in shared else 0

  def wide(name: str, x: np.ndarray) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, width - x.shape[-1]))) if name in PER_TOKEN else x

  return {k: np.concatenate([wide(k, np.asarray(p[k])) for p in parts]) for k in shared}


def fitted(
  s: Setting, model: Model, train: Batch, dev: Batch | None, method: Method, fit: Fit, seed: int,
  split: Split, objective: Objective | None = None, head: bool = True,
) -> Iterator[Result]:  # fmt: skip
  """One run for each train set of [S, N, ...], side by side, each with a key of its own.

  The test set is one train example: nothing looks at test items.
  """
  one = {k: x[:1, :1] for k, x in train.items()}
  splits = tuple(split._replace(seed=split.seed + i) for i in range(len(train['labels'])))
  test = (Bucket(one, np.zeros(1, int)),)
  data = Encoded(train, dev, test, train['labels'][0, :1], splits)
  if head:
    first = {k: jnp.asarray(x[0]) for k, x in train.items()}
    method = headed(model, method, Calib(first, s.classes, objective and objective.loss))
  return sweeps.sweep(
    model, data, method, fit, classes=s.classes, seeds=(seed,), objective=objective,
    options=s.options,
  )  # fmt: skip


def scorer(model: Model, method: Method) -> Callable[[Any, Any, Batch], np.ndarray]:
  """(theta, state, rows [N, ...]) -> logits [N, C] of an adapted model, some rows at a time."""

  @jax.jit
  def score(theta: Any, state: Any, params: Params, batch: Batch) -> jax.Array:
    return logits_of(adapt(method, model.forward, theta, state)(params, batch))

  def every(theta: Any, state: Any, rows: Batch) -> np.ndarray:
    rows = {k: x for k, x in rows.items() if k != 'labels'}
    n = len(next(iter(rows.values())))
    size = min(ROWS, n)
    found = []
    for start in range(0, n, size):
      at = np.minimum(np.arange(start, start + size), n - 1)
      z = score(theta, state, model.params, {k: jnp.asarray(x[at]) for k, x in rows.items()})
      found.append(np.asarray(z, np.float32)[: n - start])
    return np.concatenate(found)

  return every


def check_mergeable(name: str, method: Method) -> None:
  """Refuses a method whose result is no model at other weights."""
  if not method.mergeable:
    raise FewshotError(
      f'{name}() ends at weights, and {spell(method)} cannot be merged into them; take one that '
      'can, such as full() or lora()'
    )


def about(result: Result) -> dict[str, Any]:
  """What notes say of a run."""
  loss = None if result.curve is None else [float(result.curve[0]), float(result.curve[-1])]
  return {'trained': count(result.theta), 'loss': loss}


def _predicted(
  s: Setting, model: Model, dev: Batch | None, pool: Batch, method: Method, fit: Fit, seed: int,
  train: Batch, split: Split,
) -> tuple[np.ndarray, int]:  # fmt: skip
  """The logits [V, U, C] for each view's unlabelled rows by the model trained on that view."""
  results = list(fitted(s, model, train, dev, method, fit, seed, split))
  score = scorer(model, results[0].method)
  rows = ({k: x[v] for k, x in pool.items()} for v in range(len(results)))
  z = [score(r.theta, r.state, part) for r, part in zip(results, rows, strict=True)]
  return np.stack(z), count(results[0].theta)


def _accuracies(s: Setting, labelled: Batch) -> np.ndarray:
  """The accuracy [V] of the model on each view of the train examples."""
  views = [
    {k: jnp.asarray(x[v]) for k, x in labelled.items()} for v in range(len(labelled['labels']))
  ]
  if 'logits' not in shapes_of(s.model.forward, s.model.params, Calib(views[0], s.classes)):
    raise FewshotError(
      "weighting='accuracy' is that of the label words before training, and the prompt has none; "
      "take weighting='uniform'"
    )
  return np.array([s.accuracy(s.model.params, view) for view in views])
