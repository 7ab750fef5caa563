"""The command line: what it imports, what it prints, and one line for every mistake."""

import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fewshot import cli
from tests.robustness import workplace

KEYS = {
  'methods': {'name', 'paper', 'place', 'mergeable', 'peft', 'lines'},
  'learners': {'name', 'arguments', 'paper', 'about'},
  'models': {'name', 'family', 'params', 'licence', 'sources'},
  'tasks': {'name', 'kind', 'classes', 'sources'},
  'assets': {'name', 'sha256', 'bytes', 'licence', 'present'},
}
HELP = [sys.executable, '-m', 'fewshot', '--help']
ROOT = Path(__file__).parents[1]


@pytest.fixture
def place(tmp_path, monkeypatch):
  return workplace.enter(tmp_path, monkeypatch)


def refused(capsys, *argv: str, said: str) -> None:
  """The command ends with status 2 and one line that holds `said`, and prints nothing else."""
  assert cli.main(argv) == 2
  out, err = capsys.readouterr()
  lines = workplace.lines(err)
  assert len(lines) == 1 and lines[0].startswith('fewshot: ') and said in lines[0], err
  assert out == ''


def test_help_imports_neither_jax_nor_numpy():
  done = subprocess.run(
    [HELP[0], '-X', 'importtime', *HELP[1:]], cwd=ROOT, capture_output=True, text=True, check=True
  )
  imported = {line.split('|')[-1].strip() for line in done.stderr.splitlines() if '|' in line}
  assert 'fewshot.cli' in imported
  heavy = {'jax', 'jaxlib', 'numpy', 'flax', 'optax', 'rich', 'matplotlib', 'ml_collections'}
  assert not heavy & {name.split('.')[0] for name in imported}


def test_help_is_quick():
  def seconds(command):
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - start

  pairs = [(seconds(HELP), seconds([sys.executable, '-c', 'pass'])) for _ in range(5)]
  ours, bare = (statistics.median(side) for side in zip(*pairs, strict=True))
  assert ours <= max(0.6, 8 * bare), f'{ours:.2f} s, a bare interpreter {bare:.2f} s'


@pytest.mark.parametrize('what', list(KEYS))
def test_a_listing_is_one_json_line_with_its_keys(what, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setenv('FEWSHOT_CACHE', str(tmp_path / 'cache'))
  assert cli.main([what, '--json']) == 0
  out, err = capsys.readouterr()
  rows = json.loads(out.splitlines()[-1])
  assert rows and err == ''
  for row in rows:
    assert set(row) >= KEYS[what]
    assert all(not isinstance(v, str) or not v.startswith('/') for v in row.values())
  assert str(tmp_path) not in out and str(ROOT) not in out
  assert cli.main([what]) == 0
  assert all(row['name'] in capsys.readouterr().out or row for row in rows)


def test_every_method_is_listed_with_its_paper_and_at_most_thirty_lines(capsys):
  from fewshot import methods

  cli.main(['methods', '--json'])
  rows = {row['name']: row for row in json.loads(capsys.readouterr().out)}
  assert set(rows) == {f.__name__ for f in methods.METHODS}
  assert {name: row['lines'] for name, row in rows.items() if not 2 <= row['lines'] <= 30} == {}
  assert rows['lora']['paper'].startswith('Hu et al. 2021') and rows['lora']['mergeable'] is True
  assert all(isinstance(row['mergeable'], bool) for row in rows.values())
  assert {type(row['peft']) for row in rows.values()} <= {str, type(None)}


def test_a_fit_says_its_arguments_and_its_formula(capsys):
  assert cli.main(['fits', 'sgd']) == 0
  out = capsys.readouterr().out
  assert out.startswith('sgd(steps: int = 40') and 'arXiv:1711.05101' in out
  assert cli.main(['fits', 'sdg']) == 2
  assert "did you mean 'sgd'" in capsys.readouterr().err


def test_a_learner_says_its_arguments_and_its_formula(capsys):
  assert cli.main(['learners', 'maml']) == 0
  out = capsys.readouterr().out
  assert out.startswith('maml(steps: int') and 'arXiv:1703.03400' in out
  assert cli.main(['learners', 'mamml']) == 2
  assert "did you mean 'maml'" in capsys.readouterr().err


def test_the_table_for_people_shows_every_name(capsys):
  cli.main(['tasks'])
  out = capsys.readouterr().out
  assert all(name in out for name in ('newsgroups', 'reuters-r8', 'trec'))


def test_assets_verify_says_missing_and_has_no_paths(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('FEWSHOT_CACHE', str(tmp_path))
  assert cli.main(['assets', 'verify', 'trec', '--json']) == 0
  out = capsys.readouterr().out
  assert {row['status'] for row in json.loads(out)} == {'missing'} and str(tmp_path) not in out


@pytest.mark.parametrize(
  ('argv', 'said'),
  [
    (['metods'], "unknown command 'metods'; did you mean 'methods'?"),
    ([], 'required: COMMAND; see fewshot --help'),
    (['run'], 'required: config; see fewshot run --help'),
    (['methods', '--jsn'], "unknown argument '--jsn'; did you mean '--json'?"),
    (['tasks', 'trec'], "unknown word after fewshot tasks: 'trec'"),
    (['run', 'c.py', '--frsh'], "did you mean '--fresh'?"),
    (['run', 'c.py', 'lr=1'], 'config keys are set by --config.KEY=VALUE'),
    (['assets', 'gte', 'trec'], "unknown word after fewshot assets: 'gte'; did you mean 'get'?"),
    (['assets', 'get'], '`fewshot assets` lists them'),
    (['assets', 'get', 'minilm'], "no asset 'minilm'; did you mean 'minilm-l6'?"),
    (['assets', 'verify', 'trek'], "no asset 'trek'; did you mean 'trec'?"),
    (['bench', 'stpe'], "no benchmark 'stpe'; did you mean 'step'?"),
    (['bench', 'step', '--repeats', 'x'], "invalid int value: 'x'; see fewshot bench --help"),
    (['run', 'no-such.py'], 'there is no config file no-such.py'),
    (['table', 'no-such-run'], 'no records at no-such-run/records.jsonl'),
  ],
)
def test_a_wrong_word_is_one_line_that_names_the_nearest(capsys, argv, said):
  refused(capsys, *argv, said=said)


@pytest.mark.parametrize(
  ('overrides', 'said'),
  [
    (['kk=3'], "unknown config key 'kk'; did you mean 'k'?"),
    (['wandb.mod=offline'], "did you mean 'wandb.mode'?"),
    (['k'], 'has no value; write --config.'),
    (['k=some'], "config.k is of type int, not 'some'"),
    (['method=lorra()'], "unknown method 'lorra'; did you mean 'lora'?"),
    (['method=lora(rnk=4)'], "lora has no argument 'rnk'; did you mean 'rank'?"),
    (['method=lora(rank=0)'], 'rank is at least 1'),
    (['method=tune("nope")'], "'nope' matches none of the 21 parameters; there are"),
    (['method=__import__("os")'], 'unknown method'),
    (['fit=sdg()'], "unknown fit 'sdg'; did you mean 'sgd'?"),
    (['fit=sgd(step=4)'], "did you mean 'steps'?"),
    (['fit=prototypes()'], 'prototypes() fills the means of one nearest_mean() head'),
    (['fit=sgd(eval_every=1)'], 'scores a dev set, and there is none'),
    (['task=trek'], "there is no task 'trek'; did you mean 'trec'?"),
    (['task=animal.csv'], 'there is no file animal.csv'),
    (['model=minilm'], "there is no model 'minilm', nor a file or folder of that name"),
    (['label=lable'], "animals.csv has no column 'lable'; did you mean 'label'?"),
    (['k=100000'], "class 'bird' has 6 train examples but 100000 are needed"),
    (['k=16', 'dev_k=32'], 'dev_k=32 > k=16'),
    (['grid.lr=(0.1,0.2)'], 'dev_k is 0: hyper-parameters are chosen on a dev set'),
    (['grid.lr=(0.1,0.1)', 'dev_k=1'], 'config.grid.lr holds a value twice'),
    (['splits=(3,3)'], 'config.splits holds a value twice'),
    (['splits=()'], 'at least one seed each'),
    (['dtype=float23'], 'there are float32, bfloat16, float16'),
    (['wandb.mode=ofline'], "config.wandb.mode is 'ofline'; did you mean 'offline'?"),
    (['name=../outside'], 'names no folder of runs/'),
    (['method=soft_prompt(length=100)'], 'longer than the 40 positions'),
  ],
)
def test_a_wrong_config_is_one_line_before_anything_runs(place, capsys, overrides, said):
  workplace.config(place, [('linear()', 'sgd(steps=2)')])
  refused(capsys, 'run', 'config.py', *(f'--config.{o}' for o in overrides), said=said)
  assert workplace.records(place) == []


def test_a_test_text_beyond_the_positions_is_refused_before_anything_runs(place, capsys):
  rows = workplace.csv().splitlines()[1:]
  long = [' '.join(['w1'] * 60) + f',{c},test' for c in workplace.CLASSES]
  table = ['text,label,split', *(f'{r},train' for r in rows), *long]
  (place / 'animals.csv').write_text('\n'.join(table))
  refused(capsys, 'run', 'config.py', '--config.max_length=64', said='longer than the 40 positions')


@pytest.mark.parametrize(
  ('damage', 'said'),
  [
    (lambda p: cut(p / 'model' / 'model.safetensors', 5000), 'corrupted or truncated'),
    (lambda p: cut(p / 'model' / 'config.json', 50), 'config.json'),
    (lambda p: cut(p / 'model' / 'tokenizer.json', 50), 'tokenizer.json is not readable'),
    (lambda p: workplace.tokenizer(p / 'model', 130), 'the tokenizer has 130 tokens but the'),
    (lambda p: (p / 'model' / 'tokenizer.json').unlink(), 'no tokenizer'),
    (lambda p: (p / 'model' / 'model.safetensors').unlink(), 'no model*.safetensors'),
    (lambda p: (p / 'animals.csv').write_text('text,label\nw1,\nw2,fish\n'), 'line 2 lacks'),
    (lambda p: (p / 'animals.csv').write_text('text,label\n'), 'no rows under its header'),
    (lambda p: (p / 'animals.csv').write_text('text,label\nw1,fish\n' * 1), 'needs 2 classes'),
    (lambda p: (p / 'animals.csv').write_text('text,label,split\n' + LOST), "class 'fish' has 0"),
    (lambda p: (p / 'animals.csv').write_bytes(b'text,label\n\xff\xfe,a\n'), 'no CSV in UTF-8'),
    (lambda p: (p / 'config.py').write_text('get_config = 1 / 0'), 'ZeroDivisionError'),
    (lambda p: (p / 'config.py').write_text('x = 1'), 'has no get_config()'),
  ],
)
def test_damaged_input_is_one_line(place, capsys, damage, said):
  damage(place)
  refused(capsys, 'run', 'config.py', said=said)


LOST = 'w1,bird,train\nw2,bird,train\nw3,bird,test\nw4,fish,test\n'


def cut(file: Path, size: int) -> None:
  file.write_bytes(file.read_bytes()[:size])


@pytest.mark.parametrize('out', ['animals.csv', 'animals.csv/runs'])
def test_a_folder_that_cannot_be_written_is_one_line(place, capsys, out):
  refused(capsys, 'run', 'config.py', '--out', out, said=f'cannot write to the folder {out}')


def test_a_dry_run_tells_all_and_runs_nothing(place, capsys):
  argv = ['run', 'config.py', '--dry-run', '--config.grid.lr=(0.1,0.01)', '--config.dev_k=1']
  argv += ['--config.method=lora(rank=2)', '--config.fit=sgd(steps=2)']
  assert cli.main([*argv, '--json']) == 0
  out, err = capsys.readouterr()
  found = json.loads(out.splitlines()[-1])
  assert set(found) == {'config', 'disk', 'rows'} and err == '' and str(place) not in out
  (row,) = found['rows']
  assert set(row) >= {'method', 'fit', 'trained', 'total', 'runs', 'chunk', 'memory_bytes'}
  rank, dim, classes = 2, 32, len(workplace.CLASSES)
  assert row['method'] == 'chain(lora(rank=2), linear())' and row['runs'] == 4
  assert row['trained'] == 2 * rank * 2 * dim + (dim + 1) * classes
  assert row['memory_bytes'] > 0 and row['step_flops'] > 0

  assert cli.main(argv) == 0
  out = capsys.readouterr().out
  for part in ('"method": "lora(rank=2)"', 'frozen', 'lora(rank=2)', 'MiB', 'FLOP'):
    assert part in out
  assert re.search(r'linear\(\) +99 ', out)
  assert not (place / 'runs').exists()


def test_a_reader_that_went_away_and_a_full_output_are_no_traceback():
  command = f'{sys.executable} -m fewshot assets --json'
  gone = subprocess.run(
    f'{command} | head -c 1', shell=True, cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert gone.stderr == ''
  if Path('/dev/full').exists():
    full = subprocess.run(
      f'{command} > /dev/full', shell=True, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert full.returncode == 1
    assert full.stderr == 'fewshot: cannot write the output: No space left on device\n'
