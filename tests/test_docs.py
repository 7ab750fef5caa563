"""The code blocks of README and docs run, in order, as they stand."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ['docs/own.md']


def blocks(page: str) -> list[str]:
  """The python blocks of a page."""
  return re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize('page', PAGES)
def test_code_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  (tmp_path / 'reviews.csv').write_text('review,stars\n' + 'good,5\nbad,1\n' * 4)
  monkeypatch.chdir(tmp_path)
  scope: dict = {'__name__': 'page'}
  source = '\n'.join(blocks(page))
  path = tmp_path / 'page.py'
  path.write_text(source)
  exec(compile(source, str(path), 'exec'), scope)
  assert scope['labels'] == ['0'] * 3 or set(scope['labels']) <= {'0', '1'}
  assert np.isfinite(scope['accuracy']).all()
  assert scope['result'].curve[-1] > 0


def test_every_listed_command_of_the_readme_exists() -> None:
  from fewshot.cli import _parser

  names = set(_parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr]
  used = set(re.findall(r'^ *fewshot ([a-z]+)', (ROOT / 'README.md').read_text(), re.MULTILINE))
  assert used and used <= names
