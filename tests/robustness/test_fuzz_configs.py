"""A config changed at random is prepared, with nothing compiled, or refused in one line."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from fewshot import (
  backbones,
  config,
  engine,
  episodic,
  experiment,
  fits,
  learners,
  methods,
  programs,
)
from fewshot.episodes import make_pool
from fewshot.errors import FewshotError
from fewshot.prepared import prepare
from fewshot.tasks import prompts
from tests.robustness import workplace
from tests.robustness.spellings import Spellings
from tests.robustness.tries import tries

ROOT = Path(__file__).parents[2]
TINY = {'model': 'model', 'task': 'animals.csv', 'k': 2, 'splits': (0,), 'max_length': 8}
TOY = {
  'model': 'conv4(width=4, depth=2, image_size=8, mean=(0.5,), std=(0.25,))',
  'train.pool': 'toy()', 'test.pool': "toy('test')", 'train.way': 3, 'train.query': 2,
  'train.steps': 3, 'test.way': 3, 'test.query': 2, 'test.episodes': 4,
}  # fmt: skip
METHODS = [
  'linear()', 'lora()', 'lora(rank=0)', 'lora(rank=-1)', 'lora(alpha=1e400)', 'ia3(', 'chain()',
  'chain(lora(), lora(), linear())', 'chain(linear(), nearest_mean())', 'bitfit(3)', 'full',
  'soft_prompt(length=99)', 'tune("(")', 'tune("nope")', 'sgd()', '[]', '1', '~full()', 'a\nb',
  'lora(rank=2147483647)', 'tune(top(magnitude(), 0.5))', 'tune(".*/kernel")', '',
]  # fmt: skip
PROMPTS = [
  '', "cloze('{text} {mask}', 'w1, w2, w3')", "cloze('{nope} {mask}')", "cloze('{text}')", 'cloze(',
  "cloze(('{text} {mask}', '{mask} {text}'), 'w1, w2, w3')", "cloze('{', 'a')", 'linear()',
  "cloze('{text} {mask}', 'w1, w2, w3', score='likelihood')", "cloze('{text} {mask}', 'é, , |')",
]  # fmt: skip
anything = st.one_of(
  st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.just({}),
  st.just({'a': 1}), st.binary(max_size=3), st.lists(st.integers(-2, 9), max_size=3).map(tuple),
)  # fmt: skip


def drawn(known):
  """A random spelling of a vocabulary: mostly sound, or with anything in it."""
  seeds = st.tuples(st.integers(0, 2**32), st.booleans())
  texts = lambda x: Spellings(known, x[0]).sound(0) if x[1] else Spellings(known, x[0]).text()  # noqa: E731
  return seeds.map(texts)


fit = st.sampled_from(['prototypes()', 'sgd(steps=0)', 'sgd(batch=-1)', 'sgd(lr="x")', 'linear()'])
numbers = st.integers(-1, 9) | st.sampled_from([10**9, 2**31, -(2**63)])
LIKELY = {
  'method': st.sampled_from(METHODS) | drawn(methods.VOCABULARY),
  'head': st.sampled_from(METHODS) | drawn(methods.VOCABULARY),
  'fit': fit | drawn(fits.VOCABULARY),
  'program': st.just('lt_sft(fit=sgd(steps=2))') | drawn(programs.VOCABULARY),
  'prompt': st.sampled_from(PROMPTS) | drawn(prompts.VOCABULARY),
  'calibration': st.sampled_from(['none', 'contextual', 'domain', 'x']),
  'objective': st.sampled_from(['classification()', 'regression()', 'lm()', 'x', '']),
  'k': numbers, 'dev_k': numbers, 'unlabelled': numbers, 'max_length': numbers, 'max_test': numbers,
  'splits': st.lists(st.integers(-1, 3), max_size=3).map(tuple),
  'seeds': st.lists(st.integers(-1, 3), max_size=3).map(tuple),
  'grid.lr': st.lists(st.sampled_from([0.1, 0.2, -1.0, float('nan')]), max_size=2).map(tuple),
  'task': st.sampled_from(['trek', 'no.csv', '.', '', 'model', 'a\0b.csv', '/etc/passwd', 'x.tsv']),
  'model': st.sampled_from(['minilm', '.', '', 'animals.csv', '~nobody/x', 'a\0b', '/dev/null']),
  'text': st.sampled_from(['text', 'label', 'text,label', '', ',', 'a\nb']),
  'dropout': st.sampled_from([-0.1, 0.0, 0.5, 1.0, float('nan'), float('inf')]),
  'memory_gb': st.sampled_from([-1.0, 0.0, 1e300, float('nan'), float('inf')]),
  'dtype': st.sampled_from(['float32', 'bfloat16', 'float64', 'int8', '']),
  'engine.loop': st.sampled_from(['auto', 'scan', 'steps', 'x']),
  'engine.remat': st.sampled_from(['off', 'on', 'blocks', 'x']),
}  # fmt: skip
EPISODES = {
  'learner': drawn(learners.VOCABULARY) | st.sampled_from(['protonet()', 'maml(steps=1)', 'x']),
  'train.learner': st.sampled_from(['', 'protonet()', 'baseline()', 'maml(steps=1)', 'r2d2()']),
  'model': st.sampled_from([
    TOY['model'], 'conv4()', 'conv4(width=0)', 'conv4(depth=99)', "pretrained('x')", 'x', '',
    'resnet12(widths=(2, 2))', 'conv4(image_size=2147483647)', 'conv4(width=2147483647)',
  ]),
  'train.pool': st.sampled_from(['toy()', 'toy(7)', 'omniglot()', 'subset(toy(), (0, 1))', 'x']),
  'test.pool': st.sampled_from(["toy('test')", 'toy()', "subset(toy('x'), (9,))", 'lake_runs()']),
  'statistics': st.sampled_from(['train', 'always', 'never', 'x']),
  'train.schedule': st.sampled_from(['constant', 'cosine', 'x']),
  **dict.fromkeys(('train.way', 'train.shot', 'train.query', 'train.images'), numbers),
  **dict.fromkeys(('train.steps', 'train.meta_batch', 'train.save_every', 'seed'), numbers),
  **dict.fromkeys(('test.way', 'test.shot', 'test.query', 'test.episodes'), numbers),
  'train.lr': st.floats() | st.just(0.0),
}  # fmt: skip


def changes(likely, known):
  """Some keys of a config, or what is nearly one, with likely or other values."""
  keys = st.sampled_from(sorted(likely)) | st.sampled_from(sorted(known))
  keys |= keys.map(lambda k: k.upper()) | st.text(max_size=5)
  odd = st.lists(keys, max_size=3, unique=True).flatmap(
    lambda drawn: st.fixed_dictionaries({k: likely.get(k, anything) | anything for k in drawn})
  )
  one = st.sampled_from(sorted(likely)).flatmap(lambda k: st.fixed_dictionaries({k: likely[k]}))
  return one | odd


def rows():
  """Those of the committed configs of texts, on a tiny model and task."""
  found = []
  for path in sorted((ROOT / 'configs').rglob('*.py')):
    found += [c for c in config.load(path) if 'learner' not in c][:4]
  return [config.with_changes(c, TINY) for c in found]


ROWS = rows()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return workplace.make(tmp_path_factory.mktemp('configs') / 'here')


@pytest.fixture
def nothing_compiles(monkeypatch):
  """To compile a program of runs is an error; single operations are not."""

  def refuse(*args, **kwargs):
    raise AssertionError('a program was compiled')

  monkeypatch.setattr(engine, 'compile_programs', refuse)
  monkeypatch.setattr(jax.stages.Lowered, 'compile', refuse)


def fuzz(small):
  return settings(
    max_examples=tries(small, 1000), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
  )  # fmt: skip


def check_line(error):
  """One line, not long, that names no folder of this machine beyond what was written."""
  text = str(error)
  assert text.strip() and '\n' not in text and len(text) <= 600, repr(text)
  assert os.getcwd() not in text and str(Path.home()) + os.sep not in text, text


@fuzz(25)
@given(base=st.sampled_from(ROWS), changes=changes(LIKELY, config._flat(config.default())))
def test_a_config_is_prepared_or_refused_in_one_line(
  folder, monkeypatch, nothing_compiles, base, changes
):
  with monkeypatch.context() as inside:
    inside.chdir(folder)
    try:
      prepared = prepare([config.with_changes(base, changes)])
    except FewshotError as error:
      check_line(error)
    else:
      event('prepared')
      assert all(len(experiment.plan(p)) >= 1 for p in prepared)
      assert all(p.program or p.rows[-1].rule == 'frozen' for p in prepared)


def toy(part: str = 'train'):
  """Eight classes of random images."""
  rng = np.random.default_rng(len(part))
  images = rng.integers(0, 256, (72, 8, 8, 1), np.uint8)
  return make_pool(f'toy-{part}', images, np.repeat(range(8), 9), 'abcdefgh')


@fuzz(10)
@given(changes=changes(EPISODES, config._flat(config.episodes())))
def test_a_config_of_episodes_is_prepared_or_refused_in_one_line(
  folder, monkeypatch, nothing_compiles, changes
):
  with monkeypatch.context() as inside:
    inside.chdir(folder)
    inside.setitem(backbones.POOLS, 'toy', toy)
    inside.setenv('FEWSHOT_DATA', 'none')
    try:
      todo = config.with_changes(config.episodes(), TOY)
      (found,) = episodic.prepare([config.with_changes(todo, changes)])
    except FewshotError as error:
      check_line(error)
    else:
      event('prepared')
      assert len(found.id) == 16 and 'test' in found.hashes
