"""docs/hosted.md: the papers that choose what to train, what hosts each, how much that trains.

`fewshot papers --page` writes it.  Counts are of small random models: a method and a learner's are
planned on a labelled batch, a program runs whole with fits of a few steps.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fewshot import fits, learners, methods, models, papers, programs, stages, tasks
from fewshot.engine import Options
from fewshot.errors import FewshotError
from fewshot.methods.leaves import floats
from fewshot.methods.partition import count, shapes
from fewshot.methods.spelling import remake
from fewshot.models import bert, clip, mlp, t5, vit
from fewshot.models.dual import Tower
from fewshot.objectives import classification

PAGE = papers.ROOT / 'docs' / 'hosted.md'
KIND = 'mask-selection'
CLASSES, EXAMPLES, SHOTS = 2, 48, 6
KEY = jax.random.key(0)
FIT = fits.sgd(steps=8, lr=0.02, batch=6)
PLAIN = Options(packing='off', prefix='off')  # Shortcuts take longer to try than they save.
HEAD = """# Papers that choose what to train

The {all} systems of `fewshot papers` of this kind: {hosted} hosted, {partial} in part, {none} not
yet. Each is hosted by one spelling and has one test of what defines it; what of the paper does not
run is said. The page is made by `fewshot papers --page`.

**Trained** is counted on the first of these small random models that the spelling takes: {models}.
Methods are planned on a labelled batch; of masks that move, what is active at the first step is
said too. Programs run whole, with fits of {steps} steps: a number for each training, in order, then
what was kept where the last stage keeps a part. Budgets that are fractions say the same of any
model; ranks, tiles and thresholds are those of the papers, and small models are small for them.

| paper | status | hosted by | trained | of | test of what defines it | missing |
| --- | --- | --- | ---: | --- | --- | --- |
"""


class Small(NamedTuple):
  """A small model and random examples of two classes."""

  name: str
  model: models.Model
  inputs: dict[str, np.ndarray]

  @property
  def calib(self) -> methods.Calib:
    """The first examples, as a labelled batch."""
    batch = {k: jnp.asarray(x[: 2 * SHOTS]) for k, x in self.inputs.items()}
    labels = jnp.arange(2 * SHOTS) % CLASSES
    return methods.Calib(batch | {'labels': labels}, CLASSES, classification().loss)


def write() -> Path:
  """Writes the page."""
  PAGE.write_text(page(), encoding='utf-8')
  return PAGE


def page() -> str:
  """The page's text."""
  table = [row for row in papers.rows() if row['kind'] == KIND]
  number = {status: sum(r['status'] == status for r in table) for status in papers.STATUSES}
  head = HEAD.format(
    all=len(table), hosted=number['hosted'], partial=number['partial'], none=number['not yet'],
    models=', '.join(dict.fromkeys(make().name for make in (*PLAIN_MODELS, *PROGRAM_MODELS))),
    steps=FIT.steps,
  )  # fmt: skip
  return head + ''.join(f'| {" | ".join(_cells(row))} |\n' for row in table)


def _cells(row: Mapping[str, Any]) -> Iterator[str]:
  arxiv = row['arxiv']
  title = row['title'].replace('|', r'\|')
  yield f'{title} ([{arxiv}](https://arxiv.org/abs/{arxiv}))' if arxiv else title
  yield row['status']
  by = row['hosted_by']
  yield f'`{by}`'.replace('|', r'\|') if by else ''
  yield from trained(by) if by else ('', '')
  yield f'`{row["test"]}`' if by else ''
  yield row['missing'] or ''


@functools.cache
def trained(hosted_by: str) -> tuple[str, str]:
  """How many numbers a spelling trains, and of how many of which model.

  >>> trained('configs/quickstart.py')
  ('config', '')
  """
  if hosted_by.endswith('.py') or '::' in hosted_by:
    return 'config' if hosted_by.startswith('configs/') else 'function', ''
  name, why = hosted_by.partition('(')[0], ''
  staged = name in programs.WORDS
  for make in PROGRAM_MODELS if staged else PLAIN_MODELS:
    on = make()
    total = count(floats(on.model.params))
    try:
      said = _staged(hosted_by, on) if staged else _planned(hosted_by, on)
    except FewshotError as e:
      why = why or str(e)
      continue
    return said, f'{total:,} of {on.name}'
  raise FewshotError(f'{hosted_by} takes none of the small models: {why}')


def _planned(text: str, on: Small) -> str:
  """What a method, or that of a learner, trains; and at first, where that is less."""
  model, calib = on.model, on.calib
  if text.partition('(')[0] in {f.__name__ for f in learners.LEARNERS}:
    m = learners.parse(text).method or methods.chain()
  else:
    m = methods.parse(text)
  m = m.plan(model.forward, model.params, calib) if m.plan else m
  every = count(shapes(m, model.forward, model.params, calib)[0])
  if m.optimizer is methods.Method._field_defaults['optimizer']:
    return f'{every:,}'
  at_first = _active(m, model, calib)
  return f'{every:,}' if at_first == every else f'{every:,}, at first {at_first:,}'


def _active(m: methods.Method, model: models.Model, calib: methods.Calib) -> int:
  """How many numbers of theta the first step moves, for gradients without a zero."""
  start = lambda p: m.init(KEY, model.forward, p, calib)  # noqa: E731
  theta, state = jax.jit(start)(model.params)
  rng = np.random.default_rng(0)
  grads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), theta)
  tx = optax.with_extra_args_support(m.optimizer(optax.sgd(1.0)))

  @jax.jit
  def step(grads: Any, theta: Any, params: Any) -> Any:
    extra = {'step': 0, 'key': KEY, 'method_state': state, 'frozen': params}
    return tx.update(grads, tx.init(theta), theta, **extra)[0]

  updates = step(grads, theta, model.params)
  return sum(int(np.count_nonzero(u)) for u in jax.tree.leaves(updates))


def _staged(text: str, on: Small) -> str:
  """What each training of a program trains, and what its last stage keeps of that."""
  parsed = programs.parse(text)
  made: Any = parsed.made
  given = inspect.signature(made.fn).bind(*made.args, **dict(made.named))
  given.apply_defaults()
  short = {k: FIT for k, v in given.arguments.items() if isinstance(v, fits.Fit)}
  whole = stages.program(remake(parsed, **short))
  rng = np.random.default_rng(1)
  labels = rng.permutation(np.arange(EXAMPLES) % CLASSES)
  task = tasks.make('small', on.inputs, labels)
  data = tasks.encode(task, tasks.kshot(task, SHOTS, [0], dev_k=SHOTS))
  named = {'task': data} | {name: data for stage in whole.stages for name in stage.data}
  notes = stages.run(whole, on.model, named, classes=CLASSES, options=PLAIN).notes
  each = ', then '.join(f'{n["trained"]:,}' for n in notes if 'trained' in n)
  last = notes[-1]
  kept = last['entries'] if 'trained' not in last and 'entries' in last else 0
  return f'{each}; kept {kept:,}' if kept else each


@functools.cache
def _mlp(depth: int) -> Small:
  config = mlp.Config(inputs=6, dim=16, depth=depth, activation='gelu')
  model = models.Model('mlp', mlp.forward(config), mlp.init(config, KEY))
  x = np.random.default_rng(2).normal(size=(EXAMPLES, 6)).astype(np.float32)
  return Small(f'an MLP of {depth} blocks', model._replace(example=mlp.example(config)), {'x': x})


@functools.cache
def _bert(depth: int, dim: int = 32) -> Small:
  config = bert.Config(
    vocab=50, dim=dim, depth=depth, heads=4, width=2 * dim, positions=16, types=2
  )
  model = models.Model('bert', bert.forward(config), bert.init(config, KEY))
  name = f'a BERT of {depth} blocks' if depth > 1 else f'a BERT of a block {dim} wide'
  return Small(name, model._replace(example=bert.example(config)), _texts(config.vocab))


@functools.cache
def _vit(depth: int) -> Small:
  config = vit.Config(dim=32, depth=depth, heads=4, width=64, image_size=8, patch=4)
  model = models.Model('vit', vit.forward(config), vit.init(config, KEY))
  return Small(f'a ViT of {depth} blocks', model, _images())


@functools.cache
def _clip() -> Small:
  tower = Tower(dim=16, depth=2, heads=2, width=32)
  config = clip.Config(tower, tower, 49408, positions=16, image_size=8, patch=4, project=16)
  model = models.Model('clip', clip.forward(config), clip.init(config, KEY))
  return Small('a CLIP of 2 blocks a tower', model, _images())


@functools.cache
def _t5() -> Small:
  config = t5.Config(vocab=11000, dim=16, depth=2, decoder_depth=2, heads=2, head_dim=8, width=32)
  model = models.Model('t5', t5.forward(config), t5.init(config, KEY))
  return Small('a T5 of 2 blocks a side', model, _texts(config.vocab))


def _texts(vocab: int) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(3)
  mask = np.arange(8) < rng.integers(4, 9, EXAMPLES)[:, None]
  tokens = np.where(mask, rng.integers(1, vocab, mask.shape), 0).astype(np.int32)
  return {'tokens': tokens, 'mask': mask}


def _images() -> dict[str, np.ndarray]:
  image = np.random.default_rng(4).uniform(size=(EXAMPLES, 8, 8, 3))
  return {'image': image.astype(np.float32)}


def _of(make: Callable[..., Small], *depths: int) -> list[Callable[[], Small]]:
  return [functools.partial(make, depth) for depth in depths]


# From what is quick to compile on: more blocks are for spellings that
# number them, and a wide one is for tiles.
PLAIN_MODELS: tuple[Callable[[], Small], ...] = (
  *_of(_bert, 2), functools.partial(_bert, 1, 256), *_of(_bert, 12), *_of(_vit, 10), _clip, _t5,
)  # fmt: skip
PROGRAM_MODELS: tuple[Callable[[], Small], ...] = (*_of(_mlp, 2, 8), *_of(_bert, 2), *_of(_vit, 2))
