"""Configs: overrides of every type, sweeps, and what a config file may do wrong."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from fewshot import config as configs
from fewshot.errors import FewshotError

HEAD = 'from fewshot.config import default\n'
PLAIN = HEAD + 'def get_config():\n  return default()\n'
SWEPT = PLAIN + "def sweep():\n  yield {'k': 2}\n  yield {'k': 4, 'method': 'linear()'}\n"


@pytest.fixture
def load(tmp_path):
  def load(text: str, *overrides: str) -> list[ConfigDict]:
    (tmp_path / 'c.py').write_text(text)
    return configs.load(tmp_path / 'c.py', overrides)

  return load


@pytest.mark.parametrize(
  'override, key, value',
  [
    ('k=8', 'k', 8),
    ('dropout=0.1', 'dropout', 0.1),
    ('dropout=0', 'dropout', 0.0),
    ('memory_gb=2', 'memory_gb', 2.0),
    ('checkpoints=True', 'checkpoints', True),
    ('name=mine', 'name', 'mine'),
    ('name=', 'name', ''),
    ("name='a=b'", 'name', 'a=b'),
    ('name=3', 'name', '3'),
    ("name='", 'name', "'"),
    ('method=chain(lora(rank=4), linear())', 'method', 'chain(lora(rank=4), linear())'),
    ('method="lora(where=\'.*\')"', 'method', "lora(where='.*')"),
    ('splits=(7, 8)', 'splits', (7, 8)),
    ('splits=[7]', 'splits', (7,)),
    ('splits=3', 'splits', (3,)),
    ('seeds=()', 'seeds', ()),
    ('grid.lr=(1e-3, 1)', 'grid.lr', (1e-3, 1)),
    ('grid.lr=1e-3', 'grid.lr', (1e-3,)),
    ('wandb.mode=offline', 'wandb.mode', 'offline'),
  ],
)
def test_an_override(load, override, key, value):
  (config,) = load(PLAIN, override)
  flat = configs._flat(config)
  assert flat[key] == value and type(flat[key]) is type(value)
  default = configs._flat(configs.default())
  assert {k: v for k, v in flat.items() if k != key} == {
    k: v for k, v in default.items() if k != key
  }


def test_later_overrides_win(load):
  assert load(PLAIN, 'k=2', 'k=3')[0].k == 3


@pytest.mark.parametrize(
  'override, message',
  [
    ('kk=3', "unknown config key 'kk'; did you mean 'k'?"),
    ('wandb.mod=x', "unknown config key 'wandb.mod'; did you mean 'wandb.mode'?"),
    ('wandb=x', "unknown config key 'wandb'"),
    ('grid.rank=(1,)', "unknown config key 'grid.rank'"),
    ('=3', "unknown config key ''; known: "),
    ('k', '--config.k has no value; write --config.k=VALUE'),
    ('k=8.5', 'config.k is of type int, not 8.5'),
    ('k=', "config.k is of type int, not ''"),
    ('k=eight', "config.k is of type int, not 'eight'"),
    ('k=None', 'config.k is of type int, not None'),
    ('k=True', 'config.k is of type int, not True'),
    ('dropout=False', 'config.dropout is of type float, not False'),
    ("dropout='0.1'", "config.dropout is of type float, not '0.1'"),
    ('checkpoints=1', 'config.checkpoints is of type bool, not 1'),
    ("splits=('a',)", "config.splits is a tuple of seeds, not ('a',)"),
    ('splits=(1.5,)', 'config.splits is a tuple of seeds, not (1.5,)'),
    ('seeds=-1', 'config.seeds is a tuple of seeds, not (-1,)'),
    ('grid.lr=("a",)', 'config.grid.lr is a tuple of numbers'),
    ('grid.lr=1e999', 'config.grid.lr is a tuple of numbers, not (inf,)'),
    ('k=' + '(' * 5000, 'config.k is of type int'),
    ('k=__import__("os")', 'config.k is of type int'),
  ],
)
def test_an_override_that_is_refused(load, override, message):
  with pytest.raises(FewshotError, match=re.escape(message)) as e:
    load(PLAIN, override)
  assert '\n' not in str(e.value)


KEYS = [*configs._flat(configs.default()), 'grid', 'wandb', 'zzz', '']
VALUES = st.text(max_size=30) | st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
  lambda inner: (
    st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(), inner, max_size=2)
  ),
  max_leaves=5,
).map(repr)


@settings(max_examples=200, deadline=None)
@example('checkpoints', '=', "{'.': None}")
@given(st.sampled_from(KEYS) | st.text(max_size=5), st.sampled_from(['=', '', '==']), VALUES)
def test_any_override_is_taken_or_refused_in_one_line(key, eq, value):
  base = configs.default()
  try:
    config = configs.with_changes(base, dict([configs._parse_override(base, key + eq + value)]))
    grid = configs.grid(config)
  except FewshotError as e:
    assert len(str(e).splitlines()) == 1
  else:
    flat, default = configs._flat(config), configs._flat(base)
    assert flat.keys() == default.keys()
    assert all(type(flat[k]) is type(default[k]) for k in flat)
    assert all(isinstance(v, float) for values in grid.values() for v in values)


def test_a_sweep_is_a_config_a_row(load):
  first, second = load(SWEPT)
  assert (first.k, second.k, second.method) == (2, 4, 'linear()')
  assert first.method == configs.default().method
  assert first.is_locked and second.is_locked


def test_an_override_of_another_key_goes_to_every_row(load):
  assert [(c.k, c.max_test) for c in load(SWEPT, 'max_test=9')] == [(2, 9), (4, 9)]


@pytest.mark.parametrize('override', ['k=7', 'method=bitfit()'])
def test_an_override_of_a_swept_key_switches_the_sweep_off(load, override):
  (config,) = load(SWEPT, override)
  assert (config.k, config.method) in ((7, configs.default().method), (16, 'bitfit()'))


@pytest.mark.parametrize(
  'text, message',
  [
    ('def get_config(:\n  pass\n', 'does not run: SyntaxError'),
    ('import no_such_module\n', 'does not run: ModuleNotFoundError'),
    ('x = 1\n', 'has no get_config()'),
    (
      'def get_config():\n  return {"k": 3}\n',
      'returns no ConfigDict; start from config.default()',
    ),
    ('def get_config():\n  1 / 0\n', 'does not run: ZeroDivisionError: division by zero'),
    ('def get_config():\n  raise ValueError("a\\nb")\n', 'does not run: ValueError: a b'),
    ('def get_config(x):\n  return x\n', 'does not run: TypeError'),
    (HEAD + 'def get_config():\n  c = default()\n  c.kk = 3\n  return c\n', 'does not run: '),
    (
      HEAD + 'def get_config():\n  c = default().unlock()\n  c.kk = 3\n  return c\n',
      "unknown config key 'kk'; did you mean 'k'?",
    ),
    (
      'from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({"k": "8"})\n',
      "config.k is of type int, not '8'",
    ),
    (PLAIN + 'def sweep():\n  raise KeyError("x")\n', 'does not run: KeyError'),
    (PLAIN + 'def sweep():\n  return None\n', 'does not run: TypeError'),
    (PLAIN + 'def sweep():\n  return []\n', 'yields no rows'),
    (PLAIN + 'def sweep():\n  yield "k=3"\n', 'not dicts'),
    (PLAIN + 'def sweep():\n  yield {"kk": 3}\n', "unknown config key 'kk'; did you mean 'k'?"),
    (PLAIN + 'def sweep():\n  yield {"k": "3"}\n', "config.k is of type int, not '3'"),
  ],
)
def test_a_file_that_is_refused(load, text, message):
  with pytest.raises(FewshotError, match=re.escape(message)) as e:
    load(text)
  assert '\n' not in str(e.value)


def test_a_file_that_is_not_there_or_no_python(tmp_path):
  with pytest.raises(FewshotError, match=r'there is no config file .*gone\.py; see the folder'):
    configs.load(tmp_path / 'gone.py')
  (tmp_path / 'c.yaml').write_text('k: 3')
  with pytest.raises(FewshotError, match=r'c.yaml is no Python file; a config is configs/NAME.py'):
    configs.load(tmp_path / 'c.yaml')
  (tmp_path / 'c.py').write_bytes(b'\xff\xfe')
  with pytest.raises(FewshotError, match='does not run: SyntaxError'):
    configs.load(tmp_path / 'c.py')


def test_a_file_may_set_some_keys_alone(load):
  text = 'from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({"k": 3})\n'
  (config,) = load(text)
  assert config.k == 3 and config.fit == configs.default().fit and config.is_locked


def test_the_base_is_not_changed():
  base = configs.default()
  changed = configs.with_changes(base, {'k': 3, 'wandb.mode': 'online', 'grid.lr': [0.1]})
  assert (base.k, base.wandb.mode, base.grid.lr) == (16, 'disabled', ())
  assert configs.grid(changed) == {'lr': (0.1,)} and configs.grid(base) == {}


def test_as_dict_is_plain_and_without_paths(tmp_path):
  changes = {'out': str(tmp_path), 'task': str(tmp_path / 'my.csv'), 'model': '~/models/tiny'}
  plain: dict[str, Any] = configs.as_dict(configs.with_changes(configs.default(), changes))
  assert 'out' not in plain
  assert (plain['task'], plain['model']) == ('my.csv', 'tiny')
  assert plain['splits'] == [0, 1, 2, 3, 4] and plain['grid']['lr'] == []
  assert configs.as_dict(configs.default())['model'] == 'minilm-l6'
  relative = configs.with_changes(configs.default(), {'task': 'data/my.csv'})
  assert configs.as_dict(relative)['task'] == 'data/my.csv'


@pytest.mark.parametrize('file', sorted(Path(__file__).parents[1].glob('configs/*.py')), ids=str)
def test_the_committed_configs_load(file):
  from fewshot import fits, methods

  for config in configs.load(file):
    assert methods.parse(config.method).made is not None
    assert fits.parse(config.fit).made is not None
