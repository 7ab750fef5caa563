"""Learners that tune a pretrained or meta-trained backbone on the support of a test episode."""

import jax
import jax.numpy as jnp

from fewshot.errors import FewshotError, counts
from fewshot.fits import sgd
from fewshot.learners.base import Learner, of_features
from fewshot.learners.metric import protonet
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
from fewshot.methods.heads import features
from fewshot.methods.spelling import spelled
from fewshot.methods.weights import full

__all__ = ['pmf', 'url']
Array = jax.Array


@spelled
def pmf(
  steps: int = 50, rates: tuple[float, ...] = (0.0, 1e-4, 1e-3, 1e-2), inner: Method | None = None
) -> Learner:
  """P>M>F (Hu et al. 2022, arXiv:2204.07305): pretrain, meta-train, then fine-tune an episode.

  Meta-training is `protonet` by cosine.  A test episode tunes the whole backbone (or `inner`) so
  that altered copies of the support fall to its prototypes, once for each of `rates` (0 is no
  tuning); the rate with the lowest loss on fresh copies wins.  The authors choose it a domain, by
  SGD; the fit here is AdamW.

  >>> pmf(steps=20).choices
  {'lr': (0.0, 0.0001, 0.001, 0.01)}
  """
  counts(steps=steps)
  if not rates:
    raise FewshotError('pmf(rates=()) has no rate to try; give at least one, 0.0 for no tuning')
  predict = protonet('cosine', 10.0).predict
  fit = sgd(steps=steps, batch=BATCH)
  choices = {'lr': tuple(rates)}
  return Learner(
    ('params',), predict, inner or full(), fit, loss=of_features, choices=choices, augment=True
  )


@spelled
def url(inner: Method | None = None, steps: int = 40, lr: float = 1e-2) -> Learner:
  """URL (Li et al. 2021, arXiv:2103.13841): a linear map of features fitted to the support.

      min_A  mean_i CE(10 cos(A f_i, mu_c(A f)), y_i),   A = I [d, d] at the start

  `inner` tunes the backbone with it: `url(tsa())` is TSA (Li et al. 2022, arXiv:2107.00358).  The
  backbone comes from elsewhere (theirs is distilled from several); the fit is AdamW, not Adadelta.

  >>> from fewshot.methods import spell, tsa
  >>> spell(url(tsa(), steps=10))
  'url(inner=tsa(), steps=10)'
  """
  counts(steps=steps)
  aligned = chain(inner, align()) if inner is not None else align()
  fit = sgd(steps=steps, lr=lr, batch=BATCH)
  return Learner((), protonet('cosine', 10.0).predict, aligned, fit)


BATCH = 2**20  # More than any support: every step sees all of it.


@method
def align() -> Method:
  """A linear map of the features, the identity at the start: f' = f A, A [d, d]."""

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    del key
    d, dtype = features(forward, params, calib)
    return {'align': jnp.eye(d, dtype=dtype)}, {}

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    del state

    def adapted(params: Params, batch: dict, key: Array | None = None) -> Outputs:
      outputs = forward(params, batch, key)
      return outputs | {'features': outputs['features'] @ theta['align']}

    return adapted

  return Method(init, wrap=wrap)
