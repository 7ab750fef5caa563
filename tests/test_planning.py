"""Plans on paper: they agree with arithmetic by hand, and planning takes no memory."""

import json

import jax
import pytest

from fewshot import cli, config, fits, methods, planning, tasks, train
from fewshot.errors import FewshotError
from fewshot.fits.base import Data
from fewshot.models import shapes
from fewshot.objectives import classification
from tests.robustness import workplace

METHOD = 'chain(lora(rank=2), linear())'
TINY = planning.Job('shape:tiny', METHOD, 'sgd(batch=8)', 2, planning.texts(16, 64))
SMALL = TINY._replace(model='shape:minilm-l6', train=planning.texts(8, 32))


@pytest.fixture(scope='module')
def tiny():
  return planning.plan(TINY)


@pytest.fixture(scope='module')
def small():
  """On one device, on eight, and on sixteen, which a minibatch of eight does not split."""
  return {n: planning.plan(SMALL, n) for n in (1, 8, 16)}


@pytest.mark.slow
def test_flops_are_those_by_hand(small):
  for n, found in small.items():
    assert found['devices'] == n and found['flops_per_step'] == n * found['flops_per_device']
    assert 0.9 < found['flops_per_step'] / found['closed_form_flops'] < 1.1


@pytest.mark.slow
def test_weights_are_split_over_the_devices(small):
  weights = 4 * sum(x.size for x in jax.tree.leaves(shapes.abstract('minilm-l6').params))
  assert 1 <= small[1]['argument_bytes'] / weights < 1.05
  for n in (8, 16):
    assert small[n]['argument_bytes'] < 1.2 * small[1]['argument_bytes'] / n
    assert small[n]['temp_bytes'] < small[1]['temp_bytes'] / 2
  for found in small.values():
    least = found['argument_bytes'] + found['temp_bytes']
    assert least <= found['memory_bytes_per_device'] < 1.01 * least
  assert [f['axes'] for f in small.values()] == [
    {'fsdp': 1, 'tensor': 1},
    {'fsdp': 8, 'tensor': 1},
    {'fsdp': 8, 'tensor': 2},
  ]


def test_one_device_needs_what_the_engine_would_compile(tiny):
  model = shapes.abstract('tiny')
  setup = train.Setup(
    model.forward, methods.parse(METHOD), fits.parse(TINY.fit), classification(), 2
  )
  arrays = {k: jax.ShapeDtypeStruct((1, *s), d) for k, (s, d) in TINY.train.items()}
  key = jax.ShapeDtypeStruct((1,), jax.random.key(0).dtype)
  inputs = train.Inputs(key, {}, Data(arrays))
  begin = jax.vmap(lambda p, i: train.begin(setup, p, i), (None, 0))
  carry = jax.eval_shape(begin, model.params, inputs)
  held = jax.tree.leaves((model.params, arrays, carry))
  assert tiny['argument_bytes'] == pytest.approx(
    sum(x.size * x.dtype.itemsize for x in held), rel=0.02
  )


@pytest.mark.slow
def test_bfloat16_takes_half(tiny):
  half = planning.plan(TINY._replace(dtype='bfloat16'))
  assert 0.4 < half['temp_bytes'] / tiny['temp_bytes'] < 0.7
  # XLA counts conversions between the widths, which weigh in a model as small as this.
  assert half['flops_per_step'] == pytest.approx(tiny['flops_per_step'], rel=0.1)


@pytest.mark.slow
def test_accumulated_parts_are_all_counted(tiny):
  parts = planning.plan(TINY._replace(fit='sgd(batch=8, accumulate=4)'))
  assert parts['closed_form_flops'] == tiny['closed_form_flops']
  assert parts['flops_per_step'] == pytest.approx(tiny['flops_per_step'], rel=0.1)
  assert parts['temp_bytes'] < tiny['temp_bytes'] / 2


@pytest.mark.slow
def test_runs_side_by_side_share_the_weights(tiny):
  two = planning.plan(TINY._replace(runs=2))
  assert two['flops_per_step'] == pytest.approx(2 * tiny['flops_per_step'], rel=0.02)
  assert two['closed_form_flops'] == 2 * tiny['closed_form_flops']
  assert two['argument_bytes'] < 1.3 * tiny['argument_bytes']


@pytest.mark.long
def test_seven_billion_weights_are_planned_in_little_memory():
  job = planning.Job('shape:llama-7b', 'chain(lora(), linear())', 'sgd(batch=8)', 2,
                     planning.texts(8, 512), dtype='bfloat16')  # fmt: skip
  found = planning.plan(job, 8)
  assert found['peak_rss_bytes'] < 4 * 2**30  # The weights alone are 13.5 GB.
  assert 13.4e9 / 8 < found['argument_bytes'] < 13.5e9 / 8 + 0.1e9
  assert 0.9 < found['flops_per_step'] / found['closed_form_flops'] < 1.1


def test_the_closed_form_of_a_known_model():
  params = shapes.abstract('llama-7b').params
  per_block = 4 * 4096**2 + 3 * 4096 * 11_008
  want = 8 * 512 * 32 * (4 * per_block + 12 * 512 * 4096)
  assert planning.closed_form(params, 8, 512) == want
  assert planning.closed_form(shapes.abstract('resnet-50').params, 8, 1) is None


def test_shapes_are_loaded_without_weights():
  assert type(jax.tree.leaves(planning.load('shape:tiny').params)[0]) is jax.ShapeDtypeStruct
  with pytest.raises(FewshotError, match='no model'):
    planning.load('tinny')


def test_the_job_of_an_experiment():
  task = tasks.make('toy', [f'text {i}' for i in range(24)], ['x', 'y'] * 12)
  data = tasks.encode(task, tasks.kshot(task, 4, [0, 1], dev_k=2), shapes.byte_level())
  asked = config.default()
  asked.model, asked.dtype, asked.fit = 'shape:tiny', 'bfloat16', TINY.fit
  job = planning.job(asked, methods.parse(METHOD), data, 2)
  length = data.train['tokens'].shape[-1]
  want = planning.texts(8, length), planning.texts(4, length)
  assert job == TINY._replace(train=want[0], dev=want[1], dtype='bfloat16')


@pytest.mark.parametrize(
  'change, axes, message',
  [
    ({'fit': 'prototypes()'}, None, 'takes no steps'),
    ({'model': 'shape:tinny'}, None, "no shape 'tinny'; did you mean 'tiny'"),
    ({'method': "chain(lora(init='eva', rho=2.0), linear())"}, None, 'takes its structure from'),
    ({}, {'fsdp': 3}, 'a mesh of 3 fsdp is not of the 2 devices'),
    ({'dtype': 'int7'}, None, 'shape:tiny on 2 devices could not be planned: TypeError.*int7'),
  ],
)
def test_what_cannot_be_planned_is_said(change, axes, message):
  with pytest.raises(FewshotError, match=message):
    planning.plan(TINY._replace(**change), 2, axes)


def test_devices_are_a_count():
  with pytest.raises(FewshotError, match='devices=0 is no whole number of at least 1'):
    planning.plan(TINY, 0)


def test_the_command_plans_for_devices_that_are_not_there(tmp_path, monkeypatch, capsys):
  workplace.enter(tmp_path, monkeypatch)
  more = ('--config.model=shape:tiny', '--config.method=lora(rank=2)', '--json')
  more += ('--config.fit=sgd(steps=3, batch=4)',)
  assert cli.main(['run', 'config.py', '--dry-run', '--devices', '1,2', *more]) == 0
  (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])['rows']
  one, two = row['plans']
  assert (one['devices'], two['devices']) == (1, 2)
  assert two['flops_per_device'] < one['flops_per_device']
  assert cli.main(['run', 'config.py', '--devices', '8']) == 2
  assert '--devices 8 goes with --dry-run' in capsys.readouterr().err
