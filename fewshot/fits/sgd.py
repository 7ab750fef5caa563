"""Fitting by stochastic gradients: AdamW over reshuffled epochs, the best theta on dev kept."""

from typing import Any, Literal

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
  if schedule not in Schedule.__args__:  # type: ignore[attr-defined]
    known = ', '.join(Schedule.__args__)  # type: ignore[attr-defined]
    raise FewshotError(f'sgd(schedule={schedule!r}) is unknown; there are {known}')

  def transformation(loss: Loss) -> optax.GradientTransformationExtraArgs:
    def adamw(rate: Any) -> optax.GradientTransformation:
      return optax.adamw(_schedule(schedule, rate, steps, warmup), weight_decay=weight_decay)

    head = jnp.where(jnp.asarray(head_lr) > 0, head_lr, lr)
    groups = optax.partition({'body': adamw(lr), 'head': adamw(head)}, _labels)
    bound = optax.clip_by_global_norm(clip) if clip else optax.identity()
    return optax.with_extra_args_support(optax.chain(bound, loss.optimizer(groups)))

  def start(loss: Loss, theta: Theta, state: State, data: Data, key: Array) -> dict[str, Any]:
    del key
    if eval_every and data.dev is None:
      raise FewshotError(f'sgd(eval_every={eval_every}) scores a dev set, and there is none')
    carry = {
      'theta': theta,
      'state': state,
      'opt': transformation(loss).init(theta),
      'curve': jnp.zeros(steps),
    }
    if eval_every:
      worst = {'score': jnp.array(-jnp.inf), 'loss': jnp.array(jnp.inf)}
      carry['best'] = {'theta': theta, 'state': state, **worst}
    return carry

  def step(loss: Loss, carry: Any, data: Data, key: Array, t: Array) -> dict[str, Any]:
    theta, state = carry['theta'], carry['state']
    examples = _minibatch(data.train, batch, jax.random.fold_in(key, 0), t)
    noise = jax.random.fold_in(jax.random.fold_in(key, 1), t)
    valued = jax.value_and_grad(loss.__call__, has_aux=True)
    (value, outputs), grads = valued(theta, state, examples, noise)
    state = outputs.get('state', state)
    updates, opt = transformation(loss).update(
      grads, carry['opt'], theta, method_state=state, frozen=loss.params, step=t, key=noise
    )
    new = carry | {
      'theta': optax.apply_updates(theta, updates),
      'state': state,
      'opt': opt,
      'curve': carry['curve'].at[t].set(value),
    }
    if not eval_every:
      return new
    due = ((t + 1) % eval_every == 0) | (t + 1 == steps)
    return new | {'best': jax.lax.cond(due, lambda: _better(loss, new, data), lambda: new['best'])}

  def finish(carry: Any) -> tuple[Theta, State]:
    kept = carry['best'] if eval_every else carry
    return kept['theta'], kept['state']

  return Fit(steps, start, step, finish, varies=('lr', 'head_lr', 'weight_decay'))


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
