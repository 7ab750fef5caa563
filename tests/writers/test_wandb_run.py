"""wandb's writer, with wandb: an offline run read back from its file, and endpoints that fail."""

import gzip
import http.server
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest

from fewshot import writers
from fewshot.writers import base, behind
from tests.writers import reading

wandb = pytest.importorskip('wandb')

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
  {'task': 'toy', 'method': 'linear()', 'mean': 0.75, 'std': None, 'n': 1, 'test_items': (8,)},
  {'task': 'toy', 'method': 'ia3()', 'mean': None, 'std': None, 'n': 0, 'test_items': ()},
]
MARKDOWN = '| method | accuracy |\n| --- | ---: |\n| `linear()` | 75.0 % |\n'


def records(file: Path) -> list[Any]:
  """The records of a .wandb file, as wandb's own messages: a log in the format of LevelDB.

  Blocks of 32 KiB hold chunks of (crc32, length, kind), kind 1 a whole record, 2 to 4 the first,
  middle and last part of one; seven bytes of wandb's come first.
  """
  from wandb.proto import wandb_internal_pb2

  data, at, parts, found = file.read_bytes(), 7, b'', []
  assert data[:4] == b':W&B'
  while at + 7 <= len(data):
    if 32768 - at % 32768 < 7:  # No chunk begins in the last bytes of a block.
      at += 32768 - at % 32768
      continue
    crc, length, kind = struct.unpack('<IHB', data[at : at + 7])
    chunk = data[at + 7 : at + 7 + length]
    assert crc == zlib.crc32(bytes([kind]) + chunk)
    parts, at = parts + chunk, at + 7 + length
    if kind in (1, 4):
      found.append(wandb_internal_pb2.Record.FromString(parts))
      parts = b''
  return found


def of_kind(found: list[Any], kind: str) -> list[Any]:
  return [getattr(r, kind) for r in found if r.WhichOneof('record_type') == kind]


def values(items: Any) -> dict[str, Any]:
  return {'/'.join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}


@pytest.fixture(scope='module')
def offline(tmp_path_factory):
  """The folder of an offline run of two records, the records of its file, and what was said."""
  folder = tmp_path_factory.mktemp('offline')
  with pytest.MonkeyPatch.context() as patch:
    reading.plant(folder, patch)
    patch.setattr(behind, 'PATIENCE', 60)  # Whatever else the machine does.
    patch.setattr(behind, 'LIMIT', 60)
    patch.setenv('WANDB_BASE_URL', 'http://127.0.0.1:9')  # Nothing listens there.
    patch.chdir(folder)
    out = Path('runs/toy')
    out.mkdir(parents=True)
    changes = {'wandb__mode': 'offline', 'wandb__group': 'sweep 7', 'wandb__tags': 'one, two'}
    log = writers.open_log(out, [reading.config(**changes, k=k) for k in (4, 8)])
    log.event('timings', run='a', seconds=1.5)
    log.scalars('training 1', 40, {'loss': 0.125})
    log.record(reading.record(curve=[1 / (1 + i) for i in range(500)]))
    log.record(reading.record(id='f' * 16, status='failed', scores={}, curve=None))
    log.table(ROWS, MARKDOWN)
    log.close()
    wandb.teardown()  # As at the end of a process: the file's last block is written.
    leaks = reading.leaks(out)
  (file,) = out_of(folder).glob('wandb/offline-run-*/run-*.wandb')
  return out_of(folder), records(file), leaks


def out_of(folder: Path) -> Path:
  return folder / 'runs' / 'toy'


def test_an_offline_run_has_config_group_and_tags(offline):
  _, found, _ = offline
  (run,) = of_kind(found, 'run')
  assert (run.project, run.run_group, list(run.tags)) == ('fewshot', 'sweep 7', ['one', 'two'])
  assert (run.display_name, run.host) == ('toy', '')
  config = values(run.config.update)
  assert config['k'] == [4, 8] and config['task'] == 'trec' and 'out' not in config


def test_its_history_has_curves_thinned_and_scores(offline):
  _, found, _ = offline
  history = [values(h.item) for h in of_kind(found, 'history')]
  name = 'linear() lr=0.01 split 3 seed 0 beefbe'
  curve = [(h['step'], h[f'loss/{name}']) for h in history if f'loss/{name}' in h]
  assert len(curve) == base.POINTS and curve[0] == (0, 1) and curve[-1] == (499, 1 / 500)
  assert all(loss == pytest.approx(1 / (1 + step)) for step, loss in curve)
  assert [h[f'accuracy/{name}'] for h in history if f'accuracy/{name}' in h] == [0.5]
  assert [(h['step'], h[k]) for h in history for k in h if k == 'loss/training 1'] == [(40, 0.125)]
  assert [h['timings/seconds'] for h in history if 'timings/seconds' in h] == [1.5]
  metrics = {m.name or m.glob_name: m.step_metric for m in of_kind(found, 'metric')}
  assert metrics['loss/*'] == 'step'


def test_its_summary_has_the_means(offline):
  summary: dict[str, Any] = {}
  for s in of_kind(offline[1], 'summary'):
    summary |= values(s.update)
  assert summary['mean/toy linear()'] == 0.75
  assert not any('ia3' in k for k in summary)


def test_its_tables_are_files_of_the_run(offline):
  out, _, _ = offline
  (table,) = out.glob('wandb/*/files/media/table/table_*.table.json')
  (runs,) = out.glob('wandb/*/files/media/table/runs_*.table.json')
  table, runs = json.loads(table.read_text()), json.loads(runs.read_text())
  assert table['columns'] == ['task', 'method', 'mean', 'std', 'n']
  assert table['data'] == [['toy', 'linear()', 0.75, None, 1], ['toy', 'ia3()', None, None, 0]]
  rows = [dict(zip(runs['columns'], row, strict=True)) for row in runs['data']]
  assert [(r['id'], r['status'], r['accuracy'], r['lr']) for r in rows] == [
    ('beef' * 4, 'ok', 0.5, 0.01),
    ('f' * 16, 'failed', None, 0.01),
  ]


def test_the_final_table_is_an_artifact_named_from_the_working_folder(offline):
  out, found, _ = offline
  (artifact,) = of_kind(found, 'artifact')
  assert artifact.type == 'table' and artifact.name.endswith('-table')
  assert artifact.description == MARKDOWN
  rows = json.loads(artifact.metadata)['rows']
  assert [r['mean'] for r in rows] == [0.75, None] and 'test_items' not in rows[0]
  (entry,) = artifact.manifest.contents
  assert entry.path == 'table.md' and entry.local_path.startswith('runs/toy/wandb/offline-run-')
  assert (out.parent.parent / entry.local_path).read_text() == MARKDOWN


def test_nothing_of_it_tells_of_this_machine(offline):
  out, _, leaks = offline
  assert leaks == []
  assert len([p for p in out.rglob('*') if p.is_file()]) >= 4


class Receiving(http.server.BaseHTTPRequestHandler):
  """As much of a wandb server as `wandb sync` asks for; `server.sent` has what came."""

  def do_POST(self) -> None:
    body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
    if self.headers.get('Content-Encoding') == 'gzip':
      body = gzip.decompress(body)
    answer: dict[str, Any] = {}
    if self.path == '/graphql':
      asked = json.loads(body)
      name, given = asked['query'].split('(')[0].split()[-1], asked.get('variables', {})
      self.server.sent.setdefault(name, given)  # Later ones change a few things.
      answer = {'data': self.answer(name, given)}
    elif self.path.endswith('file_stream'):
      for file, part in json.loads(body).get('files', {}).items():
        self.server.sent.setdefault(file, []).extend(part['content'])
    else:
      self.server.sent[self.path] = body.decode()
    text = json.dumps(answer).encode()
    self.send_response(200)
    self.send_header('Content-Type', 'application/json')
    self.send_header('Content-Length', str(len(text)))
    self.end_headers()
    self.wfile.write(text)

  do_GET = do_PUT = do_POST

  def answer(self, name: str, asked: Any) -> dict[str, Any]:
    if name == 'UpsertBucket':
      project = {'id': 'p', 'name': 'fewshot', 'entity': {'id': 'e', 'name': 'me'}}
      bucket = {'id': 'r', 'name': asked['name'], 'config': '{}', 'project': project}
      return {'upsertBucket': {'bucket': bucket, 'inserted': True}}
    if name == 'CreateArtifact':  # COMMITTED: its file need not be sent.
      sequence = {'id': 's', 'latestArtifact': {'id': 'a', 'versionIndex': 0}}
      artifact = {'id': 'a', 'state': 'COMMITTED', 'artifactSequence': sequence}
      return {'createArtifact': {'artifact': artifact}}
    if name == 'CreateRunFiles':
      to = f'http://127.0.0.1:{self.server.server_address[1]}/'
      files = [{'name': f, 'uploadUrl': to + f} for f in asked['files']]
      return {'createRunFiles': {'runID': 'r', 'uploadHeaders': [], 'files': files}}
    return {}

  def log_message(self, *args: Any) -> None:
    pass


@pytest.mark.slow
def test_wandb_reads_the_offline_run_and_sends_all_of_it(offline, tmp_path):
  out, _, _ = offline
  server: Any = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Receiving)
  server.sent = {}
  threading.Thread(target=server.serve_forever, daemon=True).start()
  address = f'http://127.0.0.1:{server.server_address[1]}'
  env = {k: v for k, v in os.environ.items() if not k.startswith('WANDB_')}
  env |= {'HOME': str(tmp_path), 'WANDB_API_KEY': reading.KEY, 'WANDB_BASE_URL': address}
  (run,) = out.glob('wandb/offline-run-*')
  synced = subprocess.run(
    [sys.executable, '-m', 'wandb', 'sync', str(run.relative_to(out.parents[1]))],
    cwd=out.parents[1], env=env | {'NO_PROXY': '127.0.0.1'}, capture_output=True, text=True,
    timeout=100,
  )  # fmt: skip
  server.shutdown()
  assert synced.returncode == 0 and 'Finished syncing' in synced.stderr, synced.stderr
  sent = server.sent
  bucket, artifact = sent['UpsertBucket'], sent['CreateArtifact']['input']
  assert (bucket['groupName'], bucket['tags']) == ('sweep 7', ['one', 'two'])
  assert (bucket['displayName'], bucket['project']) == ('toy', 'fewshot')
  assert json.loads(bucket['config'])['k'] == {'value': [4, 8]}
  assert not bucket.get('host') and not bucket.get('repo')
  rows = [json.loads(r) for r in sent['wandb-history.jsonl']]
  assert sum('loss/linear() lr=0.01 split 3 seed 0 beefbe' in r for r in rows) == base.POINTS
  assert json.loads(sent['/wandb-summary.json'])['mean/toy linear()'] == 0.75
  tables = [json.loads(v) for k, v in sent.items() if k.startswith('/media/table/table_')]
  assert tables[0]['data'][0] == ['toy', 'linear()', 0.75, None, 1]
  assert (artifact['artifactTypeName'], artifact['description']) == ('table', MARKDOWN)


def test_an_artifact_outside_of_the_working_folder_has_no_file(tmp_path, monkeypatch):
  told = []

  class Run:
    id, dir, step, summary = 'abc', str(tmp_path), 0, {}

    def log_artifact(self, artifact):
      told.append(artifact)

  monkeypatch.chdir('/')
  monkeypatch.setattr(Path, 'cwd', lambda: tmp_path / 'elsewhere')
  from fewshot.writers.wandb_run import WandbRun

  writer = WandbRun.__new__(WandbRun)
  monkeypatch.setattr(writer, '_run', Run(), raising=False)
  monkeypatch.setattr(writer, '_show', lambda *a: None)
  writer.table(ROWS, MARKDOWN)
  (artifact,) = told
  assert not artifact.manifest.entries and artifact.description == MARKDOWN


ONLINE = """
import sys
from pathlib import Path
from fewshot import writers
from tests.writers import reading
log = writers.open_log(Path(sys.argv[1]), [reading.config(wandb__mode='online')])
log.record(reading.record())
log.close()
print('over')
"""


class Refusing(http.server.BaseHTTPRequestHandler):
  """An endpoint that knows no key."""

  def do_POST(self) -> None:
    self.rfile.read(int(self.headers.get('Content-Length', 0)))
    answer = b'{"error": "permission denied"}'
    self.send_response(401)
    self.send_header('Content-Type', 'application/json')
    self.send_header('Content-Length', str(len(answer)))
    self.end_headers()
    self.wfile.write(answer)

  do_GET = do_POST

  def log_message(self, *args: Any) -> None:
    pass


@pytest.mark.slow
def test_online_without_a_key_or_an_endpoint_costs_a_line_and_no_run(tmp_path):
  hung = socket.create_server(('127.0.0.1', 0))  # Takes connections and never answers.
  refusing = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Refusing)
  threading.Thread(target=refusing.serve_forever, daemon=True).start()
  address = lambda port: {'WANDB_BASE_URL': f'http://127.0.0.1:{port}'}  # noqa: E731
  key = {'WANDB_API_KEY': reading.KEY}
  cases = {
    'no key': address(9),
    'no endpoint': key | address(9),
    'no answer': key | address(hung.getsockname()[1]),
    'bad key': key | address(refusing.server_address[1]),
  }
  running = {}
  for case, env in cases.items():
    out = tmp_path / case
    out.mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith('WANDB_')}
    clean |= {'HOME': str(tmp_path), 'NO_PROXY': '127.0.0.1', **env}
    running[case] = subprocess.Popen(
      [sys.executable, '-c', ONLINE, str(out)], cwd=ROOT, env=clean, text=True,
      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
  said = {}
  for case, process in running.items():
    done, said[case] = process.communicate(timeout=100)
    assert (process.returncode, done) == (0, 'over\n'), said[case]
    assert [line['event'] for line in reading.lines(tmp_path / case)] == ['run']
    assert re.fullmatch(r'fewshot: wandb (is left out|does not finish).*\n', said[case]), said[case]
    assert reading.KEY not in said[case]
  refusing.shutdown()
  hung.close()
  assert 'there is no key; run wandb login' in said['no key']
