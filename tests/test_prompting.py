"""Prompts in configs: records, tables and checkpoints of a causal model that completes texts."""

import json
import shutil

import numpy as np
import pytest
import tokenizers

import fewshot
from fewshot import checkpoint, cli, command_run, methods, prepared
from fewshot import config as configs
from tests.robustness import workplace

FIXTURE = workplace.FIXTURE.parent / 'gpt2-tiny'
PROMPT = "cloze('{text} w7 {mask}', 'w2, w3, w4|w5')"
CONFIG = f"""
from fewshot.config import default, with_changes


def get_config():
  return with_changes(default(), {{
    'name': 'tiny', 'model': 'model', 'task': 'animals.csv', 'k': 2, 'splits': (0, 1),
    'max_length': 12, 'prompt': {PROMPT!r},
  }})


def sweep():
  yield {{'method': 'chain()', 'fit': 'untrained()'}}
  yield {{'method': 'demonstrations(shots=3, length=20)', 'fit': 'untrained()',
         'calibration': 'contextual'}}
  yield {{'method': 'lora(rank=2)', 'fit': 'sgd(steps=2)', 'checkpoints': True,
         'calibration': 'domain'}}
  yield {{'method': 'lora(rank=2)', 'fit': 'sgd(steps=2)', 'objective': 'hinge()',
         'prompt': "cloze(('{{text}} {{mask}}', 'w9 {{text}} w8 {{mask}}'), 'w2, w3, w4')"}}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
  workplace.enter(tmp_path, monkeypatch)
  shutil.rmtree(tmp_path / 'model')
  (tmp_path / 'model').mkdir()
  for name in ('config.json', 'model.safetensors'):
    shutil.copy(FIXTURE / name, tmp_path / 'model')
  size = json.loads((FIXTURE / 'config.json').read_text())['vocab_size']
  workplace.tokenizer(tmp_path / 'model', size)
  rows = (tmp_path / 'animals.csv').read_text()
  words = {f'w{i}': f'w{i % (size - 12) + 11}' for i in range(100)}
  shown = ' '.join(
    words.get(w, w) for w in rows.replace(',', ' , ').replace('\n', ' \n ').split(' ')
  )
  (tmp_path / 'animals.csv').write_text(shown.replace(' , ', ',').replace(' \n ', '\n'))
  (tmp_path / 'config.py').write_text(CONFIG)
  return tmp_path


def test_prompts_are_rows_of_tables_and_records(place, capsys):
  assert cli.main(['run', 'config.py']) == 0
  err = capsys.readouterr().err
  first = next(x for x in err.splitlines() if x.strip().startswith('as in: '))
  assert first.endswith(' w7') and first.count(' w') >= 3  # A train text in its template.
  for line in ("'{text} w7 {mask}'", 'bird: w2', 'worm: w4 | w5', "'w9 {text} w8 {mask}'"):
    assert line in err
  records = workplace.records(place)
  assert len(records) == 8
  assert [r.get('prompt') for r in records[:2]] == [PROMPT.replace(", 'w2", ", words='w2")] * 2
  first, last = records[0], records[-1]
  assert last['objective'] == 'hinge()' and 'objective' not in first
  assert first['trained'] == 0 and first['method'] == 'chain()' and first['cut'] == 0
  assert first['hashes']['template'] != last['hashes']['template']
  assert {r['hashes']['words'] for r in records[:6]} == {first['hashes']['words']}
  shown = [r['shown'] for r in records if 'shown' in r]
  assert len(shown) == sum('demonstrations' in r['method'] for r in records) > 0
  for least, most in (bounds for one in shown for bounds in one.values()):
    assert 1 <= least <= most <= 3
  assert 'verbalizer' not in json.dumps(records)
  table = (place / 'runs' / 'tiny' / 'table.md').read_text()
  assert '`demonstrations(shots=3, length=20) with contextual calibration`' in table
  assert table.count('### animals') == 2 and 'hinge() by sgd(steps=2)' in table
  assert str(place) not in json.dumps(records)

  saved = sorted((place / 'runs' / 'tiny' / 'checkpoints').iterdir())
  assert len(saved) == 2
  adapted = checkpoint.load(saved[0])
  record = next(r for r in records if r['id'] == saved[0].name)
  task = fewshot.tasks.from_csv('animals.csv')
  (split,) = fewshot.tasks.kshot(task, 2, [record['split']['seed']], max_test=500)
  texts = [task.inputs[i] for i in split.test]
  assert adapted.predict(texts) == [task.classes[i] for i in record['predictions']]
  *before, calibrated = adapted.method.parts  # Which is kept, and says other classes.
  assert calibrated.made.fn is methods.calibrated
  plain = adapted._replace(
    method=methods.chain(*before), theta=adapted.theta[:-1], state=adapted.state[:-1]
  )
  assert plain.predict(texts) != adapted.predict(texts)

  before = len(records)
  assert cli.main(['run', 'config.py']) == 0  # All ids are found again.
  assert len(workplace.records(place)) == before


def test_splits_that_are_prepared_alone_are_shown_once(place, capsys):
  """What is cut is that of all of them: masked models show demonstrations of each split's own."""
  shutil.copytree(FIXTURE.parent / 'bert-mlm-tiny', place / 'masked')
  workplace.tokenizer(place / 'masked', 99)
  tok = tokenizers.Tokenizer.from_file(str(place / 'masked' / 'tokenizer.json'))
  tok.add_special_tokens(['[MASK]'])
  tok.save(str(place / 'masked' / 'tokenizer.json'))
  more = ['model=masked', "prompt=cloze('{text} w7 {mask}', 'w2, w3, w4', demonstrations=1)"]
  made = prepared.prepare(
    configs.load('config.py', [*more, 'max_length=28', 'method=chain()', 'fit=untrained()'])[:1]
  )
  assert len(made) == 2 and all(p.data.rows == 6 + 18 for p in made)
  command_run._show_preflight(made)
  err = capsys.readouterr().err
  assert err.count('bird: w2') == err.count('as in: ') == err.count('trains 0') == 1
  cut = sum(p.data.cut for p in made)
  assert 0 < cut < 48 and f'{cut} of 48 texts of animals are longer than 28 tokens' in err


@pytest.mark.parametrize(
  ('overrides', 'said'),
  [
    (["prompt=cloze('{text} {mask}', 'w2, w3')"], 'words for 2 classes, and the task has 3'),
    (["prompt=cloze('{mask} {text}', 'w2, w3, w4')"], 'is the end of the text'),
    (['prompt=', 'calibration=domain', 'method=linear()', 'fit=sgd(steps=1)'], 'of label words'),
    (
      ['calibration=domain', "prompt=cloze(('{text} {mask}', 'w9 {text} {mask}'), 'w2, w3, w4')"],
      'of one template without demonstrations',
    ),
    (
      ['method=demonstrations(shots=2)', 'fit=untrained()'],
      'take a lower length of demonstrations and prompts',
    ),
    (
      ['method=demonstrations(shots=2, length=3)', 'fit=untrained()'],
      'has no room for an example: each is longer than its length; length=',
    ),
    (['calibration=content'], 'there are none, contextual, domain'),
    (['objective=hing()'], "did you mean 'hinge'"),
    (['method=majority()', 'fit=untrained()'], 'majority() has a head of its own'),
    (['unlabelled=50', 'program=self_training(lora())'], 'holds 12 other examples; ask for at'),
    (['unlabelled=5'], 'of programs that use unlabelled examples'),
    (
      ['max_length=1', "prompt=cloze('{text} w7 w7 {mask}', 'w2, w3, w4')"],
      'alone is longer than max_length',
    ),
  ],
)
def test_what_a_prompt_cannot_be_is_one_line(place, capsys, overrides, said):
  more = [f'--config.{o}' for o in ('method=lora(rank=2)', 'fit=sgd(steps=1)', *overrides)]
  assert cli.main(['run', 'config.py', *more]) == 2
  (line,) = [x for x in workplace.lines(capsys.readouterr().err) if x.startswith('fewshot: ')]
  assert said in line


def test_a_text_is_embedded_once_for_all_splits(monkeypatch):
  seen = []

  def embed(encoder, texts):
    seen.extend(texts)
    return np.array([[len(t), 1.0] for t in texts])

  monkeypatch.setattr(prepared.embedding, 'embed', embed)
  known = {}
  for texts in (['a', 'ccc', 'a'], ['bb', 'a'], ['ccc']):
    got = prepared._vectors(None, known, texts)
    np.testing.assert_array_equal(got, [[len(t), 1] for t in texts])
  assert seen == ['a', 'ccc', 'bb']
