"""Records survive kills, full disks and torn lines, and never hold this machine's secrets."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewshot import records
from fewshot.errors import FewshotError


def make(**fields):
  base = {
    'config': {}, 'model': 'vit', 'method': 'linear()', 'task': 'digits',
    'split': {'k': 16, 'seed': 0}, 'seed': 0, 'scores': {'accuracy': {'value': 0.5, 'n': 10}},
    'trained': 10, 'total': 100, 'hashes': {'split': 'ab'}, 'timings': {'seconds': 1.0},
    'versions': {'fewshot': '0'}, 'status': 'ok',
  }  # fmt: skip
  return {**base, **fields}


scalars = st.none() | st.booleans() | st.integers() | st.floats(-1e300, 1e300)
texts = st.text(st.characters(exclude_characters='/'), max_size=6)
values = st.recursive(
  scalars | texts, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3)
)


@given(st.lists(values, max_size=4))
def test_what_is_appended_is_read_back(tmp_path_factory, extras):
  run = tmp_path_factory.mktemp('run')
  written = [make(curve=extra, seed=seed) for seed, extra in enumerate(extras)]
  for record in written:
    records.append(run, record)
  (run / records.NAME).touch()
  assert records.read(run) == records.read(run / records.NAME) == written


@given(st.data())
def test_a_file_cut_at_any_byte_gives_exactly_its_whole_lines(tmp_path_factory, data):
  run = tmp_path_factory.mktemp('run')
  for seed in range(3):
    records.append(run, make(seed=seed, cause='naïve\n✓'))
  whole = (run / records.NAME).read_bytes()
  cut = data.draw(st.integers(0, len(whole)))
  (run / records.NAME).write_bytes(whole[:cut])
  complete = whole[:cut].count(b'\n')
  assert [r['seed'] for r in records.read(run)] == list(range(complete))
  records.append(run, make(seed=9))
  assert [r['seed'] for r in records.read(run)] == [*range(complete), 9]
  torn = whole[:cut].rpartition(b'\n')[2]
  sidecar = run / 'records.torn'
  assert (sidecar.read_bytes() if sidecar.exists() else b'') == (torn + b'\n' if torn else b'')


def test_a_torn_line_longer_than_a_block_is_set_aside(tmp_path):
  records.append(tmp_path, make())
  with (tmp_path / records.NAME).open('ab') as file:
    file.write(b'{' * 200_000)
  records.append(tmp_path, make(seed=1))
  assert [r['seed'] for r in records.read(tmp_path)] == [0, 1]
  assert (tmp_path / 'records.torn').read_bytes() == b'{' * 200_000 + b'\n'


def test_a_torn_line_is_warned_about_in_one_line(tmp_path, capsys):
  records.append(tmp_path, make())
  with (tmp_path / records.NAME).open('a') as file:
    file.write('{"config": ')
  assert len(records.read(tmp_path)) == 1
  err = capsys.readouterr().err
  assert 'line 2 is torn' in err and err.count('\n') == 1


@pytest.mark.parametrize(
  'line, problem',
  [
    (b'{"a": ', 'not valid JSON'),
    (b'\xff\xfe', 'not valid JSON'),
    (b'', 'not valid JSON'),
    (b'[1]', 'not a JSON object'),
    (b'{"config": {}}', 'missing model, method'),
  ],
)
def test_a_corrupt_line_is_named_and_can_be_skipped(tmp_path, capsys, line, problem):
  good = json.dumps(make()).encode()
  (tmp_path / records.NAME).write_bytes(b'\n'.join([good, line, good, b'']))
  with pytest.raises(FewshotError, match=rf'records.jsonl line 2: {problem}.*repair or delete'):
    records.read(tmp_path)
  assert records.read(tmp_path, strict=False) == [make(), make()]
  assert f'line 2 is skipped: {problem}' in capsys.readouterr().err


def test_a_missing_file_says_what_to_run(tmp_path):
  with pytest.raises(FewshotError, match=r'no records at .*No such file.*run an experiment'):
    records.read(tmp_path)


def test_a_full_disk_leaves_the_earlier_records(tmp_path, monkeypatch):
  records.append(tmp_path, make())
  before = (tmp_path / records.NAME).read_bytes()
  write = os.write

  def full(fd, data):
    write(fd, data[:20])
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'write', full)
  with pytest.raises(FewshotError, match='No space left on device; its earlier records are intact'):
    records.append(tmp_path, make(seed=1))
  assert (tmp_path / records.NAME).read_bytes() == before
  monkeypatch.setattr(os, 'write', lambda fd, data: write(fd, data[:20]))
  with pytest.raises(FewshotError, match=r'only 20 of .* bytes written.*make room'):
    records.append(tmp_path, make(seed=1))
  monkeypatch.setattr(os, 'write', write)
  assert (tmp_path / records.NAME).read_bytes() == before
  records.append(tmp_path, make(seed=2))
  assert [r['seed'] for r in records.read(tmp_path)] == [0, 2]


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs the always-full device of Linux')
def test_records_of_a_chunk_go_out_together_or_not_at_all(tmp_path, monkeypatch):
  runs = [make(id=id, timings={'seconds': 1.0}) for id in 'abcd']
  assert records.append(tmp_path, runs[1]) == runs[1:2]
  write, writes = os.write, []
  monkeypatch.setattr(os, 'write', lambda fd, data: writes.append(data) or write(fd, data))
  assert records.append(tmp_path, *runs[:3], once=True) == [runs[0], runs[2]]
  assert len(writes) == 1 and [r['id'] for r in records.read(tmp_path)] == ['b', 'a', 'c']
  before = (tmp_path / records.NAME).read_bytes()
  with pytest.raises(FewshotError, match='missing status'):
    records.append(tmp_path, runs[3], {k: v for k, v in runs[3].items() if k != 'status'})
  assert records.append(tmp_path, *runs[:3], once=True) == []
  assert (tmp_path / records.NAME).read_bytes() == before


def test_a_really_full_device_raises_one_line(tmp_path):
  (tmp_path / records.NAME).symlink_to('/dev/full')
  with pytest.raises(FewshotError, match='No space left') as caught:
    records.append(tmp_path, make())
  assert '\n' not in str(caught.value)


def test_a_failed_sync_takes_the_line_back(tmp_path, monkeypatch):
  records.append(tmp_path, make())
  before = (tmp_path / records.NAME).read_bytes()

  def broken(fd):
    raise OSError(5, 'Input/output error')

  monkeypatch.setattr(os, 'fsync', broken)
  with pytest.raises(FewshotError, match='Input/output error'):
    records.append(tmp_path, make(seed=1))
  assert (tmp_path / records.NAME).read_bytes() == before


LOOP = """
import sys
sys.path.insert(0, sys.argv[3])
from fewshot import records
import itertools, json
record = json.loads(sys.argv[2])
for seed in itertools.count():
  records.append(sys.argv[1], {**record, 'seed': seed, 'curve': [0.5] * 2000})
"""


def start(run):
  root = str(Path(records.__file__).parents[1])
  return subprocess.Popen([sys.executable, '-c', LOOP, str(run), json.dumps(make()), root])


def wait_for_lines(run, count):
  deadline = time.monotonic() + 60
  file = run / records.NAME
  while not file.exists() or file.read_bytes().count(b'\n') < count:
    assert time.monotonic() < deadline, 'the writers wrote nothing'
    time.sleep(0.005)


def test_kill_9_leaves_whole_records_and_at_most_a_torn_tail(tmp_path):
  for kill in range(3):
    done = len(records.read(tmp_path)) if kill else 0
    process = start(tmp_path)
    wait_for_lines(tmp_path, done + 5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = records.read(tmp_path)
    assert [r['seed'] for r in found[done:]] == list(range(len(found) - done))
    assert all(len(r['curve']) == 2000 for r in found)


def test_two_writers_do_not_mix_their_lines(tmp_path):
  writers = [start(tmp_path), start(tmp_path)]
  wait_for_lines(tmp_path, 40)
  for writer in writers:
    writer.kill()
    writer.wait()
  records.append(tmp_path, make())
  seeds = [r['seed'] for r in records.read(tmp_path)[:-1]]
  assert all(seeds.count(seed) <= 2 for seed in seeds) and len(seeds) >= 40


def test_numbers_that_json_lacks_become_null_and_arrays_lists(tmp_path):
  curve = [np.float32(0.5), float('nan'), float('inf')]
  records.append(tmp_path, make(curve=curve, predictions=np.arange(3), trained=np.int64(7)))
  (found,) = records.read(tmp_path)
  assert found['curve'] == [0.5, None, None]
  assert found['predictions'] == [0, 1, 2] and found['trained'] == 7
  with pytest.raises(TypeError, match='set cannot be written as JSON'):
    records.append(tmp_path, make(curve={1}))


def test_an_incomplete_record_is_not_written(tmp_path):
  record = make()
  del record['hashes'], record['status']
  with pytest.raises(FewshotError, match='missing hashes, status; pass a record'):
    records.append(tmp_path, record)
  assert not (tmp_path / records.NAME).exists()


def test_a_missing_folder_is_an_error(tmp_path):
  with pytest.raises(FewshotError, match=r'No such file.*give a folder that exists'):
    records.append(tmp_path / 'none', make())


def test_prepare_makes_the_folder_and_leaves_nothing_in_it(tmp_path):
  folder = records.prepare(tmp_path / 'a' / 'b')
  assert list(folder.iterdir()) == []
  assert records.prepare(folder) == folder


def test_prepare_refuses_a_file_and_a_read_only_folder(tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  for place in ('file', 'file/below'):
    with pytest.raises(FewshotError, match=r'cannot write to the folder .*choose a folder'):
      records.prepare(tmp_path / place)

  def read_only(*args, **kwargs):
    raise OSError(30, 'Read-only file system')

  monkeypatch.setattr(records.tempfile, 'NamedTemporaryFile', read_only)
  with pytest.raises(FewshotError, match='Read-only file system; choose a folder'):
    records.prepare(tmp_path)


def test_paths_of_this_machine_are_refused(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', '/home/somebody')
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'data').mkdir()
  refused = [
    '/home/somebody/data', 'file:///home/somebody/x', "No such file: '/home/somebody/x'",
    '/home/somebody', str(tmp_path / 'new'), sys.executable,
  ]  # fmt: skip
  for text in refused:
    with pytest.raises(FewshotError, match=r'field config.a\[0\] holds an absolute path; give it'):
      records.append(tmp_path, make(config={'a': [text]}))
    with pytest.raises(FewshotError, match=r'config .* holds an absolute path'):
      records.check({'config': {text: 1}})
  allowed = ['data', './data', '/', '/s', 'https://x.org/home/somebody', '/home/somebody2', 'a/b']
  for text in allowed:
    records.append(tmp_path, make(config={'a': text}))
  assert len(records.read(tmp_path)) == len(allowed)


def test_secrets_are_refused_and_not_shown(tmp_path, monkeypatch):
  for name in ('HUB_TOKEN', 'api_key', 'X_SECRET', 'DB_PASSWORD'):
    with monkeypatch.context() as patch:
      patch.setenv(name, 'hunter2hunter2')
      with pytest.raises(FewshotError, match=f'cause holds .* variable {name}; keep') as caught:
        records.append(tmp_path, make(cause='401 for hunter2hunter2'))
      assert 'hunter2' not in str(caught.value)
  monkeypatch.setenv('HUB_TOKEN', 'short')
  records.append(tmp_path, make(cause='short'))


@given(st.dictionaries(st.text(max_size=3), scalars, min_size=1, max_size=4))
def test_run_id_ignores_order_and_sees_every_value(fields):
  name = records.run_id(fields)
  assert name == records.run_id(dict(reversed(fields.items())))
  assert len(name) == 16 and int(name, 16) >= 0
  key = next(iter(fields))
  assert name != records.run_id({**fields, key: ['other']})


def test_run_id_tells_non_finite_values_apart():
  assert records.run_id({'lr': float('nan')}) != records.run_id({'lr': float('inf')})
  assert records.run_id({'lr': np.float64(0.5)}) == records.run_id({'lr': 0.5})


def test_without_timings_makes_identical_runs_equal():
  one = make(timings={'seconds': 1.0}, memory={'bytes': 1, 'runs': 5})
  two = make(timings={'seconds': 2.0}, memory={'bytes': 9, 'runs': 1})
  assert records.without_timings(one) == records.without_timings(two)
  assert records.without_timings(one) != records.without_timings(make(seed=1))
  assert 'timings' in one


def test_replace_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
  target = tmp_path / 'table.md'
  records.replace(target, b'old')

  def broken(source, destination):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(os, 'replace', broken)
    with pytest.raises(FewshotError, match=r'cannot write .*No space left on device; make room'):
      records.replace(target, b'new')
  assert target.read_bytes() == b'old' and os.listdir(tmp_path) == ['table.md']
  records.replace(target, b'new')
  assert target.read_bytes() == b'new'


def test_importing_records_is_light():
  root = str(Path(records.__file__).parents[1])
  code = (
    f'import sys; sys.path.insert(0, {root!r}); import fewshot.records, fewshot.tables;'
    "print([m for m in ('jax', 'numpy', 'matplotlib', 'rich') if m in sys.modules])"
  )
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert out.stdout.strip() == '[]'
