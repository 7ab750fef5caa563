"""The notebooks run from the first cell to the last on a tiny model, and are committed stripped."""

import json
import os
import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
import safetensors.numpy
from tokenizers import Tokenizer, models, pre_tokenizers

from fewshot import assets, methods, records
from tests.robustness.workplace import FIXTURE

FOLDER = Path(__file__).resolve().parent.parent / 'notebooks'
FILES = sorted(FOLDER.glob('*.ipynb'))


def read(file: Path) -> Any:
  return nbformat.read(file, as_version=4)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A random BERT of one layer, with a token for each word of the mails of the notebooks."""
  folder = tmp_path_factory.mktemp('tiny')
  weights = safetensors.numpy.load_file(FIXTURE / 'model.safetensors')
  first = {k: v for k, v in weights.items() if 'layer.1.' not in k}  # Half is compiled in half.
  safetensors.numpy.save_file(first, folder / 'model.safetensors')
  shape = json.loads((FIXTURE / 'config.json').read_text()) | {'num_hidden_layers': 1}
  (folder / 'config.json').write_text(json.dumps(shape))
  cells = ''.join(c.source for c in read(FILES[0]).cells if 'mails.csv' in c.source)
  words = sorted(set(re.findall(r'[a-zA-Z]+', cells)))[:98]
  vocab = {word: i for i, word in enumerate(['[PAD]', '[UNK]', *words])}
  made = Tokenizer(models.WordLevel(vocab, unk_token='[UNK]'))
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  made.save(str(folder / 'tokenizer.json'))
  return folder


def run(file: Path, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
  """The notebook as it is committed, after a run."""
  return execute(read(file), folder, model, monkeypatch)


def execute(notebook: Any, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
  """A notebook after a run in `folder`, by this interpreter, with the tests' compiled programs."""
  cache = str(assets.cache_dir() / 'xla')
  for name, value in (
    ('FEWSHOT_NOTEBOOK_MODEL', model),
    ('JAX_COMPILATION_CACHE_DIR', cache),
    ('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0'),
    # Compiling is most of the time.  Gradients of the images' convolutions need the optimisations.
    ('JAX_DISABLE_MOST_OPTIMIZATIONS', '0' if 'conv4' in str(notebook) else '1'),
    ('PYTHONPATH', os.pathsep.join([str(FOLDER.parent), os.environ.get('PYTHONPATH', '')])),
    ('IPYTHONDIR', folder / 'ipython'),
    ('MPLBACKEND', 'module://matplotlib_inline.backend_inline'),
  ):
    monkeypatch.setenv(name, str(value))
  resources = {'metadata': {'path': str(folder)}}
  return nbclient.NotebookClient(notebook, timeout=120, resources=resources).execute()


def said(notebook: Any) -> str:
  """Everything that was printed."""
  outputs = [o for c in notebook.cells if c.cell_type == 'code' for o in c.outputs]
  return ''.join(o.get('text', '') for o in outputs if o.output_type == 'stream')


def pictures(notebook: Any) -> int:
  outputs = [o for c in notebook.cells if c.cell_type == 'code' for o in c.outputs]
  return sum('image/png' in o.get('data', {}) for o in outputs)


@pytest.mark.parametrize('file', FILES, ids=lambda f: f.stem)
def test_what_is_committed_is_stripped_and_sound(file: Path) -> None:
  notebook = read(file)
  nbformat.validate(notebook)
  assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
  assert [c.id for c in notebook.cells] == [
    f'{file.stem[:2]}-{i:02}' for i in range(1, len(notebook.cells) + 1)
  ]
  code = [c for c in notebook.cells if c.cell_type == 'code']
  assert all(c.outputs == [] and c.execution_count is None for c in code)
  lines = [line for c in notebook.cells for line in c.source.splitlines()]
  assert max(map(len, lines)) <= 100
  assert notebook.cells[0].source.startswith('# ') and len(code) < len(notebook.cells)


def test_there_are_five() -> None:
  assert [f.stem[:2] for f in FILES] == ['01', '02', '03', '04', '05']
  page = (FOLDER / 'README.md').read_text(encoding='utf-8')
  assert all(f.name in page for f in FILES)


def test_a_method_in_ten_lines(tmp_path, tiny, monkeypatch) -> None:
  notebook = run(FILES[0], tmp_path, tiny, monkeypatch)
  assert 'chain(gain(), linear())' in said(notebook) and pictures(notebook) == 1
  # Attention's output and the MLP's of one layer, 32 channels each; a head of 32 x 3 + 3.
  assert re.search(r'^ +64  gain\(\)\n +99  linear\(\)$', said(notebook), re.MULTILINE)


def test_nine_methods(tmp_path, tiny, monkeypatch) -> None:
  """All nine are spelled; run are those without a rate and one with, for each takes seconds."""
  whole = read(FILES[1])
  [cell] = [c for c in whole.cells if c.cell_type == 'code' and 'def sweep' in c.source]
  rates = re.findall(r"'(\w+\(.*?\))': ", cell.source)
  assert len(rates) == 7 and all(methods.parse(m) for m in rates)
  cell.source = re.sub(r'LR = \{.*?\}', "LR = {'ia3()': 3e-2}", cell.source, flags=re.DOTALL)
  notebook = execute(whole, tmp_path, tiny, monkeypatch)
  runs = records.read(tmp_path / 'runs/mails')
  assert len({r['method'] for r in runs}) == 3 and len(runs) == 9
  assert {r['status'] for r in runs} <= {'ok', 'collapsed'}
  assert pictures(notebook) == 1 and said(notebook).count(' %  ') == 3


def test_episodes(tmp_path, tiny, monkeypatch) -> None:
  notebook = run(FILES[2], tmp_path, tiny, monkeypatch)
  means = {n: float(v) for v, n in re.findall(r'^ *([\d.]+) ± [\d.]+  (.*)$', said(notebook), re.M)}
  assert len(means) == 5 and pictures(notebook) == 3
  assert means['protonet()'] > means['nearest_centroid(), untrained'] > 20
  assert means['tim()'] > 20 and 'Paired(difference=' in str(notebook)


def test_what_it_trained(tmp_path, tiny, monkeypatch) -> None:
  text = said(notebook := run(FILES[3], tmp_path, tiny, monkeypatch))
  assert 'soft_prompt(length=4)    0 of' in text and 'all of them biases' in text
  shared = {name: float(v) for name, v in re.findall(r'^(\w+ \w+ \w+) +([\d.]+)$', text, re.M)}
  assert pictures(notebook) == 1
  assert shared['snip and random'] == pytest.approx(0.02 / 1.98, abs=0.03)  # q / (2 - q).
  assert shared['random and random'] == pytest.approx(0.02 / 1.98, abs=0.03)


def test_the_table_of_a_paper(tmp_path, tiny, monkeypatch) -> None:
  text = said(run(FILES[4], tmp_path, tiny, monkeypatch))
  runs = records.read(tmp_path / 'runs/paper')
  assert len(runs) == 16 and sum(r['chosen'] for r in runs) == 8
  assert '16 records; 8 chosen on dev' in text and text.count(r'$\pm$') == 3  # A head.
  assert r'\toprule' in text and r'\textbf{' in text and "verdict='reproduced'" in text
