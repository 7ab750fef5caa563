"""docs/hosted.md: what it counts, by hand, and that it is the page of the code."""

import re

import pytest

from fewshot import cli, hosted, papers
from fewshot.errors import FewshotError

DIM, WIDTH = 32, 64  # Of the small BERT, which has two blocks.
BLOCK = 4 * (DIM + 1) * DIM + (DIM + 1) * WIDTH + (WIDTH + 1) * DIM + 2 * 2 * DIM
EMBEDDED = (50 + 16 + 2) * DIM + 2 * DIM  # Tokens, positions, types and their norm.
HEAD = 2 * (DIM + 1)
EVERY = 2 * BLOCK + EMBEDDED


@pytest.mark.parametrize(
  ('hosted_by', 'numbers', 'depth'),
  [
    ('attention_only()', [2 * 4 * (DIM + 1) * DIM], 2),
    ('chain(layers(first=2), linear())', [10 * BLOCK + HEAD], 12),
    ('lisa(layers=1)', [EVERY, BLOCK + EMBEDDED], 2),
    ('id3(1000, steps=100)', [EVERY, 10], 2),
    ('tune(where=top(magnitude(), 77))', [77], 2),
  ],
)
def test_methods_are_counted_as_by_hand(hosted_by, numbers, depth):
  said, of = hosted.trained(hosted_by)
  assert [int(n.replace(',', '')) for n in re.findall(r'[\d,]*\d', said)] == numbers
  assert of == f'{depth * BLOCK + EMBEDDED:,} of a BERT of {depth} blocks'


def test_programs_tell_each_training_and_what_is_kept():
  """Of an MLP of 2 blocks: all of it, then 5 of its entries, the classifier both times."""
  every, head = 6 * 16 + 16 + 17 * 16, 17 * 2
  said, of = hosted.trained('lt_sft(budget=5)')
  assert said == f'{every + head}, then {5 + head}; kept 5'
  assert of == f'{every} of an MLP of 2 blocks'


def test_what_is_no_method_says_what_it_is_and_what_fits_no_model_is_refused():
  assert hosted.trained('configs/quickstart.py') == ('config', '')
  assert hosted.trained('fewshot/tasks/prompts.py::cloze') == ('function', '')
  with pytest.raises(FewshotError, match=r'takes none of the small models: '):
    hosted.trained("tune(where='nothing/.*')")


def test_the_page_is_that_of_the_table_and_of_its_counts(monkeypatch):
  """Counts as the page has them, which the long test makes again; those of traces are made here."""
  text = hosted.PAGE.read_text(encoding='utf-8')
  cells = [re.split(r' (?<!\\)\| ', line) for line in text.splitlines() if line.startswith('| ')]
  said = {c[2].strip('`').replace(r'\|', '|'): (c[3], c[4]) for c in cells[2:] if c[2]}
  for quick in ('attention_only()', 'lisa()', 'neuroada()', 's2ft()', "nfts(of='blocks')"):
    assert hosted.trained(quick) == said[quick]
  monkeypatch.setattr(hosted, 'trained', said.__getitem__)
  assert hosted.page() == text


@pytest.mark.long
def test_the_page_is_that_of_the_code():
  assert hosted.PAGE.read_text(encoding='utf-8') == hosted.page()


def test_the_page_has_each_paper_of_the_kind_once():
  text = hosted.PAGE.read_text(encoding='utf-8')
  ids = [row for row in papers.rows() if row['kind'] == hosted.KIND]
  lines = [line for line in text.splitlines() if line.startswith('| ')][2:]
  assert len(lines) == len(ids) == 34
  for line, row in zip(lines, ids, strict=True):
    assert row['title'] in line and (row['test'] or '') in line


def test_the_command_writes_it(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(hosted, 'page', lambda: 'a page\n')
  monkeypatch.setattr(papers, 'ROOT', tmp_path)
  monkeypatch.setattr(hosted, 'PAGE', tmp_path / 'hosted.md')
  assert cli.main(['papers', '--page']) == 0
  assert capsys.readouterr().out == 'hosted.md\n'
  assert (tmp_path / 'hosted.md').read_text() == 'a page\n'
