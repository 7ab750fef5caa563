"""Few-shot adaptation in JAX.

A model is a function; a method turns a frozen function into an adapted one; a fit turns data into
theta; an experiment is a `vmap` of fits; a table is a reduction of records.
"""

import importlib
from typing import Any

__version__ = '0.1.0'

_MODULES = ('adapted', 'checkpoint', 'fits', 'methods', 'models', 'objectives', 'sweep', 'tasks')
_NAMES = {'Adapted': 'adapted', 'Model': 'models', 'load': 'checkpoint', 'save': 'checkpoint'}


def __getattr__(name: str) -> Any:
  """Modules and the few names of the top level, imported when first asked for."""
  if name in _NAMES:
    return getattr(importlib.import_module(f'fewshot.{_NAMES[name]}'), name)
  if name in _MODULES:
    return importlib.import_module(f'fewshot.{name}')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
