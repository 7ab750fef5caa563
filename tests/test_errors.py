"""The one exception: a line, whatever the names in it."""

import pickle

import numpy as np
import pytest

from fewshot.errors import FewshotError, counts, nearest


def test_messages_are_one_printable_line():
  e = FewshotError('a\nb\x1b[2J\u2028\ud800 é 漢')
  assert str(e) == r'a\nb\x1b[2J\u2028\ud800 é 漢'
  assert str(pickle.loads(pickle.dumps(e))) == str(e)


def test_of_a_long_message_the_beginning_and_the_end_are_kept():
  message = str(FewshotError('begin ' + 'x' * 10_000 + ' end'))
  assert len(message) == 600 and message.startswith('begin x') and message.endswith('x end')
  assert str(FewshotError('x' * 600)) == 'x' * 600


def test_the_nearest_of_an_endless_name():
  assert nearest('x' * 10**7, ['lora']) == 'known: lora'


@pytest.mark.parametrize('value', [0, -1, 1.0, True, None, '3', np.float32(2)])
def test_what_counts_nothing(value):
  with pytest.raises(FewshotError, match=r'n=.* is no whole number of at least 1'):
    counts(m=1, n=value)


def test_what_counts():
  counts(a=1, b=np.int64(3))
