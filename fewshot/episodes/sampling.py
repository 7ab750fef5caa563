"""Samplers: a key becomes the rows of an episode, by arithmetic of static shapes alone.

Every protocol says how many images of which classes (`Draw`); `_fill` turns that into rows.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fewshot.episodes.base import Episode, Pool, Rows, gather
from fewshot.episodes.ledger import ledger
from fewshot.errors import FewshotError, counts

Array = jax.Array
WHERE = ('class', 'group')


class Sampler(NamedTuple):
  """`sampler(key)` is an episode; `sampler.sample_rows(key)` its rows, without any pixel."""

  pool: Pool
  sample_rows: Callable[[Array], Rows]
  way: int  # The largest; labels are below it.

  def __call__(self, key: Array) -> Episode:
    return gather(self.pool.images, self.sample_rows(key))


class Draw(NamedTuple):
  """What a protocol decides before images are drawn; absent classes have no shots and queries."""

  classes: Array  # [way] int32, -1 where absent.
  shots: Array  # [way] int32.
  queries: Array  # [way] int32.


def sampler(
  pool: Pool,
  way: int | tuple[int, int],
  shot: int | tuple[int, int],
  query: int,
  *,
  by: str = 'class',
) -> Sampler:
  """Episodes of `way` classes with `shot` support and `query` query images of each.

  Classes, then images of each, are drawn uniformly without replacement (Vinyals et al. 2016,
  arXiv:1606.04080).  A pair (low, high) draws the way or the shot of every episode uniformly from
  low..high; shapes are those of the highest, S = way * shot and Q = way * query, and what is not
  there is padded with weight 0.  Support and query go class by class.  One key gives the same
  queries at any shot, and the support of fewer shots is part of that of more.

  Args:
    pool: where images come from.
    way: classes of an episode.
    shot: support images of a class.
    query: query images of a class.
    by: 'class' draws from all classes; 'group' from those of one group (alphabet, superclass,
      script), which is drawn first, uniformly among the groups with enough classes.

  Raises:
    FewshotError: the pool has too few classes, a class too few images, or there are no groups.

  >>> from fewshot.episodes import make_pool
  >>> pool = make_pool('toy', np.zeros((40, 2, 2, 1), np.uint8), np.arange(40) % 8, 'abcdefgh')
  >>> episode = sampler(pool, way=3, shot=1, query=4)(jax.random.key(0))
  >>> episode.support['labels'].tolist(), episode.query['x'].shape
  ([0, 1, 2], (12, 2, 2, 1))
  """
  ways, shots = _range('way', way, _groups(pool, by)[1].max()), _range('shot', shot)
  counts(query=query)
  _enough(pool, shots[1] + query)
  pick = _classes(pool, ways, by)

  def draw(key: Array) -> Draw:
    for_classes, for_shots = jax.random.split(key)
    classes = pick(for_classes)
    here = classes >= 0
    n = jax.random.randint(for_shots, (), shots[0], shots[1] + 1)
    return Draw(classes, jnp.where(here, n, 0), jnp.where(here, query, 0))

  return _sampler(pool, draw, ways[1], (ways[1] * shots[1], ways[1] * query), shots[1] + query)


def meta_dataset(
  pool: Pool,
  way: tuple[int, int] = (5, 50),
  support: int = 500,
  query: int = 10,
  *,
  by: str = 'class',
) -> Sampler:
  """Episodes of Meta-Dataset: variable way and shot, imbalanced (Triantafillou et al. 2020,
  arXiv:1903.03096, section 3.2 and appendix).

      way ~ U{low..min(high, classes)}
      q = min(query, min_c floor(n_c / 2))                        queries of every class
      |S| = min(support, sum_c ceil(b min(100, n_c - q)))         b ~ U(0, 1]
      R_c = exp(a_c) n_c / sum_d exp(a_d) n_d                     a_c ~ U[log 1/2, log 2)
      k_c = min(floor(R_c (|S| - way)) + 1, n_c - q)              shots

  n_c is the number of images of a class of the episode.  Shapes are [support] and [way * query],
  padded with weight 0.  Their Omniglot draws within one alphabet: `by='group'`.

  Raises:
    FewshotError: as `sampler`, or `support` is smaller than the way.

  >>> from fewshot.episodes import make_pool
  >>> pool = make_pool('toy', np.zeros((160, 2, 2, 1), np.uint8), np.arange(160) % 8, 'abcdefgh')
  >>> episode = meta_dataset(pool, way=(5, 50), support=60)(jax.random.key(0))
  >>> episode.support['x'].shape, 5 <= int((episode.rows.classes >= 0).sum()) <= 8
  ((60, 2, 2, 1), True)
  """
  ways = _range('way', way, _groups(pool, by)[1].max())
  counts(support=support, query=query)
  if support < ways[1]:
    raise FewshotError(f'support={support} is less than an image for each of {ways[1]} classes')
  _enough(pool, 2)
  pick, sizes = _classes(pool, ways, by), jnp.asarray(pool.counts)

  def draw(key: Array) -> Draw:
    for_classes, for_size, for_shares = jax.random.split(key, 3)
    classes = pick(for_classes)
    here = classes >= 0
    n = jnp.where(here, sizes[classes], 0)
    q = jnp.minimum(query, jnp.min(n // 2, where=here, initial=query))
    left = jnp.where(here, n - q, 0)
    b = 1 - jax.random.uniform(for_size)
    total = jnp.minimum(support, jnp.ceil(b * jnp.minimum(100, left)).sum())
    a = jax.random.uniform(for_shares, n.shape, minval=np.log(0.5), maxval=np.log(2))
    share = jnp.exp(a) * n / (jnp.exp(a) * n).sum()
    shots = jnp.floor(share * (total - here.sum())).astype(jnp.int32) + 1
    return Draw(classes, jnp.minimum(shots, left), jnp.where(here, q, 0))

  most = min(support + query, int(np.max(pool.counts)))
  return _sampler(pool, draw, ways[1], (support, ways[1] * query), most)


def fixed(pool: Pool, rows: Rows, way: int, name: str) -> Sampler:
  """Published trials in place of drawn ones: the i-th key of `ledger(name, n)` gives the i-th.

  Args:
    rows: of the n trials, stacked along the first axis.

  >>> from fewshot.episodes import make_pool
  >>> pool = make_pool('toy', np.zeros((4, 2, 2, 1), np.uint8), [0, 0, 1, 1], 'ab')
  >>> same = lambda *x: jnp.asarray(x)
  >>> rows = Rows(same([0, 2], [3, 1]), same([1], [0]), same([0, 1], [1, 0]), same([0], [0]),
  ...             jnp.ones((2, 2)), jnp.ones((2, 1)), same([0, 1], [0, 1]))
  >>> fixed(pool, rows, 2, 'toy').sample_rows(ledger('toy', 2)[1]).support.tolist()
  [3, 1]
  """
  known = jax.random.key_data(ledger(name, len(rows.support)))

  def sample_rows(key: Array) -> Rows:
    i = jnp.argmax((known == jax.random.key_data(key)).all(-1))
    return jax.tree.map(lambda x: jnp.asarray(x)[i], rows)

  return Sampler(pool, sample_rows, way)


def _sampler(
  pool: Pool, draw: Callable[[Array], Draw], way: int, slots: tuple[int, int], most: int
) -> Sampler:
  """Draws, then fills: `most` is an upper bound of the images of a class in an episode."""
  starts, sizes = jnp.asarray(pool.starts), jnp.asarray(pool.counts)
  longest = int(np.max(pool.counts))

  def sample_rows(key: Array) -> Rows:
    for_draw, for_images = jax.random.split(key)
    drawn = draw(for_draw)
    u = jax.random.uniform(for_images, (len(drawn.classes), longest))
    u = jnp.where(jnp.arange(longest) < sizes[drawn.classes][:, None], u, -1)
    # The first of a random order of each class are queries, those after them support.
    images = starts[drawn.classes][:, None] + jax.lax.top_k(u, most)[1].astype(jnp.int32)
    query, query_labels, query_weights = _fill(images, drawn.queries, 0, slots[1])
    support, labels, weights = _fill(images, drawn.shots, drawn.queries, slots[0])
    return Rows(support, query, labels, query_labels, weights, query_weights, drawn.classes)

  return Sampler(pool, sample_rows, way)


def _fill(images: Array, take: Array, skip: Array | int, slots: int) -> tuple[Array, Array, Array]:
  """rows, labels, weights [slots]: of class c the images[c, skip_c : skip_c + take_c], in turn."""
  ends = jnp.cumsum(take)
  slot = jnp.arange(slots)
  there = slot < ends[-1]
  # Compared with all: the loop of a binary search is slower under vmap.
  label = jnp.where(there, (slot[:, None] >= ends).sum(1), 0).astype(jnp.int32)
  place = jnp.broadcast_to(skip, take.shape)[label] + slot - (ends - take)[label]
  rows = images[label, jnp.where(there, place, 0)]
  return rows, label, there.astype(jnp.float32)


def _range(name: str, value: int | tuple[int, int], most: int | None = None) -> tuple[int, int]:
  """low, high of a number or a pair; `most` cuts a pair whose low end it allows."""
  if isinstance(value, tuple) and len(value) != 2:
    raise FewshotError(f'{name}={value} is no range; write a number, or (lowest, highest)')
  low, high = value if isinstance(value, tuple) else (value, value)
  counts(**{name: low})
  counts(**{name: high})
  if low > high:
    raise FewshotError(f'{name}={value} runs from high to low; write ({high}, {low})')
  return low, high if most is None else max(low, min(high, most))


def _enough(pool: Pool, need: int) -> None:
  least = int(np.argmin(pool.counts))
  if pool.counts[least] < need:
    raise FewshotError(
      f'{pool.name}: class {pool.classes[least]!r} has {pool.counts[least]} images and an episode '
      f'takes up to {need}; lower shot or query, or leave the class out'
    )


def _groups(pool: Pool, by: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The group of each class, the number of classes of each group, their names."""
  if by not in WHERE:
    raise FewshotError(f'by={by!r}: episodes are drawn by class or by group')
  if by == 'group' and not pool.groups:
    raise FewshotError(f"{pool.name} has no groups; draw its episodes by='class'")
  of = pool.groups if by == 'group' else ('',) * len(pool.classes)
  names, group = np.unique(np.asarray(of), return_inverse=True)
  return group, np.bincount(group), names


def _classes(pool: Pool, ways: tuple[int, int], by: str) -> Callable[[Array], Array]:
  """The function that draws classes [highest way] without replacement, -1 beyond the drawn way."""
  group, sizes, names = _groups(pool, by)
  able = np.flatnonzero(sizes >= ways[0])
  if not len(able):
    where = f' in its largest group, {names[sizes.argmax()]}' if by == 'group' else ''
    raise FewshotError(f'{pool.name} has {sizes.max()} classes{where}, fewer than way={ways[0]}')
  of, n = jnp.asarray(group), jnp.asarray(sizes)

  def pick(key: Array) -> Array:
    for_group, for_classes, for_way = jax.random.split(key, 3)
    g = jax.random.choice(for_group, able)
    u = jnp.where(of == g, jax.random.uniform(for_classes, of.shape), -1)
    classes = jax.lax.top_k(u, ways[1])[1].astype(jnp.int32)
    way = jax.random.randint(for_way, (), ways[0], jnp.minimum(ways[1], n[g]) + 1)
    return jnp.where(jnp.arange(ways[1]) < way, classes, -1)

  return pick
