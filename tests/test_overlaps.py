"""Overlap of choices between tasks: the matrix, its files, and what is refused."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from fewshot import cli, overlaps
from fewshot.methods import top
from fewshot.methods.scoring import random
from tests.robustness import workplace


@pytest.fixture
def place(tmp_path, monkeypatch):
  return workplace.enter(tmp_path, monkeypatch)


def test_random_choices_have_in_common_what_chance_says():
  """A tenth of 20,000 entries: q / (2 - q) = 0.0526, within four standard deviations."""
  params = {'w': {'kernel': np.ones((100, 200), np.float32)}}
  pick = lambda i: top(random(), 0.1).resolve(jax.random.key(i), None, params, None)  # noqa: E731
  found = overlaps.compare('random', {str(i): pick(i) for i in range(4)}, 20_000)
  off = found.jaccard[np.triu_indices(4, 1)]
  assert found.entries == (2000,) * 4 and abs(found.chance - 0.1 / 1.9) < 1e-9
  assert np.abs(off - found.chance).max() < 0.015 and (np.diag(found.jaccard) == 1).all()
  np.testing.assert_array_equal(found.jaccard, found.jaccard.T)


def test_weights_choose_the_same_on_all_data_and_gradients_do_not(place, capsys):
  assert cli.main(['overlap', 'config.py', '--choice', 'top(magnitude(), 0.1)', '--json']) == 0
  same = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert same['names'] == ['animals 0', 'animals 1'] and same['jaccard'] == [[1.0, 1.0]] * 2
  assert cli.main(['overlap', 'config.py', '--choice', 'top(gradient(), 0.01)', '--out', 'o']) == 0
  differ = json.loads(Path('o/overlap.json').read_text())
  assert differ['chance'] < differ['jaccard'][0][1] < 1
  assert f'{differ["jaccard"][0][1]:.3f}' in Path('o/overlap.md').read_text()
  assert Path('o/overlap.png').read_bytes().startswith(b'\x89PNG')
  assert '| animals 1 |' in capsys.readouterr().out


def test_several_choices_are_compared_with_each_other(place, capsys):
  argv = ['--choice', 'top(magnitude(), 0.1)', '--choice', 'top(gradient(), 0.1)', '--json']
  assert cli.main(['overlap', 'config.py', *argv]) == 0
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert found['names'] == [f'{s}() animals {i}' for s in ('magnitude', 'gradient') for i in (0, 1)]
  matrix = np.array(found['jaccard'])
  assert matrix[0, 1] == 1 and 0 < matrix[0, 2] < matrix[2, 3] < 1


@pytest.mark.parametrize(
  ('argv', 'said'),
  [
    (
      ['--choice', 'top(snip(), 0.1)', '--choice', "top(snip(), 0.1, where='.*/kernel')"],
      'choices compare among the same places',
    ),
    (['--choice', 'lora()'], 'chooses nothing; write for example top(snip(), 0.01)'),
    (['--choice', 'top(snip(), 2.0)'], 'a fraction up to 1.0'),
    (['--choice', 'top(snp(), 0.1)'], "did you mean 'snip'"),
    ([], 'required: --choice'),
    (['--choice', 'top(snip(), 0.1)', '--config.kk=1'], "unknown config key 'kk'"),
  ],
)
def test_a_mistake_is_one_line(place, capsys, argv, said):
  assert cli.main(['overlap', 'config.py', *argv]) == 2
  err = workplace.lines(capsys.readouterr().err)
  assert len(err) == 1 and said in err[0]
