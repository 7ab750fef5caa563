"""From an adapted model to an adapter that HF PEFT loads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from fewshot import methods
from fewshot.adapted import Adapted
from fewshot.checkpoint import publish
from fewshot.errors import FewshotError, brief, nearest
from fewshot.exchange import fused, heads, prompts
from fewshot.exchange.kinds import Kind, Site
from fewshot.exchange.library import KINDS, PROMPTS
from fewshot.exchange.modules import ROOT, SHARED, Modules, modules
from fewshot.exchange.reading import CONFIG, TENSORS, check_gains
from fewshot.exchange.sites import arguments, kernel
from fewshot.methods import paths
from fewshot.methods.base import Method
from fewshot.methods.weights import SHARED as ALL
from fewshot.models.base import Model

TASKS = ('FEATURE_EXTRACTION', 'CAUSAL_LM', 'SEQ_CLS', 'SEQ_2_SEQ_LM', 'TOKEN_CLS', 'QUESTION_ANS')
Tensors = dict[str, np.ndarray]
Sites = dict[str, Site]


def write(adapted: Adapted, folder: str | Path, task_type: str | None = None) -> Path:
  """Writes the adapter to a folder that appears only when it is complete, as PEFT's own would be.

  `task_type` is PEFT's.  Of one with a head the modules' paths have the prefix of its class in
  Transformers; None says FEATURE_EXTRACTION, whose class has none, for what has no head itself.

  Raises:
    FewshotError: the method is none that PEFT has, or has something that PEFT's has not.
  """
  if task_type not in (None, *TASKS):
    raise FewshotError(f'there is no task_type {task_type!r}; {nearest(str(task_type), TASKS)}')
  config, tensors = _adapter(adapted, task_type)
  return _save(Path(folder), config, tensors)


def _adapter(adapted: Adapted, task_type: str | None) -> tuple[dict[str, Any], Tensors]:
  """The config and the tensors."""
  model, table = adapted.model, modules(adapted.model)
  if not table.theirs:
    raise FewshotError(f'{model.name} has no names in Transformers; load the base by models.load')
  parts = _parts(adapted)
  names = [p[0].made.fn.__name__ for p in parts if p[0].made]
  kind = _kind(names)
  task = task_type or _task(table, 'linear' in names)
  whole = task is None and 'head' in model.params  # With the classifier that it came with.
  prefixed = task not in (None, 'FEATURE_EXTRACTION') or 'linear' in names or whole
  config: dict[str, Any] = {'peft_type': kind.peft, 'task_type': task, 'inference_mode': True}
  config |= {'base_model_name_or_path': model.name, 'auto_mapping': None, 'modules_to_save': None}
  tensors: Tensors = {}
  own = [p for p, name in zip(parts, names, strict=True) if name != 'linear']
  if kind.peft in PROMPTS:
    if len(own) > 1:
      raise FewshotError(f'an adapter of PEFT has one {kind.peft}, and this chain {len(own)}')
    fields, tensors = prompts.write(kind.peft, *own[0], model)
  else:
    fields, tensors = _modules(kind, own, model, table, prefixed)
  for (_, theta, _), name in zip(parts, names, strict=True):
    if name == 'linear':
      place, head = heads.write(theta, model, table)
      tensors |= head
      config['modules_to_save'] = [place]
  return config | fields, tensors


def _parts(adapted: Adapted) -> list[tuple[Method, Any, Any]]:
  """The methods of a chain with their theta and state in numpy; `as_weights` opened."""
  numpy = lambda tree: jax.tree.map(np.asarray, tree)  # noqa: E731
  method, theta, state = adapted.method, numpy(adapted.theta), numpy(adapted.state)
  each = zip(method.parts, theta, state, strict=True) if method.parts else [(method, theta, state)]
  opened = []
  for part, t, s in each:
    inner = part.made and part.made.fn is methods.as_weights and arguments(part)['inner']
    opened.append((inner or part, t, s))
  return opened


def _task(table: Modules, head: bool) -> str | None:
  """The task of the class in Transformers that computes what the model does."""
  if 'head' in table.theirs:
    return None  # Of images PEFT names no task.
  if head:
    return 'SEQ_CLS'
  if 'lm_head' in table.theirs:
    return 'SEQ_2_SEQ_LM' if any(p.startswith('decoder/') for p in table.theirs) else 'CAUSAL_LM'
  return 'FEATURE_EXTRACTION'


def _kind(names: list[str]) -> Kind:
  """The one kind of the methods in a chain."""
  found = {name: k for k, kind in KINDS.items() for name in names if name in kind.methods}
  if odd := [name for name in names if name not in found and name != 'linear']:
    known = [m for kind in KINDS.values() for m in kind.methods]
    raise FewshotError(f'PEFT has no {odd[0]}; it has {", ".join(known)}, and linear beside them')
  if len(set(found.values())) != 1:
    raise FewshotError(f'an adapter of PEFT is of one kind, not of {", ".join(found) or "a head"}')
  return KINDS[next(iter(found.values()))]


def _modules(
  kind: Kind, parts: list[tuple[Method, Any, Any]], model: Model, table: Modules, prefixed: bool
) -> tuple[dict[str, Any], Tensors]:
  """Fields and tensors of what acts at modules."""
  leaves = paths.flatten(model.params)
  sites, shared = _sites(kind, parts, leaves)
  if lost := [site for site in sites if site not in table.theirs]:
    raise FewshotError(f'{brief(lost)}: no modules of their own in Transformers')
  check_gains(kind, sites, table)
  tensors = {SHARED + name: x for name, x in shared.items()}
  made: Sites = {}
  for path in dict.fromkeys(table.path(s, prefixed) for s in sites):
    made[path] = fused.join(kind, path, {s: sites.get(s) for s in table.find(path)}, leaves)
    for name, x in made[path].entries.items():
      entry = kind.entries[name]
      tensors[f'{ROOT}{path}.{entry.name}'] = entry.write(x, made[path].kernel)
    if kind.copies:
      tensors |= {f'{ROOT}{path}.{name}': x for name, x in shared.items()}
  if kind.peft == 'TRAINABLE_TOKENS' and heads.tied(model, table):
    tensors |= {f'{ROOT}lm_head.{k.rpartition(".")[2]}': x for k, x in tensors.items()}
  return _fields(kind, made) | _targets(kind, made, all(s in table.turned for s in sites)), tensors


def _sites(
  kind: Kind, parts: list[tuple[Method, Any, Any]], leaves: Mapping[str, Any]
) -> tuple[Sites, Tensors]:
  """What is at each of our modules, and what they share."""
  sites: Sites = {}
  shared: Tensors = {}
  for method, theta, state in parts:
    given = arguments(method)
    for path in {**theta, **state}:
      t = theta.get(path, {})
      site, _, leaf = path.rpartition('/')
      if path == ALL:
        if shared:
          raise FewshotError(f'PEFT has one {kind.peft} whose modules share matrices, not several')
        shared = {
          kind.entries[k].name: kind.entries[k].write(x, ())
          for k, x in {**t, **state.get(path, {})}.items()
        }
        continue
      entries = t | state.get(path, {}) if isinstance(t, dict) else {leaf: t}
      site = path.removesuffix(kind.leaf) if isinstance(t, dict) else site
      if site in sites and isinstance(t, dict):
        raise FewshotError(f'{site} is adapted twice, and an adapter of PEFT has one {kind.peft}')
      shape = kernel(leaves, site)
      own, entries = kind.finish(given, entries, shape)
      if odd := entries.keys() - kind.entries.keys():
        raise FewshotError(f'PEFT keeps no {", ".join(sorted(odd))} of {site}')
      before = sites[site].entries if site in sites else {}
      sites[site] = Site(own, before | entries, shape)
  return sites, shared


def _fields(kind: Kind, made: Sites) -> dict[str, Any]:
  """The config's fields; values that modules have of their own go to its patterns."""
  each = {
    path: {n: v for k, f in kind.fields.items() for n, v in f.write(site.arguments[k]).items()}
    for path, site in made.items()
  }
  fields: dict[str, Any] = dict(kind.fixed)
  for name in next(iter(each.values())):
    values = [own[name] for own in each.values()]
    common = fields[name] = max(values, key=values.count)
    if all(v == common for v in values):
      continue
    pattern = next((p for p, of in kind.patterns.items() if of == name), None)
    if pattern is None:
      raise FewshotError(f'{kind.peft} has one {name} for all modules, not {sorted(set(values))}')
    fields[pattern] = {path: own[name] for path, own in each.items() if own[name] != common}
  return fields


def _targets(kind: Kind, made: Sites, turned: bool) -> dict[str, Any]:
  """Which modules PEFT adapts."""
  if kind.peft == 'ADAPTION_PROMPT':
    return {'target_modules': 'self_attn', 'adapter_layers': len(made)}
  fields: dict[str, Any] = {'target_modules': sorted(made)}
  if kind.conv1d and turned:
    fields['fan_in_fan_out'] = True
  if kind.peft == 'IA3':
    fields['feedforward_modules'] = sorted(p for p, s in made.items() if 'l_in' in s.entries)
  return fields


def _save(folder: Path, config: dict[str, Any], tensors: Tensors) -> Path:
  def fill(tmp: Path) -> None:
    whole = {k: np.ascontiguousarray(v) for k, v in sorted(tensors.items())}
    safetensors.numpy.save_file(whole, tmp / TENSORS, metadata={'format': 'pt'})
    (tmp / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + '\n')

  return publish(folder, fill, {CONFIG, TENSORS, 'README.md'}, 'adapter')
