"""Writes the reference outputs that the parity tests compare the backbones with.

Run `python -m tests.parity.regenerate [GROUP ...]` in the repository root, with the `peers` extra
installed; a group is a file of tests/parity/peers/. The fixtures are committed, so the tests need
neither PyTorch nor Transformers. Everything is float32 on the CPU, in eval mode, with eager
attention and right padding.
"""

import importlib
import pkgutil
import sys
from pathlib import Path

from tests.parity import peers

FIXTURES = Path(__file__).parent / 'fixtures'


def main() -> None:
  """Writes all fixtures, or those of the named groups, over those that exist."""
  groups = {m.name for m in pkgutil.iter_modules(peers.__path__)} - {'common'}
  for name in sys.argv[1:] or sorted(groups):
    if name not in groups:
      sys.exit(f'there is no group {name!r}; groups: {", ".join(sorted(groups))}')
    importlib.import_module(f'tests.parity.peers.{name}').write(FIXTURES)
    print(f'wrote the fixtures of {name}')


if __name__ == '__main__':
  main()
