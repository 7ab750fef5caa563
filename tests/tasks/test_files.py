"""Files of local data sets: what ends a line, what is packed, what is damaged."""

import gzip
import re

import pytest

from fewshot.errors import FewshotError
from fewshot.tasks import files


@pytest.fixture
def write(tmp_path, monkeypatch):
  monkeypatch.setenv('FEWSHOT_DATA', str(tmp_path))

  def write(name: str, content: str | bytes) -> None:
    path = tmp_path / 'set' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)

  return write


def test_only_a_line_feed_ends_a_line(write):
  write('a.txt', '\ufeffone\u2028still\x85one\r\n\n  \ntwo\n')
  assert files.lines('set', 'a.txt') == ['one\u2028still\x85one', 'two']


def test_quotes_mean_nothing_between_tabs(write):
  write('a.tsv', '"one\ttwo\n')
  assert files.tabbed('set', 'a.tsv') == [['"one', 'two']]


def test_a_csv_with_line_feeds_in_a_cell(write):
  write('a.csv', 'x,"a\n""b"", c"\n\ny,d\r\n')
  assert files.commas('set', 'a.csv') == [['x', 'a\n"b", c'], ['y', 'd']]


def test_json_plain_and_packed(write):
  write('deep/a.json.gz', gzip.compress('{"a": "\u00e9"}'.encode()))
  write('a.jsonl', '{"a": 1}\n{"a": 2}\n')
  assert files.parsed('set', 'deep/a.json') == {'a': '\u00e9'}
  assert files.records('set', 'a.jsonl') == [{'a': 1}, {'a': 2}]


@pytest.mark.parametrize(
  'read, name, content, message',
  [
    (files.lines, 'gone', None, 'there is no gone in the folder set; put it there'),
    (files.lines, 'a', b'caf\xe9', "set/a cannot be read: 'utf-8' codec"),
    (files.lines, 'a.gz', b'no gzip', 'set/a cannot be read: Not a gzipped file'),
    (files.lines, 'a.gz', gzip.compress(b'whole', mtime=0)[:-9], 'set/a cannot be read'),
    (files.commas, 'a', 'x,"open\n', 'set/a is no CSV: unexpected end of data'),
    (files.parsed, 'a', '{', 'set/a is no JSON'),
    (files.records, 'a', '{}\nx\n', 'set/a is no JSON'),
  ],
)
def test_refused(write, read, name, content, message):
  write('there', '')
  if content is not None:
    write(name, content)
  with pytest.raises(FewshotError, match=re.escape(message)) as e:
    read('set', name.removesuffix('.gz'))
  assert '\n' not in str(e.value)


def test_cells_of_a_row():
  assert files.pick('set', 'a', ['x', 'y', 'z'], (2, -2)) == ('z', 'y')
  assert files.pick('set', 'a', {'q': 'x'}, ('q',)) == 'x'
  for row in (['x'], {'q': 'x'}, None):
    with pytest.raises(FewshotError, match=r'set/a has a line without the cells \(0, 3\); fetch'):
      files.pick('set', 'a', row, (0, 3))
