"""Saving and loading: bits come back, and what does not belong together is refused."""

import json
import os
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers
from flax import linen as nn

from fewshot import checkpoint, methods, models
from fewshot.adapted import Adapted
from fewshot.errors import FewshotError
from fewshot.methods import paths

TEXTS = ['w3 w9 w4', 'w7', 'w8 w8 w12 w30 w2']
SPELLINGS = (
  'linear()',
  'nearest_mean()',
  'chain(lora(rank=2), ia3(), linear())',
  'chain(bitfit(), soft_prompt(length=2), nearest_mean())',
)


@pytest.fixture(scope='module')
def model(tiny) -> models.Model:
  """The tiny BERT, reading words w1 ... w49."""
  vocab = {'[UNK]': 0, **{f'w{i}': i for i in range(1, 50)}}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token='[UNK]'))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  hashes = {'weights': models.hash_params(tiny.params), 'tokenizer': 'abc'}
  return tiny.model._replace(tokenizer=tokenizer, hashes=hashes)


@pytest.fixture(scope='module')
def make(model, perturb):
  def make(spelling: str, **kwargs: Any) -> Adapted:
    method = methods.parse(spelling)
    ones = np.ones((1, 2), np.int32)
    calib = methods.Calib({'tokens': ones, 'mask': ones > 0}, 3)
    start = method.init(jax.random.key(0), model.forward, model.params, calib)
    theta, state = perturb(start)
    return Adapted(model, method, theta, state, ('a', 'b', 'c'), split='5plit', **kwargs)

  return make


@pytest.fixture
def saved(make, tmp_path) -> Path:
  return checkpoint.save(make('linear()'), tmp_path / 'saved')


def edit(folder: Path, **changes: Any) -> None:
  about = json.loads((folder / 'adapted.json').read_text())
  (folder / 'adapted.json').write_text(json.dumps(about | changes))


@pytest.mark.parametrize('spelling', SPELLINGS)
def test_a_round_trip_is_bit_identical(make, model, tmp_path, spelling):
  adapted = make(spelling, max_length=4)
  got = checkpoint.load(checkpoint.save(adapted, tmp_path / 'deep' / 'saved'), model)
  want = (adapted.theta, adapted.state)
  assert jax.tree.structure((got.theta, got.state)) == jax.tree.structure(want)
  jax.tree.map(np.testing.assert_array_equal, (got.theta, got.state), want)
  assert methods.spell(got.method) == spelling
  assert (got.classes, got.max_length, got.split) == (('a', 'b', 'c'), 4, '5plit')
  np.testing.assert_array_equal(got.logits(TEXTS), adapted.logits(TEXTS))
  assert got.predict(TEXTS) == adapted.predict(TEXTS)


class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.tanh(nn.Dense(6, name='up')(x))


def own(**kwargs: Any) -> models.Model:
  params = Net().init(jax.random.key(0), np.ones((1, 4)))['params']
  return models.Model('net', models.from_linen(Net()), params, **kwargs)


def test_a_linen_model_of_ones_own(tmp_path, perturb):
  model = own(example={'x': np.ones((1, 4), np.float32)})
  method = methods.chain(methods.lora('up', rank=2), methods.linear())
  start = method.init(
    jax.random.key(0), model.forward, model.params, methods.Calib(model.example, 2)
  )
  adapted = Adapted(model, method, *perturb(start), ('no', 'yes'))
  folder = checkpoint.save(adapted, tmp_path / 'net')
  x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
  np.testing.assert_array_equal(checkpoint.load(folder, model).logits(x), adapted.logits(x))
  with pytest.raises(FewshotError, match=r'net needs an example batch.*Model\(example=...\)'):
    checkpoint.load(folder, own())
  with pytest.raises(FewshotError, match="there is no model 'net'"):
    checkpoint.load(folder)


def test_the_json_holds_no_path_and_names_what_it_belongs_to(saved, model):
  text = (saved / 'adapted.json').read_text()
  about = json.loads(text)
  assert about['method'] == 'linear()' and about['model'] == 'tiny'
  assert about['hashes'] == {**model.hashes, 'split': '5plit'}
  assert about['classes'] == ['a', 'b', 'c'] and about['dtype'] == 'float32'
  for folder in (str(saved.parent), os.getcwd(), str(Path.home())):
    assert folder not in text
  assert {p.name for p in saved.iterdir()} == {'adapted.json', 'theta.safetensors'}
  assert [p.name for p in saved.parent.iterdir()] == ['saved']  # Nothing temporary is left.


def test_a_model_from_a_folder_is_named_without_its_path(tmp_path, monkeypatch):
  fixture = Path(__file__).parent / 'parity' / 'fixtures' / 'bert-tiny'
  model = models.load(str(fixture.absolute()), dtype=jax.numpy.bfloat16)
  method = methods.bitfit()
  ones = np.ones((1, 2), np.int32)
  calib = methods.Calib({'tokens': ones, 'mask': ones > 0}, 2)
  theta, state = method.init(jax.random.key(0), model.forward, model.params, calib)
  adapted = Adapted(model, method, theta, state, ('a', 'b'))
  folder = checkpoint.save(adapted, tmp_path / 'saved')
  assert json.loads((folder / 'adapted.json').read_text())['model'] == 'bert-tiny'
  monkeypatch.chdir(fixture.parent)  # Where the name is a folder again.
  with pytest.raises(FewshotError, match='needs an example batch'):
    checkpoint.load(folder, model._replace(example=None))
  got = checkpoint.load(folder)
  assert got.model.params['embed']['embedding'].dtype == jax.numpy.bfloat16


def test_saving_again_replaces(make, model, saved):
  adapted = make('chain(ia3(), linear())')
  checkpoint.save(adapted, saved)
  assert methods.spell(checkpoint.load(saved, model).method) == 'chain(ia3(), linear())'
  assert [p.name for p in saved.parent.iterdir()] == ['saved']


@pytest.mark.parametrize('fails', ['save_file', 'replace', 'second replace'])
def test_an_interrupted_save_leaves_the_old_one(make, model, saved, monkeypatch, fails):
  calls, replace = [], os.replace

  def interrupted(*args: Any) -> None:
    calls.append(args)
    if fails == 'second replace' and len(calls) != 2:
      return replace(*args)
    raise KeyboardInterrupt

  if fails == 'save_file':
    monkeypatch.setattr(checkpoint.safetensors.numpy, 'save_file', interrupted)
  else:
    monkeypatch.setattr(checkpoint.os, 'replace', interrupted)
  with pytest.raises(KeyboardInterrupt):
    checkpoint.save(make('chain(ia3(), linear())'), saved)
  monkeypatch.undo()
  assert methods.spell(checkpoint.load(saved, model).method) == 'linear()'
  assert [p.name for p in saved.parent.iterdir()] == ['saved']


def test_a_folder_of_something_else_is_never_overwritten(make, tmp_path):
  (tmp_path / 'thesis').mkdir()
  (tmp_path / 'thesis' / 'chapter.tex').write_text('...')
  (tmp_path / 'file').write_text('...')
  for name in ('thesis', 'file'):
    with pytest.raises(FewshotError, match=f'{name} exists and is no checkpoint; give another'):
      checkpoint.save(make('linear()'), tmp_path / name)
  assert (tmp_path / 'thesis' / 'chapter.tex').read_text() == '...'
  assert sorted(p.name for p in tmp_path.iterdir()) == ['file', 'thesis']


def test_a_folder_that_cannot_be_written(make, tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  with pytest.raises(FewshotError, match=r'cannot save to .*saved: .*give a writable folder'):
    checkpoint.save(make('linear()'), tmp_path / 'file' / 'saved')

  def denied(*args: Any, **kwargs: Any) -> None:  # Root may write anywhere, so it is played.
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(checkpoint.tempfile, 'mkdtemp', denied)
  with pytest.raises(FewshotError, match=r'cannot save to .*Permission denied; give a writable'):
    checkpoint.save(make('linear()'), tmp_path / 'saved')


def test_a_method_without_a_spelling(make, tmp_path):
  adapted = make('linear()')
  bare = adapted._replace(method=adapted.method._replace(made=None))
  with pytest.raises(FewshotError, match='a Method has no spelling'):
    checkpoint.save(bare, tmp_path / 'saved')
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('keep', [0, 5, -1])
def test_damaged_tensors(saved, model, keep):
  file = saved / 'theta.safetensors'
  file.write_bytes(file.read_bytes()[:keep])
  with pytest.raises(
    FewshotError, match=r'theta\.safetensors is missing or damaged.*save it again'
  ):
    checkpoint.load(saved, model)


def test_missing_files(saved, model, tmp_path):
  (saved / 'theta.safetensors').unlink()
  with pytest.raises(FewshotError, match=r'theta\.safetensors is missing or damaged'):
    checkpoint.load(saved, model)
  (saved / 'adapted.json').unlink()
  with pytest.raises(FewshotError, match=r'adapted\.json is missing from saved/'):
    checkpoint.load(saved, model)
  with pytest.raises(FewshotError, match='there is no checkpoint folder'):
    checkpoint.load(tmp_path / 'gone', model)


@pytest.mark.parametrize('key', checkpoint.KINDS)
def test_a_damaged_json(saved, model, key):
  about = json.loads((saved / 'adapted.json').read_text())
  for odd in (None, 3, [], {}, 'zzz'):
    if type(odd) is not checkpoint.KINDS[key]:
      edit(saved, **{key: odd})
      with pytest.raises(FewshotError, match=rf"adapted\.json holds no \w+ under '{key}'"):
        checkpoint.load(saved, model)
  del about[key]
  (saved / 'adapted.json').write_text(json.dumps(about))
  with pytest.raises(FewshotError, match=rf"adapted\.json lacks '{key}'; save it again"):
    checkpoint.load(saved, model)


@pytest.mark.parametrize('what', ['weights', 'tokenizer'])
def test_another_base(saved, model, what):
  other = model._replace(hashes=model.hashes | {what: 'f00'})
  message = rf'made on tiny with {what} \w+, but tiny has f00; load the base it belongs to'
  with pytest.raises(FewshotError, match=message):
    checkpoint.load(saved, other)


def test_weights_that_changed_are_another_base(saved, model):
  params = paths.replace(model.params, {'inputs/ln/bias': np.zeros(32, np.float32)})
  other = model._replace(params=params, hashes={})  # Then the hash is computed.
  with pytest.raises(FewshotError, match='load the base it belongs to'):
    checkpoint.load(saved, other)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'classes': ['a', 'b']}, 'does not fit linear() at theta/head/kernel, theta/head/bias'),
    ({'method': 'nearest_mean()'}, 'does not fit nearest_mean() at state/head/means, theta/head/'),
    ({'method': 'chain(linear(), ia3())'}, 'does not fit chain(linear(), ia3()) at theta/0/head'),
    ({'method': 'linaer()'}, "unknown method 'linaer'; did you mean 'linear'?"),
  ],
)
def test_a_method_of_other_shapes(saved, model, changes, message):
  edit(saved, **changes)
  order = re.escape(message).replace('kernel,\\ theta/head/bias', r'(kernel|bias)')
  with pytest.raises(FewshotError, match=order):
    checkpoint.load(saved, model)
