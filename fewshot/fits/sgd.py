"""Fitting by stochastic gradients: AdamW over reshuffled epochs, the best theta on dev kept."""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fewshot.errors import FewshotError
from fewshot.fits.base import Data, Fit, Loss
from fewshot.methods import paths
from fewshot.methods.base import State, Theta
from fewshot.methods.spelling import spelled

Array = jax.Array
Schedule = Literal['constant', 'linear', 'cosine']


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
) -> Fit:
  """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) on theta alone.

  Every epoch reshuffles the examples; `head_lr` (0: the same as `lr`) is the rate of the leaves
  under `head`; `schedule` is constant, linear or cosine after `warmup` steps; `clip` bounds the
  global norm of the gradient (0: off).  With `eval_every` > 0 the dev set is scored every so many
  steps and after the last, and the best theta (then the lower dev loss) is the result.

  >>> from fewshot.methods import spell
  >>> spell(sgd(steps=60, lr=1e-3))
  'sgd(steps=60, lr=0.001)'
  """
  if steps < 1 or batch < 1:
    raise FewshotError(f'sgd(steps={steps}, batch={batch}): both are at least 1')
  given = {'lr': lr, 'head_lr': head_lr, 'weight_decay': weight_decay, 'clip': clip}
  given |= {'warmup': warmup, 'eval_every': eval_every}
  for name, value in given.items():
    if isinstance(value, (int, float)) and value < 0:  # A sweep's values are traced.
      raise FewshotError(f'sgd({name}={value}) is negative; it is at least 0')
  if schedule not in Schedule.__args__:  # type: ignore[attr-defined]
    known = ', '.join(Schedule.__args__)  # type: ignore[attr-defined]
    raise FewshotError(f'sgd(schedule={schedule!r}) is unknown; there are {known}')

  recipe = Recipe(steps, lr, head_lr, batch, weight_decay, schedule, warmup, clip, eval_every)
  return Fit(
    steps,
    functools.partial(_start, recipe),
    functools.partial(_step, recipe),
    functools.partial(_finish, recipe),
    varies=('lr', 'head_lr', 'weight_decay'),
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


def _transformation(r: Recipe, loss: Loss) -> optax.GradientTransformationExtraArgs:
  def adamw(rate: Any) -> optax.GradientTransformation:
    curve = _schedule(r.schedule, rate, r.steps, r.warmup)
    return optax.adamw(curve, weight_decay=r.weight_decay)

  head = jnp.where(jnp.asarray(r.head_lr) > 0, r.head_lr, r.lr)
  groups = optax.partition({'body': adamw(r.lr), 'head': adamw(head)}, _labels)
  bound = optax.clip_by_global_norm(r.clip) if r.clip else optax.identity()
  return optax.with_extra_args_support(optax.chain(bound, loss.optimizer(groups)))


def _start(
  r: Recipe, loss: Loss, theta: Theta, state: State, data: Data, key: Array
) -> dict[str, Any]:
  del key
  if not jax.tree.leaves(theta):
    raise FewshotError('sgd has nothing to train: this method has no theta; fit it by prototypes()')
  if r.eval_every and data.dev is None:
    raise FewshotError(f'sgd(eval_every={r.eval_every}) scores a dev set, and there is none')
  opt = _transformation(r, loss).init(theta)
  carry = {'theta': theta, 'state': state, 'opt': opt, 'curve': jnp.zeros(r.steps)}
  if r.eval_every:
    worst = {'score': jnp.array(-jnp.inf), 'loss': jnp.array(jnp.inf)}
    carry['best'] = {'theta': theta, 'state': state, **worst}
  return carry


def _step(r: Recipe, loss: Loss, carry: Any, data: Data, key: Array, t: Array) -> dict[str, Any]:
  theta, state = carry['theta'], carry['state']
  examples = _minibatch(data.train, r.batch, jax.random.fold_in(key, 0), t)
  noise = jax.random.fold_in(jax.random.fold_in(key, 1), t)
  valued = jax.value_and_grad(loss.__call__, has_aux=True)
  (value, outputs), grads = valued(theta, state, examples, noise)
  state = outputs.get('state', state)
  updates, opt = _transformation(r, loss).update(
    grads, carry['opt'], theta, method_state=state, frozen=loss.params, step=t, key=noise
  )
  new = carry | {
    'theta': optax.apply_updates(theta, updates),
    'state': state,
    'opt': opt,
    'curve': carry['curve'].at[t].set(value),
  }
  if not r.eval_every:
    return new
  due = ((t + 1) % r.eval_every == 0) | (t + 1 == r.steps)
  return new | {'best': jax.lax.cond(due, lambda: _better(loss, new, data), lambda: new['best'])}


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


def _minibatch(train: dict[str, Any], batch: int, key: Array, t: Array) -> dict[str, Any]:
  """Step t's examples: epochs are reshuffled, and what does not fill a batch is left out."""
  n = next(iter(train.values())).shape[0]
  b = min(batch, n)
  epoch, i = jnp.divmod(t, n // b)
  order = jax.random.permutation(jax.random.fold_in(key, epoch), n)
  rows = jax.lax.dynamic_slice(order, (i * b,), (b,))
  return {k: jnp.asarray(v)[rows] for k, v in train.items()}


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
