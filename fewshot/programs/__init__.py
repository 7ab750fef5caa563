"""The vocabulary of programs; each name here is a word of the spelling, beside methods and fits."""

# ruff: noqa: F403 (each file says by __all__ which stages and programs it adds)
from collections.abc import Callable

from fewshot import fits, methods
from fewshot.errors import FewshotError
from fewshot.methods import spelling
from fewshot.programs import grafting as _grafting
from fewshot.programs import (
  light,
  offsite,
  pretraining,
  prompting,
  published,
  search,
  selftraining,
  steps,
)
from fewshot.programs.grafting import *
from fewshot.programs.light import *
from fewshot.programs.offsite import *
from fewshot.programs.pretraining import *
from fewshot.programs.prompting import *
from fewshot.programs.prompting import worded as worded
from fewshot.programs.published import *
from fewshot.programs.search import *
from fewshot.programs.selftraining import *
from fewshot.programs.steps import *
from fewshot.programs.steps import add as add
from fewshot.stages import Outcome as Outcome
from fewshot.stages import Program, Stage, program
from fewshot.stages import run as run

FILES = (
  *(steps, search, _grafting, published),
  *(offsite, light),
  *(prompting, selftraining, pretraining),
)
WORDS: dict[str, Callable] = {name: getattr(f, name) for f in FILES for name in f.__all__}
WORDS['program'] = program
VOCABULARY = methods.VOCABULARY | fits.VOCABULARY | WORDS


def parse(text: str) -> Program:
  """The program that `text` spells; a stage is a program of one.

  >>> len(parse('lt_sft(budget=0.01, fit=sgd(steps=9))').stages)
  5
  """
  made = spelling.parse(text, VOCABULARY, 'program')
  if isinstance(made, Stage):
    return program(made)
  if not isinstance(made, Program):
    raise FewshotError(f'{text!r} spells no program; write for example lt_sft(fit=sgd(steps=40))')
  return made
