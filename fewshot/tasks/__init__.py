"""Tasks: labelled examples, K-shot splits, and the arrays a sweep runs on."""

from fewshot.tasks.base import Given, Task, make
from fewshot.tasks.encode import Encoded, encode
from fewshot.tasks.sources import CLASSES, from_arrays, from_csv, load
from fewshot.tasks.splits import Split, kshot, unlabelled

__all__ = [
  'CLASSES', 'Encoded', 'Given', 'Split', 'Task', 'encode', 'from_arrays', 'from_csv', 'kshot',
  'load', 'make', 'unlabelled',
]  # fmt: skip
