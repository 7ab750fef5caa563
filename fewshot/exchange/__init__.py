"""Adapters of HF PEFT, read and written: `read(folder, model)`, `write(adapted, folder)`."""

from fewshot.exchange.library import KINDS
from fewshot.exchange.reading import read
from fewshot.exchange.writing import write

__all__ = ['KINDS', 'read', 'write']
