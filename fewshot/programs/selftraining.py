"""Self-training: a teacher labels texts, and who learned from them is the next teacher."""

import jax
import jax.numpy as jnp
import numpy as np

from fewshot.errors import FewshotError, counts
from fewshot.fits.base import Carry, Data, Fit, Loss
from fewshot.fits.sgd import sgd
from fewshot.methods.base import Batch, Method, State, Theta, adapt, merge
from fewshot.methods.lowrank import lora
from fewshot.methods.spelling import spell, spelled
from fewshot.models.base import Model
from fewshot.objectives import distillation
from fewshot.programs.prompting import (
  about,
  check_mergeable,
  fitted,
  joined,
  relabelled,
  scorer,
  softened,
)
from fewshot.programs.steps import Written
from fewshot.stages import Carried, Setting, Stage
from fewshot.sweep import Result
from fewshot.tasks.encode import Encoded

__all__ = ['self_training']
Array = jax.Array
SGD, LORA = sgd(), lora()


@spelled
def self_training(
  method: Method = LORA, fit: Fit = SGD, student: Fit | None = None, sessions: int = 2,
  reweight: bool = True, tail: int = 0, data: str = 'task', unlabelled: str = 'unlabelled',
) -> Stage:  # fmt: skip
  """LiST (Wang et al. 2022, arXiv:2110.06274): lightweight self-training with weights by gradient.

      q = softmax(z_teacher(u)),   loss = sum_i w_i KL(q_i || softmax(z(u_i)))
      w_i = max(0, <grad l_i, grad L>) / sum_j max(0, <grad l_j, grad L>)

  The teacher trains on the labelled examples by `fit`.  In each session a student starts from the
  weights again and learns by the fit `student` (without one, by `fit`) what the teacher says of the
  unlabelled; then it is the teacher.  With `reweight` l_i counts as far as it pulls where L, the
  mean loss of all labelled examples, does: learning to reweight (Ren et al. 2018,
  arXiv:1803.09050), in closed form.  The last `tail` steps of a session are on labelled examples.

  A text's views share their mean label.  The paper's adapters are beside the weights; what a
  program carries are weights, so `method` is one that merges, by default `lora()`.  The authors'
  threshold of confidence in the first steps of a session is left out.

  >>> spell(self_training(sessions=3))
  'self_training(sessions=3)'
  """
  counts(sessions=sessions)
  check_mergeable('self_training', method)
  learn = student or fit
  taught(learn, 1, reweight, tail)  # What it refuses is refused before anything runs.

  def run(s: Setting, carried: Carried, seed: int) -> Written:
    model, task = s.model._replace(params=carried['params']), s.of(data)
    split, pool = task.splits[0], s.of(unlabelled)
    (result,) = fitted(s, model, task.train, task.dev, method, fit, seed, split)
    notes = [about(result)]
    labelled = {k: np.asarray(x[0]) for k, x in task.train.items()}
    both = taught(learn, len(labelled['labels']), reweight, tail)
    for i in range(sessions):
      train = _taught_rows(pool, labelled, _mean_labels(model, result, pool), s.classes)
      many = {k: x[None] for k, x in train.items()}
      (result,) = fitted(
        s, model, many, None, method, both, seed + 1 + i, split, distillation()
      )  # fmt: skip
      notes.append(about(result))
    params = merge(result.method, result.theta, result.state, model.params)
    return {'params': params}, {'trained': notes[0]['trained'], 'sessions': notes}

  return Stage(run, ('params',), ('params',), (data, unlabelled))


def taught(fit: Fit, labelled: int, reweight: bool, tail: int) -> Fit:
  """`fit` on all but the last `labelled` train examples, which weigh them, or are the last steps'.

  The steps are those of `fit`, which must say by `rows` what they see.
  """
  if fit.rows is None or not 0 <= tail < fit.steps:
    raise FewshotError(
      f'self_training() needs minibatches and a tail={tail} shorter than its steps; the student is '
      f'fitted by {spell(fit)}; take sgd(...)'
    )
  rows = fit.rows

  def parts(train: Batch) -> tuple[Batch, Batch]:
    cut = lambda at: {k: jnp.asarray(x)[at] for k, x in train.items()}  # noqa: E731
    return cut(slice(None, -labelled)), cut(slice(-labelled, None))

  def start(loss: Loss, theta: Theta, state: State, data: Data, key: Array) -> Carry:
    return fit.start(loss, theta, state, Data(parts(data.train)[0]), key)

  def step(loss: Loss, carry: Carry, data: Data, key: Array, t: Array) -> Carry:
    pool, known = parts(data.train)

    def learn() -> Carry:
      if not reweight:
        return fit.step(loss, carry, Data(pool), key, t)
      seen = rows(pool['labels'], key, t).reshape(-1)
      batch = {k: x[seen] for k, x in pool.items()}
      w = agreement(loss, carry['theta'], carry['state'], batch, known)
      every = jnp.zeros(len(pool['labels']), w.dtype).at[seen].set(w)
      return fit.step(loss, carry, Data(pool | {'weights': every}), key, t)

    if not tail:
      return learn()
    plain = loss._replace(training=None)  # Its shortcuts are of the rows that are announced.
    last = lambda: fit.step(plain, carry, Data(known), key, t)  # noqa: E731
    return jax.lax.cond(t < fit.steps - tail, learn, last)

  announced = lambda labels, key, t: rows(labels[:-labelled], key, t)  # noqa: E731
  return Fit(fit.steps, start, step, fit.finish, rows=announced)


def agreement(loss: Loss, theta: Theta, state: State, batch: Batch, known: Batch) -> Array:
  """The weights [B] of examples by how far their gradients agree with that of `known` ones.

      w_i = max(0, <grad l_i, grad L>) / sum_j max(0, <grad l_j, grad L>)

  That is -dL/d eps_i after a step of plain descent on sum_i eps_i l_i, at eps = 0.  Where none
  agrees all are 0.
  """

  def losses(theta: Theta, batch: Batch) -> Array:
    outputs = adapt(loss.method, loss.forward, theta, state)(loss.params, batch)
    return loss.objective.loss(outputs, batch)

  wanted = jax.grad(lambda t: losses(t, known).mean())(theta)

  def along(eps: Array) -> Array:
    pull = jax.grad(lambda t: (eps * losses(t, batch)).sum())(theta)
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda a, b: (a * b).sum(), pull, wanted))

  inner = jax.nn.relu(jax.grad(along)(jnp.zeros(len(batch['labels']))))
  return inner / jnp.maximum(inner.sum(), 1e-12)


def _mean_labels(model: Model, result: Result, pool: Encoded) -> np.ndarray:
  """The teacher's mean probabilities [U, C] over the views of each unlabelled example."""
  rows = {k: np.asarray(x[0]) for k, x in pool.train.items()}
  z = scorer(model, result.method)(result.theta, result.state, rows)
  return softened(pool.of_items(z))


def _taught_rows(pool: Encoded, labelled: Batch, q: np.ndarray, classes: int) -> Batch:
  """The unlabelled rows with soft labels, and below them the labelled ones."""
  rows = {k: np.asarray(x[0]) for k, x in pool.train.items()}
  q = q.repeat(pool.views, 0)
  soft = relabelled(rows, q.argmax(-1).astype(np.int32), labelled) | {'targets': q}
  hard = np.eye(classes, dtype=np.float32)[labelled['labels']]
  return joined(soft, labelled | {'targets': hard})
