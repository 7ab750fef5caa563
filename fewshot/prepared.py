"""Prepared: an experiment up to its first step, from a config; everything is checked here."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fewshot import config as configs
from fewshot import (
  embedding,
  fits,
  limits,
  methods,
  models,
  objectives,
  programs,
  runs,
  stages,
  tasks,
  train,
)
from fewshot import sweep as sweeps
from fewshot.errors import FewshotError
from fewshot.methods import paths
from fewshot.methods.partition import Row
from fewshot.methods.rooms import Room, rooms
from fewshot.objectives import Objective, classification
from fewshot.runs import Run
from fewshot.tasks import prompts, templates
from fewshot.tasks.prompts import Wording


class Prepared(NamedTuple):
  """An experiment up to its first step: everything loaded, spelled and checked."""

  config: ConfigDict
  model: models.Model
  task: tasks.Task
  data: tasks.Encoded
  method: methods.Method
  fit: fits.Fit
  rows: list[Row]  # The trained/frozen table.
  total: int = 0  # Parameters of the adapted model: the base and what is added beside it.
  program: stages.Program | None = None  # What runs in place of method and fit.
  objective: Objective = classification()
  wording: Wording | None = None  # How texts are shown, where there is a prompt.
  own: methods.Method | None = None  # The method without the head that a prompt brings.
  rooms: Sequence[Room] = ()  # How many examples fit the contexts of its method.

  @property
  def label(self) -> str:
    """What is compared with other rows, as spelled; a prompt is named beside it."""
    own = methods.spell(self.program or self.own or self.method)
    calibration = self.config.calibration
    return own if calibration == 'none' else f'{own} with {calibration} calibration'

  @property
  def fitted(self) -> str:
    """How it is fitted, as spelled; a program names fits of its own."""
    return '' if self.program else methods.spell(self.fit)

  @property
  def calib(self) -> methods.Calib:
    """A batch of the longest that the model will see, for shapes."""
    batches = [self.data.train, *(b.batches for b in self.data.test)]
    longest = max(batches, key=lambda b: b['tokens'].shape[-1] if 'tokens' in b else 0)
    batch = {k: np.asarray(v[0]) for k, v in longest.items()}
    return methods.Calib(batch, len(self.task.classes), self.objective.loss)

  @property
  def trained(self) -> int:
    """The number of trained parameters."""
    return methods.count([r.leaves for r in self.rows[:-1]])


def prepare(
  todo: Sequence[ConfigDict], load: Callable[..., models.Model] = models.load
) -> list[Prepared]:
  """Loads and checks every config before anything runs; shared parts are loaded once.

  `load` makes the models: `planning.load` makes them of shapes alone.
  """
  loaded: dict[Any, Any] = {}
  return [p for c in todo for p in _prepare(c, loaded, load)]


def _prepare(
  config: ConfigDict, loaded: dict[Any, Any], load: Callable[..., models.Model]
) -> Iterator[Prepared]:
  """The runs of a config that share their data: all, or a split's where it is in the texts."""
  method, fit = sweeps.traced_once(methods.parse(config.method)), fits.parse(config.fit)
  limits.check(config, fit)
  model_key = (config.model, config.dtype, config.dropout)
  model = _loaded(*model_key, loaded, load)
  task_key = (config.task, config.text, config.label)
  if task_key not in loaded:
    loaded[task_key] = _task(config)
  task = loaded[task_key]
  wording = _wording(config, model, task)
  objective = objectives.parse(config.objective)
  counts = (config.k, config.dev_k, config.splits, config.max_test, config.max_length)
  data_key = (model_key, task_key, counts, config.prompt)
  if data_key not in loaded:
    loaded[data_key] = _encoded(config, model, task, wording, loaded, load)
  for data in loaded[data_key]:
    yield _checked(
      Prepared(config, model, task, data, method, fit, [], objective=objective, wording=wording)
    )


def _loaded(
  name: str, dtype: str, dropout: float, loaded: dict[Any, Any], load: Callable[..., models.Model]
) -> models.Model:
  """The model; once for all that share it."""
  key = (name, dtype, dropout)
  if key not in loaded:
    loaded[key] = load(name, dtype=dtype, dropout=dropout)
  return loaded[key]


def _checked(p: Prepared) -> Prepared:
  """With its program, or with its head and its counts; what will not start is refused."""
  if p.config.program:
    return _programmed(p)
  if p.wording and p.wording.words:
    p = p._replace(own=p.method)
  p = counted(p._replace(method=sweeps.traced_once(_with_head(p))))
  _check_start(p)
  return _with_rooms(p)


def _encoded(
  config: ConfigDict, model: models.Model, task: tasks.Task, wording: Wording | None,
  loaded: dict[Any, Any], load: Callable[..., models.Model],
) -> list[tasks.Encoded]:  # fmt: skip
  """The splits as arrays, together; each alone where its train examples stand in all texts."""
  splits = tasks.kshot(task, config.k, config.splits, config.dev_k, config.max_test)
  encode = functools.partial(
    tasks.encode, task, tokenizer=model.tokenizer, max_length=config.max_length, wording=wording
  )
  if wording is None or not wording.prompt.demonstrations:
    return [encode(splits)]
  if config.checkpoints:
    raise FewshotError(
      'config.checkpoints: the train examples that a prompt demonstrates are not saved with an '
      'adapted model; leave checkpoints at False, or demonstrations at 0'
    )
  likeness = None
  if name := wording.prompt.similar:
    encoder = _loaded(name, 'float32', 0.0, loaded, load)
    vector = functools.partial(_vectors, encoder, loaded.setdefault(('vectors', name), {}))
    likeness = lambda a, b: vector(a) @ vector(b).T  # noqa: E731
  return [encode([split], likeness=likeness) for split in splits]


def _vectors(encoder: models.Model, known: dict[str, np.ndarray], texts: Sequence[str]) -> Any:
  """The sentence embeddings [N, D] of texts; each text is embedded once for all splits."""
  new = [t for t in dict.fromkeys(texts) if t not in known]
  if new:
    known |= dict(zip(new, embedding.embed(encoder, new), strict=True))
  return np.stack([known[t] for t in texts])


def _programmed(p: Prepared) -> Prepared:
  """A row whose config names a program, which must find all that its stages read."""
  c, program = p.config, programs.parse(p.config.program)
  if configs.grid(c) or c.checkpoints or p.objective != classification():
    raise FewshotError(
      'config.program has fits and objectives of its own, and its stages are kept beside the '
      'records; leave grid, objective and checkpoints as they are'
    )
  if p.wording and p.wording.words:  # Their head trains nothing: it is a part of the model.
    if p.wording.prompt.demonstrations and c.unlabelled:
      raise FewshotError(
        'config.unlabelled: behind unlabelled texts stand no demonstrations; leave it at 0, or the '
        "prompt's demonstrations"
      )
    if p.wording.prompt.score == 'soft':
      raise FewshotError(
        "config.program trains the model's own weights, and score='soft' vectors beside them; take "
        "score='word'"
      )
    forward = programs.worded(p.model.forward, _words(p), p.model.params, p.calib)
    p = p._replace(model=p.model._replace(forward=forward))
  stages.check(program, stages.Setting(p.model, data_of(p, 0), len(p.task.classes)))
  total = methods.count(p.model.params)
  return p._replace(program=program, method=methods.chain(), total=total)


def data_of(p: Prepared, split: int) -> dict[str, tasks.Encoded]:
  """What a program is given of one split, by name.

  'task' is its train, dev and test; with a prompt 'plain' is the same as the texts stand.  Where
  the config asks for unlabelled examples, 'unlabelled' and 'plain_unlabelled' hold them, as train
  and as test, each with the label 0.
  """
  c, one = p.config, p.data.splits[split]
  more = functools.partial(tasks.encode, tokenizer=p.model.tokenizer, max_length=c.max_length)
  found = {'task': stages.only(p.data, split)}
  if p.wording:
    found['plain'] = more(p.task, [one])
  if c.unlabelled:
    rows = tasks.unlabelled(p.task, one, c.unlabelled)
    if len(rows) < c.unlabelled:
      raise FewshotError(
        f'config.unlabelled is {c.unlabelled}, and beside split {one.seed} the train pool of '
        f'{p.task.name} holds {len(rows)} other examples; ask for at most as many'
      )
    hidden = dataclasses.replace(p.task, labels=np.zeros_like(p.task.labels))
    other = one._replace(train=rows, dev=rows[:0], test=rows)
    found['unlabelled'] = more(hidden, [other], wording=p.wording)
    if p.wording:
      found['plain_unlabelled'] = more(hidden, [other])
  return found


def counted(p: Prepared) -> Prepared:
  """With its trained/frozen table and how many parameters the adapted model has."""
  table = methods.table(p.method, p.model.forward, p.model.params, p.calib)
  own = paths.flatten(p.model.params)
  added = [x for row in table[:-1] for path, x in row.leaves.items() if path not in own]
  return p._replace(rows=table, total=methods.count(p.model.params) + methods.count(added))


def plan_runs(p: Prepared) -> list[Run]:
  """The runs of an experiment: splits x seeds x grid."""
  return runs.runs(len(p.data.splits), p.config.seeds, configs.grid(p.config))


def _check_start(p: Prepared) -> None:
  """Traces the start of a run: that is where a fit refuses a method, or data without a dev set."""
  if p.method.plan:  # What it plans from data costs compute.
    return
  setup = sweeps.setup(p.model, p.data, p.method, p.fit, len(p.task.classes), p.objective)
  first = runs.stack(p.data, plan_runs(p)[:1])
  begin = jax.vmap(functools.partial(train.begin, setup), (None, 0))
  jax.eval_shape(begin, p.model.params, first)


def _with_rooms(p: Prepared) -> Prepared:
  """With how many examples its context holds; one too short for any is refused."""
  found = rooms(p.method, p.model.forward, p.model.params, p.data.train)
  for r in found:
    if not max(most for _, most in r.fit):
      raise FewshotError(
        f'{r.method} has no room for an example: each is longer than its length; '
        f'length={r.needed} holds all of {min(r.asked, r.rows)}'
      )
  return p._replace(rooms=found)


def _wording(config: ConfigDict, model: models.Model, task: tasks.Task) -> Wording | None:
  """The config's prompt in the tokens of the model."""
  if config.calibration not in prompts.CALIBRATIONS:
    known = ', '.join(prompts.CALIBRATIONS)
    raise FewshotError(f'config.calibration is {config.calibration!r}; there are {known}')
  calibrated = config.calibration != 'none'
  prompt = prompts.parse(config.prompt) if config.prompt else None
  if calibrated and not (prompt and prompt.words):
    raise FewshotError('config.calibration is of label words; set config.prompt with some')
  if prompt is None:
    return None
  if calibrated and (prompt.demonstrations or len(prompt.templates) > 1):
    raise FewshotError(
      'config.calibration is of one template without demonstrations, whose bias it takes away; '
      "leave calibration at 'none', or give the prompt one template"
    )
  return prompts.wording(prompt, model, task.fields, task.classes)


def _with_head(p: Prepared) -> methods.Method:
  """The method; behind it the config's head, where no logits are of the task's classes.

  Label words are a head of their own.
  """
  if p.own is not None and p.wording is not None:
    _check_headless(p)
    return methods.chain(p.method, _words(p))
  headed = methods.chain(p.method, methods.parse(p.config.head))
  try:
    return p.method if sweeps.has_logits(p.model, p.method, p.calib) else headed
  except sweeps.ForeignHead:
    return headed


def _check_headless(p: Prepared) -> None:
  """Refuses a method with a head of its own, which the prompt's label words would overrule."""
  bare = p.model.params
  if isinstance(bare, dict) and 'head' in bare:
    bare = {k: v for k, v in bare.items() if k != 'head'}
  if sweeps.has_logits(p.model._replace(params=bare), p.method, p.calib):
    raise FewshotError(
      f'{methods.spell(p.method)} has a head of its own, and config.prompt has label words that '
      'tell the classes apart: leave out the head, or the words'
    )


def _words(p: Prepared) -> methods.Method:
  """What reads the classes by their label words."""
  assert p.wording is not None
  reader = methods.parse(prompts.head(p.wording))
  if p.config.calibration == 'none':
    return reader
  tokenizer, c = p.model.tokenizer, p.config
  free = prompts.free_of_content(p.wording, tokenizer, p.task, c.max_length, c.calibration)
  mask = templates.mask_id(tokenizer) if p.wording.reads == 'masks' else None
  return methods.chain(reader, methods.calibrated(free, mask=mask))


def _task(config: ConfigDict) -> tasks.Task:
  if Path(config.task).suffix in ('.csv', '.tsv'):
    return tasks.from_csv(config.task, config.text, config.label)
  return tasks.load(config.task)
