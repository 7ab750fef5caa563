"""Fitting by stochastic gradients: reshuffled epochs, the best theta on dev kept."""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fewshot.errors import FewshotError
from fewshot.fits import scaling
from fewshot.fits.base import Data, Fit, Loss
from fewshot.methods import paths
from fewshot.methods.base import Batch, State, Theta
from fewshot.methods.spelling import spelled

Array = jax.Array
Schedule = Literal['constant', 'linear', 'cosine']
Optimizer = Literal['adamw', 'bertadam', 'sgd']


@spelled
def sgd(
  steps: int = 40,
  lr: float = 1e-3,
  head_lr: float = 0.0,
  batch: int = 16,
  weight_decay: float = 0.0,
  schedule: str = 'constant',
  warmup: int = 0,
  clip: float = 0.0,
  eval_every: int = 0,
  accumulate: int = 1,
  optimizer: str = 'adamw',
) -> Fit:
  """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) on theta alone, or plain descent.

  Every epoch reshuffles the examples; `head_lr` (0: the same as `lr`) is the rate of the leaves
  under `head`; `schedule` is constant, linear or cosine after `warmup` steps; `clip` bounds the
  global norm of the gradient (0: off); `accumulate` takes each minibatch in so many parts, one
  after another, for the memory of one.  optimizer='sgd' has momentum 0.9 and no moments beside,
  with the decay of AdamW; 'bertadam' is AdamW as BERT was published with, without the correction of
  moments that start at zero, and with 1e-6 beside the root: what Zhang et al. 2021
  (arXiv:2006.05987) and Mosbach et al. 2021 (arXiv:2006.04884) find to make few-shot runs fail.

      adamw:     w <- w - lr (m / (1 - 0.9^t) / (sqrt(v / (1 - 0.999^t)) + 1e-8) + decay w)
      bertadam:  w <- w - lr (m / (sqrt(v) + 1e-6) + decay w)

  With `eval_every` > 0 the dev set is scored every so many steps and after the last, and the best
  theta (then the lower dev loss) is the result.  With float16 weights the loss is scaled, see
  `fits.scaling`.

  >>> from fewshot.methods import spell
  >>> spell(sgd(steps=60, lr=1e-3))
  'sgd(steps=60, lr=0.001)'
  """
  if steps < 1 or batch < 1:
    raise FewshotError(f'sgd(steps={steps}, batch={batch}): both are at least 1')
  if accumulate < 1 or batch % accumulate:
    raise FewshotError(f'sgd(accumulate={accumulate}): it is at least 1 and divides batch={batch}')
  given = {'lr': lr, 'head_lr': head_lr, 'weight_decay': weight_decay, 'clip': clip}
  given |= {'warmup': warmup, 'eval_every': eval_every}
  for name, value in given.items():
    if isinstance(value, (int, float)) and value < 0:  # A sweep's values are traced.
      raise FewshotError(f'sgd({name}={value}) is negative; it is at least 0')
  for name, word, words in (('schedule', schedule, Schedule), ('optimizer', optimizer, Optimizer)):
    if word not in words.__args__:  # type: ignore[attr-defined]
      known = ', '.join(words.__args__)  # type: ignore[attr-defined]
      raise FewshotError(f'sgd({name}={word!r}) is unknown; there are {known}')

  recipe = Recipe(
    steps,
    lr,
    head_lr,
    batch,
    weight_decay,
    schedule,
    warmup,
    clip,
    eval_every,
    accumulate,
    optimizer,
  )
  return Fit(
    steps,
    functools.partial(begin, recipe),
    functools.partial(_step, recipe),
    functools.partial(_finish, recipe),
    varies=('lr', 'head_lr', 'weight_decay'),
    rows=functools.partial(_rows, recipe),
  )


class Recipe(NamedTuple):
  """The arguments of `sgd`; rates and decay may be traced."""

  steps: int
  lr: float | Array
  head_lr: float | Array
  batch: int
  weight_decay: float | Array
  schedule: str
  warmup: int
  clip: float
  eval_every: int
  accumulate: int
  optimizer: str


def _transformation(r: Recipe, loss: Loss) -> optax.GradientTransformationExtraArgs:
  def descent(rate: Any) -> optax.GradientTransformation:
    curve = _schedule(r.schedule, rate, r.steps, r.warmup)
    if r.optimizer == 'adamw':
      return optax.adamw(curve, weight_decay=r.weight_decay)
    own = optax.trace(decay=0.9) if r.optimizer == 'sgd' else _uncorrected()
    return optax.chain(
      own, optax.add_decayed_weights(r.weight_decay), optax.scale_by_learning_rate(curve)
    )

  head = jnp.where(jnp.asarray(r.head_lr) > 0, r.head_lr, r.lr)
  groups = optax.partition({'body': descent(r.lr), 'head': descent(head)}, _labels)
  bound = optax.clip_by_global_norm(r.clip) if r.clip else optax.identity()
  return optax.with_extra_args_support(optax.chain(bound, loss.optimizer(groups)))


def _uncorrected(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6) -> Any:
  """m / (sqrt(v) + eps): Adam without its bias correction, which optax always has."""

  def init(theta: Theta) -> tuple[Theta, Theta]:
    zeros = jax.tree.map(jnp.zeros_like, theta)
    return zeros, zeros

  def update(grads: Theta, moments: tuple[Theta, Theta], theta: Theta | None = None) -> Any:
    del theta
    m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, moments[0], grads)
    v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, moments[1], grads)
    return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), m, v), (m, v)

  return optax.GradientTransformation(init, update)


def begin(
  r: Recipe, loss: Loss, theta: Theta, state: State, data: Data, key: Array
) -> dict[str, Any]:
  """The carry before the first step: theta and state, the optimizer's state, the loss curve."""
  del key
  if not jax.tree.leaves(theta):
    raise FewshotError(
      'sgd has nothing to train: this method has no theta; fit it by untrained(), or a head of '
      'means by prototypes()'
    )
  n = next(iter(data.train.values())).shape[0]
  if n < r.accumulate:
    raise FewshotError(f'sgd(accumulate={r.accumulate}) needs as many examples, and there are {n}')
  if r.eval_every and data.dev is None:
    raise FewshotError(f'sgd(eval_every={r.eval_every}) scores a dev set, and there is none')
  opt = _transformation(r, loss).init(theta)
  carry = {'theta': theta, 'state': state, 'opt': opt, 'curve': jnp.zeros(r.steps)}
  if scaling.needed(loss.params):
    carry['scale'] = scaling.start()
  if r.eval_every:
    worst = {'score': jnp.array(-jnp.inf), 'loss': jnp.array(jnp.inf)}
    carry['best'] = {'theta': theta, 'state': state, **worst}
  return carry


def _step(r: Recipe, loss: Loss, carry: Any, data: Data, key: Array, t: Array) -> dict[str, Any]:
  rows = _rows(r, next(iter(data.train.values())), key, t)
  new = descend(r, loss, carry, data, rows, key, t)
  if not r.eval_every:
    return new
  due = ((t + 1) % r.eval_every == 0) | (t + 1 == r.steps)
  return new | {'best': jax.lax.cond(due, lambda: _better(loss, new, data), lambda: new['best'])}


def descend(
  r: Recipe, loss: Loss, carry: Any, data: Data, rows: Array, key: Array, t: Array
) -> dict[str, Any]:
  """The carry after step t, on the train examples `rows` [m, b], m parts one after another."""
  theta, scale = carry['theta'], carry.get('scale')
  noise = jax.random.fold_in(jax.random.fold_in(key, 1), t)
  examples = {k: jnp.asarray(v)[loss.share(rows)] for k, v in data.train.items()}
  value, state, grads = _gradient(loss, theta, carry['state'], examples, noise, scale)
  updates, opt = _transformation(r, loss).update(
    grads, carry['opt'], theta, method_state=state, frozen=loss.params, step=t, key=noise
  )
  new = carry | {
    'theta': optax.apply_updates(theta, updates),
    'state': state,
    'opt': opt,
    'curve': carry['curve'].at[t].set(value),
  }
  return new if scale is None else scaling.keep_finite(grads, new, carry)


def _gradient(
  loss: Loss, theta: Theta, state: State, examples: Batch, key: Array, scale: Any
) -> tuple[Array, State, Theta]:
  """Loss, new state and gradient of a minibatch [m, b, ...], its m parts one after another."""
  factor = 1.0 if scale is None else scale['factor']

  def scaled(theta: Theta, state: State, part: Batch, key: Array) -> Any:
    value, outputs = loss.of_minibatch(theta, state, part, key)
    return value * factor, (value, outputs.get('state', state))

  def add(carry: Any, part: tuple[Batch, Array]) -> tuple[Any, None]:
    total, weight, grads, state = carry
    batch, key = part
    (_, (value, state)), g = jax.value_and_grad(scaled, has_aux=True)(theta, state, batch, key)
    w = batch['weights'].sum() if 'weights' in batch else jnp.ones(())
    return (total + w * value, weight + w, _axpy(w, g, grads), state), None

  m = next(iter(examples.values())).shape[0]
  first = jax.tree.map(lambda x: x[0], examples)
  if m == 1 and loss.axis is None:
    (_, (value, state)), grads = jax.value_and_grad(scaled, has_aux=True)(theta, state, first, key)
    return value, state, jax.tree.map(lambda g: g / factor, grads)
  nothing = jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, theta), state
  parts = examples, jax.random.split(key, m)
  (total, weight, grads, state), _ = jax.lax.scan(add, nothing, parts)
  total, weight, grads = loss.mean_over_devices((total, weight, grads))
  weight = jnp.maximum(weight, 1e-12)
  return total / weight, state, jax.tree.map(lambda g: g / (weight * factor), grads)


def _axpy(a: Array, x: Theta, y: Theta) -> Theta:
  return jax.tree.map(lambda x, y: a * x + y, x, y)


def _finish(r: Recipe, carry: Any) -> tuple[Theta, State]:
  kept = carry['best'] if r.eval_every else carry
  return kept['theta'], kept['state']


def _better(loss: Loss, carry: Any, data: Data) -> dict[str, Any]:
  """The better on dev of the best so far and the current theta."""
  assert data.dev is not None
  best = carry['best']
  value, outputs = loss(carry['theta'], carry['state'], data.dev)
  score = loss.objective.mean_score(outputs, data.dev)
  better = (score > best['score']) | ((score == best['score']) & (value < best['loss']))
  wins = better & jnp.isfinite(value)  # Of NaN logits, argmax is a class that may be right.
  here = {'theta': carry['theta'], 'state': carry['state'], 'score': score, 'loss': value}
  return jax.tree.map(lambda new, old: jnp.where(wins, new, old), here, best)


def _rows(r: Recipe, labels: Array, key: Array, t: Array) -> Array:
  """Step t's examples [m, b]: epochs are reshuffled, and what does not fill a batch is left out."""
  n = labels.shape[0]
  b = min(r.batch, n) // r.accumulate * r.accumulate
  epoch, i = jnp.divmod(t, n // b)
  order = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 0), epoch), n)
  return jax.lax.dynamic_slice(order, (i * b,), (b,)).reshape(r.accumulate, -1)


def _labels(theta: Theta) -> Any:
  def label(path: Any, leaf: Any) -> str:
    del leaf
    return 'head' if 'head' in paths.keystr(path).split('/') else 'body'

  return jax.tree_util.tree_map_with_path(label, theta)


def _schedule(kind: str, rate: Any, steps: int, warmup: int) -> Any:
  """The learning rate as a function of the step; `rate` may be traced, as a sweep's is."""

  def curve(count: Array) -> Array:
    left = jnp.clip((count - warmup) / max(steps - warmup, 1), 0, 1)
    shape = {'constant': 1.0, 'linear': 1 - left, 'cosine': 0.5 * (1 + jnp.cos(jnp.pi * left))}
    ramp = jnp.minimum((count + 1) / warmup, 1.0) if warmup else 1.0
    return rate * ramp * shape[kind]

  return curve
