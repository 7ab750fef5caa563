"""Masks that move while training: one optax wrapper, and what its rules share.

A mask acts on updates, weight decay included, and lives in the optimizer's state, so that nothing
is compiled again when it moves.  The wrapped transformation sees what is active and nothing else:
its moments are as large as that, and those of an entry that becomes active start at zero.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.methods.base import Method, State, Theta

__all__: list[str] = []  # Methods are in `moving`.
Array = jax.Array
Mask = dict[str, Array]


class Seen(NamedTuple):
  """What a rule may look at when it draws a mask."""

  key: Array  # Of this step; to be folded with the rule's name and a path.
  step: Any
  grads: Theta
  theta: Theta
  mask: Mask  # The last one.
  state: State  # Of the method.


class Form(NamedTuple):
  """How a mask says what is active of theta, a dict of arrays by path.

  parts:  theta -> {name: x}, what there is one mask of each
  whole:  ({name: x}, theta) -> theta, the inverse
  active: (x, mask) -> a, what is active of x
  place:  (a, mask, rest) -> x, with a where it is active and `rest`, shaped as x, elsewhere
  """

  active: Callable[[Any, Array], Array]
  place: Callable[[Array, Array, Any], Any]
  parts: Callable[[Theta], dict[str, Any]] = dict
  whole: Callable[[dict[str, Any], Theta], Theta] = lambda parts, theta: parts


# A mask of booleans, of a leaf's shape or one that broadcasts to it: one number for a whole leaf.
BOOLEAN = Form(lambda x, m: jnp.where(m, x, 0), lambda a, m, rest: jnp.where(m, a, rest))
# The same where entries of theta are no arrays but trees of them, as of LoRA: a mask of each leaf.
NESTED = BOOLEAN._replace(
  parts=paths.flatten, whole=lambda parts, theta: paths.replace(theta, parts)
)
# A mask of n flat indices: what is active is a vector [n].
INDEXED = Form(
  lambda x, i: jnp.asarray(x).reshape(-1)[i],
  lambda a, i, rest: rest.reshape(-1).at[i].set(a, unique_indices=True).reshape(rest.shape),
)


def stacked(groups: Callable[[Theta], dict[str, list[str]]]) -> Form:
  """Leaves in groups of one shape; a mask of n positions in a group takes n of its leaves.

  What is active is [n, ...]: n slots, into which the chosen leaves are copied one by one.
  """

  def active(xs: Sequence[Array], mask: Array) -> Array:
    take = [lambda x=x: x for x in xs]
    return jnp.stack([jax.lax.switch(i, take) for i in mask])

  def place(a: Array, mask: Array, rest: Sequence[Array]) -> list[Array]:
    rest = list(rest)
    for row, i in zip(a, mask, strict=True):
      rest = [jnp.where(i == j, row, x) for j, x in enumerate(rest)]
    return rest

  def parts(theta: Theta) -> dict[str, Any]:
    return {name: [theta[p] for p in members] for name, members in groups(theta).items()}

  def whole(parts: dict[str, Any], theta: Theta) -> Theta:
    members = groups(theta).items()
    flat = {p: x for n, ps in members for p, x in zip(ps, parts[n], strict=True)}
    return {p: flat[p] for p in theta}

  return Form(active, place, parts, whole)


class Rule(NamedTuple):
  """When a mask moves, and where to.

  blank:   theta -> a mask, for its shapes; the first step draws
  draw:    Seen -> the new mask, of the same shapes
  due:     step -> whether it is drawn anew; step 0 must be
  forgets: whether the moments of what was not active are zero; if not, all moments carry on, fed
           with the masked gradient
  reverts: whether theta is zero wherever it is not active
  """

  blank: Callable[[Theta], Mask]
  draw: Callable[[Seen], Mask]
  due: Callable[[Any], Any]
  form: Form = BOOLEAN
  forgets: bool = True
  reverts: bool = False


def moves(m: Method, rule: Rule) -> Method:
  """`m`, trained where `rule` says."""
  return m._replace(optimizer=functools.partial(moving, rule=rule))


def moving(tx: optax.GradientTransformation, rule: Rule) -> optax.GradientTransformationExtraArgs:
  """`tx` on what `rule` says is active; the rest gets no update, whatever `tx` does to zeros.

      u = place(tx(active(g, M), active(theta, M)), M, 0)

  >>> first = Rule(lambda t: {'w': jnp.zeros(1, int)}, lambda s: {'w': jnp.array([2])},
  ...              lambda step: step == 0, INDEXED)
  >>> tx, theta = moving(optax.sgd(1.0), first), {'w': jnp.ones(3)}
  >>> u, _ = tx.update(theta, tx.init(theta), theta, step=0, key=None, method_state={})
  >>> u['w'].tolist()
  [0.0, 0.0, -1.0]
  """
  inner, form = optax.with_extra_args_support(tx), rule.form

  def only(tree: Theta, mask: Mask) -> dict[str, Array]:
    return {n: form.active(x, mask[n]) for n, x in form.parts(tree).items()}

  def init(theta: Theta) -> tuple[Any, Mask]:
    mask = rule.blank(theta)
    return inner.init(only(theta, mask)), mask

  def update(
    grads: Theta, opt: Any, theta: Theta, *, step: Any, key: Any, method_state: State, **extra: Any
  ) -> tuple[Theta, Any]:
    zeros = form.parts(jax.tree.map(jnp.zeros_like, theta))

    def redraw() -> tuple[Any, Mask]:
      new = rule.draw(Seen(key, step, grads, theta, opt[1], method_state))
      return (_moved(inner, form, opt[0], opt[1], new, zeros) if rule.forgets else opt[0]), new

    moments, mask = jax.lax.cond(rule.due(step), redraw, lambda: opt)
    g, t = only(grads, mask), only(theta, mask)
    extra |= {'step': step, 'key': key, 'method_state': method_state}
    updates, moments = inner.update(g, moments, t, **extra)
    rest = form.parts(jax.tree.map(jnp.negative, theta)) if rule.reverts else zeros
    placed = {n: form.place(u, mask[n], rest[n]) for n, u in updates.items()}
    return form.whole(placed, theta), (moments, mask)

  return optax.GradientTransformationExtraArgs(init, update)


def _moved(
  tx: optax.GradientTransformation, form: Form, opt: Any, old: Mask, new: Mask, zeros: Any
) -> Any:
  """The state of `tx` with each moment carried to the new mask: zero where it was not active."""

  def carry(m: Any, name: str) -> Any:
    shape = jax.eval_shape(form.active, zeros[name], old[name]).shape
    if isinstance(m, optax.MaskedNode) or m.shape != shape:
      return m  # Of another group of parameters; or a statistic of the whole leaf.
    wide = jax.tree.map(lambda z: z.astype(m.dtype), zeros[name])
    return form.active(form.place(m, old[name], wide), new[name])

  hidden = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
  return optax.tree_map_params(tx, carry, opt, {n: n for n in old}, is_leaf=hidden)


def every(period: int) -> Callable[[Any], Any]:
  """Due at step 0 and each `period` steps.

  >>> [every(3)(t) for t in range(5)]
  [True, False, False, True, False]
  """
  return lambda step: step % period == 0


def always(step: Any) -> bool:
  """Due at every step."""
  del step
  return True


def none_of(theta: Theta) -> Mask:
  """The boolean mask of all entries in which none is active."""
  return {p: jnp.zeros(x.shape, bool) for p, x in paths.flatten(theta).items()}


def no_leaf(theta: Theta) -> Mask:
  """The mask of whole leaves in which none is active."""
  return {p: jnp.zeros((), bool) for p in theta}


def best(scores: dict[str, Array], most: int, n: Any = None) -> Mask:
  """Where the `most` best scores of all leaves together are; of these only the first `n`, if given.

  Of equals the first in the order of the leaves and of memory.  n may be traced.

  >>> best({'a': jnp.array([1.0, 3.0]), 'b': jnp.array([2.0, 3.0])}, 2)['b'].tolist()
  [False, True]
  """
  flat = jnp.concatenate([s.reshape(-1) for s in scores.values()])
  _, index = jax.lax.top_k(flat, min(most, flat.size))
  wins = jnp.ones(index.shape, bool) if n is None else jnp.arange(index.size) < n
  chosen = jnp.zeros(flat.shape, bool).at[index].set(wins, unique_indices=True)
  ends = np.cumsum([s.size for s in scores.values()])[:-1]
  pieces = jnp.split(chosen, ends)
  return {p: m.reshape(s.shape) for m, (p, s) in zip(pieces, scores.items(), strict=True)}


def steepest(fraction: float) -> Rule:
  """Active are the `fraction` largest |gradients| of each leaf at each step; moments carry on."""

  def draw(s: Seen) -> Mask:
    return {p: best({p: jnp.abs(g)}, math.ceil(fraction * g.size))[p] for p, g in s.grads.items()}

  return Rule(none_of, draw, always, forgets=False)


def swapped(delta: Array, grad: Array, index: Array, count: Any) -> Array:
  """`index` [n] with `count` entries exchanged: those of the least |delta| for the steepest others.

  >>> swapped(jnp.array([5.0, 1.0, 0.0, 0.0]), jnp.arange(4.0), jnp.array([0, 1]), 1).tolist()
  [0, 3]
  """
  n, flat = index.size, jnp.abs(grad).reshape(-1)
  place = jnp.argsort(jnp.argsort(-jnp.abs(delta.reshape(-1)[index])))
  kept = place < n - count
  others = flat.at[jnp.where(kept, index, flat.size)].set(-1, mode='drop')
  _, grown = jax.lax.top_k(others, n)
  return jnp.where(kept, index, grown[jnp.cumsum(~kept) - 1]).astype(index.dtype)


def check_share(name: str, **shares: float) -> None:
  """Refuses a share outside (0, 1].

  >>> check_share('gmt', fraction=0.1)
  """
  for what, share in shares.items():
    if not 0 < share <= 1:
      raise FewshotError(f'{name}({what}={share}) is a share, above 0 and at most 1')
