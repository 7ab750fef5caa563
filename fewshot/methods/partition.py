"""What trains and what stays: partition, combine, count, masks and the trained/frozen table."""

import collections
from typing import Any, NamedTuple

import jax
import numpy as np

from fewshot.errors import FewshotError, brief
from fewshot.methods import base, paths
from fewshot.methods.spelling import spell


def partition(params: base.Params, mask: Any) -> tuple[Any, Any]:
  """Splits a tree by a boolean tree of its structure into (trainable, frozen), holes being None.

  None is an empty subtree to JAX: gradients and optimizers never see the other half.

  >>> partition({'a': 1, 'b': 2}, {'a': True, 'b': False})
  ({'a': 1, 'b': None}, {'a': None, 'b': 2})
  """
  if set(paths.flatten(params)) != set(paths.flatten(mask)):
    odd = set(paths.flatten(params)) ^ set(paths.flatten(mask))
    raise FewshotError(f'the mask has another structure than the tree, at {brief(sorted(odd))}')
  trainable = jax.tree.map(lambda x, m: x if m else None, params, mask)
  frozen = jax.tree.map(lambda x, m: None if m else x, params, mask)
  return trainable, frozen


def combine(trainable: Any, frozen: Any) -> base.Params:
  """The inverse of `partition`.

  >>> combine({'a': 1, 'b': None}, {'a': None, 'b': 2})
  {'a': 1, 'b': 2}
  """
  return jax.tree.map(
    lambda t, f: f if t is None else t, trainable, frozen, is_leaf=lambda x: x is None
  )


def count(tree: Any) -> int:
  """The number of scalars in a tree: of theta, what trains.

  >>> count({'a': np.zeros((2, 3)), 'b': np.zeros(4)})
  10
  """
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


class Mask(NamedTuple):
  """Where a method may change the weights, and what it adds beside them."""

  params: Any  # Boolean tree over params: true where merged weights may differ.
  # Leaves of theta that stand for no leaf of params; the second at one path is path#2.
  added: dict[str, jax.ShapeDtypeStruct]


def mask(
  method: base.Method, forward: base.Forward, params: base.Params, calib: base.Calib
) -> Mask:
  """The boolean tree of a method over params, and its new leaves; traces, computes nothing.

  A method with no weight form (a prompt) changes no weight: its mask is false everywhere.

  >>> import jax.numpy as jnp
  >>> from fewshot import methods
  >>> forward = lambda params, batch, key=None: {'logits': batch['x'] @ params['w'] + params['b']}
  >>> params = {'w': jnp.ones((3, 2)), 'b': jnp.zeros(2)}
  >>> calib = methods.Calib({'x': jnp.ones((1, 3))})
  >>> mask(methods.tune('b'), forward, params, calib).params
  {'b': True, 'w': False}
  """
  theta, state = shapes(method, forward, params, calib)
  changed = {}

  def trace(theta: Any, state: Any, params: Any) -> None:
    new = method.weights(theta, state, params)
    new = method.merge(theta, state, new) if method.merge else new
    after = paths.flatten(new)
    changed.update({p: after[p] is not x for p, x in paths.flatten(params).items()})

  jax.eval_shape(trace, theta, state, params)
  tree = jax.tree_util.tree_unflatten(jax.tree.structure(params), list(changed.values()))
  added: dict[str, jax.ShapeDtypeStruct] = {}
  times: collections.Counter[str] = collections.Counter()
  for p, x in (leaf for part in _by_part(method, theta) for leaf in part.leaves.items()):
    if not changed.get(p):
      times[p] += 1
      added[p if times[p] == 1 else f'{p}#{times[p]}'] = x
  return Mask(tree, added)


def shapes(
  method: base.Method, forward: base.Forward, params: base.Params, calib: base.Calib
) -> tuple[base.Theta, base.State]:
  """The shapes of (theta, state) without computing them."""
  start = lambda key, params, batch: method.init(key, forward, params, calib._replace(batch=batch))  # noqa: E731
  return jax.eval_shape(start, jax.random.key(0), params, calib.batch)


class Row(NamedTuple):
  """One line of the trained/frozen table: which rule took which leaves."""

  rule: str
  leaves: dict[str, Any]

  @property
  def text(self) -> str:
    """The leaves, numbered ones folded."""
    return brief(list(self.leaves)) if self.leaves else '(nothing)'

  @property
  def line(self) -> str:
    """The rule, how many parameters it took, and which."""
    rule = self.rule if len(self.rule) <= 100 else f'{self.rule[:97]}...'
    return f'{rule:32s} {count(self.leaves):>12,}  {self.text}'


def table(
  method: base.Method, forward: base.Forward, params: base.Params, calib: base.Calib
) -> list[Row]:
  """Which rule took which leaf: a row for each part of a method, then what stays frozen.

  >>> import jax.numpy as jnp
  >>> from fewshot import methods
  >>> forward = lambda params, batch, key=None: {'logits': batch['x'] @ params['w'] + params['b']}
  >>> params = {'w': jnp.ones((3, 2)), 'b': jnp.zeros(2)}
  >>> calib = methods.Calib({'x': jnp.ones((1, 3))})
  >>> [(r.rule, r.text, count(r.leaves)) for r in table(methods.tune('b'), forward, params, calib)]
  [("tune(where='b')", 'b', 2), ('frozen', 'w', 6)]
  """
  theta, _ = shapes(method, forward, params, calib)
  rows = _by_part(method, theta)
  taken = {p for row in rows for p in row.leaves}
  left = {p: x for p, x in paths.flatten(params).items() if p not in taken}
  return [*rows, Row('frozen', left)]


def _by_part(method: base.Method, theta: base.Theta) -> list[Row]:
  parts = method.parts or (method,)
  thetas = theta if method.parts else (theta,)
  return [
    Row(spell(m) if m.made else 'method', paths.flatten(t))
    for m, t in zip(parts, thetas, strict=True)
  ]
