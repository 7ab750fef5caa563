"""The vocabulary of fits; each name here is a word of the spelling."""

from fewshot.errors import FewshotError
from fewshot.fits.base import Data, Fit, Loss
from fewshot.fits.closed import memory, prototypes
from fewshot.fits.logistic import logistic
from fewshot.fits.perfect import perfect
from fewshot.fits.setfit import setfit
from fewshot.fits.sgd import sgd
from fewshot.fits.untrained import untrained
from fewshot.methods import spelling

FITS = (sgd, setfit, perfect, logistic, prototypes, memory, untrained)
VOCABULARY = {f.__name__: f for f in FITS}


def parse(text: str) -> Fit:
  """The fit that `text` spells.

  >>> parse('sgd(steps=10, lr=1e-3)').steps
  10
  """
  made = spelling.parse(text, VOCABULARY, 'fit')
  if not isinstance(made, Fit):
    raise FewshotError(f'{text!r} spells no fit; write for example sgd(steps=40, lr=1e-3)')
  return made


__all__ = [
  'VOCABULARY',
  'Data',
  'Fit',
  'Loss',
  'logistic',
  'memory',
  'parse',
  'perfect',
  'prototypes',
  'setfit',
  'sgd',
  'untrained',
]
