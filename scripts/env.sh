#!/usr/bin/env bash
# Makes .venv from requirements/quickstart.lock, or from that and test.lock.
# Usage: scripts/env.sh quickstart|test
#
# A stamp is written after each finished install. With all stamps fresh nothing is done and no
# network is used; a .venv left behind by an interrupted install has none and is made anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
log=$venv/install.log

fail() {
  echo "fewshot: $1" >&2
  exit 1
}

find_python() {
  local new_enough='import sys; sys.exit(sys.version_info < (3, 11))'
  local candidate candidates=(python3 python3.13 python3.12 python3.11)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c "$new_enough" > /dev/null 2>&1; then
      python=$candidate
      "$python" -c 'import ensurepip, venv' 2> /dev/null ||
        fail "$python has no venv module: install it (Debian, Ubuntu: apt install python3-venv)"
      return
    fi
  done
  [ -z "${PYTHON:-}" ] || fail "PYTHON=$PYTHON is not a Python 3.11 or newer"
  fail 'no Python 3.11 or newer found: install one, or name it: make PYTHON=/path/to/python3'
}

# What an install depends on; scripts in .venv name its place and break when the tree is moved.
wanted() {
  { cat "requirements/$1.lock" setup.cfg pyproject.toml && pwd; } | cksum
}

fresh() {
  [ "$(cat "$venv/$1.stamp" 2> /dev/null)" = "$(wanted "$1")" ] &&
    "$venv/bin/python" -c '' 2> /dev/null
}

same_python() {
  local version='import sys; print(sys.base_prefix, sys.version)'
  [ -z "${PYTHON:-}" ] ||
    [ "$("$python" -c "$version")" = "$("$venv/bin/python" -c "$version" 2> /dev/null)" ]
}

pip_install() {
  local cause='pip failed'
  local offline='NewConnectionError|NameResolutionError|Connect(ion)?Timeout|ReadTimeout|ProxyError'
  "$venv/bin/python" -m pip install --disable-pip-version-check --no-input \
    --no-build-isolation "$@" >> "$log" 2>&1 && return
  if grep -qE "$offline" "$log"; then cause='packages cannot be downloaded: no network?'; fi
  if grep -q 'No space left on device' "$log"; then cause='the disk is full'; fi
  fail "$cause (details: $log)"
}

install() {
  echo "fewshot: installing requirements/$1.lock into $venv ..."
  pip_install --require-hashes -r "requirements/$1.lock"
  pip_install --no-deps --no-index --editable .
  wanted "$1" > "$venv/stamp.tmp"
  mv "$venv/stamp.tmp" "$venv/$1.stamp"
}

# Starts from nothing: what an interrupted pip has left looks installed to the next one.
create() {
  [ -n "${python:-}" ] || find_python
  rm -rf "$venv"
  "$python" -m venv "$venv" > /dev/null 2>&1 || fail "$python -m venv $venv failed"
  install quickstart
}

main() {
  python=
  [ -z "${PYTHON:-}" ] || find_python
  if ! fresh quickstart || ! same_python || [ -e "$venv/partial" ]; then create; fi
  if [ "$1" = test ] && ! fresh test; then
    [ ! -e "$venv/test.stamp" ] || create
    touch "$venv/partial"
    install test
    rm "$venv/partial"
  fi
}

main "$@"
