"""A config changed at random is either prepared or refused in one line, and nothing else."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewshot import config, experiment
from fewshot.errors import FewshotError
from fewshot.prepared import prepare
from tests.robustness import workplace

TRIES = int(os.environ.get('FEWSHOT_TRIES', '30'))
BASE = {'model': 'model', 'task': 'animals.csv', 'k': 2, 'splits': (0,), 'max_length': 8}
METHODS = [
  'linear()', 'lora()', 'lora(rank=0)', 'lora(rank=-1)', 'lora(alpha=1e400)', 'ia3(', 'chain()',
  'chain(lora(), lora(), linear())', 'chain(linear(), nearest_mean())', 'bitfit(3)', 'full',
  'soft_prompt(length=99)', 'tune("(")', 'tune("nope")', 'sgd()', '[]', '1', '~full()', 'a\nb',
]  # fmt: skip
FITS = ['prototypes()', 'sgd()', 'sgd(steps=0)', 'sgd(batch=-1)', 'sgd(lr="x")', 'linear()', 'sgd']
anything = st.one_of(
  st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9),
  st.lists(st.integers(-2, 9), max_size=3).map(tuple),
)  # fmt: skip
LIKELY = {
  'method': st.sampled_from(METHODS),
  'head': st.sampled_from(METHODS),
  'fit': st.sampled_from(FITS),
  'k': st.integers(-1, 9),
  'dev_k': st.integers(-1, 9),
  'splits': st.lists(st.integers(-1, 3), max_size=3).map(tuple),
  'seeds': st.lists(st.integers(-1, 3), max_size=3).map(tuple),
  'grid.lr': st.lists(st.sampled_from([0.1, 0.2, -1.0, float('nan')]), max_size=2).map(tuple),
  'max_length': st.sampled_from([-1, 0, 1, 8, 99, 10**12]),
  'max_test': st.sampled_from([-1, 0, 1, 5, 10**9]),
  'task': st.sampled_from(['trek', 'no.csv', '.', '', 'model', 'a\0b.csv']),
  'model': st.sampled_from(['minilm', '.', '', 'animals.csv', '~nobody/x', 'a\0b']),
  'dropout': st.sampled_from([-0.1, 0.0, 0.5, 1.0, float('nan'), float('inf')]),
  'memory_gb': st.sampled_from([-1.0, 0.0, 1e300, float('nan'), float('inf')]),
  'dtype': st.sampled_from(['float32', 'bfloat16', 'float64', 'int8', '']),
}
changes = st.dictionaries(st.sampled_from(sorted(LIKELY)), st.none(), max_size=3).flatmap(
  lambda keys: st.fixed_dictionaries({k: LIKELY[k] | anything for k in keys})
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return workplace.make(tmp_path_factory.mktemp('configs') / 'here')


@settings(
  max_examples=TRIES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=changes)
def test_prepare_succeeds_or_refuses_in_one_line(folder, monkeypatch, changes):
  with monkeypatch.context() as inside:
    inside.chdir(folder)
    try:
      todo = config.with_changes(config.default(), BASE | {'fit': 'sgd(steps=2)'} | changes)
      (prepared,) = prepare([todo])
    except FewshotError as error:
      assert str(error).strip() and '\n' not in str(error), repr(str(error))
    else:
      assert len(experiment.plan(prepared)) >= 1 and prepared.rows[-1].rule == 'frozen'
