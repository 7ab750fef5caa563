"""Fit: what turns data into theta, as a start, a number of steps and a finish.

Split so that the engine may run the steps as one scan, as chunks with a progress bar between, or
one dispatch at a time; called as a function, a fit is `fit(loss, theta, state, data, key)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from fewshot.methods.base import Batch, Forward, Method, Outputs, Params, State, Theta, adapt
from fewshot.methods.spelling import Made
from fewshot.objectives import Objective

Array = jax.Array
Carry = Any


class Data(NamedTuple):
  """What a fit may see: train examples and, where hyper-parameters are chosen on it, a dev set."""

  train: Batch  # Every array [N, ...]; 'labels' [N].
  dev: Batch | None = None


class Loss(NamedTuple):
  """The training loss of a method on a frozen model: (theta, state, batch, key) -> scalar, outputs.

  L = mean_i loss(outputs_i, batch_i) + penalty(theta)

  The engine may give two things to training steps: `training`, a forward that is equal to `forward`
  on the minibatches that `Fit.rows` announces and costs less, and `axis`, the name of the devices
  that share each minibatch.
  """

  forward: Forward
  method: Method
  params: Params
  objective: Objective
  training: Forward | None = None
  axis: str | None = None

  def __call__(
    self, theta: Theta, state: State, batch: Batch, key: Array | None = None
  ) -> tuple[Array, Outputs]:
    outputs = adapt(self.method, self.forward, theta, state)(self.params, batch, key)
    penalty = self.method.penalty(self.forward, theta, state, self.params, batch, outputs, key)
    return self.objective.mean(outputs, batch) + penalty, outputs

  @property
  def of_minibatch(self) -> 'Loss':
    """The same loss by the cheaper forward; for the minibatches of steps alone."""
    return self._replace(forward=self.training or self.forward)

  def share(self, rows: Array) -> Array:
    """This device's part of a minibatch's rows [m, b]: all of them, or [m, b / devices]."""
    if self.axis is None:
      return rows
    parts = rows.reshape(rows.shape[0], jax.lax.axis_size(self.axis), -1)
    return parts[:, jax.lax.axis_index(self.axis)]

  def mean_over_devices(self, tree: Any) -> Any:
    """The mean over the devices that share a minibatch."""
    return tree if self.axis is None else jax.lax.pmean(tree, self.axis)

  def optimizer(self, tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`tx` as the method changes it; extra arguments are accepted."""
    return optax.with_extra_args_support(self.method.optimizer(tx))


class Start(Protocol):
  def __call__(self, loss: Loss, theta: Theta, state: State, data: Data, key: Array) -> Carry: ...


class Fit(NamedTuple):
  """start, then `steps` times step, then finish; all pure.

  start:  (loss, theta, state, data, key) -> carry
  step:   (loss, carry, data, key, t) -> carry, with t the step's index as an array
  finish: (carry) -> (theta, state)
  varies: the arguments that may be traced, so that a sweep makes an axis of them
  rows:   (labels, key, t) -> [m, b], which of the examples, of these labels [N], the m forward
          passes of step t see; None where a step sees all, or where that is not known beforehand
  """

  steps: int
  start: Start
  step: Callable[[Loss, Carry, Data, Array, Array], Carry]
  finish: Callable[[Carry], tuple[Theta, State]]
  varies: tuple[str, ...] = ()
  rows: Callable[[Array, Array, Array], Array] | None = None
  made: Made | None = None

  def sizes(self, n: int) -> tuple[int, int]:
    """How many forward passes a step over n examples takes, and how many of them each sees.

    >>> from fewshot import fits
    >>> fits.sgd(batch=16, accumulate=2).sizes(100)
    (2, 8)
    """
    if self.rows is None:
      return 1, n
    labels = jax.ShapeDtypeStruct((n,), jnp.int32)
    seen = jax.eval_shape(self.rows, labels, jax.random.key(0), jnp.int32(0))
    return seen.shape[0], seen.shape[1]

  def __call__(
    self, loss: Loss, theta: Theta, state: State, data: Data, key: Array
  ) -> tuple[Theta, State]:
    """The whole fit as one pure function, differentiable and vmappable."""
    carry = self.start(loss, theta, state, data, key)
    if self.steps:
      steps = jnp.arange(self.steps)
      carry, _ = jax.lax.scan(lambda c, t: (self.step(loss, c, data, key, t), None), carry, steps)
    return self.finish(carry)
