"""Terminal tables: words stay whole, everything fits, what all rows share is said once."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fewshot import layout, summaries, tables
from tests.test_tables import five

WHERE = "where='.*/(attn|mlp)/kernel'"
METHODS = [
  f'chain(sparse(where=top({score}, 0.001, {WHERE})), linear())'
  for score in ('magnitude()', 'taylor(signed=True)', 'gradient()')
]


def printed(cells, width):
  console = Console(file=io.StringIO(), width=width)
  layout.show(cells, console)
  return console.file.getvalue()


def words(text):
  return re.findall(r'[\w.]+', text)


@given(st.lists(st.sampled_from(['lora(', 'rank=8,', 'linear()', 'chain(full(),', 'a', 'b|c'])))
def test_folding_loses_nothing_and_keeps_words_whole(parts):
  text = ' '.join(parts)
  for width in (8, 12, 30):
    lines = layout.fold(text, width)
    assert all(len(line) <= width for line in lines)
    assert ''.join(''.join(lines).split()) == ''.join(text.split())
    assert [w for line in lines for w in words(line)] == words(text)


@pytest.mark.parametrize('width', [60, 80, 120])
def test_a_table_breaks_no_word_of_a_spelling(width):
  rows = summaries.summarise([run for method in METHODS for run in five(method)])
  console = Console(file=io.StringIO(), width=width)
  tables.render_terminal(rows, console)
  text = console.file.getvalue()
  assert max(map(len, text.splitlines())) <= width
  for word in ('magnitude()', 'signed=True', 'gradient()', 'chain(', 'linear())', '0.001'):
    assert word in text
  said = ' '.join(text.split())
  assert said.count('kernel') == 1 and f'Dots stand for top({WHERE}).' in said


def test_what_fits_is_shown_in_full():
  rows = summaries.summarise([run for method in METHODS for run in five(method)])
  console = Console(file=io.StringIO(), width=200)
  tables.render_terminal(rows, console)
  text = console.file.getvalue()
  assert all(method in text for method in METHODS) and 'Dots' not in text


def test_an_argument_that_differs_once_or_is_rare_stays():
  shared = layout.shortened
  assert shared(['a(x=1)', 'a(x=2)']) == (['a(x=1)', 'a(x=2)'], [])
  assert shared(['a(x=1)', 'a()']) == (['a(x=1)', 'a()'], [])
  assert shared(['a(x=1)', 'b()', 'c()']) == (['a(x=1)', 'b()', 'c()'], [])
  assert shared(['a(é="ü", x=1)', 'a(x=2, é="ü")', 'not a call (']) == (
    ['a(..., x=1)', 'a(x=2, ...)', 'not a call ('], ['a(é="ü")'])  # fmt: skip


def test_columns_that_do_not_fit_stand_below_with_the_names_again():
  cells = layout.Cells(['method', *'abcdef'], [['lora(rank=8)', *['71.2 ± 4.0'] * 6]])
  text = printed(cells, 40)
  assert max(map(len, text.splitlines())) <= 40
  assert text.count('71.2 ± 4.0') == 6 and text.count('lora(rank=8)') == 3
  assert [line.split() for line in text.splitlines() if 'method' in line] == [
    ['method', 'a', 'b'], ['method', 'c', 'd'], ['method', 'e', 'f']]  # fmt: skip


def test_styles_are_of_cells_and_not_of_their_padding():
  console = Console(file=io.StringIO(), width=40, force_terminal=True, color_system='standard')
  lines, styles = [['a()', '5'], ['b()', '50.0']], [['', 'underline'], ['', '']]
  layout.show(layout.Cells(['m', 'x'], lines, 1, styles), console)
  assert console.file.getvalue().splitlines()[2] == 'a()      \x1b[4m5\x1b[0m'
