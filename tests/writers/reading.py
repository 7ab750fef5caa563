"""What tests of writers share: a record, and what must not appear in any file."""

import getpass
import json
import os
import socket
from pathlib import Path
from typing import Any

from fewshot import config as configs
from fewshot.writers import jsonl

SECRET = 'correct horse battery staple'
HOME = os.path.expanduser('~')  # Before any test changes it.
KEY = 'k' * 20 + '0123456789' * 2


def record(**changes: Any) -> dict[str, Any]:
  """A finished run, as far as writers read it."""
  return {
    'id': 'beef' * 4, 'method': 'linear()', 'fit': 'sgd(steps=2)', 'model': 'tiny', 'task': 'toy',
    'split': {'seed': 3}, 'seed': 0, 'hyper': {'lr': 0.01}, 'trained': 7, 'status': 'ok',
    'curve': [1.5, 0.75], 'scores': {'accuracy': {'value': 0.5, 'n': 8}},
  } | changes  # fmt: skip


def config(**changes: Any) -> Any:
  """A config of texts with dotted keys changed, `wandb__mode` for wandb.mode."""
  dotted = {k.replace('__', '.'): v for k, v in changes.items()}
  return configs.with_changes(configs.default(), {'name': 'toy', **dotted})


def lines(folder: Path) -> list[Any]:
  """log.jsonl, in which NaN would be no JSON."""

  def refuse(constant: str) -> None:
    raise AssertionError(f'{constant} is not JSON')

  text = (folder / jsonl.NAME).read_text()
  return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def plant(folder: Path, monkeypatch: Any) -> None:
  """Secrets in the environment and a home of its own."""
  monkeypatch.setenv('HOME', str(folder / 'home'))
  monkeypatch.setenv('WANDB_API_KEY', KEY)
  monkeypatch.setenv('MY_PASSWORD', SECRET)


def leaks(folder: Path) -> list[str]:
  """Files below the folder whose name or content tells of this machine, with what they tell."""
  told = {'secret': SECRET, 'key': KEY, 'home': os.path.expanduser('~'), 'cwd': os.getcwd()}
  told |= {'real home': f'{HOME}/', 'folder': str(folder.resolve()), 'temporary': '/tmp/'}
  if len(socket.gethostname()) > 4:  # Shorter ones stand in other words.
    told['host'] = socket.gethostname()
  if len(getpass.getuser()) > 4:
    told['user'] = getpass.getuser()
  found = []
  for path in sorted(folder.rglob('*')):
    name = str(path.relative_to(folder))
    held = os.readlink(path).encode() if path.is_symlink() else b''
    if path.is_file() and not path.is_symlink():
      held = path.read_bytes()
    for what, text in told.items():
      if text.encode() in held or (text in name and not text.startswith('/')):
        found.append(f'{name}: {what}')
  return found
