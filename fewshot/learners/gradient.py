"""Learners by gradient steps: MAML and what followed, and fine-tuning at test time."""

from typing import Any

import jax
import jax.numpy as jnp

from fewshot.episodes import Episode
from fewshot.errors import FewshotError, counts
from fewshot.fits import Data, Fit, Loss
from fewshot.learners import adapting
from fewshot.learners.base import Learner, Outer, Setup, random_head
from fewshot.methods import paths
from fewshot.methods.base import (
  Calib,
  Forward,
  Method,
  Outputs,
  Params,
  State,
  Theta,
  chain,
  method,
)
from fewshot.methods.heads import linear
from fewshot.methods.scaling import film
from fewshot.methods.spelling import spelled
from fewshot.methods.weights import full

__all__ = ['anil', 'boil', 'cavia', 'finetune', 'maml', 'meta_sgd', 'reptile']
Array = jax.Array
HEAD = '(.*/)?head/.*'
BODY = rf'(?!{HEAD}).*'


@spelled
def descent(
  steps: int = 5,
  lr: Any = 0.4,
  where: str = '.*',
  first_order: bool = False,
  checkpoint: bool = False,
) -> Fit:
  """Gradient descent over the whole support, differentiable: the inner loop of MAML.

      theta <- theta - lr * grad L(theta)

  `lr` is a number or a tree like theta; `where` selects the paths that move; `first_order` stops
  the gradient at the gradient; with `checkpoint` inner steps are computed again instead of stored.

  >>> descent(steps=1, lr=0.1).steps
  1
  """
  counts(steps=steps)

  def start(loss: Loss, theta: Theta, state: State, data: Data, key: Array) -> Any:
    del loss, data, key
    return theta, state

  def step(loss: Loss, carry: Any, data: Data, key: Array, t: Array) -> Any:
    theta, state = carry
    moving = paths.select(paths.flatten(theta), where, 'leaf')
    noise = jax.random.fold_in(key, t)

    def value(part: dict[str, Array]) -> Array:
      return loss(paths.replace(theta, part), state, data.train, noise)[0]

    grads = jax.grad(value)(moving)
    grads = jax.lax.stop_gradient(grads) if first_order else grads
    rates = paths.flatten(lr) if isinstance(lr, (dict, tuple)) else dict.fromkeys(moving, lr)
    moved = {p: x - rates[p] * grads[p] for p, x in moving.items()}
    return paths.replace(theta, moved), state

  def remembered(loss: Loss, carry: Any, data: Data, key: Array, t: Array) -> Any:
    return jax.checkpoint(lambda c: step(loss, c, data, key, t))(carry)

  return Fit(steps, start, remembered if checkpoint else step, lambda c: c, varies=('lr',))


@spelled
def maml(
  steps: int = 5, lr: float = 0.4, first_order: bool = False, checkpoint: bool = False
) -> Learner:
  """MAML (Finn et al. 2017, arXiv:1703.03400): a start from which few steps of descent suffice.

      min_theta sum_T L_T(theta_k; query),   theta_{i+1} = theta_i - lr grad L_T(theta_i; support)

  Backbone and classifier are learned; `first_order` is its FOMAML.

  >>> maml(steps=1).outer
  ('theta0',)
  """
  fit = descent(steps, lr, first_order=first_order, checkpoint=checkpoint)
  return _from_start(fit)


@spelled
def anil(steps: int = 5, lr: float = 0.1, first_order: bool = False) -> Learner:
  """ANIL (Raghu et al. 2020, arXiv:1909.09157): MAML whose inner loop moves the head alone.

  >>> anil().adapts
  True
  """
  return _from_start(descent(steps, lr, HEAD, first_order))


@spelled
def boil(steps: int = 1, lr: float = 0.5, first_order: bool = False) -> Learner:
  """BOIL (Oh et al. 2021, arXiv:2008.08882): MAML whose inner loop moves the body alone.

  >>> boil().outer
  ('theta0',)
  """
  return _from_start(descent(steps, lr, BODY, first_order))


@spelled
def meta_sgd(steps: int = 1, lr: float = 0.1, first_order: bool = False) -> Learner:
  """Meta-SGD (Li et al. 2017, arXiv:1707.09835): MAML with a learned rate for every weight.

      theta' = theta - alpha * grad L(theta),   alpha learned, `lr` at the start

  >>> meta_sgd().outer
  ('theta0', 'fit')
  """

  def rates(key: Array, width: int, way: int, theta0: Any) -> dict[str, Any]:
    del key, width, way
    return {'lr': jax.tree.map(lambda x: jnp.full_like(x, lr), theta0)}

  fit = descent(steps, lr, first_order=first_order)
  return _from_start(fit)._replace(outer=('theta0', 'fit'), variables=rates)


@spelled
def cavia(steps: int = 2, lr: float = 1.0, first_order: bool = False) -> Learner:
  """CAVIA (Zintgraf et al. 2019, arXiv:1810.03642): only context parameters move in an episode.

  The context is a scale and a shift of every norm's channels, at 1 and 0 when an episode begins
  (the authors generate them linearly from a vector), and a classifier at 0 with it: the backbone
  is learned.

  >>> cavia().outer
  ('params',)
  """
  return Learner(('params',), None, chain(film(), linear()), descent(steps, lr, '.*', first_order))


@spelled
def reptile(steps: int = 5, lr: float = 0.1) -> Learner:
  """Reptile (Nichol et al. 2018, arXiv:1803.02999): the start moves to where fits end.

      the outer gradient is theta0 - theta_k, without a query

  The authors' inner Adam over minibatches is plain descent over the support here.

  >>> reptile(steps=3).outer
  ('theta0',)
  """

  def loss(
    setup: Setup, params: Params, outer: Outer, episode: Episode, key: Array
  ) -> tuple[Array, Outputs]:
    stopped = jax.lax.stop_gradient(outer)
    i = adapting.inner(setup, params, stopped, episode.support, key, {})
    carry = adapting.run(i)
    outputs = adapting.end(setup, i, carry, episode.support, episode.query)
    ended, began = i.fit.finish(carry)[0], outer['theta0']
    # Its gradient is theta0 - theta_k, and its value half of |theta0 - theta_k|^2.
    gap = jax.tree.map(lambda a, b: 0.5 * jnp.square(a - b).sum(), began, ended)
    return jax.tree.reduce(jnp.add, gap), outputs

  return _from_start(descent(steps, lr))._replace(loss=loss)


@spelled
def finetune(inner: Method, fit: Fit, start: str = 'fresh') -> Learner:
  """Any method, fitted to the support of every test episode; it needs a head among its parts.

  With the start 'learned', where the method starts is meta-learned through the fit: any
  parameter-efficient method becomes the inner adaptation of a MAML.

  >>> from fewshot.fits import sgd
  >>> from fewshot.methods import bitfit, spell
  >>> spell(finetune(chain(bitfit(), linear()), sgd(steps=20)))
  'finetune(chain(bitfit(), linear()), sgd(steps=20))'
  """
  if start not in ('fresh', 'learned'):
    raise FewshotError(f"finetune(start={start!r}); there are 'fresh' and 'learned'")
  return Learner(('theta0',) if start == 'learned' else (), None, inner, fit)


@method
def classifier() -> Method:
  """The head `linear`, at random: a head that no inner step moves has to tell classes apart."""
  head = linear()

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    theta, state = head.init(key, forward, params, calib)
    kernel = theta['head']['kernel']
    drawn = random_head(key, *kernel.shape).astype(kernel.dtype)
    return {'head': theta['head'] | {'kernel': drawn}}, state

  return head._replace(init=init)


def _from_start(fit: Fit) -> Learner:
  """MAML's family: backbone and head start where meta-training put them."""
  return Learner(('theta0',), None, chain(full(), classifier()), fit)
