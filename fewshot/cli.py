"""The command line.  Only argparse is imported here: every command imports what it needs."""

import argparse
import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fewshot import __version__, arguments, command_prompts, command_report, table_options
from fewshot.errors import FewshotError, nearest


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command; a user's mistake is one line on stderr and exit status 2."""
  _make_output_safe()
  try:
    args, rest = _parser().parse_known_args(argv)
    _refuse_unknown(args, rest)
    status = int(args.call(args, rest) or 0)
    sys.stdout.flush()
    return status
  except FewshotError as e:
    print(f'fewshot: {e}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('fewshot: interrupted', file=sys.stderr)
    return 130
  except OSError as e:
    _drop_stdout()
    if isinstance(e, BrokenPipeError):
      return 141
    print(f'fewshot: {e.filename or "cannot write the output"}: {e.strerror or e}', file=sys.stderr)
    return 1
  except Exception as e:
    if os.environ.get('FEWSHOT_TRACEBACK'):
      raise
    reason = ' '.join(str(e).split())[:300]
    print(
      f'fewshot: unexpected {type(e).__name__}: {reason} (FEWSHOT_TRACEBACK=1 shows where)',
      file=sys.stderr,
    )
    return 70


class _Parser(argparse.ArgumentParser):
  """A parser whose errors are one line, as all others are, and name the nearest choice."""

  def error(self, message: str) -> NoReturn:
    if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
      known = re.findall(r'[\w-]+', found[2])
      noun = 'command' if self.prog == 'fewshot' else f'word after {self.prog}:'
      raise FewshotError(f'unknown {noun} {found[1]!r}; {nearest(found[1], known)}')
    raise FewshotError(f'{message}; see {self.prog} --help')


def _refuse_unknown(args: argparse.Namespace, rest: Sequence[str]) -> None:
  for arg in rest:
    configured = args.command in ('run', 'sweep', 'overlap', 'prompts')
    if configured and arg.startswith('--config.'):
      continue
    flags = re.findall(r'--[\w-]+', args.usage)
    more = '; config keys are set by --config.KEY=VALUE' if configured else ''
    raise FewshotError(f'unknown argument {arg!r}; {nearest(arg.split("=")[0], flags)}{more}')


def _make_output_safe() -> None:
  """A closed stdout or one that knows only ASCII costs characters, never the command."""
  if sys.stdout is None:
    sys.stdout = open(os.devnull, 'w', encoding='utf-8')  # noqa: SIM115
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='replace')


def _drop_stdout() -> None:
  """What could not be written is not tried again when the interpreter exits."""
  with contextlib.suppress(OSError):
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(
    prog='fewshot', description='Few-shot adaptation experiments in JAX.', allow_abbrev=False
  )
  parser.add_argument('--version', action='version', version=f'fewshot {__version__}')
  commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

  def command(name: str, call: Callable[..., Any], about: str) -> argparse.ArgumentParser:
    sub = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
    sub.set_defaults(call=call)
    return sub

  arguments.add_runs(command)
  _add_listings(command)
  _add_published(command)
  _add_files(command)
  command_report.add(command)

  doctor = command('doctor', _doctor, 'say what this machine has and what is missing')
  doctor.add_argument('--json', action='store_true', help='print one JSON value')

  bench = command('bench', _bench, 'measure against a peer: one file of benchmarks/')
  bench.add_argument('name', help="the benchmark, for example 'step'")
  bench.add_argument('--case', default='', metavar='PATTERN', help='only cases whose name matches')
  bench.add_argument('--repeats', type=int, default=5, help='measurements of each side (default 5)')
  bench.add_argument('--json', action='store_true', help='print one JSON value as the last line')
  for sub in commands.choices.values():
    sub.set_defaults(usage=sub.format_usage())
  return parser


def _add_listings(command: arguments.Command) -> None:
  table_options.add(command('table', _table, 'rebuild the table of runs from their records alone'))

  overlap = command('overlap', _overlap, 'compare what tasks and splits choose to train')
  overlap.add_argument('config', help='its tasks and splits; config keys are set as for run')
  choice = "such as 'top(snip(), 0.01)'; several are compared with each other"
  overlap.add_argument('--choice', required=True, action='append', help=choice)
  overlap.add_argument('--out', help='the folder of the matrix (default: runs/<config.name>)')
  overlap.add_argument('--json', action='store_true', help='print one JSON value as the last line')

  command_prompts.add(command)
  for name in ('methods', 'fits', 'learners', 'models'):
    listing = command(name, _listing, f'list the {name} there are')
    listing.add_argument('--json', action='store_true', help='print one JSON value')
    if name in ('methods', 'fits', 'learners'):
      listing.add_argument('names', nargs='*', help='show the arguments and the formula of these')

  tasks = command('tasks', _tasks, 'list the tasks and image sets, or build a set on disk')
  tasks.add_argument('action', nargs='?', choices=('list', 'build'), default='list')
  tasks.add_argument('name', nargs='?', help='build: an image set, for example omniglot')
  tasks.add_argument('--from', dest='source', help='build: its folder (default: in $FEWSHOT_DATA)')
  tasks.add_argument('--out', help='build: where it goes (default: datasets in the cache)')
  tasks.add_argument('--json', action='store_true', help='print one JSON value as the last line')


def _add_published(command: arguments.Command) -> None:
  again = command('reproduce', _reproduce, 'compare published numbers with ours, or run them')
  again.add_argument('name', nargs='?', help='for example protonet-omniglot')
  again.add_argument('--check', action='store_true', help='only read the records; never train')
  again.add_argument('--list', action='store_true', help='show claims (NAME: those that begin so)')
  again.add_argument('--all', action='store_true', help='--list: every published number')
  again.add_argument('--paper', help='--list: every published number of this paper')
  again.add_argument('--pages', action='store_true', help='write experiments/*/README.md anew')
  again.add_argument(
    '--minutes', type=arguments.minutes, default=0.0, help='stop, saved, after so long'
  )
  again.add_argument('--out', help='where to run (default: runs/<config.name>)')
  again.add_argument('--json', action='store_true', help='print one JSON value as the last line')

  papers = command('papers', _papers, 'say which published systems are hosted, and by what')
  papers.add_argument(
    'words', nargs='?', help='only systems that say so: "sparse", "lora", "hosted"'
  )
  papers.add_argument('--json', action='store_true', help='print one JSON value, a row a system')
  papers.add_argument('--page', action='store_true', help='write docs/hosted.md anew')


def _add_files(command: arguments.Command) -> None:
  assets = command('assets', _assets, 'list, fetch or verify weights and data')
  assets.add_argument('action', nargs='?', choices=('list', 'get', 'verify'), default='list')
  assets.add_argument('names', nargs='*', help='asset names (verify: all when none is given)')
  assets.add_argument('--force', action='store_true', help='get: fetch even what is there')
  assets.add_argument('--json', action='store_true', help='print one JSON value')

  adapters = command('adapters', _adapters, 'read an adapter of HF PEFT, or write one')
  adapters.add_argument('action', choices=('import', 'export'))
  adapters.add_argument('folder', help="import: PEFT's folder; export: a checkpoint")
  adapters.add_argument('--model', help='the base: a name or a folder (export: the recorded one)')
  adapters.add_argument('--out', required=True, help='the folder of what is written')
  adapters.add_argument('--task', help="export: PEFT's task_type, for example CAUSAL_LM")
  adapters.add_argument(
    '--without-head', action='store_true', help='import: leave out a saved classifier'
  )
  adapters.add_argument('--json', action='store_true', help='print one JSON value')


def _table(args: argparse.Namespace, rest: list[str]) -> None:
  del rest
  from fewshot import command_table

  asked = table_options.given(args)
  if asked or len(args.folders) > 1:
    command_table.show(args.folders, args.json, **(table_options.DEFAULTS | asked))
  else:
    command_table.again(args.folders[0], args.json)


def _overlap(args: argparse.Namespace, rest: list[str]) -> int:
  from fewshot import command_overlap

  overrides = [arg.removeprefix('--config.') for arg in rest]
  return command_overlap.run(args.config, overrides, args.choice, args.out, args.json)


def _listing(args: argparse.Namespace, rest: list[str]) -> None:
  del rest
  from fewshot import listings

  if getattr(args, 'names', None) and not args.json:
    print('\n\n'.join(listings.manual(name) for name in args.names))
    return
  _print(listings.rows(args.command), args.json)


def _tasks(args: argparse.Namespace, rest: list[str]) -> None:
  del rest
  from fewshot import listings

  if args.action == 'list':
    _print(listings.rows('tasks'), args.json)
    return
  from fewshot.data import build

  if not args.name:
    raise FewshotError('fewshot tasks build takes a name; `fewshot tasks` lists the image sets')
  folder = build.build(args.name, args.source, args.out)
  _print([{'name': args.name, 'folder': str(folder)}], args.json)


def _papers(args: argparse.Namespace, rest: list[str]) -> None:
  del rest
  if args.page:
    from fewshot import hosted

    print(hosted.write().relative_to(hosted.papers.ROOT))
    return
  from fewshot import papers

  rows = papers.rows()
  if args.words:
    rows = papers.matching(rows, args.words)
  shown = [{k: r[k] for k in ('id', 'status', 'hosted_by', 'title')} for r in rows]
  _print(rows if args.json else shown if args.words else papers.counts(rows), args.json)


def _reproduce(args: argparse.Namespace, rest: list[str]) -> int:
  del rest
  from fewshot import command_reproduce

  if args.pages:
    return command_reproduce.pages()
  if args.list:
    name = args.name or ''
    return command_reproduce.overview(name, args.paper, args.all, args.json, args.out)
  if not args.name or args.all or args.paper:
    raise FewshotError('fewshot reproduce takes a name, or --list to see them all')
  if args.check:
    return command_reproduce.show(args.name, args.json, args.out)
  return command_reproduce.run(args.name, args.minutes, args.out, args.json)


def _assets(args: argparse.Namespace, rest: list[str]) -> int:
  del rest
  from fewshot import assets, listings

  if args.action == 'list':
    _print(listings.rows('assets'), args.json)
    return 0
  if args.action == 'get':
    if not args.names:
      raise FewshotError('fewshot assets get takes names; `fewshot assets` lists them')
    for name in args.names:
      assets.get(name, force=args.force)
    _print([r for r in listings.rows('assets') if r['name'] in args.names], args.json)
    return 0
  rows = listings.verified(args.names)
  _print(rows, args.json)
  return int(any(r['status'] == 'corrupted' for r in rows))


def _adapters(args: argparse.Namespace, rest: list[str]) -> None:
  del rest
  from fewshot.exchange import command

  row = command.run(args.action, args.folder, args.out, args.model, args.task, args.without_head)
  if args.json:
    print(json.dumps(row))
  else:
    _print([row], False)


def _doctor(args: argparse.Namespace, rest: list[str]) -> int:
  del rest
  from fewshot import doctor

  report = doctor.report()
  if args.json:
    print(json.dumps(report))
  else:
    doctor.show(report)
  return int(bool(report['missing']))


def _bench(args: argparse.Namespace, rest: list[str]) -> int:
  del rest
  from fewshot import bench

  result = bench.run(args.name, args.repeats, args.case)
  if args.json:
    print(json.dumps(result))
  else:
    bench.show(result)
  return int(any(row['error'] for row in result['rows']))


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
  """Rows as one JSON line, or as an aligned table."""
  if as_json:
    print(json.dumps(rows))
    return
  from fewshot import listings

  listings.show(rows)


if __name__ == '__main__':
  sys.exit(main())
