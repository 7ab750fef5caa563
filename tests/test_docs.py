"""The code blocks of README and docs run, in order, as they stand."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from fewshot import fits, methods, objectives
from fewshot.tasks.prompts import parse

ROOT = Path(__file__).resolve().parent.parent


def run_blocks(page: str, folder: Path, **shorter: str) -> dict:
  """Runs the python blocks of a page as one script; `shorter` replaces sizes that take long."""
  source = '\n'.join(re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(), re.DOTALL))
  for size, small in shorter.items():
    source, n = re.subn(rf'\b{size}=\w+(\(\w+\))?', f'{size}={small}', source)
    assert n, f'{page} has no {size}'
  script = folder / 'page.py'
  script.write_text(source)
  return runpy.run_path(str(script))


def test_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  (tmp_path / 'reviews.csv').write_text('review,stars\n' + 'good,5\nbad,1\n' * 4)
  monkeypatch.chdir(tmp_path)
  names = run_blocks('docs/own.md', tmp_path)
  assert names['published'].train.tolist() == [0, 1, 2, 3] and len(names['published'].test) == 4
  assert len(names['labels']) == 3 and set(names['labels']) <= {'0', '1'}
  assert np.isfinite(names['accuracy']).all()
  assert names['methods'].spell(names['both']).startswith('chain(shift(), lora(')
  assert names['result'].curve[-1] < names['result'].curve[0]


def test_selection(tmp_path: Path) -> None:
  names = run_blocks('docs/selection.md', tmp_path)
  total = sum(x.size for x in names['scores'].values())
  assert names['choice'].entries == names['other'].entries == -(-total // 10)
  trained = sum(t['value'].size for t in names['theta'].values())
  assert trained == names['choice'].entries


def test_prompting(tmp_path: Path) -> None:
  names = run_blocks('docs/prompting.md', tmp_path)
  assert names['get_config']().model == 'smollm2-135m'
  parse(names['get_config']().prompt)
  assert names['found'][0].train >= names['found'][-1].train
  assert {r.template for r in names['ranked']} == set(names['given'])


def test_tables(tmp_path: Path) -> None:
  names = run_blocks('docs/tables.md', tmp_path)
  assert names['cell'].of('mean') == 0.7 and names['groups'] == ['a', 'b']
  assert names['curve'] == pytest.approx([0.6525, 0.670625, 0.6859765625])


def test_the_systems_that_docs_name_are_spelled() -> None:
  page = (ROOT / 'docs/prompting.md').read_text()
  known = {'method': methods.parse, 'fit': fits.parse, 'objective': objectives.parse}
  found = [(k, v) for k, v in re.findall(r"`(\w+)='([^`]*)'`", page) if k in known]
  assert len(found) >= 10
  for key, text in found:
    known[key](text)


@pytest.mark.slow
@pytest.mark.assets
def test_readme(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
  monkeypatch.chdir(tmp_path)
  names = run_blocks('README.md', tmp_path, steps='2', seeds='range(2)', max_test='12')
  assert len(names['results']) == 2
  assert names['adapted'].classes == ('ABBR', 'DESC', 'ENTY', 'HUM', 'LOC', 'NUM')
  printed = capsys.readouterr().out.strip().splitlines()
  assert len(printed) == 2 and printed[1].count("'") == 4  # Two predicted classes.


def test_every_listed_command_of_the_readme_exists() -> None:
  from fewshot.cli import _parser

  names = set(_parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr]
  used = set(re.findall(r'^ *fewshot ([a-z]+)', (ROOT / 'README.md').read_text(), re.MULTILINE))
  assert used and used <= names


def test_reports(tmp_path: Path) -> None:
  names = run_blocks('docs/reports.md', tmp_path)
  assert names['figure'].axes and abs(names['calibration'].ece - 0.025) < 1e-9
