"""Searching for prompts: label words and templates of few examples, as LM-BFF does.

Nothing looks at test items; what is chosen by training is chosen on a dev set no larger than train.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fewshot import sweep as sweeps
from fewshot import tasks
from fewshot.engine import Options, Progress
from fewshot.errors import FewshotError, counts
from fewshot.fits.base import Fit
from fewshot.fits.sgd import sgd
from fewshot.methods import parse
from fewshot.methods.base import Calib, Method, chain
from fewshot.methods.heads import shapes_of
from fewshot.methods.spelling import spell
from fewshot.methods.weights import full
from fewshot.models.base import Model
from fewshot.objectives import Objective
from fewshot.tasks import prompts
from fewshot.tasks.base import Task
from fewshot.tasks.prompts import cloze
from fewshot.tasks.splits import Split

__all__ = ['Ranked', 'Words', 'label_words', 'rank_templates', 'tuned']
Array = np.ndarray
Merit = Callable[[str], float]  # Of a prompt, as spelled.
SGD, FULL = sgd(), full()
ROWS = 32  # Of a forward pass.
MOST = 1_000_000  # Assignments that are compared.


class Words(NamedTuple):
  """Label words that were found; `train` is without training, `dev` after it, if there was any."""

  words: tuple[str, ...]  # By class.
  prompt: str  # As a config spells it.
  train: float  # Zero-shot accuracy on the train examples.
  likely: float  # The sum over classes of the mean log p of its word on its train examples.
  dev: float | None = None


class Ranked(NamedTuple):
  """A template that was tried, and its accuracy on dev."""

  template: str
  prompt: str
  dev: float


def label_words(
  model: Model, task: Task, split: Split, template: str, *, candidates: int = 100, top: int = 10,
  merit: Merit | None = None, max_length: int = 64, progress: Progress | None = None,
) -> list[Words]:  # fmt: skip
  """Automatic label words (Gao et al. 2021, arXiv:2012.15723): the best assignments, best first.

      V_c = the `candidates` words v with the largest sum over x of class c of log p(slot = v | x)

  All assignments of a word of V_c to each class c are ranked by their zero-shot accuracy on the
  train examples, equals by how likely their words are; the first `top` are ranked again by `merit`,
  such as `tuned(...)`, where one is given.  Words are single tokens of letters that begin a word;
  of many classes V_c is as small as leaves at most a million assignments.

  Raises:
    FewshotError: a model without a language-model head, or a template without a slot.
  """
  counts(candidates=candidates, top=top)
  tick = progress or (lambda phase, done: None)
  logp, labels = _at_slot(model, task, split, template, max_length, tick)
  mean = np.stack([logp[labels == c].mean(0) for c in range(len(task.classes))])
  before = prompts.wording(cloze(template), model, task.fields, task.classes).before[0]
  likely = dict(_words(model.tokenizer, logp.shape[1], before))
  size = min(candidates, len(likely), int(MOST ** (1 / len(mean)) + 1e-9))
  if size < 1 or len(likely) < len(mean):
    raise FewshotError(
      f'{model.name} has {len(likely)} words of one token: too few for the classes'
    )
  ids = np.array(list(likely))
  chosen = [ids[np.argsort(-m[ids], kind='stable')[:size]] for m in mean]
  found = []
  for tokens, right in _assigned(logp, labels, chosen, top, mean, tick):
    words = tuple(likely[i] for i in tokens)
    prompt = spell(cloze(template, ', '.join(words)))
    sure = float(sum(mean[c, i] for c, i in enumerate(tokens)))
    found.append(Words(words, prompt, right, sure))
  if merit is None:
    return found
  merits = list(_each(merit, found, tick))
  order = sorted(range(len(found)), key=lambda i: -merits[i])
  return [found[i]._replace(dev=merits[i]) for i in order]


def rank_templates(
  model: Model, task: Task, split: Split, templates: Sequence[str], words: str, *,
  merit: Merit | None = None, progress: Progress | None = None,
) -> list[Ranked]:  # fmt: skip
  """Templates by their accuracy on dev (Gao et al. 2021, arXiv:2012.15723), the best first.

  The candidates are given, and all are used with the same label words, as `cloze` spells them.
  `merit` is `tuned(model, task, split)` unless another is given.
  """
  merit = merit or tuned(model, task, split)
  tick = progress or (lambda phase, done: None)
  tried = [Ranked(t, spell(cloze(t, words)), 0.0) for t in dict.fromkeys(templates)]
  if not tried:
    raise FewshotError('there are no templates to rank; give at least one')
  for t in tried:  # All are checked before one is trained.
    prompts.wording(prompts.parse(t.prompt), model, task.fields, task.classes)
  scored = [t._replace(dev=d) for t, d in zip(tried, _each(merit, tried, tick), strict=True)]
  return sorted(scored, key=lambda t: -t.dev)


def tuned(
  model: Model, task: Task, split: Split, method: Method = FULL, fit: Fit = SGD, *, seed: int = 0,
  max_length: int = 64, options: Options | None = None, objective: Objective | None = None,
) -> Merit:  # fmt: skip
  """What ranks prompts: the accuracy on the dev examples after prompt-based fine-tuning on train.

  Raises `FewshotError` for a split without a dev set, or with one larger than train.
  """
  if not 0 < len(split.dev) <= len(split.train):
    raise FewshotError(
      f'prompts are chosen on a dev set no larger than train: the split has {len(split.dev)} dev '
      f'and {len(split.train)} train examples; draw it with dev_k at least 1 and at most k'
    )
  blind = split._replace(test=split.train[:1])  # No test item is looked at.

  def merit(prompt: str) -> float:
    shown = prompts.wording(prompts.parse(prompt), model, task.fields, task.classes)
    data = tasks.encode(task, [blind], model.tokenizer, max_length, wording=shown)
    words = parse(prompts.head(shown))
    (result,) = sweeps.sweep(
      model, data, chain(method, words), fit, classes=len(task.classes), seeds=(seed,),
      objective=objective, options=options,
    )  # fmt: skip
    assert result.dev is not None
    return result.dev['score']

  return merit


def _each(merit: Merit, found: Sequence[Words | Ranked], tick: Progress) -> Iterator[float]:
  tick('tune', 0.0)
  for i, one in enumerate(found):
    yield merit(one.prompt)
    tick('tune', (i + 1) / len(found))


def _at_slot(
  model: Model, task: Task, split: Split, template: str, max_length: int, tick: Progress
) -> tuple[Array, Array]:
  """log p [N, V] of the vocabulary at the slot of each train example, and the labels [N]."""
  shown = prompts.wording(cloze(template), model, task.fields, task.classes)
  blind = split._replace(test=split.train[:1])
  data = tasks.encode(task, [blind], model.tokenizer, max_length, wording=shown)
  rows = {k: jnp.asarray(x[0]) for k, x in data.train.items()}
  outputs = shapes_of(model.forward, model.params, Calib(rows))
  if 'slots' not in rows or 'token_logits' not in outputs:
    raise FewshotError(
      f'label words are read at a {{mask}} by a language model; the template is {template!r}, and '
      f'{model.name} gives {", ".join(outputs)}'
    )

  @jax.jit
  def read(params: object, batch: dict[str, jax.Array]) -> jax.Array:
    z = model.forward(params, batch)['token_logits'].astype(jnp.float32)
    return jax.nn.log_softmax(z).mean(1)

  n, found = len(rows['labels']), []
  for start in range(0, n, ROWS):
    found.append(
      np.asarray(read(model.params, {k: x[start : start + ROWS] for k, x in rows.items()}))
    )
    tick('zero-shot', min(start + ROWS, n) / n)
  return np.concatenate(found), np.asarray(rows['labels'])


def _words(tokenizer: Any, vocab: int, text: str) -> Iterator[tuple[int, str]]:
  """The tokens that are a word of letters as it stands behind a text, and that word."""
  every = [tokenizer.decode([i]).strip() for i in range(min(vocab, tokenizer.get_vocab_size()))]
  before, *shown = tokenizer.encode_batch(
    [text.rstrip(' '), *(text + word for word in every)], add_special_tokens=False
  )
  for i, (word, found) in enumerate(zip(every, shown, strict=True)):
    if word.isalpha() and found.ids == [*before.ids, i]:
      yield i, word


def _assigned(
  logp: Array, labels: Array, chosen: Sequence[Array], top: int, mean: Array, tick: Progress
) -> list[tuple[tuple[int, ...], float]]:
  """The best `top` assignments of a token to each class, with their accuracy, the best first."""
  every = itertools.product(*(range(len(c)) for c in chosen))
  total = int(np.prod([len(c) for c in chosen]))
  best: list[tuple[float, float, tuple[int, ...]]] = []
  done = 0
  while part := list(itertools.islice(every, 20_000)):
    tokens = np.stack([c[i] for c, i in zip(chosen, np.array(part).T, strict=True)], 1)  # [P, C]
    differ = (np.diff(np.sort(tokens, 1), axis=1) > 0).all(1)
    tokens = tokens[differ]
    right = np.zeros(len(tokens))
    for x, y in zip(logp, labels, strict=True):
      right += x[tokens].argmax(1) == y
    sure = mean[np.arange(len(chosen)), tokens].sum(1)
    first = np.lexsort((-sure, -right))[:top]
    best += [(right[i] / len(labels), sure[i], tuple(map(int, tokens[i]))) for i in first]
    best = sorted(best, key=lambda b: (-b[0], -b[1], b[2]))[:top]
    done += len(part)
    tick('assign', done / total)
  return [(tokens, float(right)) for right, _, tokens in best]
