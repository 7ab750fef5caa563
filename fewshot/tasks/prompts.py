"""Prompts: how an example becomes what a language model completes, and what the classes are called.

A prompt is spelled, `cloze('{text} It was {mask}.', 'terrible, great')`, and belongs to no model;
`wording` makes it one's own: label words become tokens.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fewshot.errors import FewshotError, brief
from fewshot.methods import spelling
from fewshot.methods.spelling import Made, spelled
from fewshot.models.base import Model
from fewshot.tasks import templates
from fewshot.tasks.base import Task
from fewshot.tasks.label_words import check_distinct, check_slots, tokens_of
from fewshot.tasks.shown import Shots
from fewshot.tasks.templates import Filled, Reads, Template, check_texts, fields_of

CALIBRATIONS = ('none', 'contextual', 'domain')
SCORES, JOINS = ('word', 'likelihood', 'soft'), ('mean', 'max', 'logsumexp')
DRAWN = 20  # Texts of random words for the calibration by domain.


class Prompt(NamedTuple):
  """A prompt as it is spelled."""

  templates: tuple[str, ...]
  words: tuple[tuple[str, ...], ...] = ()  # Of each class, in the task's order; none: no classes.
  score: str = 'word'
  join: str = 'mean'
  demonstrations: int = 0
  similar: str = ''
  made: Made | None = None

  @property
  def hashes(self) -> dict[str, str]:
    """Those that a record names: of the templates and of the label words."""
    digest = lambda x: hashlib.sha256(repr(x).encode()).hexdigest()[:16]  # noqa: E731
    words = (self.words, self.score, self.join)
    shown = (self.templates, self.demonstrations, self.similar)
    return {'template': digest(shown if self.demonstrations else self.templates)} | (
      {'words': digest(words)} if self.words else {}
    )


class Wording(NamedTuple):
  """A prompt for one task and one model."""

  prompt: Prompt
  templates: tuple[Template, ...]
  reads: Reads
  words: tuple[tuple[tuple[int, ...], ...], ...]  # Of each class, its words, of each its tokens.
  fields: tuple[str, ...]  # Of the texts.
  start: int | None = None  # The token that a decoder starts with.

  @property
  def views(self) -> int:
    """How many rows an example makes: one a template, and a set of demonstrations."""
    return len(self.templates) * max(self.prompt.demonstrations, 1)

  @property
  def before(self) -> list[str]:
    """Texts behind which a label word is the tokens that it is in the templates."""
    return [t.before_slot if self.reads == 'left' else 'a ' for t in self.templates]

  @property
  def answers(self) -> np.ndarray | None:
    """The tokens [C, A] of the first word of each class, padded with -1."""
    first = [words[0] for words in self.words]
    return templates.padded(first, max(map(len, first)), -1) if first else None


@spelled
def cloze(
  template: str | tuple[str, ...],
  words: str = '',
  score: Literal['word', 'likelihood', 'soft'] = 'word',
  join: Literal['mean', 'max', 'logsumexp'] = 'mean',
  demonstrations: int = 0,
  similar: str = '',
) -> Prompt:
  """A cloze text (Schick & Schutze 2021, arXiv:2001.07676): `{fields}`, and `{mask}` for a word.

  Args:
    template: one, or several; then each example is shown in all of them: training takes each as
      an example of its own, and a test item's logits are the mean over them.
    words: the label words by class, in the order of the task's classes; a class has several by
      bars: 'bad|awful, good|great'.  Without any, a method learns the classes at the slots.
    score: 'word' reads one token a word at the slot, see `verbalizer`; 'soft' trains vectors that
      start as those words, see `soft_verbalizer`; 'likelihood' reads all tokens of the first word
      of each class, normalised by their number, see `likelihood`.
    join: how the scores of several words become that of their class.
    demonstrations: so many sets; behind an example stands one train example of every class with
      its word in place (Gao et al. 2021, arXiv:2012.15723), and each set is a view.  Of masked
      models and encoder-decoders; for causal ones see the method `demonstrations`.
    similar: the model whose sentence embeddings say which half of the train examples are drawn
      from, 'minilm-l6'; '' draws from all.

  >>> cloze('{text} It was {mask}.', 'bad|awful, good').words
  (('bad', 'awful'), ('good',))
  """
  texts = (template,) if isinstance(template, str) else template
  if not texts or len(set(texts)) < len(texts) or not all(isinstance(t, str) for t in texts):
    raise FewshotError(f'cloze({texts}) takes a template, or several that differ')
  split = tuple(tuple(w.strip() for w in c.split('|')) for c in words.split(',') if words.strip())
  if any(not w for of_class in split for w in of_class):
    raise FewshotError(f'cloze(words={words!r}) has an empty word; write words as "bad, good"')
  for name, value, known in (('score', score, SCORES), ('join', join, JOINS)):
    if value not in known:
      raise FewshotError(f'cloze({name}={value!r}) is unknown; there are {brief(known)}')
  if not split and score != 'word':
    raise FewshotError(f'cloze(score={score!r}) is of label words, and there are none')
  several = score == 'likelihood' and any(len(c) > 1 for c in split)
  if several or (score != 'word' and join != 'mean'):
    raise FewshotError(f'cloze(score={score!r}) takes one word a class, and joins none')
  if demonstrations < 0 or (demonstrations and not split) or (similar and not demonstrations):
    raise FewshotError(
      f'cloze(demonstrations={demonstrations}, similar={similar!r}): demonstrations are sets of '
      'examples with their label words, and similar chooses among them'
    )
  return Prompt(texts, split, score, join, demonstrations, similar)


VOCABULARY: dict[str, Callable[..., Any]] = {'cloze': cloze}


def parse(text: str) -> Prompt:
  """The prompt that `text` spells.

  >>> parse("cloze('{text} It was {mask}.', 'bad, good')").templates
  ('{text} It was {mask}.',)
  """
  called = isinstance(text, str) and re.match(r'\s*\w+\s*\(', text)
  made = spelling.parse(text, VOCABULARY, 'prompt') if called else None
  if not isinstance(made, Prompt):
    raise FewshotError(
      f"{text!r} spells no prompt; write cloze('{{text}} It was {{mask}}.', 'bad, good')"
    )
  return made


def wording(prompt: Prompt, model: Model, fields: Sequence[str], classes: Sequence[str]) -> Wording:
  """The prompt for the fields and classes of a task, in the tokens of a model.

  Raises:
    FewshotError: a template that does not parse or holds a mask token, words of another number of
      classes, a word whose tokens are not what `score` takes, or two that are the same token.
  """
  if model.tokenizer is None:
    raise FewshotError(f'a prompt is of texts, and {model.name} has no tokenizer')
  made = tuple(templates.parse(t, fields) for t in prompt.templates)
  slots = {t.slots for t in made}
  if len(slots) > 1:
    raise FewshotError(f'the templates of a prompt have as many {{mask}} each, not {sorted(slots)}')
  if prompt.words and len(prompt.words) != len(classes):
    raise FewshotError(
      f'the prompt has words for {len(prompt.words)} classes, and the task has {len(classes)}, in '
      f'this order: {brief(tuple(classes))}'
    )
  if prompt.words and not slots - {0}:
    raise FewshotError(f'template {prompt.templates[0]!r} has no {{mask}} for its label words')
  reads, start = reading(model)
  if prompt.demonstrations and reads == 'left':
    raise FewshotError(
      f'{model.name} predicts what comes next, and demonstrations of a prompt stand behind a text; '
      'take the method demonstrations()'
    )
  templates.check_literals(model.tokenizer, made, reads)
  several = prompt.score == 'likelihood'
  shown = Wording(prompt, made, reads, (), tuple(fields), start)
  words = tuple(
    tuple(tokens_of(model.tokenizer, w, several, shown.before) for w in of_class)
    for of_class in prompt.words
  )
  check_distinct(prompt.words, words)
  if several and reads == 'masks':
    check_slots(prompt.words, words, max(slots))
  return shown._replace(words=words)


def reading(model: Model) -> tuple[Reads, int | None]:
  """What predicts words in a model; of an encoder-decoder also what its output starts with."""
  example = model.example or {'tokens': np.ones((1, 2), np.int32), 'mask': np.ones((1, 2), bool)}
  if 'decoder_tokens' in example:
    return 'decoder', int(np.asarray(example['decoder_tokens'])[0, 0])
  batch = dict(example) | {'room': jnp.zeros(1)}
  outputs = jax.eval_shape(lambda p: model.forward(p, batch), model.params)
  return ('left' if 'cache' in outputs else 'masks'), None  # What decodes can remember.


def fill(
  made: Wording,
  tokenizer: Any,
  texts: Sequence[str | tuple[str, ...]],
  max_length: int,
  shots: Shots | None = None,
) -> Filled:
  """The rows [N * views] of texts in the templates of a prompt, those of a text side by side."""
  shown = [fields_of(t) for t in texts]
  check_texts([field for fields in shown for field in fields])
  odd = next((fields for fields in shown if len(fields) != len(made.fields)), None)
  if odd is not None:
    raise FewshotError(
      f'the prompt shows texts of {len(made.fields)} fields, {brief(made.fields)}, and one has '
      f'{len(odd)}'
    )
  named = [dict(zip(made.fields, fields, strict=True)) for fields in shown]
  sets = _behind(made, tokenizer, shown, max_length, shots)
  parts = []
  for t, of_template in zip(made.templates, sets, strict=True):
    for behind, short in of_template:
      part = templates.encode(tokenizer, t, named, max_length, made.reads, behind)
      parts.append(part._replace(cut=part.cut | short))
  width = max(p.rows['tokens'].shape[1] for p in parts)
  rows = {k: _side_by_side([p.rows[k] for p in parts], width) for k in parts[0].rows}
  if made.reads == 'decoder':
    start = np.full((len(rows['tokens']), 1), made.start, np.int32)
    rows |= {'decoder_tokens': start, 'slots': np.zeros_like(start)}
  lengths = np.stack([p.lengths for p in parts], 1).reshape(-1)
  return Filled(rows, lengths, np.stack([p.cut for p in parts], 1).reshape(-1))


def _behind(
  made: Wording,
  tokenizer: Any,
  texts: list[tuple[str, ...]],
  max_length: int,
  shots: Shots | None,
) -> list[list[tuple[list[str], Any]]]:
  """What stands behind the texts: of each template, of each set of demonstrations, by text.

  Beside it, by text, whether one of them was cut.
  """
  sets = made.prompt.demonstrations
  if not sets:
    return [[([], False)] for _ in made.templates]
  if shots is None:
    raise FewshotError('this prompt shows train examples, and there are none at hand')
  room = max_length // (1 + len(made.words))
  named = [dict(zip(made.fields, t, strict=True)) for t in shots.texts]
  words = [made.prompt.words[c][0] for c in shots.labels]
  drawn = shots.draw(texts, sets)  # [N, sets, C]
  ends = tokenizer.encode('').ids if made.reads == 'masks' else []
  mark = tokenizer.id_to_token(ends[-1]) if ends else ''  # What ends a text also parts two.
  out = []
  for t in made.templates:
    try:
      fitted = [
        templates.fitted(tokenizer, t, [n], room, w, [''])
        for n, w in zip(named, words, strict=True)
      ]
    except FewshotError:
      raise FewshotError(
        f'max_length={max_length} leaves {room} tokens for a demonstration, fewer than its own '
        'words take; raise max_length'
      ) from None
    cut = np.array([found[1][0] for found in fitted])
    full = [f' {mark} {found[0][0]}' for found in fitted]
    out.append(
      [
        ([''.join(full[j] for j in row) for row in drawn[:, s]], cut[drawn[:, s]].any(1))
        for s in range(sets)
      ]
    )
  return out


def free_of_content(
  made: Wording, tokenizer: Any, task: Task, length: int, calibration: str
) -> tuple[tuple[int, ...], ...]:
  """The token rows of texts without content in the template, as `calibrated` takes them.

  Those are 'N/A' and nothing ('contextual', Zhao et al. 2021, arXiv:2102.09690), or random words of
  the task's train pool ('domain', Fei et al. 2023, arXiv:2305.19148).
  """
  texts = ('N/A', '') if calibration == 'contextual' else _random_texts(task)
  rows = fill(made, tokenizer, [(t,) * len(task.fields) for t in texts], length)
  kept = zip(rows.rows['tokens'], rows.lengths, strict=True)
  return tuple(tuple(int(i) for i in row[:n]) for row, n in kept)


def describe(
  made: Wording, tokenizer: Any, classes: Sequence[str], tokens: Sequence[int] | np.ndarray = ()
) -> list[str]:
  """Lines that say what is shown and which tokens stand for which class, and one row as tokens."""
  lines = [repr(t.text) for t in made.templates]
  row = [str(tokenizer.id_to_token(int(i))) for i in tokens]
  if row:
    lines.append(f'as in: {" ".join(row if len(row) < 60 else [*row[:30], "...", *row[-25:]])}')
  for name, words in zip(classes, made.words, strict=False):
    shown = (' '.join(str(tokenizer.id_to_token(i)) for i in w) for w in words)
    lines.append(f'{name}: {" | ".join(shown)}')
  return lines


def _side_by_side(parts: Sequence[np.ndarray], width: int) -> np.ndarray:
  """[N, ...] of each view as [N * V, ...], tokens and masks padded to one width."""
  wide = lambda x: x if len({p.shape[1] for p in parts}) == 1 else _widened(x, width)  # noqa: E731
  x = np.stack([wide(p) for p in parts], 1)
  return x.reshape(-1, *x.shape[2:])


def _widened(x: np.ndarray, width: int) -> np.ndarray:
  return np.pad(x, ((0, 0), (0, width - x.shape[1])))


def _random_texts(task: Task) -> list[str]:
  """Texts of words drawn from the train pool, as long as its texts are on average."""
  inputs: Any = task.inputs
  shown = [inputs[i] if isinstance(inputs[i], str) else ' '.join(inputs[i]) for i in task.train]
  words = np.array([w for text in shown for w in text.split()] or [''])
  rng, size = np.random.default_rng(0), max(round(len(words) / max(len(shown), 1)), 1)
  return [' '.join(rng.choice(words, size)) for _ in range(DRAWN)]


def head(made: Wording) -> str:
  """The spelling of what reads the classes by their words; it stands behind a method."""
  if made.prompt.score == 'likelihood':
    return f'likelihood({tuple(words[0] for words in made.words)})'
  ids = tuple(tuple(w[0] for w in words) for words in made.words)
  joined = '' if made.prompt.join == 'mean' else f', join={made.prompt.join!r}'
  name = 'soft_verbalizer' if made.prompt.score == 'soft' else 'verbalizer'
  return f'{name}({ids}{joined})'
