"""Attempts: a run that died starts anew from another key, a few times; each is a record."""

from collections.abc import Iterator, Mapping
from typing import Any

from fewshot import records


def attempts(first: str, retries: int, done: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
  """The ids of the attempts at a run that have a result, and of the one that is due, if one is.

  `first` is the id of the run, `done` has the last record of each id.

  >>> timed = {'timings': {'seconds': 1.0}}
  >>> done = {'a': {'status': 'collapsed', **timed}, 'b': {'status': 'ok', **timed}}
  >>> [len(list(attempts(id, 2, done))) for id in 'abc'], list(attempts('a', 0, done))
  ([2, 1, 1], ['a'])
  """
  for n in range(retries + 1):
    id = retry_id(first, n) if n else first
    yield id
    record = done.get(id)
    if record is None or not records.has_result(record) or record['status'] == 'ok':
      return


def due(first: str, retries: int, done: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """The id of the attempt at a run that is due, if one is.

  >>> due('a', 0, {}), due('a', 0, {'a': {'status': 'ok', 'timings': {'seconds': 1.0}}})
  (['a'], [])
  """
  return [id for id in attempts(first, retries, done) if not records.has_result(done.get(id))]


def retry_id(first: str, attempt: int) -> str:
  """The name of another attempt at a run."""
  return records.run_id({'of': first, 'attempt': attempt})


def retry_of(first: str, attempt: int, seed: int, retries: int) -> dict[str, Any]:
  """What the record of another attempt says of itself; `first` is the id of the first one."""
  rule = f'a dead run starts anew from another key, at most {retries} times'
  said = {'of': first, 'number': attempt, 'seed': seed, 'rule': rule}
  return {'id': retry_id(first, attempt), 'attempt': said}


def first_id(record: Mapping[str, Any]) -> str:
  """The id of the first attempt at a run."""
  return record.get('attempt', {}).get('of', record['id'])
