"""Method: what turns a frozen function into an adapted one, and how methods compose.

A model is a pure function `outputs = forward(params, batch, key=None)`.  `params` is frozen: an
argument that nobody differentiates.  What a method trains is its own pytree `theta`; what rides
along without gradient is `state`.  Both are keyed by full parameter or site path.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, ParamSpec, Protocol

import jax
import jax.numpy as jnp
import optax

from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.methods.spelling import Made, spell, spelled

P = ParamSpec('P')
Array = jax.Array
Params = Any  # The frozen pytree.
Theta = Any  # Every float leaf trains.
State = Any  # Moves or rides along without gradient.
Batch = dict[str, Any]
Outputs = dict[str, Any]  # 'features' [B, D], 'logits' [B, C], 'mask' [B, T], ...


class Forward(Protocol):
  """A pure model function; `key` drives dropout, and None means none."""

  def __call__(self, params: Params, batch: Batch, key: Array | None = None) -> Outputs: ...


class Calib(NamedTuple):
  """What a method may look at when it starts: a batch, the class count and the task's loss."""

  batch: Batch
  classes: int = 0
  loss: Callable[[Outputs, Batch], Array] | None = None  # Per-example loss, [B].

  def gradient(self, forward: Forward, params: Params) -> Params:
    """The gradient of the mean loss on the batch with respect to `params`.

    A head that starts at zero gives none, and a model may have none of these classes: the logits
    are then those of the batch's own class means, f . mu_c / |f| |mu_c| (see `_by_means`).
    """
    if self.loss is None:
      raise FewshotError('this method needs a loss to start from; pass Calib(batch, classes, loss)')
    loss = self.loss

    def value(p: Params) -> Array:
      return loss(self._by_means(forward(p, self.batch)), self.batch).mean()

    return jax.grad(value, allow_int=True)(params)  # Quantised leaves are integers.

  def _by_means(self, outputs: Outputs) -> Outputs:
    """The outputs, with cosines to class means where the logits tell no examples apart."""
    if self.classes < 2 or 'labels' not in self.batch or 'features' not in outputs:
      return outputs
    f = outputs['features']
    f = f / (jnp.linalg.norm(f, axis=-1, keepdims=True) + 1e-6)
    labels = jax.nn.one_hot(self.batch['labels'], self.classes, dtype=f.dtype)
    means = jax.lax.stop_gradient(labels.T @ f)  # Their lengths matter to no direction.
    cosines = f @ (means / (jnp.linalg.norm(means, axis=-1, keepdims=True) + 1e-6)).T
    z = outputs.get('logits')
    if z is not None and z.shape[-1] >= self.classes:
      blind = jnp.all(z == z[:1])
      cosines = jnp.where(blind, jnp.pad(cosines, ((0, 0), (0, z.shape[-1] - self.classes))), z)
    return outputs | {'logits': cosines}


def _same_params(theta: Theta, state: State, params: Params) -> Params:
  del theta, state
  return params


def _same_forward(forward: Forward, theta: Theta, state: State) -> Forward:
  del theta, state
  return forward


def _no_penalty(*args: Any) -> Array:
  del args
  return jnp.zeros(())


def _same_tx(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  return tx


class Method(NamedTuple):
  """A way to adapt a frozen function; every field but `init` has a neutral default.

  init:      (key, forward, params, calib) -> (theta, state)
  weights:   (theta, state, params) -> params, acting in weight space
  wrap:      (forward, theta, state) -> forward, acting on activations, inputs or heads
  merge:     (theta, state, params) -> params, the weight form of `wrap`; None where there is none
  penalty:   (forward, theta, state, params, batch, outputs, key) -> scalar, added to the mean loss
  optimizer: (tx) -> tx, in optax; update gets method_state, frozen (params), step, key by name
  plan:      (forward, params, calib) -> Method, outside jit: structure that depends on data
  """

  init: Callable[[Array, Forward, Params, Calib], tuple[Theta, State]]
  weights: Callable[[Theta, State, Params], Params] = _same_params
  wrap: Callable[[Forward, Theta, State], Forward] = _same_forward
  merge: Callable[[Theta, State, Params], Params] | None = None
  penalty: Callable[..., Array] = _no_penalty
  optimizer: Callable[[optax.GradientTransformation], optax.GradientTransformation] = _same_tx
  plan: Callable[[Forward, Params, Calib], 'Method'] | None = None
  made: Made | None = None
  merges_last: bool = False  # Where what it merges into depends on what others merge.
  innermost: bool = False  # Where its wrap stands for a change of weights: others wrap around it.
  parts: tuple['Method', ...] = ()  # Of a chain: what it folds.
  draws_as: str = ''  # The method whose key it takes, so that both draw the same; '' for its own.

  @property
  def mergeable(self) -> bool:
    """Whether the adapted function is the base function at some other params."""
    return self.merge is not None or self.in_weights

  @property
  def in_weights(self) -> bool:
    """Whether it acts on params alone."""
    return self.wrap is _same_forward


def adapt(method: Method, forward: Forward, theta: Theta, state: State) -> Forward:
  """The adapted function: `wrap(forward)` at `weights(params)`; again a forward.

  Do not jit `forward` itself: a cached trace runs no Python, so nothing could be intercepted.
  """
  wrapped = method.wrap(forward, theta, state)

  def adapted(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
    return wrapped(method.weights(theta, state, params), batch, key)

  return adapted


def merge(method: Method, theta: Theta, state: State, params: Params) -> Params:
  """Params at which the base function equals the adapted one; refused where there are none."""
  if not method.mergeable:
    parts = method.parts or (method,)
    stuck = ', '.join(spell(m) if m.made else 'a method' for m in parts if not m.mergeable)
    raise FewshotError(f'{stuck} cannot be merged into the weights; save theta instead')
  params = method.weights(theta, state, params)
  return method.merge(theta, state, params) if method.merge else params


def method(constructor: Callable[P, Method]) -> Callable[P, Method]:
  """Marks a constructor of methods: results carry their spelling and fold its name into their key.

  Randomness thus depends on (method, occurrence, path), never on the position in a chain.  An
  argument that has a plan (a choice of layers by their scores, another method) is planned before
  the method: the constructor is called again with what came of it.
  """
  build = spelled(constructor)
  parameters = inspect.signature(constructor).parameters

  @functools.wraps(constructor)
  def make(*args: P.args, **kwargs: P.kwargs) -> Method:
    given = [_given(parameters, n, a) for n, a in zip(parameters, args, strict=False)]
    given += args[len(given) :]
    named: Any = {n: _given(parameters, n, a) for n, a in kwargs.items()}
    m = build(*given, **named)
    salt = paths.stable_hash(m.draws_as or constructor.__name__)

    def init(key: Array, *rest: Any) -> tuple[Theta, State]:
      return m.init(jax.random.fold_in(key, salt), *rest)

    made = Made(make, tuple(given), tuple(named.items()))
    return m._replace(init=init, plan=_planned(made, m.plan), made=made, parts=())

  return make


def _given(parameters: Mapping[str, inspect.Parameter], name: str, value: Any) -> Any:
  """An argument as the constructor gets it: a choice of layers by scores is a selection."""
  default = parameters[name].default if name in parameters else '.*'
  return paths.among(value, '.*' if default is inspect.Parameter.empty else default)


def _planned(made: Made, own: Callable[..., Method] | None) -> Callable[..., Method] | None:
  """The plan of a call: that of its arguments, then that of the method they make."""
  if not any(getattr(a, 'plan', None) for a in (*made.args, *dict(made.named).values())):
    return own

  def plan(forward: Forward, params: Params, calib: Calib) -> Method:
    of = lambda a: a.plan(forward, params, calib) if getattr(a, 'plan', None) else a  # noqa: E731
    m = made.fn(*map(of, made.args), **{k: of(a) for k, a in made.named})
    return m.plan(forward, params, calib) if m.plan else m

  return plan


def at_least_one(name: str, **sizes: int | None) -> None:
  """Refuses arguments of the method `name` that count something and are below 1.

  >>> at_least_one('lora', rank=8)
  """
  for what, size in sizes.items():
    if size is not None and size < 1:
      raise FewshotError(f'{name}({what}={size}) is too small; {what} is at least 1')


def chain(*methods: Method) -> Method:
  """Applies methods in order: all `weights` folded first, then all `wrap`s, the later the outer.

      W' = w_n(...w_1(W)),   f' = wrap_n(...wrap_1(f)),   y = f'(W', x)

  `merge` folds the weight forms in the same order, so merge equals apply for any pair of places.
  Nested chains flatten, `chain(m)` is `m` and `chain()` changes nothing: `chain` is associative
  with an identity.  theta and state are tuples with one entry a part.

  >>> from fewshot import methods
  >>> spell(methods.chain(methods.lora(rank=8), methods.linear()))
  'chain(lora(rank=8), linear())'
  """
  parts = _flat(methods)
  if len(parts) == 1:
    return parts[0]

  def zipped(theta: Theta, state: State) -> Iterable[tuple[Method, Theta, State]]:
    return zip(parts, theta, state, strict=True)

  def weights(theta: Theta, state: State, params: Params) -> Params:
    for part, t, s in zipped(theta, state):
      params = part.weights(t, s, params)
    return params

  def wrap(forward: Forward, theta: Theta, state: State) -> Forward:
    for part, t, s in sorted(zipped(theta, state), key=lambda each: not each[0].innermost):
      forward = part.wrap(forward, t, s)
    return forward

  def merge_parts(theta: Theta, state: State, params: Params) -> Params:
    order = lambda each: each[0].merges_last - each[0].innermost  # noqa: E731
    for part, t, s in sorted(zipped(theta, state), key=order):
      params = part.merge(t, s, params) if part.merge else params
    return params

  return Method(
    _chained_init(parts),
    weights,
    wrap if any(p.wrap is not _same_forward for p in parts) else _same_forward,
    merge_parts if all(p.mergeable for p in parts) else None,
    _chained_penalty(parts),
    _chained_optimizer(parts),
    _chained_plan(parts),
    made=Made(chain, parts),
    parts=parts,
  )


def _chained_init(parts: tuple[Method, ...]) -> Callable[..., tuple[Theta, State]]:
  """Each part starts from what those before it made of params and forward."""

  def init(key: Array, forward: Forward, params: Params, calib: Calib) -> tuple[Theta, State]:
    thetas, states = [], []
    for part, k in zip(parts, _keys(key, parts), strict=True):
      theta, state = part.init(k, forward, params, calib)
      params = part.weights(theta, state, params)
      forward = part.wrap(forward, theta, state)
      thetas.append(theta)
      states.append(state)
    return tuple(thetas), tuple(states)

  return init


def _flat(methods: tuple[Method, ...]) -> tuple[Method, ...]:
  """The parts of all `methods`, chains opened."""
  flat: tuple[Method, ...] = ()
  for m in methods:
    if not isinstance(m, Method):
      raise FewshotError(f'chain takes methods, not {m!r}; write lora(), not lora')
    flat += m.parts if m.made is not None and m.made.fn is chain else (m,)
  return flat


def _keys(key: Array, parts: tuple[Method, ...]) -> list[Array]:
  """One key a part: the second part of a name gets another key than the first."""
  names = [p.made.fn.__name__ if p.made else '' for p in parts]
  occurrences = [names[:i].count(n) for i, n in enumerate(names)]
  return [jax.random.fold_in(key, n) if n else key for n in occurrences]


def _chained_penalty(parts: tuple[Method, ...]) -> Callable[..., Array]:
  def penalty(
    forward: Forward, theta: Theta, state: State, params: Params, batch: Batch, outputs: Outputs,
    key: Array,
  ) -> Array:  # fmt: skip
    each = zip(parts, theta, state, strict=True)
    terms = [p.penalty(forward, t, s, params, batch, outputs, key) for p, t, s in each]
    return jnp.sum(jnp.stack(terms))

  return penalty if any(p.penalty is not _no_penalty for p in parts) else _no_penalty


def _chained_optimizer(
  parts: tuple[Method, ...],
) -> Callable[[optax.GradientTransformation], optax.GradientTransformation]:
  """Each part's transformation acts on its own entry of theta."""

  def optimizer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    each = [optax.with_extra_args_support(p.optimizer(tx)) for p in parts]

    def init(theta: Theta) -> tuple[Any, ...]:
      return tuple(t.init(x) for t, x in zip(each, theta, strict=True))

    def update(grads: Theta, opt: Any, theta: Theta, *, method_state: State, **extra: Any) -> Any:
      rows = zip(each, grads, opt, theta, method_state, strict=True)
      pairs = [t.update(g, o, x, method_state=s, **extra) for t, g, o, x, s in rows]
      return tuple(u for u, _ in pairs), tuple(o for _, o in pairs)

    return optax.GradientTransformationExtraArgs(init, update)

  return optimizer if any(p.optimizer is not _same_tx for p in parts) else _same_tx


def _chained_plan(parts: tuple[Method, ...]) -> Callable[..., Method] | None:
  def plan(forward: Forward, params: Params, calib: Calib) -> Method:
    return chain(*(p.plan(forward, params, calib) if p.plan else p for p in parts))

  return plan if any(p.plan for p in parts) else None


@method
def as_weights(inner: Method) -> Method:
  """The weight form of a method: W' = merge(W), for weights that several sites share.

  Costs a merged copy of each adapted weight a run, where the activation form costs none.

  >>> from fewshot import methods
  >>> spell(methods.as_weights(methods.lora(rank=2)))
  'as_weights(lora(rank=2))'
  """
  if not inner.mergeable:
    raise FewshotError(f'{spell(inner)} has no weight form; it cannot be merged')

  def weights(theta: Theta, state: State, params: Params) -> Params:
    return merge(inner, theta, state, params)

  return Method(inner.init, weights, penalty=inner.penalty, optimizer=inner.optimizer)
