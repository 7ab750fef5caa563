"""Profiling: the page of a real run on the tiny model, and of traces written by hand."""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from fewshot import bench, fits, methods, profiling, sweep
from fewshot.profiling import phase


@pytest.fixture
def quick_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
  """Peaks that nobody measures."""
  monkeypatch.setattr(bench, 'matmul_flops_per_s', lambda dtype: 1e12)
  monkeypatch.setattr(bench, 'copy_bytes_per_s', lambda: 1e11)


def trace(*planes: str) -> ProfileData:
  return ProfileData.from_text_proto('\n'.join(planes))


def plane(name: str, line: str, *events: tuple[str, float, float], **stats: float) -> str:
  """A plane of one line; events are (name, start, end) in seconds, `stats` are of each."""
  names = [f'event_metadata {{ key: {i} value {{ id: {i} name: "{e[0]}" }} }}'
           for i, e in enumerate(events, 1)]  # fmt: skip
  keys = [f'stat_metadata {{ key: {i} value {{ id: {i} name: "{k}" }} }}'
          for i, k in enumerate(stats, 1)]  # fmt: skip
  kind = lambda v: f'str_value: "{v}"' if isinstance(v, str) else f'double_value: {v}'  # noqa: E731
  said = [f'stats {{ metadata_id: {i} {kind(v)} }}' for i, v in enumerate(stats.values(), 1)]
  spans = [
    f'events {{ metadata_id: {i} offset_ps: {round(1e12 * a)} '
    f'duration_ps: {round(1e12 * (b - a))} {" ".join(said)} }}'
    for i, (_, a, b) in enumerate(events, 1)
  ]
  inside = '\n'.join(spans)
  return f'planes {{ name: "{name}" {" ".join(names + keys)} lines {{ name: "{line}" {inside} }} }}'


MARKS = plane(
  '/host:CPU', 'python', ('fewshot/whole', 0, 10), ('fewshot/compile', 0, 4),
  ('fewshot/input', 4, 5), ('fewshot/evaluation', 7, 8),
)  # fmt: skip
STEPS = plane('/host:CPU', 'python', ('fewshot/step', 5, 7), steps=4, flops=1e9, bytes=5e8)


def test_parts_are_the_marks_and_idle_is_the_rest():
  found = profiling.summarise(trace(MARKS, STEPS))
  assert found.whole == 10
  want = {'compile': 4, 'input': 1, 'step': 2, 'evaluation': 1, 'idle': 2}
  assert found.parts == pytest.approx(want)
  assert found.steps == 4
  assert found.flops_per_s == pytest.approx(2e9) and found.bytes_per_s == pytest.approx(1e9)


def test_operations_of_a_gpu_are_those_of_its_streams():
  streams = plane(
    '/device:GPU:0', 'Stream #13(Compute)',
    ('loop_add_fusion_3', 5, 5.5), ('loop_add_fusion', 5.5, 6), ('gemm.12', 5.5, 6.5),
  )  # fmt: skip
  again = plane('/device:GPU:0', 'XLA Modules', ('jit_advance', 5, 7))
  host = plane('/host:CPU', 'thread', ('dot.1', 0, 9), hlo_op='dot.1')
  found = profiling.summarise(trace(MARKS, STEPS, streams, again, host))
  assert {o.name: (o.seconds, o.share) for o in found.operations} == {
    'loop_add_fusion': pytest.approx((1, 0.5)), 'gemm': pytest.approx((1, 0.5))
  }  # fmt: skip
  assert found.busy['step'] == pytest.approx(0.75)  # What ran side by side counts once.
  assert found.busy['evaluation'] == 0


def test_operations_of_a_cpu_have_the_name_of_an_instruction():
  dots = plane('/host:CPU', 'worker', ('dot.315', 5, 6), ('dot.7', 7.25, 7.5), hlo_op='dot.315')
  loop = plane('/host:CPU', 'client', ('while.2', 5, 7), hlo_op='while.2')
  other = plane('/host:CPU', 'client', ('ThunkExecutor::Execute', 0, 10))
  found = profiling.summarise(trace(MARKS, STEPS, dots, loop, other))
  assert [(o.name, o.share) for o in found.operations] == [('dot', 1.0)]
  assert found.busy == pytest.approx({'compile': 0, 'input': 0, 'step': 0.5, 'evaluation': 0.25})


def test_a_trace_of_nothing_has_a_page():
  found = profiling.summarise(trace(plane('/host:CPU', 'python', ('fewshot/whole', 0, 1))))
  assert found.parts['idle'] == 1 and found.busy == {} and found.operations == []
  assert '0 steps' in profiling.render(found, profiling.Peaks(1, 1))


def test_the_page_says_shares_of_the_peaks():
  page = profiling.render(profiling.summarise(trace(MARKS, STEPS)), profiling.Peaks(8e9, 4e9))
  assert '# Profile: 10.00 s' in page
  assert '| compile | 4.00 | 40.0% | 0.0% |' in page and '| idle | 2.00 | 20.0% |  |' in page
  assert '| GFLOP/s, against a matrix product | 2.0 | 8.0 | 25.0% |' in page
  assert '| GB/s accessed, against a copy | 1.0 | 4.0 | 25.0% |' in page


def test_cost_counts_a_product():
  a = jax.ShapeDtypeStruct((32, 64), jnp.float32)
  b = jax.ShapeDtypeStruct((64, 16), jnp.float32)
  found = profiling.cost(jax.jit(jnp.dot).lower(a, b).compile())
  assert found == {'flops': 2 * 32 * 64 * 16, 'bytes': 4 * (32 * 64 + 64 * 16 + 32 * 16)}


def test_a_product_is_traced_with_its_marks(tmp_path, capsys, quick_peaks):
  a = jnp.ones((256, 256))
  product = jax.jit(lambda x: jnp.sin(x @ x)).lower(a).compile()
  with profiling.profile(tmp_path / 'profile'):
    for _ in range(3):
      with phase('step', steps=1, **profiling.cost(product)):
        product(a).block_until_ready()
    with phase('evaluation'):
      time.sleep(0.05)
  page = (tmp_path / 'profile' / 'profile.md').read_text()
  assert '| 3 steps |' in page and page in capsys.readouterr().err
  found = profiling.summarise(profiling.newest(tmp_path / 'profile'))
  assert found.parts['evaluation'] >= 0.05
  flops = 3 * profiling.cost(product)['flops']
  assert found.flops_per_s == pytest.approx(flops / found.parts['step'])
  assert found.operations and 0 < found.busy['step'] <= 1


def test_where_nothing_is_computed_there_is_no_page(tmp_path, capsys, quick_peaks):
  with profiling.profile(tmp_path):
    pass
  assert capsys.readouterr().err == 'nothing was computed, so there is no profile to show\n'
  assert not (tmp_path / 'profile.md').exists()


def test_a_failed_run_ends_its_trace(tmp_path, quick_peaks):
  for _ in range(2):  # A trace that still ran would refuse the next.
    with pytest.raises(KeyboardInterrupt), profiling.profile(tmp_path):
      raise KeyboardInterrupt
  assert not (tmp_path / 'profile.md').exists()


def test_the_parts_of_a_sweep_are_its_whole(tiny, tmp_path, quick_peaks):
  folder: Path = tmp_path / 'profile'
  method, fit = methods.parse('chain(lora(rank=2), linear())'), fits.sgd(steps=10, batch=4)
  with profiling.profile(folder):
    start = time.perf_counter()
    results = list(sweep.sweep(tiny.model, tiny.encoded, method, fit, classes=3))
    wall = time.perf_counter() - start
  found = profiling.summarise(profiling.newest(folder))
  assert sum(found.parts.values()) == pytest.approx(wall, rel=0.05)
  assert found.whole == pytest.approx(wall, rel=0.05)
  timings = results[0].timings
  assert found.parts['compile'] == pytest.approx(timings['compile_seconds'], rel=0.1)
  assert 0 < found.parts['step'] <= timings['fit_seconds']
  assert 0 < found.parts['evaluation'] <= timings['score_seconds'] + 0.01
  assert found.parts['input'] > 0 and found.steps == 10
  assert found.flops_per_s > 0 and found.bytes_per_s > 0
  shares = [*found.busy.values(), *(o.share for o in found.operations)]
  assert all(0 <= share <= 1 for share in shares)
  assert found.busy['step'] > 0.1 and sum(o.share for o in found.operations) == pytest.approx(1)
