"""Partition and combine; masks, counts and the table of what trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewshot import methods
from fewshot.errors import FewshotError
from fewshot.methods import paths

NAMES = st.sampled_from(['a', 'b', 'c', 'kernel'])
LEAVES = st.tuples(st.integers(0, 9).map(np.float32), st.booleans())
PAIRS = st.recursive(
  LEAVES,
  lambda t: st.one_of(
    st.dictionaries(NAMES, t, max_size=4), st.lists(t, max_size=3), st.tuples(t, t)
  ),
  max_leaves=10,
)


def is_pair(x) -> bool:
  return isinstance(x, tuple) and len(x) == 2 and isinstance(x[1], bool)


@given(PAIRS)
def test_combine_inverts_partition(pairs):
  tree, mask = (jax.tree.map(lambda p, i=i: p[i], pairs, is_leaf=is_pair) for i in (0, 1))
  trainable, frozen = methods.partition(tree, mask)
  assert methods.combine(trainable, frozen) == tree
  assert len(jax.tree.leaves(trainable)) == sum(jax.tree.leaves(mask))
  assert len(jax.tree.leaves(trainable)) + len(jax.tree.leaves(frozen)) == len(
    jax.tree.leaves(tree)
  )
  flat = paths.flatten(mask)
  assert set(paths.flatten(trainable)) == {p for p, m in flat.items() if m}


def test_a_mask_of_another_structure_is_refused():
  with pytest.raises(FewshotError, match='another structure than the tree, at b'):
    methods.partition({'a': 1}, {'a': True, 'b': False})


def test_the_frozen_half_gets_no_gradient_and_no_optimizer_state():
  trainable, frozen = methods.partition({'a': 2.0, 'b': 3.0}, {'a': True, 'b': False})
  product = lambda t: jnp.prod(jnp.stack(jax.tree.leaves(methods.combine(t, frozen))))  # noqa: E731
  assert jax.grad(product)(trainable) == {'a': 3.0, 'b': None}


def test_the_mask_of_a_head_that_params_lack_lists_it_as_added(tiny):
  headless = {k: v for k, v in tiny.params.items() if k != 'head'}
  mask = methods.mask(methods.linear(), tiny.forward, headless, tiny.calib)
  assert not any(jax.tree.leaves(mask.params))
  assert {p: x.shape for p, x in mask.added.items()} == {'head/kernel': (32, 3), 'head/bias': (3,)}
  stuck = methods.chain(methods.adapter(), methods.linear())
  added = methods.mask(stuck, tiny.forward, tiny.params, tiny.calib).added
  assert {'head/kernel', 'head/bias'} < set(added)


def test_two_additions_at_one_path_are_both_listed(tiny):
  twice = methods.chain(methods.lora(rank=2), methods.lora(rank=3))
  mask = methods.mask(twice, tiny.forward, tiny.params, tiny.calib)
  a = 'encoder/block_0/attn/query/a'
  assert (mask.added[a].shape, mask.added[f'{a}#2'].shape) == ((32, 2), (32, 3))
  assert methods.count(mask.added) == 2 * 2 * 64 * (2 + 3)


def test_the_table_says_which_rule_took_which_leaf(tiny):
  method = methods.parse("chain(tune(where='.*/ln1/scale'), lora(rank=2), linear())")
  rows = methods.table(method, tiny.forward, tiny.params, tiny.calib)
  assert [(r.rule, methods.count(r.leaves)) for r in rows[:3]] == [
    ("tune(where='.*/ln1/scale')", 64), ('lora(rank=2)', 512), ('linear()', 99),
  ]  # fmt: skip
  frozen = rows[-1]
  assert frozen.rule == 'frozen' and 'encoder/block_*/ln*/bias (4)' in frozen.text
  assert 'encoder/block_0/ln1/bias' in frozen.leaves
  assert 'encoder/block_0/ln1/scale' not in frozen.leaves
  total = methods.count(tiny.params)
  assert methods.count(frozen.leaves) == total - 64 - 99
  empty = methods.table(methods.nearest_mean(), tiny.forward, tiny.params, tiny.calib)
  assert empty[0].text == '(nothing)' and methods.count(empty[-1].leaves) == total
