"""`fewshot overlap`: what the tasks and splits of a config choose to train, compared."""

import json
from collections.abc import Sequence

from fewshot import config as configs
from fewshot import methods, overlaps, records
from fewshot.command_run import folder_of
from fewshot.console import note, stdout
from fewshot.errors import FewshotError
from fewshot.methods.choices import Top
from fewshot.methods.spelling import parse


def run(
  path: str, overrides: Sequence[str], wanted: Sequence[str], out: str | None, as_json: bool
) -> int:
  """Chooses on every split of every task of the config, and writes overlap.{json, md, png}."""
  todo = configs.load(path, overrides)
  if 'learner' in todo[0]:
    raise FewshotError(f'{path} is of episodes; overlap compares tasks with splits')
  tops = [_parsed(text) for text in wanted]
  from fewshot.prepared import prepare

  by_data = {(c.model, c.task): c for c in todo}
  prepared = prepare(list(by_data.values()))
  found = overlaps.run(prepared, tops)
  folder = records.prepare(folder_of(todo[0], out))
  records.replace(folder / 'overlap.json', json.dumps(found.as_json()).encode())
  records.replace(folder / 'overlap.md', overlaps.table(found).encode())
  overlaps.draw(found, folder / 'overlap.png')
  if as_json:
    print(json.dumps(found.as_json()))
  else:
    stdout.print(overlaps.table(found))
    note(f'written: {folder}/{{overlap.json, overlap.md, overlap.png}}')
  return 0


def _parsed(text: str) -> Top:
  top = parse(text, methods.VOCABULARY, 'choice')
  if not isinstance(top, Top):
    raise FewshotError(f'--choice {text!r} chooses nothing; write for example top(snip(), 0.01)')
  return top
