"""Ledger: the keys of test episodes, so that every learner is tested on the same ones."""

import hashlib

import jax
import numpy as np

from fewshot.errors import counts

Array = jax.Array


def ledger(name: str, n: int) -> Array:
  """[n] keys that depend on the name and their index alone; fewer are the first of more.

      key_i = fold_in(key(first 4 bytes of sha256(name)), i)

  >>> bool((ledger('test', 600)[:5] == ledger('test', 5)).all())
  True
  """
  counts(n=n)
  seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], 'big')
  # Named, so that jax_default_prng_impl does not change the episodes of a table.
  first = jax.random.key(np.uint32(seed), impl='threefry2x32')
  return jax.vmap(lambda i: jax.random.fold_in(first, i))(np.arange(n, dtype=np.uint32))


def ledger_hash(keys: Array) -> str:
  """16 hex digits over the keys, for records.

  >>> ledger_hash(ledger('test', 600)) == ledger_hash(ledger('test', 601))
  False
  """
  return hashlib.sha256(np.asarray(jax.random.key_data(keys)).tobytes()).hexdigest()[:16]
