"""Estimates: what a group of runs takes, from its compiled programs and one timed step."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from fewshot import experiment
from fewshot.engine import Programs
from fewshot.launch.groups import Group
from fewshot.runs import stack


def estimate(group: Group) -> dict[str, Any]:
  """Runs, chunk, memory, FLOPs and seconds of a group; a step is run and a test set scored.

  Of a program only how many runs and stages it has: each is compiled from what the last one wrote.
  """
  p = group.rows[0]
  about = {'id': group.id, 'label': group.label, 'rows': len(group.rows), 'runs': len(group.runs)}
  if p.program:
    return about | {'stages': [stage.name for stage in p.program.stages]}
  todo = [planned.run for planned in group.runs.values()]
  programs = experiment.compiled(p, todo)
  step, score = _seconds(programs, todo)
  chunks = -(-len(todo) // programs.chunk)
  return (
    about
    | experiment.cost(programs)
    | {
      'steps': programs.steps,
      'step_seconds': round(step, 4),
      'score_seconds': round(score, 4),
      'compile_seconds': round(programs.seconds, 2),
      'eta_seconds': round(chunks * (programs.steps * step + score), 2),
    }
  )


def _seconds(programs: Programs, todo: Any) -> tuple[float, float]:
  """Of the second step of a chunk, for the first one begins the runs, and of its scoring."""
  place = programs.placement
  inputs = place.fold(stack(programs.data, programs.padded(todo[: programs.chunk])))
  times = list(_timed_steps(programs, inputs, programs.blank()))
  return times[1], times[2]


def _timed_steps(programs: Programs, inputs: Any, carry: Any) -> Iterator[float]:
  for t in (0, 1):
    begun = time.perf_counter()
    carry = programs.advance(programs.params, inputs, carry, jnp.int32(t), jnp.int32(t + 1))
    jax.block_until_ready(carry)
    yield time.perf_counter() - begun
  begun = time.perf_counter()
  jax.block_until_ready(programs.score(programs.params, carry, programs.test, inputs.data.dev))
  yield time.perf_counter() - begun
