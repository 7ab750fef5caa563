"""Neural fine-tuning search: which layers to freeze, tune or adapt, chosen on episodes."""

import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fewshot.episodes import Episode
from fewshot.errors import FewshotError, counts
from fewshot.fits import Data, Fit, Loss, sgd
from fewshot.learners.adapting import still
from fewshot.learners.base import Learner, Outer, Setup, assemble, embed, mean_loss, score
from fewshot.learners.metric import protonet
from fewshot.learners.testtime import BATCH
from fewshot.methods import paths
from fewshot.methods.activations import in_activations, sites
from fewshot.methods.base import (
  Calib,
  Forward,
  Method,
  Outputs,
  Params,
  State,
  Theta,
  adapt,
  method,
)
from fewshot.methods.choices import BLOCK
from fewshot.methods.conv import KERNELS
from fewshot.methods.leaves import floats, widen
from fewshot.methods.spelling import spelled
from fewshot.methods.weights import check_kernel, in_weights

__all__ = ['nfts']
Array = jax.Array
LETTERS = {'f': (0.0, 0.0), 't': (1.0, 0.0), 'a': (0.0, 1.0), 'b': (1.0, 1.0)}


@spelled
def nfts(
  paths: tuple[str, ...] = ('b',), steps: int = 40, lr: float = 1e-3,
  of: Literal['convolutions', 'blocks'] = 'convolutions',
) -> Learner:  # fmt: skip
  """Neural fine-tuning search (Eustratiadis et al. 2024, arXiv:2306.09066).

      W' = W + g_t D + g_a A,   g_t, g_a in {0, 1} for each convolution

  D is a tuned copy's difference and A a 1 x 1 adapter at the kernel's centre; of='blocks' searches
  those of a transformer: D is that of all their weights, the adapter a prefix of keys and values
  that is seen where g_a = 1.  A path has a letter for each layer (the last stands for all that
  follow): f freezes, t tunes, a adapts, b does both.  Meta-training draws a path an episode on a
  frozen backbone; `search` finds good ones; of `paths` the one with the lowest loss on a test
  episode's support wins.  Gates are data, so that all paths share a program.

  >>> nfts(paths=('ft', 'a'), steps=5).outer
  ('theta0',)
  """
  counts(steps=steps)
  if of not in GATED:
    raise FewshotError(f'nfts(of={of!r}) searches layers of a kind: {", ".join(GATED)}')
  gates = encode(paths)
  fit = along(sgd(steps=steps, lr=lr, batch=BATCH))
  head = protonet('cosine', 10.0).predict
  return Learner(('theta0',), head, GATED[of](), fit, loss=_supernet, choices={'path': gates})


def encode(texts: tuple[str, ...]) -> np.ndarray:
  """Paths as gates [P, L, 2], as long as the longest.

  >>> encode(('f', 'ta')).tolist()
  [[[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]]
  """
  if not texts or not all(t and set(t) <= set(LETTERS) for t in texts):
    raise FewshotError(f'paths={texts!r}: a path is a text of the letters f, t, a and b')
  longest = max(map(len, texts))
  return np.array([[LETTERS[c] for c in t.ljust(longest, t[-1])] for t in texts], np.float32)


@method
def gated(where: str = KERNELS) -> Method:
  """A difference and a 1 x 1 adapter of each kernel [h, w, d, k], each behind a gate in state."""

  def init(key: Array, w: Array) -> dict[str, Array]:
    del key
    check_kernel('gated', w)
    return {'delta': jnp.zeros_like(w), 'alpha': jnp.zeros(w.shape[-2:]), 'gates': jnp.ones(2)}

  def weight(t: dict[str, Array], w: Array) -> Array:
    centre = tuple(n // 2 for n in w.shape[:-2])
    new = w + t['gates'][0] * t['delta']
    return new.at[centre].add(t['gates'][1] * t['alpha'])

  return in_weights(where, init, weight, frozen=('gates',))


@method
def gated_blocks(length: int = 4) -> Method:
  """A difference of each block's weights and a prefix at its attention, behind gates in state.

      W' = W + g_t D,   y = softmax(q [K; k]^T) [V; v],   K and V [length, H, d] seen where g_a = 1

  D = 0 at the start, K and V are drawn small.
  """

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    read = sites(forward, params, calib.batch, f'({BLOCK.pattern})/attn/core')
    theta, state = {}, {}
    for core, site in read.items():
      block = core.removesuffix('/attn/core')
      own = {p: w for p, w in floats(params).items() if p.startswith(f'{block}/')}
      at = jax.random.fold_in(key, paths.stable_hash(block))
      shape, dtype = (2, length, *site.x.shape[2:]), jnp.promote_types(site.x.dtype, jnp.float32)
      k, v = 0.02 * jax.random.normal(at, shape, dtype)
      delta = widen({p: jnp.zeros_like(w) for p, w in own.items()})
      theta[block], state[block] = {'delta': delta, 'k': k, 'v': v}, {'gates': jnp.ones(2)}
    return theta, state

  def weights(theta: Theta, state: State, params: Params) -> Params:
    flat, new = paths.flatten(params), dict[str, Array]()
    for block, t in theta.items():
      moved = {p: flat[p] + state[block]['gates'][0] * d for p, d in t['delta'].items()}
      new |= {p: w.astype(flat[p].dtype) for p, w in moved.items()}
    return paths.replace(params, new)

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    ts = {f'{b}/attn/core': {'k': t['k'], 'v': t['v'], **state[b]} for b, t in theta.items()}
    return in_activations('.*', dict, _before).wrap(forward, ts, {})

  return Method(init, weights, wrap)


def _before(t: dict[str, Array], f: Any, q: Array, k: Array, v: Array, mask: Array) -> Array:
  """Attention of which a prefix is the first keys and values, hidden where its gate is closed."""
  lead = lambda x: jnp.broadcast_to(x, (len(k), *x.shape))  # noqa: E731
  seen = jnp.broadcast_to(t['gates'][1] > 0, (len(k), len(t['k'])))
  k, v = (jnp.concatenate([lead(x), y], 1) for x, y in ((t['k'], k), (t['v'], v)))
  return f(q, k, v, jnp.concatenate([seen, jnp.asarray(mask, bool)], 1))


GATED: dict[str, Callable[[], Method]] = {'convolutions': gated, 'blocks': gated_blocks}


@spelled
def along(fit: Fit, path: Any = ()) -> Fit:
  """A fit whose method has the gates `path` [L, 2]: what is gated off has no gradient."""

  def start(loss: Loss, theta: Theta, state: State, data: Data, key: Array) -> Any:
    return fit.start(loss, theta, opened(state, path) if len(path) else state, data, key)

  return fit._replace(start=start, varies=('path',))


def opened(state: State, path: Array) -> State:
  """The state with these gates, by number; the last of a shorter path is the rest's."""
  number = lambda p: [int(n) for n in re.findall(r'\d+', p)]  # noqa: E731
  slots = sorted((p for p in paths.flatten(state) if p.endswith('/gates')), key=number)
  return paths.replace(state, {p: path[min(i, len(path) - 1)] for i, p in enumerate(slots)})


def _supernet(
  setup: Setup, params: Params, outer: Outer, episode: Episode, key: Array
) -> tuple[Array, Outputs]:
  """The query's loss along a random path, without an inner fit."""
  assert setup.learner.method is not None
  slots = sum(p.endswith('/gates') for p in paths.flatten(outer['state']))
  path = jax.random.bernoulli(key, 0.5, (slots, 2)).astype(jnp.float32)
  state = opened(outer['state'], path)
  forward = adapt(setup.learner.method, still(setup.forward), outer['theta0'], state)
  f, _ = embed(forward, assemble(params, outer), episode.support, episode.query)
  logits = score(setup.learner, {}, f, setup.way)
  return mean_loss(setup, logits, episode.query), {'logits': logits}


def search(
  score: Callable[[Learner, str], float], learner: Learner, layers: int, *,
  generations: int = 4, population: int = 16, keep: int = 4, seed: int = 0,
) -> tuple[str, ...]:  # fmt: skip
  """The `keep` best paths by evolution: crossover and mutation of the better half.

  `score(learner, path)` is an accuracy on validation episodes, as by `meta.evaluator`.

  >>> search(lambda learner, path: path.count('a'), nfts(), 3, keep=1)
  ('aaa',)
  """
  counts(layers=layers, generations=generations, population=population, keep=keep)
  rng, letters = np.random.default_rng(seed), list(LETTERS)
  pool = [''.join(rng.choice(letters, layers)) for _ in range(population)]
  scores: dict[str, float] = {}
  for _ in range(generations):
    scores |= {p: score(learner, p) for p in dict.fromkeys(pool) if p not in scores}
    best = sorted(scores, key=lambda p: -scores[p])[: max(population // 2, keep, 2)]
    pool = []
    for _ in range(population):
      a, b = (list(best[i]) for i in rng.integers(len(best), size=2))
      child = np.where(rng.random(layers) < 0.5, a, b)
      pool.append(''.join(np.where(rng.random(layers) < 0.15, rng.choice(letters, layers), child)))
  return tuple(sorted(scores, key=lambda p: -scores[p])[:keep])
