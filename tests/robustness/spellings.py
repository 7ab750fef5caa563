"""Random spellings, and a child process that parses them: python -m tests.robustness.spellings N.

The child watches what the interpreter audits: a text may run, open, send and start nothing.  It
prints one JSON object: how many were taken and refused, and each finding.
"""

import collections
import inspect
import json
import random
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

SECONDS = 1.0  # Of this process, for one text.
FORBIDDEN = (
  'os.', 'subprocess.', 'socket.', 'shutil.', 'ctypes.', 'pty.', 'urllib.', 'webbrowser.', 'mmap.',
  'tempfile.', 'http.', 'ftplib.', 'code.', 'pickle.', 'marshal.', 'builtins.input', 'exec', 'open',
)  # fmt: skip
QUIET = ('os.listdir', 'os.scandir', 'os.putenv', 'os.walk', 'os.fwalk')
JUNK = (
  '0', '-1', '2**99', '10**400', '9' * 4400, '1e999', '-1e-999', '1j', 'None', 'True', '...',
  "b'x'", "''", "'a'", "'.*'", "'('", "'(a+)+!'", r"'\0'", "'é漢'", "'{mask}'", "'bad, good'",
  "'0.5 bits'", '()', '(1,)', '(1, 2, 3)', "('a', 'b')", '[]', '[[[[1]]]]', '{}', "{'a': 1}",
  '{1, 2}', '((),) * 9', 'lambda: 0', '(lambda: 0)()', '[x for x in (1,)]', "f'{1}'", 'a.b',
  'a.b()', 'a[0]', '1 if 1 else 2', '1 < 2', 'not 1', '1 and 2', '(y := 1)', '*(1, 2)', '**{}',
  '**{"a": 1}', '-True', '1_000', '0x7f', "__import__('os').system('touch ran')",
  "os.system('touch ran')", "open('ran', 'w')", "eval('1')", "exec('1')", 'lora.__globals__',
  "getattr(lora, '__globals__')", 'print(1)', 'super()', 'breakpoint()', 'type', 'int', 'print',
  'lora', 'sgd', 'chain',
)  # fmt: skip
OF_TYPE = {
  'Method': 'lora()', 'Fit': 'sgd(steps=2)', 'Score': 'magnitude()', 'Stage': 'rewind()',
  'Program': 'rewind()', 'Learner': 'protonet()', 'Where': "'.*/kernel'", 'str': "'.*'",
  'float': '0.5', 'int': '2', 'tuple': '((1,), (2,))', 'Any': "top(magnitude(), 0.1)",
}  # fmt: skip
LETTERS = '()[]{},=.|&~*+-\'"\\ \n\t\0#:;@!<>%é漢\u202e\ud800lora0123456789_e'


class Spellings:
  """Draws texts of a vocabulary."""

  def __init__(self, known: Mapping[str, Callable[..., Any]], seed: int) -> None:
    self.known, self.names = known, sorted(known)
    self.random = random.Random(seed)

  def text(self) -> str:
    """A call with arguments right and wrong; or such a text with letters changed; or letters."""
    kind = self.random.random()
    if kind < 0.1:
      return ''.join(self.random.choices(LETTERS, k=self.random.randrange(60)))
    if kind < 0.15:
      return self.long()
    if kind < 0.5:
      return self.sound(0)
    text = self.value(0) if kind < 0.6 else self.call(0)
    for _ in range(self.random.randrange(1, 4) if kind > 0.8 else 0):
      at, old = self.random.randrange(len(text) + 1), self.random.randrange(3)
      text = text[:at] + self.random.choice(LETTERS) * (old > 0) + text[at + (old != 1) :]
    return text

  def call(self, depth: int) -> str:
    """A call of a known name; its arguments are often its own."""
    name = self.random.choice(self.names)
    parameters = list(inspect.signature(self.known[name]).parameters.values())
    shown = []
    for p in self.random.sample(parameters, self.random.randrange(len(parameters) + 1)):
      own = p.default is not inspect.Parameter.empty and self.random.random() < 0.4
      value = self.own(p.default) if own else self.value(depth + 1)
      shown.append(value if p.kind is p.VAR_POSITIONAL else f'{p.name}={value}')
    for _ in range(self.random.choice((0, 0, 0, 0, 1, 2, 3))):
      shown.insert(0, self.value(depth + 1))
    return f'{name}({", ".join(shown)})'

  def sound(self, depth: int) -> str:
    """A call with arguments of the types that it takes."""
    name = self.random.choice(self.names)
    shown = []
    for p in inspect.signature(self.known[name]).parameters.values():
      hint = str(p.annotation)
      if p.default is not inspect.Parameter.empty:
        shown += [f'{p.name}={self.own(p.default)}'] if self.random.random() < 0.2 else []
        continue
      drawn = next((text for kind, text in OF_TYPE.items() if kind in hint), '2')
      nested = self.sound(depth + 1) if depth < 3 and self.random.random() < 0.3 else drawn
      several = self.random.randrange(4) if p.kind is p.VAR_POSITIONAL else 1
      shown = [nested] * several + shown
    return f'{name}({", ".join(shown)})'

  def own(self, default: Any) -> str:
    """As the default is spelled, or another value of its type."""
    if type(default) in (int, float) and self.random.random() < 0.7:
      return self.random.choice(('1', '2', '0.5', '3', '7', '1e-3', '64', '2147483647', '1e30'))
    from fewshot.methods import spell

    try:
      return spell(default)
    except ValueError:
      return 'None'

  def value(self, depth: int) -> str:
    """A literal, a call, or something that no spelling has."""
    kind = self.random.random()
    if kind < 0.45 and depth < 5:
      return self.call(depth)
    if kind < 0.55 and depth < 5:
      return f'{self.value(depth + 1)} {self.random.choice("|&+*")} {self.value(depth + 1)}'
    if kind < 0.6 and depth < 5:
      return f'~{self.value(depth + 1)}'
    return self.random.choice(JUNK)

  def long(self) -> str:
    """Deep, or wide, up to what the parser takes and beyond."""
    n = self.random.choice((50, 150, 250, 900, 3000, 8000, 20_000))
    one = self.call(4)
    return self.random.choice((
      '(' * n + ')' * n, '~' * n + one, '-' * n + '1', ' | '.join([one] * (n // 9)),
      ' & '.join(["at('a')"] * (n // 9)), '[' * n + ']' * n, f'chain({"ia3(), " * (n // 8)})',
      'chain(' * (n // 9) + one + ')' * (n // 9), '1' + '+1' * n, 'a' * n, "'" + 'é' * n + "'",
      '~(' * (n // 3) + "at('a')" + ')' * (n // 3), 'lora.' * (n // 5) + 'a', '\n' * n + one,
      '{' * n, 'lambda: ' * (n // 8) + '1', f'program({one}, {"rewind(), " * (n // 10)})',
    ))  # fmt: skip


class Watch:
  """What the interpreter audits while a text is parsed; files may be read where a text says so."""

  def __init__(self) -> None:
    self.text: str | None = None
    self.seen: list[str] = []
    sys.addaudithook(self.hook)

  def hook(self, event: str, args: tuple[Any, ...]) -> None:
    if self.text is None or event in QUIET or not event.startswith(FORBIDDEN):
      return
    if event == 'open' and not (isinstance(args[1], str) and set(args[1]) & set('wax+')):
      named = any(f'{name}(' in self.text for name in ('saved', 'pretrained'))
      if named or self.imported():
        return
    if event in ('exec', 'marshal.loads') and self.imported():
      return
    self.seen.append(f'{event} {args!r:.80}')

  @staticmethod
  def imported() -> bool:
    """Whether this is an import of our own, or an annotation that is evaluated."""
    frame: Any = sys._getframe(2)
    while frame is not None:
      name = frame.f_code.co_filename
      if 'importlib' in name or name.endswith(('/typing.py', '/annotationlib.py', '/linecache.py')):
        return True
      frame = frame.f_back
    return False


def parsers() -> dict[str, tuple[Callable[[str], Any], Mapping[str, Callable[..., Any]]]]:
  """Each reader of spellings, and the names that it knows."""
  import jax

  from fewshot import backbones, fits, learners, methods, objectives, programs
  from fewshot.models import conv4, resnet12
  from fewshot.tasks import prompts

  for family in (conv4, resnet12):  # Weights are not drawn.
    family.init = lambda config, key, init=family.init: jax.eval_shape(lambda: init(config, key))
  families = {
    'conv4': conv4.Config,
    'resnet12': resnet12.Config,
    'pretrained': backbones.pretrained,
  }
  return {
    'methods': (methods.parse, methods.VOCABULARY),
    'fits': (fits.parse, fits.VOCABULARY),
    'learners': (learners.parse, learners.VOCABULARY),
    'prompts': (prompts.parse, prompts.VOCABULARY),
    'objectives': (objectives.parse, objectives.VOCABULARY),
    'programs': (programs.parse, programs.VOCABULARY),
    'backbones': (backbones.backbone_of, families),
  }


def main(tries: int, seed: int) -> None:
  """Parses so many texts, in turn by each reader."""
  from fewshot.errors import FewshotError
  from fewshot.methods import spell

  sys.dont_write_bytecode = True  # Else an import writes a file.
  watch, counts, found, slowest = Watch(), collections.Counter(), [], 0.0
  readers = {
    k: (parse, Spellings(known, seed + i))
    for i, (k, (parse, known)) in enumerate(parsers().items())
  }
  for i in range(tries):
    kind = list(readers)[i % len(readers)]
    parse, drawn = readers[kind]
    text, problem, spent = drawn.text(), '', 0.0
    start, watch.seen = time.process_time(), []
    watch.text = text
    try:
      made = parse(text)
      spent = time.process_time() - start
      counts[f'{kind} taken'] += 1
      if kind != 'backbones' and spell(parse(spell(made))) != spell(made):
        problem = 'another spelling when it is spelled again'
    except FewshotError as e:
      counts[f'{kind} refused'] += 1
      problem = '' if str(e).strip() and '\n' not in str(e) and len(str(e)) <= 600 else repr(str(e))
    except BaseException as e:
      problem = f'{type(e).__name__}: {e}'[:300]
    watch.text = None
    spent = spent or time.process_time() - start
    slowest = max(slowest, spent)
    problem = problem or (f'{spent:.1f} s' if spent > SECONDS else '') or ', '.join(watch.seen)
    if problem:
      found.append({'kind': kind, 'text': text[:2000], 'problem': problem})
  print(json.dumps({'tries': tries, 'counts': counts, 'slowest': slowest, 'found': found}))


if __name__ == '__main__':
  main(int(sys.argv[1]), int(sys.argv[2]))
