# Everything this project does, one verb each; `make help` lists them. Each sets up what it needs, inside the checkout.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# A Python 3.11 or 3.12; PYTHON=… chooses another.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
# uv's cache stays in the checkout too: its files are hard links to those in .venv, so they take no room twice.
export UV_CACHE_DIR := $(CURDIR)/.cache/uv
export UV_LINK_MODE := hardlink
export MPLCONFIGDIR := $(CURDIR)/.cache/matplotlib
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME

DEMO_RUN := runs/digits
DEMO_STATE := .imgcls/demo
TESTS ?=

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make the locked environment in .venv, or mend it (the other verbs make it by themselves)
	@rm -f $(VENV)/.ready
	@$(MAKE) --no-print-directory $(VENV)/.ready

# uv comes from pip, with the version and the hashes of the lock; all else comes through uv.
$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v in {(3, 11), (3, 12)} else f"error: $(PYTHON) is Python {v[0]}.{v[1]}; expected 3.11 or 3.12; give one with make PYTHON=…")'
	@echo "setting up $(VENV) from requirements.lock (once; about 6 GB, most of it torch's CUDA libraries)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@sed -n '/^uv==/,/^ *# via/p' requirements.lock > $(VENV)/uv.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps --require-hashes -r $(VENV)/uv.lock
	@$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

COMPILE := $(BIN)/uv pip compile pyproject.toml --universal --generate-hashes --python-version 3.11 --no-header --quiet

lock: $(VENV)/.ready ## resolve pyproject.toml anew into the locks
	$(COMPILE) --all-extras --upgrade --output-file requirements.lock
	$(COMPILE) --extra serve --extra gpu --extra gateway --extra lock --constraints requirements.lock --output-file requirements-serve.lock

demo: $(VENV)/.ready ## train, evaluate, pack, serve and ask: the whole road on handwritten digits
	@BIN=$(BIN) RUN=$(DEMO_RUN) STATE=$(DEMO_STATE) ./recipes/demo.sh

demo-rollout: $(VENV)/.ready ## roll a bad version, which is caught, and a good one, under load; in about two minutes
	@BIN=$(BIN) ./recipes/rollout.sh

serve: $(VENV)/.ready ## serve model_store/imgcls.mar until Ctrl-C (the demo's model is made where there is none)
	@test -f model_store/imgcls.mar || BIN=$(BIN) RUN=$(DEMO_RUN) STATE=$(DEMO_STATE) ./recipes/demo.sh --build-only
	@exec $(BIN)/imgcls serve --foreground

cifar10: $(VENV)/.ready ## the CIFAR-10 recipe: train, build, serve, compare 2,000 answers (CIFAR10=path of the images)
	@BIN=$(BIN) ./recipes/cifar10.sh $(CIFAR10)

test: $(VENV)/.ready ## unit tests and tests against a real TorchServe (TESTS=… chooses)
ifdef TESTS
	@$(BIN)/python -m pytest $(TESTS)
else
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --max-worker-restart 0 --dist loadfile tests/unit
	@$(BIN)/python -m pytest --numprocesses 2 --max-worker-restart 0 --dist loadfile tests/server
endif

# What waits for servers beside what computes; the second gives way to the first, which measures latencies.
COMPUTING := $(patsubst %,tests/slow/test_%.py,compiled_engine coverage_fuzz distributed kill reproducible tune_training two_nodes)

test-slow: $(VENV)/.ready ## the tests that take minutes
ifdef TESTS
	@$(BIN)/python -m pytest $(TESTS)
else
	@$(MAKE) --no-print-directory --jobs 2 test-slow-serving test-slow-computing
endif

test-slow-serving: $(VENV)/.ready
	@$(BIN)/python -m pytest $(COMPUTING:%=--ignore=%) tests/slow

test-slow-computing: $(VENV)/.ready
	@nice -n 10 $(BIN)/python -m pytest $(COMPUTING)

lint: $(VENV)/.ready ## formatting, lint, types, arrows between packages, shell
	@$(BIN)/ruff format --check --quiet . || { echo "error: run make format"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/shellcheck build_mar.sh recipes/*.sh .ci/run

opinions: $(VENV)/.ready ## let modelaudit judge our Python anew, after a change of model/ or handler/
	@$(BIN)/python -m imgcls.archive.ship_opinions

format: $(VENV)/.ready ## format the code
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

bench: $(VENV)/.ready ## measure serving, beside other servers, and archives, as ratios in one run (IMAGES=folder of JPEGs)
	@$(BIN)/python -m bench serve $(if $(IMAGES),--images $(IMAGES))
	@$(BIN)/python -m bench archive

clean: ## remove what was built and trained, not the environment
	rm -rf runs model_store/*.mar .imgcls .mypy_cache .ruff_cache .pytest_cache .import_linter_cache logs

.PHONY: help setup lock demo demo-rollout serve cifar10 test test-slow test-slow-serving test-slow-computing lint opinions format bench clean
