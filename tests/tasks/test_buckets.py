"""Bucket bounds against brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewshot.tasks import buckets


def cost(lengths, edges) -> int:
  return sum(min(e for e in edges if e >= n) for n in lengths)


@given(
  st.lists(st.integers(1, 60), min_size=1, max_size=20), st.integers(1, 4), st.sampled_from([1, 8])
)
def test_bounds_are_the_best_there_are(lengths, at_most, multiple):
  got = buckets.bounds(lengths, at_most, multiple)
  assert got == sorted(set(got)) and 1 <= len(got) <= at_most
  assert all(e % multiple == 0 for e in got) and got[-1] >= max(lengths)
  edges = sorted({buckets.round_up(n, multiple) for n in lengths})
  best = min(
    cost(lengths, chosen)
    for k in range(1, at_most + 1)
    for chosen in itertools.combinations(edges, min(k, len(edges)))
    if chosen[-1] >= max(lengths)
  )
  assert cost(lengths, got) == best


@pytest.mark.parametrize('lengths', [[0], [0, 0, 3]])
def test_empty_texts_have_a_bucket(lengths):
  assert buckets.bounds(np.array(lengths)) == [4]


@given(st.integers(0, 1000), st.integers(1, 64))
def test_round_up(length, multiple):
  up = buckets.round_up(length, multiple)
  assert up % multiple == 0 and 0 <= up - max(length, 1) < multiple
