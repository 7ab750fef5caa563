"""Methods by tasks: what stands in which cell, and what a line is called."""

import dataclasses

from fewshot.matrices import render_markdown
from fewshot.summaries import Row


def row(task, method='linear()', mean=0.5, **more):
  given = {'mean': mean, 'std': 0.125, 'n': 5, 'runs': 5, 'trained': 10, 'total': 100}
  return Row('vit', task, 16, method, **(given | {'test_items': (500,)} | more))


def lines(rows):
  return [x for x in render_markdown(rows).splitlines() if x.startswith('| `')]


def test_a_method_is_a_line_and_a_task_a_column():
  rows = [
    row('a'),
    row('b', mean=0.75, trained=20),
    row('a', 'lora()', 0.25),
    row('b', 'lora()', 0.8),
  ]
  first, second = lines(rows)
  assert first == '| `linear()` | **50.0 ± 12.5** | 75.0 ± 12.5 | 20 (20.00 %) | – |'
  assert second == '| `lora()` | 25.0 ± 12.5 | **80.0 ± 12.5** | 10 (10.00 %) | – |'
  assert 'over n = 5 splits, test items n = 500' in render_markdown(rows)


def test_one_task_is_no_matrix_and_models_have_their_own():
  assert render_markdown([row('a'), row('a', 'lora()')]) == ''
  other = [dataclasses.replace(row(t), model='bert') for t in 'ab']
  assert render_markdown([row('a'), row('b'), *other]).count('### ') == 2


def test_lost_runs_and_missing_cells_are_seen():
  rows = [row('a', failed=1, collapsed=2), row('b'), row('a', 'lora()', None), row('b', 'x()', 0.1)]
  assert '50.0 ± 12.5** (1 failed, 2 collapsed of 5)' in lines(rows)[0]
  assert lines(rows)[1] == '| `lora()` | – | – | 10 (10.00 %) | – |'


def test_a_single_run_stands_without_a_spread_and_the_caption_says_so():
  one = {'n': 1, 'std': None, 'kind': 'seed-std'}
  rows = [row(t, 'chain()', **one) for t in 'ab'] + [row(t, 'lora()') for t in 'ab']
  assert lines(rows)[0].startswith('| `chain()` | **50.0** | **50.0** |')
  text = render_markdown(rows)
  assert 'over n = 5 splits, of one run where there is no ±, test items' in text


def test_what_stands_twice_says_how_it_differs():
  rows = [row('a', fit='sgd(lr=1)'), row('a', fit='sgd(lr=2)'), row('b', fit='sgd(lr=1)')]
  assert [x.split('`')[1] for x in lines(rows)] == ['linear(), sgd(lr=1)', 'linear(), sgd(lr=2)']


def test_a_prompt_of_all_tasks_is_in_the_line_and_others_in_the_caption():
  rows = [row(t, prompt="cloze('{text}')") for t in 'ab']
  rows += [row('a', 'x()', prompt='one'), row('b', 'x()', prompt='two')]
  assert [x.split('`')[1] for x in lines(rows)] == ["linear(), cloze('{text}')", 'x()']
  text = render_markdown(rows)
  assert 'a: `one`. b: `two`.' in text and 'a: `cloze' not in text
