"""Paths, patterns and selections."""

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewshot.errors import FewshotError
from fewshot.methods import paths

NAMES = st.sampled_from(['a', 'b', 'kernel', 'block_1'])
TREES = st.recursive(
  st.integers(),
  lambda t: st.one_of(st.dictionaries(NAMES, t, max_size=3), st.lists(t, max_size=3)),
  max_leaves=8,
)
PATHS = ['a/bias', 'a/kernel', 'a/kernel_2', 'head/bias']


@given(TREES)
def test_replacing_every_leaf_by_itself_changes_nothing(tree):
  assert paths.replace(tree, paths.flatten(tree)) == tree


@given(TREES)
def test_flatten_keeps_the_leaves_in_order(tree):
  assert list(paths.flatten(tree).values()) == jax.tree.leaves(tree)


def test_a_pattern_matches_the_whole_path():
  assert paths.at('a/kernel').of(PATHS) == ['a/kernel']
  assert paths.at('kernel').of(PATHS) == []


def test_selections_are_a_boolean_algebra():
  bias, a = paths.at('.*/bias'), paths.at('a/.*')
  assert (bias | a).of(PATHS) == PATHS
  assert (bias & a).of(PATHS) == ['a/bias']
  assert (~bias & a).of(PATHS) == ['a/kernel', 'a/kernel_2']
  assert (~(bias | a)).of(PATHS) == []
  assert (~~bias).of(PATHS) == bias.of(PATHS)


def test_a_pattern_that_matches_nothing_lists_what_exists():
  leaves = dict.fromkeys(PATHS)
  with pytest.raises(FewshotError, match="'kernel' matches none of the 4 parameters; there are a/"):
    paths.select(leaves, 'kernel')
  with pytest.raises(FewshotError, match=r"at\('x'\) & ~at\('y'\) matches none.* head/bias"):
    paths.select(leaves, paths.at('x') & ~paths.at('y'))


@pytest.mark.parametrize('pattern', ['(', '[z-a]', '*', 'a{99999999999}', '(?P<a>)(?P<a>)'])
def test_a_broken_pattern_is_refused(pattern):
  with pytest.raises(FewshotError, match='is not a regular expression'):
    paths.at(pattern)


def test_only_selections_combine():
  with pytest.raises(FewshotError, match=r"combine selections, not 'a/bias'; write at\("):
    paths.at('a/.*') | 'a/bias'


def test_the_stable_hash_depends_on_every_part_and_its_bounds():
  hashes = [paths.stable_hash(*p) for p in [('a', 'b'), ('ab',), ('b', 'a'), ('a',), ('a', 1)]]
  assert len(set(hashes)) == len(hashes)
  assert paths.stable_hash('lora', 'query') == 2325762487, 'old seeds give other numbers now'
