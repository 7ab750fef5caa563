"""Neural fine-tuning search: what a path lets move, in one program for all paths."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fewshot import learners
from fewshot.learners import adapting, search
from fewshot.methods import paths
from fewshot.models import conv4, vit
from tests.learners import toys

CONFIG = conv4.Config(width=4, depth=2, image_size=8, mean=(0.5,), std=(0.25,))


def test_nfts_moves_what_the_path_says_by_one_program() -> None:
  forward = conv4.forward(CONFIG)
  plain = lambda params, batch, key=None: forward(params, {'image': batch['x']}, key)  # noqa: E731
  setup = learners.Setup(learners.nfts(steps=2, lr=0.05), plain, toys.WAY)
  params, episode = conv4.init(CONFIG, jax.random.key(0)), toys.episodes()(jax.random.key(1))
  outer = learners.start(setup, jax.random.key(2), params, episode.support)

  traced = []

  @jax.jit
  def fitted(path: Any) -> Any:
    traced.append(path)
    i = adapting.inner(setup, params, outer, episode.support, jax.random.key(0), {'path': path})
    carry = adapting.run(i)
    return i.fit.finish(carry)[0], adapting.end(setup, i, carry, episode.support, episode.query)

  for path in ('ff', 'ft', 'ta', 'ba'):
    theta, outputs = fitted(jnp.asarray(search.encode((path,))[0]))
    moved = {p for p, x in paths.flatten(theta).items() if np.any(x)}  # All start at 0.
    wanted = set()
    for i, letter in enumerate(path):
      site = f'stage_{i}/block_0/conv_0/kernel'
      wanted |= {f'{site}/{leaf}' for leaf in {'t': ['delta'], 'a': ['alpha'], 'f': []}.get(
        letter, ['delta', 'alpha'])}  # fmt: skip
    assert {p.replace("['", '').replace("']", '') for p in moved} == wanted, path
    if path == 'ff':
      frozen = setup._replace(learner=learners.protonet('cosine', 10.0))
      same = learners.respond(frozen, params, outer, episode)['logits']
      np.testing.assert_allclose(outputs['logits'], same, atol=1e-4)
  assert len(traced) == 1  # Paths are data.


def test_nfts_moves_blocks_of_a_vit_and_their_prefixes_as_the_path_says() -> None:
  config = vit.Config(
    dim=4, depth=11, heads=2, width=4, image_size=8, patch=4, mean=(0.5,), std=(1,)
  )
  forward = vit.forward(config)
  plain = lambda params, batch, key=None: forward(params, {'image': batch['x']}, key)  # noqa: E731
  setup = learners.Setup(learners.nfts(steps=2, lr=0.05, of='blocks'), plain, toys.WAY)
  params, episode = vit.init(config, jax.random.key(0)), toys.episodes()(jax.random.key(1))
  outer = learners.start(setup, jax.random.key(2), params, episode.support)

  traced = []

  @jax.jit
  def fitted(path: Any) -> Any:
    traced.append(path)
    i = adapting.inner(setup, params, outer, episode.support, jax.random.key(0), {'path': path})
    carry = adapting.run(i)
    return i.fit.finish(carry)[0], adapting.end(setup, i, carry, episode.support, episode.query)

  wanted = {'f': set(), 't': {'delta'}, 'a': {'k', 'v'}, 'b': {'delta', 'k', 'v'}}
  for path in ('ffff', 'ftab'):
    theta, outputs = fitted(jnp.asarray(search.encode((path,))[0]))
    for i, letter in enumerate(path):
      block = f'encoder/block_{i}'
      start, end = outer['theta0'][block], theta[block]
      pairs = {n: zip(*map(jax.tree.leaves, (start[n], end[n])), strict=True) for n in end}
      moved = {n for n, leaves in pairs.items() if any(np.any(a != b) for a, b in leaves)}
      assert moved == wanted[letter], (path, i)
    if set(path) == {'f'}:
      frozen = setup._replace(learner=learners.protonet('cosine', 10.0))
      same = learners.respond(frozen, params, outer, episode)['logits']
      np.testing.assert_allclose(outputs['logits'], same, atol=1e-4)
  assert len(traced) == 1  # Paths are data.


def test_letters_are_of_blocks_in_the_order_of_their_numbers() -> None:
  state = {f'block_{i}': {'gates': jnp.ones(2)} for i in range(11)}
  opened = search.opened(state, jnp.asarray(search.encode(('fff' + 'b' * 7 + 't',))[0]))
  assert [int(opened[f'block_{i}']['gates'].sum()) for i in range(11)] == [0] * 3 + [2] * 7 + [1]
