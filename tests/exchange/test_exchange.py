"""Adapters of HF PEFT, read and written, against what PEFT computes and stores."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from fewshot import exchange, methods
from fewshot.adapted import Adapted
from fewshot.cli import main
from fewshot.errors import FewshotError
from tests.exchange import errors

NAMES = errors.names()
# Read as another kind of the same function: what PEFT saves is the prompt or the prefix itself.
RENAMED = {'P_TUNING': 'PROMPT_TUNING'}


def stored(folder):
  return safetensors.numpy.load_file(folder / 'adapter_model.safetensors')


def config(folder):
  return json.loads((folder / 'adapter_config.json').read_text())


def changed(name, tmp_path, **fields):
  """A copy of a fixture whose config has other fields."""
  folder = tmp_path / name
  shutil.copytree(errors.FIXTURES / name, folder)
  (folder / 'adapter_config.json').write_text(json.dumps({**config(folder), **fields}))
  return folder


def with_tensors(name, tmp_path, change):
  """A copy of a fixture whose tensors are change(tensors)."""
  folder = tmp_path / name
  shutil.copytree(errors.FIXTURES / name, folder)
  safetensors.numpy.save_file(change(stored(folder)), folder / 'adapter_model.safetensors')
  return folder


@pytest.mark.parametrize('name', NAMES)
def test_an_adapter_that_peft_trained_computes_the_same_here(name):
  assert errors.error(name, errors.adapted(name)) < errors.LIMIT


@pytest.mark.parametrize('name', NAMES)
def test_peft_computed_the_same_as_we_on_an_adapter_that_we_wrote(name):
  assert float(errors.header(name)['exported']) < errors.LIMIT


@pytest.mark.parametrize('name', NAMES)
def test_what_was_read_is_written_as_it_was(name, tmp_path):
  before = config(errors.FIXTURES / name)
  read = errors.adapted(name)
  folder = exchange.write(read, tmp_path / 'adapter', before['task_type'])
  again, ours, theirs = (
    exchange.read(folder, read.model),
    stored(folder),
    stored(errors.FIXTURES / name),
  )
  if name != 'adalora-pruned-bert':  # Dropped triples are written as zeros.
    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {
      k: (v.shape, v.dtype) for k, v in theirs.items()
    }
    for key, value in theirs.items():
      np.testing.assert_allclose(ours[key], value, atol=1e-6, err_msg=key)
  assert config(folder)['peft_type'] == RENAMED.get(before['peft_type'], before['peft_type'])
  assert methods.spell(again.method) == methods.spell(read.method)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    (again.theta, again.state),
    (read.theta, read.state),
  )


@pytest.mark.parametrize(
  ('name', 'fields', 'match'),
  [
    ('lora-bert', {'peft_type': 'LORRA'}, "peft_type 'LORRA' are not read; did you mean 'LORA'"),
    ('lora-bert', {'peft_type': 'XLORA'}, "peft_type 'XLORA'"),
    ('lora-bert', {'fan_in_fan_out': True}, r'fan_in_fan_out=True is of maps stored \[in, out\]'),
    ('lora-bert', {'init_lora_weights': 'pissa'}, "init_lora_weights='pissa' starts by changing"),
    ('lora-bert', {'lora_bias': True}, 'LORA with lora_bias=True is not computed here'),
    ('lora-bert', {'bias': 'lora_only'}, "LORA with bias='lora_only' is not computed"),
    ('lora-bert', {'a_new_field': 3}, 'LORA with a_new_field=3 is not computed'),
    ('lora-bert', {'r': 5}, r'lora_A.weight is \[32, 2\], and \[32, 5\] by the config'),
    ('lora-bert', {'use_dora': True}, 'missing .*lora_magnitude_vector'),
    ('miss-bert', {'mini_r': 4}, 'MISS with mini_r=4 is not read; only 1 is'),
    ('miss-bert', {'init_weights': 'bat'}, "MISS with init_weights='bat' starts by changing"),
    ('oft-bert', {'coft': True}, 'OFT with coft=True'),
    ('hra-bert', {'apply_GS': True}, 'HRA with apply_GS=True'),
    ('vera-bert', {'save_projection': False}, 'VERA with save_projection=False is not read'),
    ('vblora-bert', {'save_only_topk_weights': True}, 'VBLORA with save_only_topk_weights=True'),
    ('prefix-bert', {'num_transformer_submodules': 2}, 'not for both together'),
  ],
)
def test_an_option_that_is_not_computed_is_refused_by_name(name, fields, match, tmp_path):
  base = errors.base(errors.header(name)['base'])
  with pytest.raises(FewshotError, match=match) as e:
    exchange.read(changed(name, tmp_path, **fields), base)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize(
  'field', ['r', 'lora_alpha', 'rank_pattern', 'modules_to_save', 'peft_type']
)
@pytest.mark.parametrize('value', ['x', [['a']], {'(': 2}, -1, 10**12])
def test_a_config_of_odd_values_is_one_line(field, value, tmp_path):
  folder = changed('lora-bert', tmp_path, **{field: value})
  try:
    exchange.read(folder, errors.base('bert-tiny'), without_head=True)
  except FewshotError as e:
    assert '\n' not in str(e)
  else:
    assert field in ('lora_alpha', 'modules_to_save')  # Nothing there depends on their values.


def first(tensors):
  return next(k for k in sorted(tensors) if k.endswith('lora_A.weight'))


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    (
      lambda t: {k: v for k, v in t.items() if k != first(t)},
      r'missing encoder.*lora_A.weight; left',
    ),
    (lambda t: t | {'base_model.model.x.y': t[first(t)]}, 'left over base_model.model.x.y'),
    (
      lambda t: (
        t | {'base_model.model.encoder.layer.9.attention.self.query.lora_A.weight': t[first(t)]}
      ),
      'that the model lacks base_model.model.encoder.layer.9',
    ),
    (lambda t: {}, 'the adapter is none of LORA'),
    (lambda t: t | {'base_model.model.classifier.weight': t[first(t)]}, 'left over .*classifier'),
  ],
)
def test_tensors_that_do_not_fit_are_listed(change, match, tmp_path):
  with pytest.raises(FewshotError, match=match):
    exchange.read(with_tensors('lora-bert', tmp_path, change), errors.base('bert-tiny'))


def test_a_classifier_of_other_features_is_left_out_on_demand(tmp_path):
  head = {f'base_model.model.classifier.{k}': np.ones(3, np.float32) for k in ('dense', 'bias')}
  folder = with_tensors('lora-bert', tmp_path, lambda t: t | head)
  saved = config(folder) | {'modules_to_save': ['classifier', 'score']}
  (folder / 'adapter_config.json').write_text(json.dumps(saved))
  with pytest.raises(FewshotError, match=r'left over .*classifier.*; without_head=True leaves out'):
    exchange.read(folder, errors.base('bert-tiny'))
  read = exchange.read(folder, errors.base('bert-tiny'), without_head=True)
  assert errors.error('lora-bert', read) < errors.LIMIT


def test_an_adapter_of_another_base_is_refused():
  with pytest.raises(FewshotError, match=r'llama-tiny.*that the model lacks base_model.model.enc'):
    exchange.read(errors.FIXTURES / 'lora-bert', errors.base('llama-tiny'))


def test_an_adapter_saved_by_torch_is_read(tmp_path):
  folder = changed('lora-bert', tmp_path)
  (folder / 'adapter_model.safetensors').unlink()
  read = exchange.read(folder, errors.base('bert-tiny'))
  jax.tree.map(np.testing.assert_array_equal, read.theta, errors.adapted('lora-bert').theta)


def test_half_precision_trains_on_in_float32(tmp_path):
  half = lambda t: {k: v.astype(jnp.bfloat16) for k, v in t.items()}  # noqa: E731
  read = exchange.read(with_tensors('lora-bert', tmp_path, half), errors.base('bert-tiny'))
  assert {x.dtype for x in jax.tree.leaves(read.theta)} == {np.dtype(np.float32)}
  assert errors.error('lora-bert', read) < 0.1


def test_a_folder_without_an_adapter_is_named(tmp_path):
  with pytest.raises(FewshotError, match='there is no adapter folder'):
    exchange.read(tmp_path / 'none', errors.base('bert-tiny'))
  with pytest.raises(FewshotError, match=r'adapter_config.json is missing'):
    exchange.read(tmp_path, errors.base('bert-tiny'))
  (tmp_path / 'adapter_config.json').write_text('{"peft_type": "LORA"}')
  (tmp_path / 'adapter_model.safetensors').write_bytes(b'no tensors')
  with pytest.raises(FewshotError, match=r'adapter_model.safetensors is corrupted or truncated'):
    exchange.read(tmp_path, errors.base('bert-tiny'))


def test_names_of_the_classes_with_a_head_and_of_transformers_4_are_read(tmp_path):
  base, plain = errors.base('bert-tiny'), errors.adapted('lora-bert')
  longer = lambda t: {k.replace('model.enc', 'model.bert.enc'): v for k, v in t.items()}  # noqa: E731
  read = exchange.read(with_tensors('lora-bert', tmp_path, longer), base)
  jax.tree.map(np.testing.assert_array_equal, read.theta, plain.theta)
  old = {'q_proj': 'attention.query', 'v_proj': 'attention.value'}

  def rename(tensors):
    renamed = {
      k.replace('model.layers.', 'model.vit.encoder.layer.'): v for k, v in tensors.items()
    }
    for new, name in old.items():
      renamed = {k.replace(new, name): v for k, v in renamed.items()}
    return renamed

  read = exchange.read(with_tensors('lora-vit', tmp_path, rename), errors.base('vit-tiny'))
  assert errors.error('lora-vit', read) < errors.LIMIT


def begun(name, model, classes=0):
  """A method at its start, set off so that it does something."""
  base = errors.base(model)
  method = methods.parse(name)
  batch = dict(base.example) | {'labels': np.zeros(1, np.int32)}
  calib = methods.Calib(batch, classes)
  theta, state = method.init(jax.random.key(0), base.forward, base.params, calib)
  rng = np.random.default_rng(0)
  off = lambda x: np.asarray(x + 0.1 * rng.standard_normal(x.shape), np.float32)  # noqa: E731
  return Adapted(base, method, jax.tree.map(off, theta), state, tuple(map(str, range(classes))))


def outputs(adapted, key='hidden', plain=False):
  forward = methods.adapt(adapted.method, adapted.model.forward, adapted.theta, adapted.state)
  forward = adapted.model.forward if plain else forward
  batch = {'tokens': np.arange(5, 17, dtype=np.int32).reshape(2, 6), 'mask': np.ones((2, 6), bool)}
  batch = batch if 'tokens' in adapted.model.example else dict(adapted.model.example)
  return np.asarray(forward(adapted.model.params, batch)[key])


@pytest.mark.parametrize(
  ('method', 'model', 'peft', 'ours'),
  [
    ("lora(rank=2, init='pissa')", 'bert-tiny', 'LORA', 'lora'),
    ("lora(rank=2, init='pissa', scaling='alpha/sqrt(r)')", 'bert-tiny', 'LORA', 'lora'),
    ("lora(ranks=(('.*/query', 3),), rank=2)", 'bert-tiny', 'LORA', 'chain'),
    ('lora_plus(rank=2)', 'llama-tiny', 'LORA', 'lora'),
    ('lora(rank=2)', 'gpt2-tiny', 'LORA', 'lora'),
    ("dora('.*/value/kernel', rank=2)", 'gpt2-tiny', 'LORA', 'dora'),
    ("ia3('.*/value', '.*/down')", 'gpt2-tiny', 'IA3', 'ia3'),
    ('as_weights(lora(rank=2))', 'bert-tiny', 'LORA', 'lora'),
    ('p_tuning(length=3, width=8)', 'bert-tiny', 'P_TUNING', 'soft_prompt'),
    ("p_tuning(length=3, encoder='lstm', width=4)", 'bert-tiny', 'P_TUNING', 'soft_prompt'),
    ('scaled_prompt(length=3)', 'gpt2-tiny', 'PROMPT_TUNING', 'soft_prompt'),
    ('prefix(length=3, width=4)', 'bert-tiny', 'PREFIX_TUNING', 'prefix'),
    ("tune('.*/ln1/(scale|bias)')", 'bert-tiny', 'LN_TUNING', 'tune'),
  ],
)
def test_what_is_kept_otherwise_here_is_written_as_the_same_function(
  method, model, peft, ours, tmp_path
):
  key = 'hidden' if model == 'bert-tiny' else 'token_logits'
  adapted = begun(method, model)
  folder = exchange.write(adapted, tmp_path / 'adapter')
  read = exchange.read(folder, adapted.model)
  assert config(folder)['peft_type'] == peft
  assert methods.spell(read.method).startswith(ours + '(')
  assert np.abs(outputs(adapted, key) - outputs(adapted, key, plain=True)).max() > 1e-3
  np.testing.assert_allclose(outputs(read, key), outputs(adapted, key), atol=2e-5)


def test_the_classifier_goes_with_the_adapter(tmp_path):
  adapted = begun('chain(lora(rank=2), linear())', 'vit-tiny', classes=3)
  folder = exchange.write(adapted, tmp_path / 'adapter')
  assert config(folder)['modules_to_save'] == ['classifier']
  assert 'base_model.model.classifier.bias' in stored(folder)
  assert all('.vit.' in k or '.classifier.' in k for k in stored(folder))
  read = exchange.read(folder, adapted.model)
  assert read.classes == ('0', '1', '2')
  np.testing.assert_allclose(outputs(read, 'logits'), outputs(adapted, 'logits'), atol=1e-5)


@pytest.mark.parametrize(
  ('method', 'model', 'match'),
  [
    ('svf()', 'bert-tiny', 'PEFT has no svf; it has lora, lora_plus'),
    ('linear(classes=2)', 'bert-tiny', 'of one kind, not of a head'),
    ('chain(lora(rank=2), ia3())', 'bert-tiny', 'of one kind, not of lora, ia3'),
    ("chain(lora(rank=2), lora('.*/query', rank=2))", 'bert-tiny', 'query is adapted twice'),
    ('chain(lora(rank=2), linear(classes=2))', 'bert-tiny', 'linear.. has no place'),
    ('chain(lora(rank=2), linear(classes=2))', 'llama-tiny', 'has no bias in Transformers'),
    ('vera(rank=2)', 'gpt2-tiny', 'c_attn is 3 modules here'),
    ('fourierft(n_frequency=5)', 'bert-tiny', 'this fourierft has places of its own'),
    ('chain(soft_prompt(length=2), soft_prompt(length=2))', 'bert-tiny', 'and this chain 2'),
    ("prefix(length=2, where='.*block_0/attn/core')", 'bert-tiny', 'a prefix in every layer'),
    ('prefix(length=2)', 'vit-tiny', 'a prompt is exchanged for'),
    ('layernorm()', 'gemma3-tiny', 'gains are stored less one'),
    ("tune('.*/query/kernel')", 'bert-tiny', 'PEFT keeps no kernel'),
  ],
)
def test_what_peft_has_not_is_refused(method, model, match, tmp_path):
  with pytest.raises(FewshotError, match=match) as e:
    exchange.write(begun(method, model, classes=2 if 'linear' in method else 0), tmp_path / 'a')
  assert '\n' not in str(e.value)
  assert not list(tmp_path.iterdir())


def test_only_an_adapter_is_overwritten(tmp_path):
  adapted = errors.adapted('lora-bert')
  for _ in range(2):
    exchange.write(adapted, tmp_path / 'adapter')
  (tmp_path / 'adapter' / 'notes.txt').write_text('mine')
  with pytest.raises(FewshotError, match='exists and is no adapter'):
    exchange.write(adapted, tmp_path / 'adapter')
  with pytest.raises(FewshotError, match="no task_type 'CAUSAL'; did you mean 'CAUSAL_LM'"):
    exchange.write(adapted, tmp_path / 'other', 'CAUSAL')
  assert [p.name for p in tmp_path.iterdir()] == ['adapter']


def test_the_command_goes_both_ways(tmp_path, capsys):
  base, source = str(errors.BASES / 'bert-tiny'), errors.FIXTURES / 'lora-bert'
  kept, back = str(tmp_path / 'kept'), tmp_path / 'back'
  assert main(['adapters', 'import', str(source), '--model', base, '--out', kept, '--json']) == 0
  row = json.loads(capsys.readouterr().out)
  assert row['peft_type'] == 'LORA'
  assert row['method'].startswith('lora(')
  assert row['parameters'] == sum(x.size for x in stored(source).values())
  assert main(['adapters', 'export', kept, '--model', base, '--out', str(back)]) == 0
  assert 'LORA' in capsys.readouterr().out
  for key, value in stored(source).items():
    np.testing.assert_array_equal(stored(back)[key], value)
  assert main(['adapters', 'import', str(source), '--out', kept]) == 2
  assert 'import takes --model' in capsys.readouterr().err


def test_peft_type_of_the_methods_is_that_of_the_table():
  known = {m: kind.peft for kind in exchange.KINDS.values() for m in kind.methods}
  assert {m: p for m, p in methods.PEFT.items() if known.get(m) != p} == {}
