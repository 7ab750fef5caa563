"""From an adapter of HF PEFT to an adapted model."""

import inspect
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from fewshot import methods
from fewshot.adapted import Adapted
from fewshot.checkpoint import starting_shapes
from fewshot.errors import FewshotError, brief, nearest
from fewshot.exchange import heads, prompts
from fewshot.exchange.kinds import Config, Entries, Kind
from fewshot.exchange.library import KINDS, PROMPTS
from fewshot.exchange.modules import ROOT, SHARED, Modules, modules
from fewshot.exchange.sites import everywhere, kernel, pattern, repeated
from fewshot.methods import paths
from fewshot.methods.base import Method
from fewshot.models.base import Model
from fewshot.models.weights import hf, torch_file
from fewshot.models.weights.hf import read_json

CONFIG, TENSORS, PICKLE = 'adapter_config.json', 'adapter_model.safetensors', 'adapter_model.bin'
FREE = (  # Fields that say nothing about what an adapter computes, or what its tensors say as well.
  'peft_type', 'task_type', 'auto_mapping', 'base_model_name_or_path', 'revision', 'inference_mode',
  'peft_version', 'target_modules', 'exclude_modules', 'layers_to_transform', 'layers_pattern',
  'modules_to_save', 'fan_in_fan_out', 'init_weights',
)  # fmt: skip
STARTS = (  # Those that leave the base and the formula alone.
  None, True, False, 'gaussian', 'eva', 'orthogonal', 'xavier_uniform', 'kaiming_uniform',
  'lycoris', 'zero',
)  # fmt: skip
LARGEST = 1 << 24  # Numbers of an adapter beyond twice those of its base.
Stored = dict[str, dict[str, np.ndarray]]  # Our module -> PEFT's name of an entry -> its tensor.


def read(folder: str | Path, model: Model, without_head: bool = False) -> Adapted:
  """The adapter that PEFT's `save_pretrained` wrote to a folder, on `model`, its base.

  The sites are those whose tensors are stored.  Modules of several ranks or scales become a chain
  of one method for each; a classifier (`modules_to_save`) becomes `linear`, and its classes are
  called by their numbers.  `without_head` leaves out what `modules_to_save` names: a classifier of
  other features than ours cannot be read.  Dropout other than LoRA's is not carried over.

  Raises:
    FewshotError: the folder holds no adapter, one of a kind or with an option that is not computed
      here, or tensors that do not fit the model; each is named.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise FewshotError(f'there is no adapter folder {folder}')
  config, tensors = read_json(folder / CONFIG), _tensors(folder, model)
  try:
    if without_head:
      saved = tuple(f'{ROOT}{name}.' for name in config.get('modules_to_save') or ())
      tensors = {k: x for k, x in tensors.items() if not k.startswith(saved)}
    return _adapted(choose(config), config, tensors, model)
  except FewshotError:
    raise
  except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, re.error) as e:
    reason = ' '.join(f'{type(e).__name__}: {e}'.split())[:120]
    raise FewshotError(f'{CONFIG} of {folder.name}/ is not as PEFT writes it ({reason})') from e


def _adapted(
  kind: Kind, config: Config, tensors: Mapping[str, np.ndarray], model: Model
) -> Adapted:
  """The methods, theta and state of a checked config."""
  table = modules(model)
  head, tensors = heads.read(tensors, model, table)
  if kind.peft in PROMPTS:
    parts = [prompts.read(config, tensors, model)]
  else:
    parts = _parts(kind, config, tensors, model, table)
  parts += [head] if head else []
  method = methods.chain(*(part for part, _, _ in parts))
  theta, state = (tuple(x) for x in zip(*((t, s) for _, t, s in parts), strict=True))
  classes = tuple(str(i) for i in range(head[1]['head']['bias'].size)) if head else ()
  if len(parts) == 1:
    return Adapted(model, method, theta[0], state[0], classes)
  return Adapted(model, method, theta, state, classes)


def choose(config: Config) -> Kind:
  """The kind of a config; an option that changes what it computes and is not ours is refused."""
  peft = str(config.get('peft_type'))
  known = {kind.peft for kind in KINDS.values()}
  if peft not in known:
    raise FewshotError(f'adapters of peft_type {peft!r} are not read; {nearest(peft, known)}')
  rows = [kind for kind in KINDS.values() if kind.peft == peft]
  agree = lambda kind: all(config.get(k, v) == v for k, v in kind.fixed.items())  # noqa: E731
  kind = next((row for row in rows if agree(row)), rows[0])
  for name, value in kind.fixed.items():
    if config.get(name, value) != value:
      raise FewshotError(f'{peft} with {name}={config[name]!r} is not read; only {value!r} is')
  ours = {n for field in kind.fields.values() for n in field.names}
  ours |= {*FREE, *kind.free, *kind.fixed, *kind.patterns}
  ours |= set(prompts.FREE) if peft in PROMPTS else set()
  for name in config.keys() - ours:
    if config[name] not in (None, False, 0, 'none', [], {}):
      raise FewshotError(f'{peft} with {name}={config[name]!r} is not computed here')
  for name in ('init_lora_weights', 'init_weights'):
    if config.get(name) not in STARTS:
      raise FewshotError(
        f'{peft} with {name}={config[name]!r} starts by changing the base or the formula, which is '
        'not stored; of LoRA, save it with path_initial_model_for_weight_conversion'
      )
  return kind


def _tensors(folder: Path, model: Model) -> dict[str, np.ndarray]:
  """All tensors; of what old versions of PEFT saved by torch.save nothing is run."""
  file = folder / (TENSORS if (folder / TENSORS).exists() else PICKLE)
  found = hf.of_file(file) if file.name == TENSORS else torch_file.tensors(file)
  most = LARGEST + 2 * methods.count(model.params)
  if (many := sum(math.prod(tensor.shape) for tensor in found.values())) > most:
    raise FewshotError(f'{file.name} of {folder.name}/ has {many} numbers, far more than its base')
  return {k: tensor.read() for k, tensor in found.items()}


def _parts(
  kind: Kind, config: Config, tensors: Mapping[str, np.ndarray], model: Model, table: Modules
) -> list[tuple[Method, Any, Any]]:
  """(method, theta, state) for the modules of each rank, scale, ..."""
  if kind.peft == 'TRAINABLE_TOKENS' and heads.tied(model, table):
    tensors = {k: x for k, x in tensors.items() if not k.startswith(f'{ROOT}lm_head.')}
  stored, shared = _sorted(kind, tensors, table, model)
  if config.get('fan_in_fan_out') and stored.keys() - table.turned:
    plain = brief(sorted(stored.keys() - table.turned))
    raise FewshotError(f'fan_in_fan_out=True is of maps stored [in, out]; {plain} are not')
  check_gains(kind, stored, table)
  groups: dict[str, tuple[dict[str, Any], list[str]]] = {}
  for site in stored:
    names = [p + table.theirs[site] for p in ('', *table.prefixes)]
    local, stored[site] = kind.prepare(_local(kind, config, names), stored[site], names)
    arguments = {k: f.read(local) for k, f in kind.fields.items()}
    groups.setdefault(repr(arguments), (arguments, []))[1].append(site)
  parts, known, often = [], everywhere(model), repeated(model)
  for arguments, chosen in groups.values():
    own = {site: stored[site] for site in chosen}
    method = _method(kind, arguments, own, known)
    if not kind.leaf and often & own.keys():
      method = methods.as_weights(method)
    parts.append((method, *_fill(kind, config, method, own, shared, model)))
  return parts


def check_gains(kind: Kind, sites: Iterable[str], table: Modules) -> None:
  """Norms whose stored gains are not ours (Gemma's are less one) are refused."""
  if kind.peft == 'LN_TUNING' and (odd := sorted(table.turned & set(sites))):
    raise FewshotError(f'{kind.peft} of {brief(odd)} is not exchanged: gains are stored less one')


def _sorted(
  kind: Kind, tensors: Mapping[str, np.ndarray], table: Modules, model: Model
) -> tuple[Stored, dict[str, np.ndarray]]:
  """The tensors by our module, and those that all share; what belongs to neither is refused."""
  axes = {entry.name: entry.out for entry in kind.entries.values()}
  axes |= {entry.name: entry.out for entry in kind.entries.values() if entry.out is not None}
  shared = {n: tensors[SHARED + n] for n in axes if SHARED + n in tensors}
  stored: Stored = {}
  left, lacking = [], []
  for name, x in tensors.items():
    end = next((n for n in axes if name.startswith(ROOT) and name.endswith(f'.{n}')), None)
    if end is None:
      left += [name] * (name.removeprefix(SHARED) not in shared)
      continue
    found = table.find(name.removeprefix(ROOT).removesuffix(f'.{end}'))
    lacking += [name] * (not found)
    for site, piece in zip(found, _pieces(kind, name, x, len(found), axes[end]), strict=True):
      stored.setdefault(site, {})[end] = piece
  if left or lacking or not stored:
    hint = '; without_head=True leaves out a classifier' if left else ''
    raise FewshotError(
      f'the adapter is none of {kind.peft} for {model.name}: left over {brief(left) or "nothing"}; '
      f'of modules that the model lacks {brief(lacking) or "nothing"}{hint}'
    )
  return {s: stored[s] for s in table.theirs if s in stored}, shared


def _pieces(kind: Kind, name: str, x: np.ndarray, n: int, axis: int | None) -> list[np.ndarray]:
  """A tensor of a fused projection for each of its n parts."""
  if n > 1 and not kind.conv1d:
    raise FewshotError(f'{kind.peft} of {name!r} is not read: it is {n} modules here')
  return np.split(x, n, axis) if n > 1 and axis is not None else [x] * n


def _local(kind: Kind, config: Config, names: list[str]) -> Config:
  """The config as it is for one module; of several patterns the first that matches counts."""
  own = {}
  for listed, field in kind.patterns.items():
    for rule, value in (config.get(listed) or {}).items():
      known = paths.compiled(f'(.*[.])?({rule})')
      if any(known.fullmatch(name) for name in names):
        own[field] = value
        break
  return {**config, **own}


def _method(kind: Kind, arguments: Mapping[str, Any], own: Stored, known: Iterable[str]) -> Method:
  """Our method at these modules, spelled without what is its default."""
  make: Any = getattr(methods, kind.methods[0])
  given = dict(arguments)
  if kind.peft == 'IA3':
    name = kind.entries['l_in'].name
    fed = [site for site, t in own.items() if t[name].shape[0] == 1]
    given['outputs'] = pattern(own.keys() - set(fed), known)
    given['inputs'] = pattern(fed, known)
  elif kind.peft == 'LN_TUNING':
    norms = {s for s in known if re.fullmatch(r'(.*/)?(ln\w*|norm(_\d+)?)', s)}
    if norms != own.keys():
      return methods.tune(f'({pattern(own, known)})/(scale|bias)')
  elif kind.peft != 'TRAINABLE_TOKENS':
    given['where'] = pattern(own, known, kind.leaf)
  default = {k: p.default for k, p in inspect.signature(make).parameters.items()}
  return make(**{k: v for k, v in given.items() if v != default[k]})


def _fill(
  kind: Kind, config: Config, method: Method, own: Stored, shared: Entries, model: Model
) -> tuple[Any, Any]:
  """theta and state with the stored tensors; every entry must be there, every tensor fit."""
  like = dict(zip(('theta', 'state'), starting_shapes(method, model, 0), strict=True))
  leaves, found, missing = paths.flatten(model.params), {}, []
  unread = {(site, name) for site, t in own.items() for name in t}
  for path, x in paths.flatten(like).items():
    site, _, name = path.partition('/')[2].rpartition('/')
    site = site.removesuffix(kind.leaf)
    shape, entry = kernel(leaves, site), kind.entries.get(name)
    have = shared if entry and entry.shared else own.get(site, {})
    made = kind.derive(config, x.shape[0], shape) if entry is None else {}
    if entry and entry.name in have:
      unread.discard((site, entry.name))
      y = entry.read(have[entry.name], shape)
      _check_shape(f'{site}: {entry.name}', y.shape, x.shape)
      found[path] = jnp.asarray(y, x.dtype)
    elif name in made:
      found[path] = jnp.asarray(made[name], x.dtype)
    else:
      missing.append(f'{site}: {entry.name if entry else name}')
  unread -= {(site, name) for site, name in unread if name in shared}
  if missing or unread:
    raise FewshotError(
      f'the adapter does not fit {methods.spell(method)}: missing {brief(missing) or "nothing"}; '
      f'left over {brief([": ".join(x) for x in sorted(unread)]) or "nothing"}'
    )
  tree = paths.replace(like, found)
  return tree['theta'], tree['state']


def _check_shape(name: str, got: tuple[int, ...], want: tuple[int, ...]) -> None:
  if got != want:
    raise FewshotError(
      f'{name} is {list(got)}, and {list(want)} by the config and the model; the adapter is of '
      'another base, or its config of another adapter'
    )
