"""A learner on an episode: what meta-training starts from, what is answered, what is minimised."""

import re

import jax

from fewshot.episodes import Episode
from fewshot.errors import FewshotError
from fewshot.learners import adapting
from fewshot.learners.base import OUTER, Outer, Setup, by_features, mean_loss
from fewshot.methods import paths
from fewshot.methods.base import Batch, Outputs, Params
from fewshot.methods.weights import STATISTICS, floats, widen

Array = jax.Array


def start(setup: Setup, key: Array, params: Params, support: Batch) -> Outer:
  """What meta-training begins from: the entries of `learner.outer`, and what rides along.

  'params' is {path: leaf}; 'statistics' are the running ones of norms, which follow the data;
  'state' belongs to 'theta0'.
  """
  learner = setup.learner
  if odd := set(learner.outer) - set(OUTER):
    raise FewshotError(f'outer={sorted(odd)} is unknown; there are {", ".join(OUTER)}')
  trainable = floats(params)
  leaves = {p: x for p, x in paths.flatten(params).items() if re.search(STATISTICS, p)}
  outer: Outer = {'statistics': leaves}
  if 'params' in learner.outer:
    outer['params'] = widen(trainable)
  theta0 = None
  if learner.method is not None and {'theta0', 'fit'} & set(learner.outer):
    theta0, state = adapting.begin_method(setup, params, support, key)
    if 'theta0' in learner.outer:
      outer |= {'theta0': theta0, 'state': state}
  if 'fit' in learner.outer:
    shapes = jax.eval_shape(lambda p, b: setup.forward(p, b), params, support)
    width = shapes['features'].shape[-1]
    outer['fit'] = learner.variables(jax.random.fold_in(key, 1), width, setup.way, theta0)
  return outer


def respond(
  setup: Setup, params: Params, outer: Outer, episode: Episode, key: Array | None = None
) -> Outputs:
  """The logits [Q, way] of an episode's query; its labels are not looked at."""
  query = {k: v for k, v in episode.query.items() if k != 'labels'}
  if setup.learner.adapts:
    return adapting.respond(setup, params, outer, episode.support, query, key)
  return by_features(setup, params, outer, episode.support, query)


def episodic(
  setup: Setup, params: Params, outer: Outer, episode: Episode, key: Array
) -> tuple[Array, Outputs]:
  """The mean loss of the query: what most learners are meta-trained on."""
  outputs = respond(setup, params, outer, episode, key)
  return mean_loss(setup, outputs['logits'], episode.query), outputs
