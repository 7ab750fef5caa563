"""The options of `fewshot table`; nothing but argparse is imported, for `fewshot --help`."""

import argparse
from typing import Any

STAT = 'mean,std,n'
EPISODES = 'mean,half,n'  # As papers on episodes have it.
DEFAULTS: dict[str, Any] = {
  'rows': 'method', 'columns': 'task', 'stat': None, 'where': (), 'test': 'permutation',
  'format': None, 'out': None,
}  # fmt: skip


def add(table: argparse.ArgumentParser) -> None:
  """Adds them to the parser of the command."""
  table.add_argument('folders', nargs='+', metavar='DIR', help='a folder with a records.jsonl')
  table.add_argument('--rows', help='fields of the records, such as method,split.k')
  table.add_argument('--columns', help="fields, such as task; '' for none")
  table.add_argument(
    '--stat',
    help='of mean, std, half, ci, median, min, iqm, n, runs, collapse, letters, trained, flops, '
    'seconds and memory (default: mean,std,n, and of episodes mean,half,n)',
  )
  table.add_argument('--where', action='append', metavar='FIELD=VALUE', help='only such records')
  table.add_argument('--test', help='of pairs: permutation (the default), bootstrap or t')
  table.add_argument('--format', help='terminal, markdown, latex, csv or html')
  table.add_argument('--out', metavar='FILE', help='write it; .md, .tex, .csv or .html')
  table.add_argument('--json', action='store_true', help='print one JSON value as the last line')
  table.epilog = 'With a DIR alone: its table.md anew, and the table.'


def given(args: argparse.Namespace) -> dict[str, Any]:
  """What was asked for beyond the table as it was written.

  >>> given(argparse.Namespace(**(dict.fromkeys(DEFAULTS) | {'rows': 'fit'})))
  {'rows': 'fit'}
  """
  return {name: x for name in DEFAULTS if (x := getattr(args, name)) is not None}
