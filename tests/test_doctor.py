"""What the doctor finds, and what it misses on a machine that lacks something."""

import json

import jax
import pytest

from fewshot import cli, doctor

KEYS = {
  'fewshot', 'python', 'system', 'devices', 'packages', 'optional', 'cache', 'compiled_programs',
  'disk_free_gb', 'assets', 'missing',
}  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setenv('FEWSHOT_CACHE', str(tmp_path / 'cache'))
  return tmp_path


def test_the_report_is_one_object_without_paths(home, capsys):
  assert cli.main(['doctor', '--json']) == 0
  out = capsys.readouterr().out
  found = json.loads(out.splitlines()[-1])
  assert set(found) == KEYS
  assert found['missing'] == [] and found['devices'] and found['packages']['jax']
  assert found['cache'] == '~/cache' and str(home) not in out
  assert not any(found['assets'].values())


def test_people_are_told_what_to_do(capsys):
  assert cli.main(['doctor']) == 0
  out = capsys.readouterr().out
  assert 'nothing that is required is missing' in out and 'fewshot assets get minilm-l6' in out


@pytest.mark.parametrize(
  ('broken', 'said'),
  [
    (lambda m: m.setitem(doctor.PACKAGES, 'no-such-package', 'needed'), 'no-such-package'),
    (lambda m: m.setattr(jax, 'devices', no_device), 'a device: no driver'),
    (lambda m: m.setattr(doctor.os, 'access', lambda *a: False), 'a writable cache'),
    (lambda m: m.setattr(doctor.importlib.util, 'find_spec', lambda name: None), 'pip'),
  ],
)
def test_what_is_missing_is_named_and_the_status_says_so(monkeypatch, capsys, broken, said):
  broken(monkeypatch)
  assert cli.main(['doctor']) == 1
  (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith('MISSING')]
  assert said in line


def test_a_cache_under_a_file_is_missing(home, monkeypatch):
  (home / 'file').write_text('')
  monkeypatch.setenv('FEWSHOT_CACHE', str(home / 'file' / 'cache'))
  assert any('cache' in x for x in doctor.report()['missing'])


def test_an_optional_package_is_not_missing(monkeypatch):
  monkeypatch.setitem(doctor.PACKAGES, 'no-such-package', 'dashboards')
  found = doctor.report()
  assert found['missing'] == [] and found['optional']['no-such-package'] == 'dashboards'


def no_device():
  raise RuntimeError('no driver\nand a long story')
