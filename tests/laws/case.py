"""What a row of the law suite says of a method, and the sizes its counts are written in."""

from typing import NamedTuple

D, DEPTH, HEADS, WIDTH, CLASSES = 32, 2, 4, 64, 3  # Of the tiny BERT in conftest.py.
VOCAB, POSITIONS = 50, 64
HEAD = D * CLASSES + CLASSES
TRANSFORMERS = ('bert', 'gpt2', 'vit')
EVERYWHERE = (*TRANSFORMERS, 'resnet')


class Case(NamedTuple):
  """What is promised of a method.

  spelling: of the method, small enough for models of width 32
  count:    the number of trained scalars in closed form, on the first model of `on`
  merges:   whether it has a weight form
  starts:   whether it starts as the pretrained function; where not, `why` says what it starts as
  on:       the tiny models it applies to; on the others of EVERYWHERE one line refuses it
  blind:    theta's paths without gradient by construction, as a pattern
  why:      of the exception, if starts is False
  """

  spelling: str
  count: int
  merges: bool = True
  starts: bool = True
  on: tuple[str, ...] = TRANSFORMERS
  blind: str = ''
  why: str = ''
