"""Rematerialisation: activations of chosen modules are computed again in the backward pass.

The engine gives it to training steps alone; what a method reads of a module from outside (inputs,
outputs) is read of the forward as it was.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from fewshot.errors import FewshotError, nearest
from fewshot.methods import paths
from fewshot.methods.activations import path_of
from fewshot.methods.base import Array, Batch, Forward, Outputs, Params
from fewshot.methods.paths import Where

BLOCKS = r'(.*/)?block(_\d+)?'
# What a block keeps for its backward pass, its inputs apart.
POLICIES: dict[str, Callable[..., Any]] = {
  'nothing': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.dots_saveable,  # Results of matrix products.
  # Of those products alone that have no batch axis: linear maps, not attention's scores.  Under
  # vmap a product of two operands that differ by run has one, so LoRA's are computed again.
  'dots_no_batch': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def remat(forward: Forward, where: Where = BLOCKS, policy: str = 'nothing') -> Forward:
  """A forward of the same outputs and gradients whose modules at `where` keep less in between.

  Of a call that is selected the backward pass has the inputs and what the policy saves, and
  computes the rest again (Chen et al. 2016, arXiv:1604.06174).  Params, theta and random keys are
  closed over, so methods act inside and outside of such a module; of nested modules that are both
  selected, the outer and the inner are computed again.

  XLA:CPU undoes it unless the program is compiled with `compiler_options()`.

  Args:
    where: paths of modules.
    policy: a key of `POLICIES`.

  Raises:
    FewshotError: the policy is unknown, the forward is jitted; or, when it is called, `where`
      selects no module or one that updates collections (batch statistics, a cache).

  >>> import numpy as np
  >>> from fewshot import models
  >>> class Net(nn.Module):
  ...   @nn.compact
  ...   def __call__(self, x):
  ...     return nn.tanh(nn.Dense(2, name='block_0')(x))
  >>> params, x = Net().init(jax.random.key(0), np.ones((1, 3)))['params'], {'x': np.ones((4, 3))}
  >>> thrifty = remat(models.from_linen(Net()))
  >>> jax.grad(lambda p: thrifty(p, x)['features'].sum())(params)['block_0']['kernel'].shape
  (3, 2)
  """
  if policy not in POLICIES:
    raise FewshotError(f'remat(policy={policy!r}) is unknown; {nearest(policy, POLICIES)}')
  if isinstance(forward, jax.stages.Wrapped):  # A cached trace runs no Python.
    raise FewshotError('remat cannot reach into a jitted forward; jit only the outermost function')
  chosen = paths.selection(where)

  def thrifty(params: Params, batch: Batch, key: Array | None = None) -> Outputs:
    called: dict[str, None] = {}

    def intercept(next_fn: Any, args: Any, kwargs: Any, context: Any) -> Any:
      path = path_of(context)
      if context.method_name != '__call__' or not path:
        return next_fn(*args, **kwargs)
      called[path] = None
      if not chosen.holds(path):
        return next_fn(*args, **kwargs)
      if context.module.scope.mutable:
        raise FewshotError(
          f'{path!r} updates collections of variables (batch statistics, a cache), which cannot '
          'be computed twice; take remat off, or a forward without them'
        )
      # Without arguments of its own, so that flags among them stay what they are.
      again = jax.checkpoint(lambda: next_fn(*args, **kwargs), policy=POLICIES[policy])
      return again()

    with nn.intercept_methods(intercept):
      outputs = forward(params, batch, key)
    paths.select(called, where, 'module')
    return outputs

  return thrifty


def compiler_options() -> dict[str, str]:
  """What a program that computes things again is to be compiled with, for `Lowered.compile`.

  XLA:CPU drops the barriers around what is computed again before it merges equal computations,
  so that all of it is kept as without; the pass that drops them is not needed for correctness.

  >>> compiler_options().keys() <= {'xla_disable_hlo_passes'}
  True
  """
  cpu = jax.default_backend() == 'cpu'
  return {'xla_disable_hlo_passes': 'cse_barrier_expander'} if cpu else {}
