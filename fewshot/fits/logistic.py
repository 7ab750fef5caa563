"""Logistic regression on the features: a convex head, by L-BFGS inside the compiled program."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fewshot.errors import FewshotError, brief, counts
from fewshot.fits.base import Data, Fit, Loss
from fewshot.methods import paths
from fewshot.methods.base import State, Theta, adapt
from fewshot.methods.spelling import spelled

Array = jax.Array
FLAT = 1e-6  # Of the mean loss: where no entry of its gradient is larger, the optimum is reached.


@spelled
def logistic(l2: float = 1.0, iterations: int = 100) -> Fit:
  """Logistic regression (Cox 1958) as the `linear()` head: the linear probe, and SetFit's head.

      min_W,b  sum_i w_i loss(f_i W + b, y_i) + l2/2 |W|^2,   W [d, C], features f_i of the start

  The loss is cross-entropy, whatever the objective, w_i are the batch's weights (1 where it has
  none) and b is free: scikit-learn's LogisticRegression(C=1/l2).  Of two classes it learns one
  vector, so that the penalty is l2/2 |W_1 - W_0|^2 here too.  L-BFGS (Liu & Nocedal 1989) takes
  at most `iterations` steps.  What else is in theta stays as it started.

  >>> logistic(l2=0.1).steps
  0
  """
  counts(iterations=iterations)
  check_penalty('logistic', l2)

  def start(loss: Loss, theta: Theta, state: State, data: Data, key: Array) -> tuple[Theta, State]:
    del key
    head_of('logistic', theta)
    return with_head(loss, theta, state, data, l2, iterations), state

  def step(loss: Loss, carry: Any, data: Data, key: Array, t: Array) -> Any:
    raise AssertionError('logistic() takes no step')

  return Fit(0, start, step, lambda carry: carry, varies=('l2',))


def check_penalty(name: str, l2: Any) -> None:
  """Refuses a penalty of zero, of which separable classes have no optimum."""
  if isinstance(l2, (int, float)) and l2 <= 0:  # A sweep's values are traced.
    raise FewshotError(f'{name}(l2={l2}) has no optimum where a line separates the classes; l2 > 0')


def with_head(
  loss: Loss, theta: Theta, state: State, data: Data, l2: Any, iterations: int = 100
) -> Theta:
  """theta with the head of `logistic`, fitted to the adapted model's features of all of train."""
  head = head_of('logistic', theta)
  now = paths.flatten(theta)
  outputs = adapt(loss.method, loss.forward, theta, state)(loss.params, data.train, None)
  kernel, bias = now[f'{head}/kernel'], now[f'{head}/bias']
  f = outputs['features'].astype(kernel.dtype)
  labels = jnp.asarray(data.train['labels'])
  weights = jnp.asarray(data.train.get('weights', jnp.ones(labels.shape))).astype(f.dtype)
  kernel, bias = regress(f, labels, weights, bias.shape[0], l2, iterations)
  return paths.replace(theta, {f'{head}/kernel': kernel, f'{head}/bias': bias})


def regress(
  f: Array, labels: Array, weights: Array, classes: int, l2: Any, iterations: int
) -> tuple[Array, Array]:
  """W [d, C] and b [C] of logistic regression on f [N, d], see `logistic`."""
  n = jnp.maximum(weights.sum(), 1e-12)
  ridge = l2 * (2 if classes == 2 else 1)  # W_0 = -W_1: |W_1 - W_0|^2 = 2 |W|^2.
  mean = weights @ f / n  # b is free, so that centred features have the same optimum, found sooner.
  f = f - mean

  def value(p: dict[str, Array]) -> Array:
    z = f @ p['kernel'] + p['bias']
    nll = optax.softmax_cross_entropy_with_integer_labels(z, labels)
    return (weights @ nll + ridge / 2 * jnp.square(p['kernel']).sum()) / n

  # The value is convex, so that backtracking keeps L-BFGS sound, and compiles in half the time;
  # near the optimum its changes are rounding errors, which rtol lets pass.
  search = optax.scale_by_backtracking_linesearch(15, rtol=1e-6, store_grad=True)
  tx, both = optax.lbfgs(linesearch=search), optax.value_and_grad_from_state(value)

  def step(carry: Any) -> Any:
    p, opt, i, _ = carry
    v, g = both(p, state=opt)
    updates, opt = tx.update(g, opt, p, value=v, grad=g, value_fn=value)
    worst = jnp.maximum(jnp.abs(g['kernel']).max(), jnp.abs(g['bias']).max())
    return optax.apply_updates(p, updates), opt, i + 1, worst

  p = {'kernel': jnp.zeros((f.shape[1], classes), f.dtype), 'bias': jnp.zeros(classes, f.dtype)}
  first = p, tx.init(p), jnp.zeros((), jnp.int32), jnp.array(jnp.inf, f.dtype)
  more = lambda carry: (carry[2] < iterations) & (carry[3] > FLAT)  # noqa: E731
  p = jax.lax.while_loop(more, step, first)[0]
  return p['kernel'], p['bias'] - mean @ p['kernel']


def head_of(name: str, theta: Theta) -> str:
  """The path of the one linear() head in theta; leaves of params that theta trains are none."""
  inside: dict[Any, set[Any]] = {}
  for keys, _ in jax.tree_util.tree_leaves_with_path(theta):
    inside.setdefault(keys[:-1], set()).add(getattr(keys[-1], 'key', None))
  heads = [
    paths.keystr(keys)
    for keys, names in inside.items()
    if keys and getattr(keys[-1], 'key', '') == 'head' and names == {'kernel', 'bias'}
  ]
  if len(heads) != 1:
    raise FewshotError(
      f'{name}() sets the kernel and bias of one linear() head; this method has {len(heads)}, '
      f'among {brief(list(paths.flatten(theta))) or "no theta at all"}'
    )
  return heads[0]
