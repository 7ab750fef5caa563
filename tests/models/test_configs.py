"""What configs may hold: every number of every family, in the words of either format."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from fewshot import models
from fewshot.errors import FewshotError
from fewshot.models import bert, clip, configs, gemma, llama, mobilenet, resnet
from fewshot.models.dual import Tower
from tests.models.test_gguf import llama as gguf_llama

FIXTURES = Path(__file__).parents[1] / 'parity' / 'fixtures'
TOWER = Tower(dim=8, depth=1, heads=2, width=8)
GOOD = {
  'bert': bert.Config(vocab=9, dim=8, depth=1, heads=2, width=16, positions=8, types=0),
  'clip': clip.Config(TOWER, TOWER, 9, 8, 8, 4, 8),
  'gemma': gemma.Config(9, 8, 1, 2, 1, 4, 8, 8, (True,), 4, 0.5),
  'llama': llama.Config(9, 8, 1, 2, 1, 4, 8, 8, stretch=llama.Stretch(8.0, 1, 4.0, 8)),
  'mobilenet': mobilenet.Config(),
  'resnet': resnet.Config(),
}


@pytest.mark.parametrize('kind', GOOD)
def test_what_families_compute_is_let_through(kind):
  configs.check(GOOD[kind], 'x')


@pytest.mark.parametrize(
  'kind, changes, said',
  [
    ('bert', {'vocab': 0}, 'x makes the vocab 0; it is to be a whole number, above 0'),
    ('bert', {'dim': True}, 'makes the dim True'),
    ('bert', {'dim': 8.0}, 'makes the dim 8.0'),
    ('bert', {'width': 1 << 31}, 'makes the width 2147483648'),
    ('bert', {'depth': 1001}, 'makes the depth 1001; .* at most 1000'),
    ('bert', {'types': -1}, 'makes the types -1'),
    ('bert', {'embedding': '8'}, "makes the embedding '8'"),
    ('bert', {'eps': 0.0}, 'makes the eps 0.0; it is to be a number above 0'),
    ('bert', {'eps': float('nan')}, 'makes the eps nan'),
    ('bert', {'lm': 'yes'}, "makes the lm 'yes'; it is to be true or false"),
    ('bert', {'activation': 3}, 'makes the activation 3; it is to be text'),
    ('clip', {'text': dataclasses.replace(TOWER, width=None)}, 'makes the width None'),
    ('clip', {'std': (0.5, 0.0, 0.5)}, 'makes the std 0.0'),
    ('clip', {'mean': (0.5, float('inf'), 0.5)}, 'makes the mean inf'),
    ('gemma', {'local': ('x',)}, "makes the local 'x'"),
    ('gemma', {'scale': 1j}, 'makes the scale 1j'),
    ('llama', {'base': -1.0}, 'makes the base -1.0'),
    ('llama', {'window': 0}, 'makes the window 0'),
    ('llama', {'stretch': llama.Stretch(0.0, 1.0, 4.0, 8)}, 'makes the factor 0.0'),
    ('mobilenet', {'stages': (mobilenet.Shape(1, 8, 0),)}, 'makes the stride 0'),
    ('resnet', {'depths': (2, 5000)}, 'makes the depths 5000; .* at most 1000'),
    ('resnet', {'image_size': 1 << 20}, 'makes the image_size 1048576; .* at most 4096'),
  ],
)
def test_fields_of_another_type_or_range(kind, changes, said):
  with pytest.raises(FewshotError, match=said):
    configs.check(dataclasses.replace(GOOD[kind], **changes), 'x')


@pytest.mark.parametrize(
  'fixture, changes, said',
  [
    ('bert-tiny', {'num_attention_heads': 0}, 'holds a value that makes no model: Zero'),
    ('bert-tiny', {'num_attention_heads': -1}, 'config.json makes the heads -1'),
    ('bert-tiny', {'num_hidden_layers': 10**9}, r'num_hidden_layers 1e\+09; at most 1000 layers'),
    ('bert-tiny', {'architectures': -1}, 'config.json holds a value that makes no model: TypeErr'),
    ('gemma3-tiny', {'num_hidden_layers': 10**9}, r'1e\+09; at most 1000'),
    ('gemma3-tiny', {'query_pre_attn_scalar': -1}, 'makes the scale '),
    ('gemma3-tiny', {'rope_parameters': 'x'}, 'makes no model: AttributeError'),
    ('llama3-tiny', {'head_dim': 3}, 'its config holds a value that makes no model'),
    ('mobilenet-v2-tiny', {'expand_ratio': 'x'}, 'makes no model: ValueError'),
    ('vit-tiny', {'image_size': 10**6}, 'makes the image_size 1000000'),
  ],
)
def test_a_wrong_config_json_is_one_line(tmp_path, fixture, changes, said):
  folder = shutil.copytree(FIXTURES / fixture, tmp_path / 'm')
  raw = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(raw | changes))
  with pytest.raises(FewshotError, match=f'^m: .*{said}') as e:
    models.load(str(folder))
  assert '\n' not in str(e.value)


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'llama.block_count': 2_000_000}, r'has llama.block_count 2e\+06; at most 1000 layers'),
    ({'llama.attention.head_count': 0}, 'makes no model: ZeroDivisionError'),
    ({'llama.embedding_length': 'x'}, 'makes no model: TypeError'),
    ({'llama.feed_forward_length': [1, 2]}, r'makes the width \[1, 2\]'),
    ({'llama.rope.freq_base': 0.0}, 'makes the base 0.0'),
  ],
)
def test_wrong_metadata_of_gguf_is_one_line(tmp_path, changes, said):
  path = gguf_llama(tmp_path / 'm.gguf', **changes)
  with pytest.raises(FewshotError, match=f'^m.gguf: the metadata .*{said}'):
    models.load(str(path))


def test_numbers_of_preprocessor_config(tmp_path):
  folder = shutil.copytree(FIXTURES / 'vit-tiny', tmp_path / 'm')
  (folder / 'preprocessor_config.json').write_text('{"rescale_factor": "x"}')
  with pytest.raises(FewshotError, match="has rescale_factor 'x', and only 1/255"):
    models.load(str(folder))
