"""`fewshot prompts`: what it prints, and one line for what it cannot search."""

import json
import shutil
import string

import numpy as np
import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as kinds

from fewshot import cli, tasks
from fewshot.programs import template_search
from fewshot.tasks import prompts
from tests.robustness import workplace

WORDS = [a + b for a in 'bcd' for b in string.ascii_lowercase[:14]]
CONFIG = """
from fewshot.config import default, with_changes


def get_config():
  return with_changes(default(), {
    'name': 'tiny', 'model': 'model', 'task': 'animals.csv', 'k': 2, 'splits': (0, 1),
    'max_length': 12, 'prompt': "cloze('{text} ba {mask}', 'bb, bc')", 'method': 'bitfit()',
    'fit': 'sgd(steps=2)',
  })
"""


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A masked model, an encoder-decoder and a table, in words of letters."""
  folder = tmp_path_factory.mktemp('prompts')
  special = {
    'model': ['[PAD]', '[UNK]', '[MASK]'],
    't5': ['<pad>', '</s>', '<unk>', *(f'<extra_id_{i}>' for i in range(3))],
  }
  for name, fixture in (('model', 'bert-mlm-tiny'), ('t5', 't5-tiny')):
    shutil.copytree(workplace.FIXTURE.parent / fixture, folder / name)
    size = json.loads((folder / name / 'config.json').read_text())['vocab_size']
    vocab = {t: i for i, t in enumerate([*special[name], 'a', *WORDS][:size])}
    tok = Tokenizer(kinds.WordLevel(vocab, special[name][1 if name == 'model' else 2]))
    tok.add_special_tokens(special[name])
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tok.save(str(folder / name / 'tokenizer.json'))
  rng = np.random.default_rng(0)
  texts = [' '.join(rng.choice(WORDS[3:10], 3)) for _ in range(24)]
  lines = [f'{t},{("bird", "fish")[i % 2]}' for i, t in enumerate(texts)]
  (folder / 'animals.csv').write_text('\n'.join(['text,label', *lines]) + '\n')
  (folder / 'config.py').write_text(CONFIG)
  (folder / 'templates.txt').write_text('{text} ba {mask}\n\n{mask} bd {text}\n')
  return folder


@pytest.fixture
def place(made, monkeypatch):
  from fewshot import engine

  monkeypatch.setattr(engine, 'keep_compiled', lambda: None)
  monkeypatch.chdir(made)


def printed(capsys, *argv: str) -> list[dict]:
  assert cli.main(['prompts', 'config.py', *argv, '--json']) == 0
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_words_are_found_on_train_of_each_split(place, capsys):
  rows = printed(capsys, '--words', '3')
  assert [r['split'] for r in rows] == sorted(r['split'] for r in rows)
  assert {r['split'] for r in rows} == {0, 1} and all(r['dev'] is None for r in rows)
  of_first = [(r['train'], r['likely']) for r in rows if r['split'] == 0]
  assert of_first == sorted(of_first, reverse=True)
  assert all(prompts.parse(r['prompt']).templates == ('{text} ba {mask}',) for r in rows)
  assert cli.main(['prompts', 'config.py', '--words', '2', '--config.splits=(0,)']) == 0
  out, err = capsys.readouterr()
  assert 'likely' in out and '--config.dev_k=K' in err


def test_templates_of_a_file_are_ranked_on_dev_and_test_is_not_looked_at(
  place, capsys, monkeypatch
):
  encode, seen = tasks.encode, []
  monkeypatch.setattr(tasks, 'encode', lambda *a, **k: seen.append(a[1][0]) or encode(*a, **k))
  rows = printed(capsys, '--rank', 'templates.txt', '--config.dev_k=2', '--config.splits=(1,)')
  assert {r['template'] for r in rows} == {'{text} ba {mask}', '{mask} bd {text}'}
  assert rows[0]['dev'] >= rows[1]['dev'] and {r['split'] for r in rows} == {1}
  prepared, *tried = seen  # The preflight shows what a run would see; it scores nothing.
  assert len(tried) == 2 and len(prepared.test)
  assert all(s.test.tolist() == s.train[:1].tolist() for s in tried)


def test_what_t5_writes_is_ranked_where_there_is_a_dev_set(place, capsys, monkeypatch):
  written = [
    template_search.Written(t, s)
    for t, s in (('{text} ba {mask}', -3.0), ('{mask} bd {text}', -4.0))
  ]

  def write(model, task, split, words, beams, **rest):
    assert prompts.reading(model)[0] == 'decoder' and beams == 7 and words == 'bb, bc'
    return written

  monkeypatch.setattr(template_search, 'write_templates', write)
  argv = ['--write', 't5', '--beams', '7', '--config.splits=(1,)']
  rows = printed(capsys, *argv)
  assert [(r['template'], r['score']) for r in rows] == written
  assert all(prompts.parse(r['prompt']).words == (('bb',), ('bc',)) for r in rows)
  rows = printed(capsys, *argv, '--config.dev_k=2')
  assert {(r['template'], r['score']) for r in rows} == set(written)
  assert rows[0]['dev'] >= rows[1]['dev']


@pytest.mark.parametrize(
  ('argv', 'said'),
  [
    ([], 'one of the arguments --words --rank --write is required'),
    (['--words', '2', '--write', 't5'], 'not allowed with'),
    (['--words', '0'], 'words'),
    (['--rank', 'templates.txt'], 'set --config.dev_k'),
    (['--rank', 'none.txt', '--config.dev_k=2'], 'none.txt is no file of templates'),
    (['--words', '2', '--config.prompt='], 'from config.prompt'),
    (['--words', '2', "--config.prompt=cloze(('{text} {mask}', '{mask} {text}'))"], 'one template'),
    (['--write', 't5', "--config.prompt=cloze('{text} {mask}')"], 'name them in config.prompt'),
    (['--write', 'model'], 'fills no blanks'),
    (['--words', '2', '--config.splt=3'], 'splt'),
  ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused(place, capsys, argv, said):
  assert cli.main(['prompts', 'config.py', *argv]) == 2
  err = workplace.lines(capsys.readouterr().err)
  assert said in err[-1] and err[-1].startswith('fewshot: '), err
