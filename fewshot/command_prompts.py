"""`fewshot prompts`: label words and templates that are found on the train and dev examples.

The command line imports this file to declare the command, so that only argparse is imported above.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fewshot.errors import FewshotError, counts

TOP = 10  # How many are shown of each split, and trained where there is a dev set.
Row = dict[str, Any]


def add(command: Callable[[str, Callable[..., Any], str], argparse.ArgumentParser]) -> None:
  """Declares the command."""
  sub = command('prompts', run, 'search label words and templates, on train and dev alone')
  sub.add_argument('config', help='one task with a prompt; config keys are set as for run')
  kinds = sub.add_mutually_exclusive_group(required=True)
  kinds.add_argument('--words', type=int, metavar='N', help='find label words among N a class')
  kinds.add_argument('--rank', metavar='FILE', help='rank templates, one a line, on the dev set')
  kinds.add_argument('--write', metavar='T5', help='have a T5, by name or folder, write templates')
  sub.add_argument('--beams', type=int, default=100, help='of --write (default 100)')
  sub.add_argument('--json', action='store_true', help='print one JSON value as the last line')


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
  """Searches on each split of a config and prints what it found, the best first.

  Where there is a dev set (`dev_k`), what was found is ranked by the accuracy on it after the
  config's method and fit, else by the train examples before any training.
  """
  counts(words=1 if args.words is None else args.words, beams=args.beams)
  lines = _lines(args.rank) if args.rank is not None else []
  config = _config(args.config, [arg.removeprefix('--config.') for arg in rest])
  if lines and not config.dev_k:
    raise FewshotError('--rank compares templates on a dev set; set --config.dev_k, at most k')
  rows = _search(config, args, lines)
  if args.json:
    print(json.dumps(rows))
    return 0
  from fewshot import listings
  from fewshot.console import note

  shown = ('split', 'prompt', 'train', 'likely', 'score', 'dev')
  listings.show([{k: _cell(r[k]) for k in shown if k in r} for r in rows])
  if not config.dev_k:
    note('by the train examples, before any training; --config.dev_k=K ranks by a dev set after it')
  return 0


def _search(config: Any, args: argparse.Namespace, lines: Sequence[str]) -> list[Row]:
  """The rows of all splits, each with the split's seed."""
  from fewshot import methods, models
  from fewshot.console import Bars
  from fewshot.limits import options
  from fewshot.prepared import prepare
  from fewshot.programs import prompt_search

  (p,) = prepare([config])
  assert p.wording is not None
  if args.words is None and not p.wording.prompt.words:
    raise FewshotError('templates are compared with label words; name them in config.prompt')
  if args.write is not None and p.wording.reads != 'masks':
    raise FewshotError(
      f'T5 writes on both sides of a word, and {p.model.name} predicts what comes next; take a '
      'masked model, or --rank'
    )
  writer = None if args.write is None else models.load(args.write)
  rows: list[Row] = []
  with Bars(len(p.data.splits)) as bars:
    for split in p.data.splits:
      bars.method(f'split {split.seed}')
      merit = None
      if config.dev_k:
        merit = prompt_search.tuned(
          p.model, p.task, split, methods.parse(config.method), p.fit, seed=config.seeds[0],
          max_length=config.max_length, options=options(config), objective=p.objective,
        )  # fmt: skip
      found = _found(p, split, args, writer, lines, merit, bars)
      rows += [{'split': split.seed, **row} for row in found]
      bars.advance()
  return rows


def _found(
  p: Any,
  split: Any,
  args: argparse.Namespace,
  writer: Any,
  lines: Sequence[str],
  merit: Any,
  bars: Any,
) -> list[Row]:
  """The rows of one split, the best first."""
  from fewshot.methods import spell
  from fewshot.programs import prompt_search, template_search
  from fewshot.tasks import prompts

  about, prompt = (p.model, p.task, split), p.wording.prompt
  if args.words is not None:
    found = prompt_search.label_words(
      *about, prompt.templates[0], candidates=args.words, top=TOP, merit=merit,
      max_length=p.config.max_length, progress=bars.phase,
    )  # fmt: skip
    return [w._asdict() for w in found]
  words = ', '.join('|'.join(of_class) for of_class in prompt.words)
  likely: dict[str, float] = {}
  if writer is not None:
    written = template_search.write_templates(
      writer, p.task, split, words, beams=args.beams, top=TOP, progress=bars.phase
    )
    likely = dict(written)
    if merit is None:
      made = [prompts.cloze(w.template, words) for w in written]
      return [{'prompt': spell(m), **w._asdict()} for m, w in zip(made, written, strict=True)]
  ranked = prompt_search.rank_templates(
    *about, lines or list(likely), words, merit=merit, progress=bars.phase
  )
  return [{**r._asdict(), **({'score': likely[r.template]} if likely else {})} for r in ranked]


def _config(path: str, overrides: Sequence[str]) -> Any:
  """The one row of a config, whose prompt is plain enough to be searched around."""
  from fewshot import config as configs
  from fewshot.console import note
  from fewshot.tasks import prompts

  todo = configs.load(path, overrides)
  if len(todo) > 1 or 'learner' in todo[0]:
    raise FewshotError(
      f'{path} has {len(todo)} rows, or is of episodes; prompts are searched for one row: name its '
      'task and prompt by --config.task=... --config.prompt=...'
    )
  config = todo[0]
  if not config.prompt or config.program or config.calibration != 'none':
    raise FewshotError(
      'prompts are searched from config.prompt, which has the template or the label words, and are '
      "compared by method and fit: set it, and leave program and calibration at '' and 'none'"
    )
  prompt = prompts.parse(config.prompt)
  if prompt != prompts.cloze(prompt.templates[0], '')._replace(
    words=prompt.words, made=prompt.made
  ):
    raise FewshotError(
      'prompts are searched with one template, without demonstrations, whose words are read as '
      f'tokens; config.prompt is {config.prompt}'
    )
  if configs.grid(config):
    note('config.grid is left out: prompts are compared at the one rate of config.fit')
  return config


def _lines(file: str) -> list[str]:
  """The templates of a file, one a line."""
  try:
    lines = Path(file).read_text(encoding='utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as e:
    raise FewshotError(f'--rank {file} is no file of templates, one a line: {e}') from None
  found = [line for line in lines if line.strip()]
  if not found:
    raise FewshotError(f'--rank {file} holds no templates; write one a line')
  return found


def _cell(value: Any) -> Any:
  return round(value, 4) if isinstance(value, float) else value
